//! What can go wrong between Weir and a server, for people: what, on which connection, and what to do.

use std::{error::Error, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use super::{
    client::ClientCertificateError,
    frame::{Fields, Frame},
    roots::TlsMode,
};
use crate::secret::SecretError;

/// A connection to a server that failed. Never holds a secret.
#[derive(Debug)]
pub struct UpstreamError {
    /// The connection's configured name.
    pub connection: Arc<str>,
    /// The server's address.
    pub address: SocketAddr,
    /// What happened.
    pub failure: Failure,
}

impl UpstreamError {
    /// Everything in one line: what happened, its causes, and what to do.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        if let Some(help) = self.failure.help() {
            text.push_str(" (");
            text.push_str(help);
            text.push(')');
        }
        text
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection `{}`, server {}: {}", self.connection, self.address, self.failure)
    }
}

impl Error for UpstreamError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.failure.source() // the failure itself is in our own words already
    }
}

/// Where in its beginning a connection stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Fetching the credential.
    Credential,
    /// Connecting by TCP.
    Tcp,
    /// Waiting for the answer to SSLRequest.
    TlsRequest,
    /// In the TLS handshake.
    TlsHandshake,
    /// Authenticating, up to AuthenticationOk.
    Authentication,
    /// Between AuthenticationOk and ReadyForQuery.
    Greeting,
    /// Waiting for the answer to a statement of Weir's own.
    Query,
    /// Asking for a cancel.
    Cancel,
}

