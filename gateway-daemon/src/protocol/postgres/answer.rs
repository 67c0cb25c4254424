//! Messages that Weir itself sends to the agent, and the stand-ins that it sends to the server.

use bytes::{BufMut, BytesMut};

use super::{startup::CancelKey, version::ProtocolVersion};

/// How grave an error is: whether the session goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the session goes on.
    Error,
    /// The session ends.
    Fatal,
}

/// An error in the protocol's terms (`PostgreSQL` manual, "Error and Notice Message Fields").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// Whether the session goes on.
    pub severity: Severity,
    /// The SQLSTATE, five characters.
    pub sqlstate: &'static str,
    /// What happened.
    pub message: String,
    /// The particulars; left out when empty.
    pub detail: String,
    /// What to do; left out when empty.
    pub hint: String,
    /// Where in the text that the agent just sent, in characters from 1.
    pub position: Option<usize>,
}

/// insufficient_privilege: what a refused statement gets.
pub const REFUSED: &str = "42501";
/// protocol_violation
pub const PROTOCOL_VIOLATION: &str = "08P01";
/// invalid_authorization_specification: no identity, or one that ended.
pub const NO_IDENTITY: &str = "28000";
/// program_limit_exceeded
pub const LIMIT: &str = "54000";
/// configuration_limit_exceeded: the agent has used up an amount.
pub const USED_UP: &str = "53400";
/// io_error: the record cannot be written.
pub const RECORD_FAILED: &str = "58030";
/// admin_shutdown
pub const SHUTDOWN: &str = "57P01";
/// sqlclient_unable_to_establish_sqlconnection: the upstream cannot be reached.
pub const UPSTREAM: &str = "08001";
/// connection_failure: the upstream went away.
pub const UPSTREAM_LOST: &str = "08006";
/// too_many_connections
pub const TOO_MANY: &str = "53300";
/// idle_session_timeout
pub const IDLE: &str = "57P05";

impl ErrorAnswer {
    /// An error that ends the session.
    pub fn fatal(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Fatal,
            sqlstate,
            message: message.into(),
            detail: String::new(),
            hint: String::new(),
            position: None,
        }
    }

    /// The same with a place.
    #[must_use]
    pub const fn at(mut self, position: Option<usize>) -> Self {
        self.position = position;
        self
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same with a detail.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// Appends the ErrorResponse.
    pub fn encode(&self, out: &mut BytesMut) {
        let severity = match self.severity {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        };
        let position = self.position.map(|position| position.to_string()).unwrap_or_default();
        message(out, b'E', |out| {
            for (field, text) in [
                (b'S', severity),
                (b'V', severity),
                (b'C', self.sqlstate),
                (b'M', &*self.message),
                (b'D', &*self.detail),
                (b'H', &*self.hint),
                (b'P', &*position),
            ] {
                if !text.is_empty() {
                    out.put_u8(field);
                    put_text(out, text);
                }
            }
            out.put_u8(0);
        });
    }

    /// The ErrorResponse alone.
    pub fn to_bytes(&self) -> BytesMut {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out
    }
}

/// Appends AuthenticationOk.
pub fn authentication_ok(out: &mut BytesMut) {
    message(out, b'R', |out| out.put_u32(0));
}

/// Appends BackendKeyData.
pub fn backend_key(out: &mut BytesMut, key: &CancelKey) {
    message(out, b'K', |out| {
        out.put_u32(key.process);
        out.put_slice(&key.secret);
    });
}

/// Appends ReadyForQuery with the idle status.
pub fn ready_idle(out: &mut BytesMut) {
    message(out, b'Z', |out| out.put_u8(b'I'));
}

/// Appends NegotiateProtocolVersion: the version that will be spoken, and the extensions that are not known. The version
/// is the whole of it, as PostgreSQL sends it and libpq takes it; the manual had the minor version alone.
pub fn negotiate_version(out: &mut BytesMut, version: ProtocolVersion, extensions: &[String]) {
    message(out, b'v', |out| {
        out.put_u32(version.code());
        out.put_u32(u32::try_from(extensions.len()).unwrap_or(u32::MAX));
        for name in extensions {
            put_text(out, name);
        }
    });
}

/// Appends a Query.
pub fn query(out: &mut BytesMut, sql: &str) {
    message(out, b'Q', |out| put_text(out, sql));
}

/// Appends a Describe of a prepared statement.
pub fn describe_statement(out: &mut BytesMut, name: &str) {
    message(out, b'D', |out| {
        out.put_u8(b'S');
        put_text(out, name);
    });
}

/// Appends a Flush.
pub fn flush(out: &mut BytesMut) {
    message(out, b'H', |_| {});
}

/// Appends a Terminate.
pub fn terminate(out: &mut BytesMut) {
    message(out, b'X', |_| {});
}

fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    body(out);
    // Our own messages are far below 4 GiB; one that were not would be refused by its reader.
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(at..at + 4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// A zero byte would end the field early, and what follows be read as another.
fn put_text(out: &mut BytesMut, text: &str) {
    out.extend(text.bytes().filter(|&byte| byte != 0));
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_fields_and_no_empty_one() {
        let answer = ErrorAnswer::fatal(REFUSED, "no\0pe").hint("ask");
        let bytes = answer.to_bytes();
        assert_eq!(&bytes[..], b"E\0\0\0\x25SFATAL\0VFATAL\0C42501\0Mnope\0Hask\0\0");
        assert_eq!(usize::from(bytes[4]), bytes.len() - 1);
        let bytes = answer.at(Some(12)).to_bytes();
        assert!(bytes.ends_with(b"Hask\0P12\0\0"), "{bytes:?}");
    }

    #[test]
    fn a_negotiation_names_the_whole_version_and_each_extension() {
        let mut out = BytesMut::new();
        negotiate_version(&mut out, ProtocolVersion::V3_2, &["_pq_.a".to_owned(), "_pq_.b".to_owned()]);
        assert_eq!(&out[..], b"v\0\0\0\x1a\0\x03\0\x02\0\0\0\x02_pq_.a\0_pq_.b\0");
    }
}
