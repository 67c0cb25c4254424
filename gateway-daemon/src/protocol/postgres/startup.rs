//! What an agent says first: requests for encryption, a cancel request, or the start-up message
//! (`PostgreSQL` manual, "Message Flow: Start-up", protocols 3.0 to 3.2).

use super::{
    frame::{FieldError, Fields},
    version::{MAX_SECRET, MIN_SECRET, ProtocolVersion},
};

/// The largest start-up packet that a server takes (`MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_STARTUP_BYTES: usize = 10_000;

const MAJOR: u32 = 3;
const CANCEL_REQUEST: u32 = (1234 << 16) | 5678;
const SSL_REQUEST: u32 = (1234 << 16) | 5679;
const GSSENC_REQUEST: u32 = (1234 << 16) | 5680;
/// The first byte of a TLS handshake record: direct negotiation, without an SSLRequest.
const TLS_HANDSHAKE: u8 = 0x16;

/// The first thing that an agent asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Opening {
    /// A TLS ClientHello came straight away; nothing was consumed.
    DirectTls,
    /// SSLRequest: answer `S` and shake hands.
    TlsRequest,
    /// GSSENCRequest: declined with `N`.
    GssRequest,
    /// CancelRequest, with the key that Weir gave out.
    Cancel(CancelKey),
    /// The start-up message.
    Startup(Startup),
}

/// The key of a cancel request: process number and secret.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelKey {
    /// The "process" that BackendKeyData named.
    pub process: u32,
    /// The secret beside it, of 4 to 256 bytes.
    pub secret: Box<[u8]>,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelKey").field("process", &self.process).finish_non_exhaustive()
    }
}

/// A start-up message, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Startup {
    /// The user that the agent asks for; never empty.
    pub user: String,
    /// The database; the user's name where the agent gave none, as the server would take it.
    pub database: String,
    /// The agent's own `application_name`.
    pub application: String,
    /// Other settings, names in lower case, `options` taken apart, in the order given.
    pub settings: Vec<(String, String)>,
    /// The minor protocol version asked for.
    pub minor: u16,
    /// Protocol extensions (`_pq_.*`) asked for: none is known, so each is named in NegotiateProtocolVersion.
    pub extensions: Vec<String>,
}

/// A start-up that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// The length field makes no sense.
    #[error("a start-up packet claims {claimed} bytes; it may have 8 to {MAX_STARTUP_BYTES}")]
    Length {
        /// As sent.
        claimed: u32,
    },
    /// Bytes followed an SSLRequest before the answer: what an interceptor would inject.
    #[error("bytes followed a request for encryption before it was answered")]
    Stuffed,
    /// Not protocol 3.
    #[error("protocol {major}.{minor} is not spoken here; use protocol 3")]
    Version {
        /// As sent.
        major: u16,
        /// As sent.
        minor: u16,
    },
    /// The packet's fields are broken.
    #[error("the start-up packet: {0}")]
    Field(#[from] FieldError),
    /// A cancel request's key has a length that no key has.
    #[error("a cancel request has a secret of {bytes} bytes; it may have {MIN_SECRET} to {MAX_SECRET}")]
    Secret {
        /// As sent.
        bytes: usize,
    },
    /// There is no user.
    #[error("the start-up packet names no user")]
    NoUser,
    /// A replication connection.
    #[error("replication connections are not forwarded")]
    Replication,
    /// A parameter stands twice; which one counts is the server's guess.
    #[error("the start-up parameter `{name}` stands twice")]
    Twice {
        /// Its name.
        name: String,
    },
    /// `options` has something else than `-c name=value`.
    #[error("`options` may hold only `-c name=value`, not `{word}`")]
    Options {
        /// The word that is not understood.
        word: String,
    },
    /// An encoding that Weir does not read.
    #[error("client_encoding `{encoding}` is not spoken here; use UTF8")]
    Encoding {
        /// As sent.
        encoding: String,
    },
}

/// Looks at the front of `buf`: the opening and the bytes it took, or `None` when more is needed.
///
/// # Errors
/// Anything that is not one of the openings.
pub fn decode(buf: &[u8]) -> Result<Option<(Opening, usize)>, StartupError> {
    if buf.first() == Some(&TLS_HANDSHAKE) {
        return Ok(Some((Opening::DirectTls, 0)));
    }
    let Some((&length, rest)) = buf.split_first_chunk::<4>() else { return Ok(None) };
    let claimed = u32::from_be_bytes(length);
    let length = usize::try_from(claimed).unwrap_or(usize::MAX);
    if !(8..=MAX_STARTUP_BYTES).contains(&length) {
        return Err(StartupError::Length { claimed });
    }
    let Some((body, behind)) = rest.split_at_checked(length - 4) else { return Ok(None) };
    let Some((&code, body)) = body.split_first_chunk::<4>() else { return Ok(None) };
    let opening = match u32::from_be_bytes(code) {
        SSL_REQUEST | GSSENC_REQUEST if !behind.is_empty() => return Err(StartupError::Stuffed),
        SSL_REQUEST => Opening::TlsRequest,
        GSSENC_REQUEST => Opening::GssRequest,
        CANCEL_REQUEST => Opening::Cancel(cancel(body)?),
        version if version >> 16 == MAJOR => Opening::Startup(startup(version, body)?),
        version => {
            let [a, b, c, d] = version.to_be_bytes();
            return Err(StartupError::Version { major: u16::from_be_bytes([a, b]), minor: u16::from_be_bytes([c, d]) });
        }
    };
    Ok(Some((opening, length)))
}