/// What happened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// No TCP connection.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("the connection broke {phase}")]
    Broken {
        /// When.
        phase: Phase,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server ended the connection.
    #[error("the server closed the connection {phase}")]
    Closed {
        /// When.
        phase: Phase,
    },
    /// Too slow.
    #[error("no answer within {limit:?} {phase}")]
    Deadline {
        /// When.
        phase: Phase,
        /// The limit for the whole beginning.
        limit: Duration,
    },
    /// The credential cannot be had.
    #[error("the credential cannot be had")]
    Credential(#[source] Arc<SecretError>),
    /// There is no certificate to show.
    #[error("the client certificate cannot be used")]
    ClientCertificate(#[source] Arc<ClientCertificateError>),
    /// The server refuses the certificate that Weir shows.
    #[error("the server refuses Weir's client certificate: {alert}")]
    ClientCertificateRefused {
        /// In words.
        alert: &'static str,
    },
    /// The server has no TLS.
    #[error("tls is `{mode}`, but the server does not offer TLS")]
    NoTls {
        /// What is configured.
        mode: TlsMode,
    },
    /// The answer to SSLRequest is neither yes nor no. Its text is not shown: nobody vouches for it (CVE-2024-10977).
    #[error("the server answered the request for TLS with byte 0x{byte:02x}, which is neither yes nor no")]
    TlsAnswer {
        /// The first byte of the answer.
        byte: u8,
    },
    /// Bytes in the clear behind the answer to SSLRequest: someone between injects them (CVE-2021-23222).
    #[error("{count} bytes in the clear came behind the server's answer to the request for TLS")]
    Stuffed {
        /// How many.
        count: usize,
    },
    /// The host cannot be a server's name.
    #[error("`{host}` is neither a host name nor an address, so it cannot be verified")]
    HostName {
        /// The configured host.
        host: Arc<str>,
    },
    /// The server's certificate is not accepted.
    #[error("tls is `{mode}`: {fault}")]
    Certificate {
        /// What is configured.
        mode: TlsMode,
        /// What is wrong with the certificate.
        fault: String,
    },
    /// TLS failed for another reason.
    #[error("TLS failed")]
    Handshake(#[source] io::Error),
    /// The server refused.
    #[error("the server says {severity} {sqlstate}: {message}")]
    Server {
        /// `ERROR`, `FATAL` or `PANIC`.
        severity: String,
        /// Five characters.
        sqlstate: String,
        /// The server's own words, unescaped.
        message: String,
    },
    /// The server asks for a password and there is none.
    #[error("the server asks for a password, and the connection has none")]
    NoPassword,
    /// The password would travel readable, or to a server that nobody has verified.
    #[error(
        "the server asks for the password in the clear, which is given under `verify-ca` or `verify-full` only (tls is `{mode}`)"
    )]
    ClearPassword {
        /// What is configured.
        mode: TlsMode,
    },
    /// A method that Weir does not speak.
    #[error("the server asks for {method} authentication, which is not supported")]
    Method {
        /// Its name.
        method: &'static str,
    },
    /// A method that no manual knows.
    #[error("the server asks for authentication of unknown kind {code}")]
    UnknownMethod {
        /// The request's code.
        code: i32,
    },
    /// SASL without a mechanism that Weir speaks.
    #[error("the server offers no SASL mechanism that is supported (SCRAM-SHA-256, SCRAM-SHA-256-PLUS)")]
    Mechanisms,
    /// SCRAM failed.
    #[error("SCRAM authentication failed")]
    Scram(#[source] io::Error),
    /// Channel binding is required, and the server did without.
    #[error("channel binding is required, but {why}")]
    NoChannelBinding {
        /// Why there is none.
        why: &'static str,
    },
    /// The start-up packet would be refused or misread.
    #[error("start-up parameter `{name}` {fault}")]
    Parameter {
        /// Its name.
        name: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The server does not take UTF-8 from us: it would read statements otherwise than Weir.
    #[error("client_encoding is `{encoding}` at the server, not UTF8")]
    Encoding {
        /// What the server said; empty when it said nothing.
        encoding: String,
    },
    /// The server takes backslashes in constants for escapes: it would read statements otherwise than Weir.
    #[error("standard_conforming_strings is `{setting}` at the server, not on")]
    Strings {
        /// What the server said; empty when it said nothing.
        setting: String,
    },
    /// A message's length is out of bounds.
    #[error("message `{tag}` claims {length} bytes, outside 4..={limit}", tag = .tag.escape_default())]
    MessageLength {
        /// Its type.
        tag: char,
        /// The claim.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Too many messages before ReadyForQuery.
    #[error("more than {limit} messages before ReadyForQuery")]
    Messages {
        /// The limit.
        limit: usize,
    },
    /// The fields of a message do not fit it.
    #[error("message `{tag}` is malformed", tag = .tag.escape_default())]
    Malformed {
        /// Its type.
        tag: char,
    },
    /// A message that has no place there.
    #[error("message `{tag}` came {phase}, where it has no place", tag = .tag.escape_default())]
    Unexpected {
        /// Its type.
        tag: char,
        /// When.
        phase: Phase,
    },
    /// The server negotiates what was not asked for.
    #[error("the server negotiates a protocol version or extension that was not asked for")]
    ProtocolVersion,
    /// The statement of Weir's own gave more than it may.
    #[error("the answer has more than {limit} {unit}")]
    AnswerLimit {
        /// The limit.
        limit: usize,
        /// Of what: rows or bytes.
        unit: &'static str,
    },
    /// A value of the answer is not UTF-8.
    #[error("a value of the answer is not UTF-8")]
    AnswerText,
    /// Something of ours does not fit a message.
    #[error("a message to the server would be longer than a message can be")]
    TooLongToSend,
}

impl Failure {
    /// What to do about it, where that can be said.
    pub fn help(&self) -> Option<&'static str> {
        Some(match self {
            Self::Connect(_) => "is the server running, and are host and port right?",
            Self::NoTls { .. } => {
                "set `ssl = on` in the server's postgresql.conf; `tls = \"disable\"` only where nobody else can be on the way"
            }
            Self::Stuffed { .. } | Self::TlsAnswer { .. } => {
                "someone on the way may be changing the bytes, or the port is not PostgreSQL's"
            }
            Self::Certificate { .. } => {
                "set `ca_file` to the CA that signed the server's certificate, and `host` to a name that stands in its subjectAltName"
            }
            Self::HostName { .. } => "set `host` to the server's name or address",
            Self::ClientCertificateRefused { .. } => {
                "set `client_cert_file` and `client_key_file` to a certificate of a CA in the server's `ssl_ca_file`"
            }
            Self::Server { sqlstate, message, .. } if sqlstate == "28000" && message.contains("client certificate") => {
                "set `client_cert_file` and `client_key_file`; the server's pg_hba.conf asks for them"
            }
            Self::Server { sqlstate, message, .. } if sqlstate == "28000" && message.contains("ertificate auth") => {
                "the certificate's common name must be the role, or be mapped to it in the server's pg_ident.conf"
            }
            Self::NoPassword => "set `password` for the connection",
            Self::ClearPassword { .. } => "set `tls = \"verify-full\"`, or `scram-sha-256` in the server's pg_hba.conf",
            Self::Method { .. } | Self::UnknownMethod { .. } | Self::Mechanisms => {
                "use `scram-sha-256` in the server's pg_hba.conf for Weir's role"
            }
            Self::NoChannelBinding { .. } => {
                "use `hostssl` with `scram-sha-256` in the server's pg_hba.conf, or `channel_binding = \"prefer\"`"
            }
            Self::Encoding { .. } => "the server's role or a pooler on the way sets client_encoding: take that away",
            Self::Strings { .. } => {
                "the server's role or a pooler on the way sets standard_conforming_strings: take that away"
            }
            Self::Server { sqlstate, .. } if sqlstate == "28P01" => "check `user` and `password` of the connection",
            Self::Server { sqlstate, .. } if sqlstate == "28000" => {
                "check the server's pg_hba.conf for Weir's role, database and address"
            }
            _ => return None,
        })
    }

    /// Whether another password could help.
    pub(super) fn is_wrong_password(&self) -> bool {
        match self {
            Self::Server { sqlstate, .. } => sqlstate == "28P01",
            Self::Scram(_) => true,
            _ => false,
        }
    }

    /// Whether it may be about the start-up message's version, as a first answer: feature_not_supported is
    /// PostgreSQL's, protocol_violation pgbouncer's.
    pub(super) fn may_mean_the_version(&self) -> bool {
        matches!(self, Self::Server { sqlstate, .. } if matches!(sqlstate.as_str(), "0A000" | "08P01"))
    }

    /// Whether the server is not there, or not yet: another may be.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Broken { .. } | Self::Closed { .. } => true,
            Self::Deadline { phase, .. } => *phase != Phase::Credential,
            // cannot_connect_now, admin_shutdown, crash_shutdown
            Self::Server { sqlstate, .. } => matches!(sqlstate.as_str(), "57P03" | "57P01" | "57P02"),
            _ => false,
        }
    }

    /// Whether the server was there and went away.
    pub(super) const fn is_an_end(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::Broken { .. })
    }

    /// An ErrorResponse.
    pub(super) fn from_response(frame: &Frame) -> Self {
        let mut fields = Fields::of(frame);
        let (mut severity, mut sqlstate, mut message) = (String::new(), String::new(), String::new());
        loop {
            match fields.byte() {
                Ok(0) => break,
                Ok(kind) => {
                    let Ok(text) = fields.text() else { return fields.malformed() };
                    match kind {
                        b'V' => severity = text, // never translated, unlike `S`
                        b'S' if severity.is_empty() => severity = text,
                        b'C' => sqlstate = text,
                        b'M' => message = text,
                        _ => {} // detail, hint, file, line: the log of the server has them
                    }
                }
                Err(malformed) => return malformed,
            }
        }
        Self::Server { severity, sqlstate, message }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Credential => "while fetching the credential",
            Self::Tcp => "while connecting",
            Self::TlsRequest => "after the request for TLS",
            Self::TlsHandshake => "in the TLS handshake",
            Self::Authentication => "while authenticating",
            Self::Greeting => "before ReadyForQuery",
            Self::Query => "in the answer to a statement",
            Self::Cancel => "while cancelling",
        })
    }
}
