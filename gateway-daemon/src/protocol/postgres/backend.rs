//! What the server sends after start-up, as far as the session must read it.

use super::frame::{FieldError, Fields};

/// A message that a server may not send, or not here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The type is not one of the protocol's, or has no place here.
    #[error("a message of type `{}` has no place here", tag.escape_ascii())]
    Unexpected {
        /// The type.
        tag: u8,
    },
    /// The body does not have the fields of its type.
    #[error("a message of type `{}`: {error}", tag.escape_ascii())]
    Body {
        /// The type.
        tag: u8,
        /// What is wrong.
        #[source]
        error: FieldError,
    },
    /// A setting that changes how statements are read took a value that Weir does not read by.
    #[error("the setting `{name}` became `{value}`, by which statements are read otherwise than Weir reads them")]
    Setting {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
}

/// The fields of an ErrorResponse that a session acts on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorFields {
    /// SQLSTATE.
    pub sqlstate: String,
    /// The message.
    pub message: String,
    /// The session ends (FATAL, PANIC).
    pub fatal: bool,
}

/// Reads an ErrorResponse's body. Its texts are in the server's encoding while the session starts, so they are read with
/// replacements: they are shown, never acted on.
///
/// # Errors
/// A body without its closing zero.
pub fn error_fields(body: &[u8]) -> Result<ErrorFields, BackendError> {
    let wrong = |error| BackendError::Body { tag: b'E', error };
    let mut fields = ErrorFields::default();
    let mut rest = body;
    loop {
        let (&kind, tail) = rest.split_first().ok_or_else(|| wrong(FieldError::Cut))?;
        if kind == 0 {
            return Ok(fields);
        }
        let end = tail.iter().position(|&byte| byte == 0).ok_or_else(|| wrong(FieldError::Cut))?;
        let (text, after) = tail.split_at_checked(end).ok_or_else(|| wrong(FieldError::Cut))?;
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => fields.sqlstate = text,
            b'M' => fields.message = text,
            b'V' => fields.fatal = text != "ERROR",
            _ => {}
        }
        rest = after.get(1..).unwrap_or_default();
    }
}

/// Reads CommandComplete's tag.
///
/// # Errors
/// A body that is not one text.
pub fn command_tag(body: &[u8]) -> Result<&str, BackendError> {
    let mut fields = Fields::new(body);
    fields.text().map_err(|error| BackendError::Body { tag: b'C', error })
}

/// Reads a ParameterStatus, and refuses settings by which statements would be read otherwise.
///
/// # Errors
/// See [`BackendError::Setting`].
pub fn parameter_status(body: &[u8]) -> Result<(), BackendError> {
    let mut fields = Fields::new(body);
    let wrong = |error| BackendError::Body { tag: b'S', error };
    let (name, value) = (fields.text().map_err(wrong)?, fields.text().map_err(wrong)?);
    let fine = match name {
        "client_encoding" => value.eq_ignore_ascii_case("UTF8"),
        "standard_conforming_strings" => value == "on",
        _ => true,
    };
    if fine { Ok(()) } else { Err(BackendError::Setting { name: name.to_owned(), value: value.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errors_fields_are_found() {
        let fields = error_fields(b"SERROR\0VERROR\0C42P01\0Mno\xff table\0\0").unwrap();
        assert_eq!((fields.sqlstate.as_str(), fields.fatal), ("42P01", false));
        assert!(error_fields(b"SERROR\0VFATAL\0\0").unwrap().fatal);
        assert!(error_fields(b"SERROR").is_err());
    }

    #[test]
    fn settings_that_change_the_reading_are_refused() {
        assert!(parameter_status(b"standard_conforming_strings\0off\0").is_err());
        assert!(parameter_status(b"client_encoding\0SJIS\0").is_err());
        assert!(parameter_status(b"TimeZone\0UTC\0").is_ok());
    }
}
