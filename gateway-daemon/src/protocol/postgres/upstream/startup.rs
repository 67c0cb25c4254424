//! Start-up and authentication without I/O: the server's bytes in, bytes to send out.
//!
//! ```text
//! Asked ──R/0─────────────────────────► Greeting ──Z──► done
//!   ├──R/3 cleartext, R/5 md5──► Answered ──R/0──►┘
//!   └──R/10 SASL──► First ──R/11──► Final ──R/12──► Verified ──R/0──►┘
//! ```
//!
//! Anything else is an error, and an error stays. AuthenticationOk is taken only where an arrow shows it: a server
//! that breaks off SCRAM has not proved that it knows the password.

use std::{fmt, sync::Arc};

use bytes::{BufMut, BytesMut};
use postgres_protocol::authentication::{
    md5_hash,
    sasl::{self, ScramSha256},
};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::{
    super::version::ProtocolVersion,
    AuthKind, BackendKey, ChannelBinding, Greeting, StartupParameters,
    error::{Failure, Phase},
    frame::{Fields, Frame, put_counted, put_message, take_frame},
    roots::TlsMode,
};

/// The longest message taken before ReadyForQuery, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// The most messages taken before ReadyForQuery. PostgreSQL 18 sends about twenty.
pub const MAX_MESSAGES: usize = 512;

/// The longest start-up packet that the server reads (MAX_STARTUP_PACKET_LENGTH in its pqcomm.h), in bytes.
pub const MAX_STARTUP_PACKET: usize = 10_000;

/// Settings that are Weir's own to send, or would carry other settings past those who judge them.
const RESERVED: [&str; 7] = [
    "user",
    "database",
    "application_name",
    "client_encoding",
    "standard_conforming_strings",
    "replication",
    "options",
];

/// What authentication may use.
#[derive(Debug, Clone)]
pub struct Means {
    /// The role.
    pub user: Arc<str>,
    /// Its password.
    pub password: Option<SecretString>,
    /// How the connection below is protected.
    pub transport: Transport,
    /// Whether the server must take part in channel binding.
    pub channel_binding: ChannelBinding,
}

/// How the connection is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// Not at all.
    Plain,
    /// By TLS.
    Tls {
        /// What was verified.
        mode: TlsMode,
        /// Data for channel binding, where the certificate gives any.
        end_point: Option<Vec<u8>>,
    },
}

/// What to do next.
pub enum Progress {
    /// Read more.
    More,
    /// Send this, then read more. Zeroized, since it may hold the password.
    Send(Zeroizing<Vec<u8>>),
    /// ReadyForQuery has come.
    Ready(AuthKind, Greeting),
}

/// The conversation from StartupMessage to ReadyForQuery.
#[derive(Debug)]
pub struct Startup {
    means: Means,
    state: State,
    messages: usize,
    /// What was asked for, until the server negotiates less.
    version: ProtocolVersion,
}

/// What the server is expected to say.
enum State {
    /// A request for authentication, or that none is needed.
    Asked,
    /// That the password is right.
    Answered(AuthKind),
    /// SCRAM's server-first-message.
    First(Box<ScramSha256>, AuthKind),
    /// SCRAM's server-final-message, with its signature.
    Final(Box<ScramSha256>, AuthKind),
    /// AuthenticationOk behind a verified signature.
    Verified(AuthKind),
    /// Parameters, key, notices and ReadyForQuery.
    Greeting(AuthKind, Pieces),
    /// Nothing any more.
    Ended,
}

/// The greeting as it comes.
#[derive(Debug, Default)]
struct Pieces {
    greeting: Greeting,
    parameter_frames: BytesMut,
    notice_frames: BytesMut,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::More => f.write_str("More"),
            Self::Send(bytes) => write!(f, "Send({} bytes)", bytes.len()),
            Self::Ready(kind, greeting) => f.debug_tuple("Ready").field(kind).field(greeting).finish(),
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "Asked",
            Self::Answered(_) => "Answered",
            Self::First(..) => "First",
            Self::Final(..) => "Final",
            Self::Verified(_) => "Verified",
            Self::Greeting(..) => "Greeting",
            Self::Ended => "Ended",
        })
    }
}

impl Startup {
    /// Begins the conversation, with the StartupMessage to send.
    ///
    /// # Errors
    /// A parameter that is reserved, holds NUL or makes the packet longer than the server reads.
    pub fn new(
        means: Means,
        parameters: &StartupParameters,
        version: ProtocolVersion,
    ) -> Result<(Self, Vec<u8>), Failure> {
        let packet = startup_message(&means.user, parameters, version)?;
        Ok((Self { means, state: State::Asked, messages: 0, version }, packet))
    }