/// The secret is all that follows the process: its length says which version the key is of.
fn cancel(body: &[u8]) -> Result<CancelKey, StartupError> {
    let mut fields = Fields::new(body);
    let process = fields.int32()?.cast_unsigned();
    let secret = fields.rest();
    if !(MIN_SECRET..=MAX_SECRET).contains(&secret.len()) {
        return Err(StartupError::Secret { bytes: secret.len() });
    }
    Ok(CancelKey { process, secret: secret.into() })
}

impl Startup {
    /// The version to speak with this agent.
    pub const fn version(&self) -> ProtocolVersion {
        ProtocolVersion::at_most(self.minor)
    }

    /// Whether the agent must be told that it does not get all that it asked for.
    pub fn is_negotiated(&self) -> bool {
        !self.version().is(self.minor) || !self.extensions.is_empty()
    }
}

fn startup(version: u32, body: &[u8]) -> Result<Startup, StartupError> {
    let mut fields = Fields::new(body);
    let [_, _, high, low] = version.to_be_bytes();
    let mut startup = Startup { minor: u16::from_be_bytes([high, low]), ..Startup::default() };
    let mut seen = Vec::new();
    loop {
        let name = fields.text()?;
        if name.is_empty() {
            break;
        }
        let value = fields.text()?;
        if seen.contains(&name) {
            return Err(StartupError::Twice { name: name.to_owned() });
        }
        seen.push(name);
        parameter(&mut startup, name, value)?;
    }
    fields.end()?;
    if startup.user.is_empty() {
        return Err(StartupError::NoUser);
    }
    if startup.database.is_empty() {
        startup.database.clone_from(&startup.user);
    }
    Ok(startup)
}

fn parameter(startup: &mut Startup, name: &str, value: &str) -> Result<(), StartupError> {
    match name {
        "user" => value.clone_into(&mut startup.user),
        "database" => value.clone_into(&mut startup.database),
        "application_name" => value.clone_into(&mut startup.application),
        // `false` and its kin mean no replication; anything else, `database` among them, turns it on.
        "replication" => match value.to_ascii_lowercase().as_str() {
            "false" | "off" | "no" | "0" => {}
            _ => return Err(StartupError::Replication),
        },
        "options" => options(startup, value)?,
        _ if name.starts_with("_pq_.") => startup.extensions.push(name.to_owned()),
        _ => setting(startup, name, value)?,
    }
    Ok(())
}

fn setting(startup: &mut Startup, name: &str, value: &str) -> Result<(), StartupError> {
    let name = name.to_ascii_lowercase();
    if name == "application_name" {
        value.clone_into(&mut startup.application);
        return Ok(());
    }
    // Everything that Weir reads, it reads as UTF-8; the server would translate from anything else.
    if name == "client_encoding" {
        let folded: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
        return match folded.to_ascii_lowercase().as_str() {
            "utf8" | "unicode" => Ok(()),
            _ => Err(StartupError::Encoding { encoding: value.to_owned() }),
        };
    }
    startup.settings.push((name, value.to_owned()));
    Ok(())
}

/// Takes `options` apart as the server's `pg_split_opts` does: words parted by white space, a backslash keeps the next
/// character. Only `-c name=value`, `-cname=value` and `--name=value` are understood.
fn options(startup: &mut Startup, text: &str) -> Result<(), StartupError> {
    let mut words = split_options(text).into_iter();
    while let Some(word) = words.next() {
        let assignment = match word.strip_prefix("--") {
            Some(rest) => rest.to_owned(),
            None => match word.strip_prefix("-c") {
                Some("") => words.next().ok_or_else(|| StartupError::Options { word: word.clone() })?,
                Some(rest) => rest.to_owned(),
                None => return Err(StartupError::Options { word }),
            },
        };
        let Some((name, value)) = assignment.split_once('=') else {
            return Err(StartupError::Options { word: assignment });
        };
        // The server reads dashes in names as underscores.
        setting(startup, &name.replace('-', "_"), value)?;
    }
    Ok(())
}