    /// How many messages have come.
    pub const fn messages(&self) -> usize {
        self.messages
    }

    /// Takes whole messages off `buf`, up to the first that calls for an answer or ends the conversation.
    ///
    /// # Errors
    /// The server's refusal, or why its words are not accepted. Every later message fails as well.
    pub fn receive(&mut self, buf: &mut BytesMut) -> Result<Progress, Failure> {
        loop {
            let state = std::mem::replace(&mut self.state, State::Ended);
            let Some(frame) = take_frame(buf, MAX_MESSAGE)? else {
                self.state = state;
                return Ok(Progress::More);
            };
            self.messages = self.messages.saturating_add(1);
            if self.messages > MAX_MESSAGES {
                return Err(Failure::Messages { limit: MAX_MESSAGES });
            }
            let (next, progress) = self.step(state, &frame)?;
            self.state = next;
            match progress {
                Progress::More => {}
                Progress::Send(_) | Progress::Ready(..) => return Ok(progress),
            }
        }
    }

    /// Where the conversation stands, for messages.
    pub const fn phase(&self) -> Phase {
        match self.state {
            State::Greeting(..) => Phase::Greeting,
            State::Asked
            | State::Answered(_)
            | State::First(..)
            | State::Final(..)
            | State::Verified(_)
            | State::Ended => Phase::Authentication,
        }
    }

    /// Whether the next message is answered with a proof of the password, which is long to compute.
    pub const fn will_prove(&self) -> bool {
        matches!(self.state, State::First(..))
    }

    fn step(&mut self, state: State, frame: &Frame) -> Result<(State, Progress), Failure> {
        match (frame.tag, state) {
            (b'E', _) => Err(Failure::from_response(frame)),
            (b'v', State::Asked) => {
                self.version = negotiated(self.version, frame)?;
                Ok((State::Asked, Progress::More))
            }
            (b'R', state) => self.authentication(state, frame),
            (_, State::Greeting(kind, pieces)) => greeting(kind, pieces, frame, self.version),
            (_, _) => Err(Failure::Unexpected { tag: char::from(frame.tag), phase: Phase::Authentication }),
        }
    }

    /// Authentication requests (manual, "Message Formats": AuthenticationOk and those after it).
    fn authentication(&self, state: State, frame: &Frame) -> Result<(State, Progress), Failure> {
        let mut fields = Fields::of(frame);
        let unexpected = || Failure::Unexpected { tag: 'R', phase: Phase::Authentication };
        match (fields.i32()?, state) {
            (0, State::Asked) => {
                fields.end()?;
                self.let_in(AuthKind::Trust)
            }
            (0, State::Answered(kind) | State::Verified(kind)) => {
                fields.end()?;
                self.let_in(kind)
            }
            (3, State::Asked) => {
                fields.end()?;
                self.cleartext()
            }
            (5, State::Asked) => {
                let salt = fields.array::<4>()?;
                fields.end()?;
                self.md5(salt)
            }
            (10, State::Asked) => self.sasl(fields),
            (11, State::First(mut scram, kind)) => {
                scram.update(fields.rest()).map_err(Failure::Scram)?;
                let answer = message(b'p', scram.message())?;
                Ok((State::Final(scram, kind), Progress::Send(answer)))
            }
            (12, State::Final(mut scram, kind)) => {
                scram.finish(fields.rest()).map_err(Failure::Scram)?;
                Ok((State::Verified(kind), Progress::More))
            }
            (2, State::Asked) => Err(Failure::Method { method: "Kerberos 5" }),
            (6, State::Asked) => Err(Failure::Method { method: "SCM credential" }),
            (7 | 8, State::Asked) => Err(Failure::Method { method: "GSSAPI" }),
            (9, State::Asked) => Err(Failure::Method { method: "SSPI" }),
            (code, State::Asked) => Err(Failure::UnknownMethod { code }),
            (_, _) => Err(unexpected()),
        }
    }

    /// AuthenticationOk.
    fn let_in(&self, kind: AuthKind) -> Result<(State, Progress), Failure> {
        match (self.means.channel_binding, kind) {
            (ChannelBinding::Prefer, _) | (ChannelBinding::Require, AuthKind::ScramPlus) => {
                Ok((State::Greeting(kind, Pieces::default()), Progress::More))
            }
            (ChannelBinding::Require, _) => Err(Failure::NoChannelBinding { why: "the server let Weir in without it" }),
        }
    }

    fn cleartext(&self) -> Result<(State, Progress), Failure> {
        self.unbound_allowed()?;
        let mode = match &self.means.transport {
            Transport::Plain => TlsMode::Disable,
            Transport::Tls { mode, .. } => *mode,
        };
        match mode {
            TlsMode::VerifyCa | TlsMode::VerifyFull => {
                let mut text = Zeroizing::new(self.password()?.as_bytes().to_vec());
                text.push(0);
                Ok((State::Answered(AuthKind::Cleartext), Progress::Send(message(b'p', &text)?)))
            }
            TlsMode::Disable | TlsMode::Require => Err(Failure::ClearPassword { mode }),
        }
    }

    fn md5(&self, salt: [u8; 4]) -> Result<(State, Progress), Failure> {
        self.unbound_allowed()?;
        let mut hash =
            Zeroizing::new(md5_hash(self.means.user.as_bytes(), self.password()?.as_bytes(), salt).into_bytes());
        hash.push(0);
        Ok((State::Answered(AuthKind::Md5), Progress::Send(message(b'p', &hash)?)))
    }

    /// AuthenticationSASL: a list of mechanisms.
    fn sasl(&self, mut fields: Fields<'_>) -> Result<(State, Progress), Failure> {
        let (mut plain, mut plus) = (false, false);
        loop {
            match fields.text()?.as_str() {
                "" => break,
                sasl::SCRAM_SHA_256 => plain = true,
                sasl::SCRAM_SHA_256_PLUS => plus = true,
                _ => {} // a later server's: not chosen
            }
        }
        fields.end()?;
        let (name, binding, kind) = self.mechanism(plain, plus)?;
        let scram = ScramSha256::new(self.password()?.as_bytes(), binding);
        let mut body = Zeroizing::new(Vec::new());
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        put_counted_payload(&mut body, scram.message())?;
        Ok((State::First(Box::new(scram), kind), Progress::Send(message(b'p', &body)?)))
    }

    /// RFC 5802 chapter 6: `y` tells a server that does support channel binding that someone took it off the list.
    fn mechanism(&self, plain: bool, plus: bool) -> Result<(&'static str, sasl::ChannelBinding, AuthKind), Failure> {
        let bound = match &self.means.transport {
            Transport::Plain => None,
            Transport::Tls { end_point, .. } => Some(end_point.as_ref()),
        };
        match (bound, plain, plus) {
            (Some(Some(hash)), _, true) => {
                let binding = sasl::ChannelBinding::tls_server_end_point(hash.clone());
                Ok((sasl::SCRAM_SHA_256_PLUS, binding, AuthKind::ScramPlus))
            }
            (Some(Some(_)), true, false) => {
                self.unbound_allowed()?;
                Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested(), AuthKind::Scram))
            }
            (Some(None) | None, true, _) => {
                self.unbound_allowed()?;
                Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported(), AuthKind::Scram))
            }
            (_, false, _) => Err(Failure::Mechanisms),
        }
    }

    /// Before the password serves a method without channel binding.
    fn unbound_allowed(&self) -> Result<(), Failure> {
        let why = match (self.means.channel_binding, &self.means.transport) {
            (ChannelBinding::Prefer, _) => return Ok(()),
            (ChannelBinding::Require, Transport::Plain) => "the connection is not under TLS",
            (ChannelBinding::Require, Transport::Tls { end_point: None, .. }) => {
                "the signature of the server's certificate defines none (RFC 5929)"
            }
            (ChannelBinding::Require, Transport::Tls { end_point: Some(_), .. }) => "the server does not offer it",
        };
        Err(Failure::NoChannelBinding { why })
    }

    fn password(&self) -> Result<&str, Failure> {
        self.means.password.as_ref().map(ExposeSecret::expose_secret).ok_or(Failure::NoPassword)
    }
}