fn split_options(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        // `isspace` of the C locale.
        if matches!(character, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r') {
            words.extend(word.take());
            continue;
        }
        let kept = if character == '\\' { characters.next() } else { Some(character) };
        word.get_or_insert_default().extend(kept);
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut packet = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
        packet.extend(code.to_be_bytes());
        packet.extend(body);
        packet
    }

    fn started(body: &[u8]) -> Result<Startup, StartupError> {
        match decode(&packet(ProtocolVersion::V3_0.code(), body))? {
            Some((Opening::Startup(startup), _)) => Ok(startup),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_database_is_the_users_name_when_none_is_given() {
        let startup = started(b"user\0ann\0\0").unwrap();
        assert_eq!((startup.user.as_str(), startup.database.as_str()), ("ann", "ann"));
    }

    #[test]
    fn options_become_settings_as_the_server_takes_them_apart() {
        let startup = started(b"user\0a\0options\0-c  work-mem=1MB --geqo=off -cDateStyle=ISO,\\ MDY\0\0").unwrap();
        let settings: Vec<_> = startup.settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(settings, [("work_mem", "1MB"), ("geqo", "off"), ("datestyle", "ISO, MDY")]);
        assert!(matches!(started(b"user\0a\0options\0-d 5\0\0"), Err(StartupError::Options { .. })));
        assert!(matches!(started(b"user\0a\0options\0-c\0\0"), Err(StartupError::Options { .. })));
    }

    #[test]
    fn an_encoding_hidden_in_options_is_refused_like_an_open_one() {
        assert!(matches!(started(b"user\0a\0client_encoding\0SJIS\0\0"), Err(StartupError::Encoding { .. })));
        let hidden = b"user\0a\0options\0--client-encoding=GBK\0\0";
        assert!(matches!(started(hidden), Err(StartupError::Encoding { .. })));
        assert!(started(b"user\0a\0client_encoding\0utf-8\0\0").is_ok());
    }

    #[test]
    fn replication_is_refused_in_every_spelling_that_turns_it_on() {
        for on in ["true", "on", "1", "database", "yes", "TRUE", "t"] {
            let body = format!("user\0a\0replication\0{on}\0\0");
            assert_eq!(started(body.as_bytes()), Err(StartupError::Replication), "{on}");
        }
        assert!(started(b"user\0a\0replication\0off\0\0").is_ok());
    }

    #[test]
    fn a_parameter_that_stands_twice_is_refused() {
        assert!(matches!(started(b"user\0a\0user\0b\0\0"), Err(StartupError::Twice { .. })));
    }

    #[test]
    fn bytes_stuffed_behind_an_encryption_request_are_refused() {
        let mut stuffed = packet(SSL_REQUEST, b"");
        assert_eq!(decode(&stuffed), Ok(Some((Opening::TlsRequest, 8))));
        stuffed.push(b'x');
        assert_eq!(decode(&stuffed), Err(StartupError::Stuffed));
    }

    #[test]
    fn lengths_are_judged_before_bytes_are_waited_for() {
        assert!(matches!(decode(b"\0\0\0\x07"), Err(StartupError::Length { claimed: 7 })));
        assert!(matches!(decode(b"\x7f\xff\xff\xff"), Err(StartupError::Length { .. })));
        assert_eq!(decode(b"\0\0\0\x08"), Ok(None));
        assert!(matches!(decode(&packet(2 << 16, b"")), Err(StartupError::Version { major: 2, .. })));
    }

    #[test]
    fn an_agent_is_given_the_newest_version_that_it_and_weir_speak() {
        use ProtocolVersion::{V3_0, V3_2};
        for (minor, extension, version, negotiated) in [
            (0, "", V3_0, false),
            (0, "_pq_.x\x001\x00", V3_0, true),
            (1, "", V3_0, true), // 3.1 is nobody's
            (2, "", V3_2, false),
            (2, "_pq_.x\x001\x00", V3_2, true),
            (3, "", V3_2, true),
            (9999, "_pq_.test_protocol_negotiation\0\0", V3_2, true),
            (u16::MAX, "", V3_2, true),
        ] {
            let body = format!("user\0a\0{extension}\0");
            let packet = packet(MAJOR << 16 | u32::from(minor), body.as_bytes());
            let Ok(Some((Opening::Startup(startup), _))) = decode(&packet) else { panic!("3.{minor}") };
            assert_eq!((startup.version(), startup.is_negotiated()), (version, negotiated), "3.{minor} {extension}");
            assert_eq!(startup.extensions.len(), usize::from(!extension.is_empty()));
            assert!(startup.settings.is_empty(), "an extension is no setting");
        }
    }

    #[test]
    fn a_cancel_request_has_a_secret_of_any_length_that_a_key_may_have() {
        for (bytes, taken) in [(3, false), (4, true), (5, true), (32, true), (256, true), (257, false), (9000, false)] {
            let body = [&7_u32.to_be_bytes()[..], &vec![0; bytes]].concat();
            match decode(&packet(CANCEL_REQUEST, &body)) {
                Ok(Some((Opening::Cancel(key), used))) => {
                    assert_eq!((key.process, key.secret.len(), used), (7, bytes, bytes + 12));
                    assert!(taken, "{bytes}");
                }
                refused => assert_eq!((refused, taken), (Err(StartupError::Secret { bytes }), false)),
            }
        }
    }
}