/// NegotiateProtocolVersion: the newest version that the server speaks, and the options that it does not know. No option
/// was sent, so none can be unknown; and what was asked for can only become less.
fn negotiated(asked: ProtocolVersion, frame: &Frame) -> Result<ProtocolVersion, Failure> {
    let mut fields = Fields::of(frame);
    let newest = fields.i32()?;
    let options = fields.i32()?;
    fields.end()?;
    // The manual had the minor version alone, PostgreSQL sends both halves.
    let version = match newest {
        0 | 0x0003_0000 => ProtocolVersion::V3_0,
        2 | 0x0003_0002 => ProtocolVersion::V3_2,
        _ => return Err(Failure::ProtocolVersion),
    };
    if version <= asked && options == 0 { Ok(version) } else { Err(Failure::ProtocolVersion) }
}

/// What comes between AuthenticationOk and ReadyForQuery.
fn greeting(
    kind: AuthKind,
    mut pieces: Pieces,
    frame: &Frame,
    version: ProtocolVersion,
) -> Result<(State, Progress), Failure> {
    let mut fields = Fields::of(frame);
    match frame.tag {
        b'S' => {
            let (name, value) = (fields.text()?, fields.text()?);
            fields.end()?;
            pieces.greeting.parameters.insert(name, value);
            pieces.parameter_frames.put_slice(&frame.raw);
        }
        b'N' => pieces.notice_frames.put_slice(&frame.raw),
        b'K' => {
            let process = fields.i32()?;
            let malformed = fields.malformed();
            let secret = fields.rest();
            if !version.takes_secret_of(secret.len()) {
                return Err(malformed);
            }
            pieces.greeting.key = Some(BackendKey { process, secret: secret.into() });
        }
        b'Z' => {
            if frame.body() != b"I" {
                return Err(fields.malformed()); // no transaction has begun
            }
            return Ok((State::Ended, Progress::Ready(kind, pieces.finish()?)));
        }
        tag => return Err(Failure::Unexpected { tag: char::from(tag), phase: Phase::Greeting }),
    }
    Ok((State::Greeting(kind, pieces), Progress::More))
}

impl Pieces {
    fn finish(self) -> Result<Greeting, Failure> {
        let parameter = |name| self.greeting.parameters.get(name).map_or("", String::as_str);
        let encoding = parameter("client_encoding");
        // In another encoding a byte of a character may be a quote or a backslash.
        if !encoding.eq_ignore_ascii_case("UTF8") && !encoding.eq_ignore_ascii_case("UTF-8") {
            return Err(Failure::Encoding { encoding: encoding.to_owned() });
        }
        // With `off` a backslash may keep a quote from ending a constant.
        let strings = parameter("standard_conforming_strings");
        if strings != "on" {
            return Err(Failure::Strings { setting: strings.to_owned() });
        }
        Ok(Greeting {
            parameter_frames: self.parameter_frames.freeze(),
            notice_frames: self.notice_frames.freeze(),
            ..self.greeting
        })
    }
}

fn startup_message(user: &str, parameters: &StartupParameters, version: ProtocolVersion) -> Result<Vec<u8>, Failure> {
    let fault = |name: &str, fault| Failure::Parameter { name: name.to_owned(), fault };
    let own = [
        ("user", user),
        ("database", parameters.database.as_str()),
        ("application_name", parameters.application_name.as_str()),
        ("client_encoding", "UTF8"),
        ("standard_conforming_strings", "on"),
    ];
    for (name, _) in &parameters.settings {
        let lower = name.to_ascii_lowercase();
        if RESERVED.contains(&lower.as_str()) || lower.starts_with("_pq_.") || name.is_empty() {
            return Err(fault(name, "is not for sessions to set"));
        }
    }
    let settings = parameters.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut body = version.code().to_be_bytes().to_vec();
    for (name, value) in own.into_iter().chain(settings) {
        if name.contains('\0') || value.contains('\0') {
            return Err(fault(name, "holds a NUL byte"));
        }
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        if body.len() >= MAX_STARTUP_PACKET.saturating_sub(4) {
            return Err(fault(name, "makes the start-up packet longer than the server reads"));
        }
    }
    body.push(0);
    let mut packet = Vec::with_capacity(body.len().saturating_add(4));
    put_counted(&mut packet, &body)?;
    Ok(packet)
}

fn message(tag: u8, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut out = Zeroizing::new(Vec::with_capacity(body.len().saturating_add(5)));
    put_message(&mut out, tag, body)?;
    Ok(out)
}

/// SASLInitialResponse counts its payload without the count itself.
fn put_counted_payload(out: &mut Vec<u8>, payload: &[u8]) -> Result<(), Failure> {
    let length = i32::try_from(payload.len()).map_err(|_| Failure::TooLongToSend)?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

#[cfg(test)]
mod tests;
