//! What the agent sends after start-up, decoded without copying. What the server could read otherwise than we do is an
//! error, never a guess.

use super::frame::{FieldError, Fields};

/// Bytes of a prepared statement's or a portal's name that a server keeps: its tables of them have keys of `NAMEDATALEN`,
/// zero byte included.
pub const MAX_NAME_BYTES: usize = 63;

/// One message from the agent, borrowed from the caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// `Q`: may hold several statements.
    Query {
        /// The text.
        sql: &'a str,
    },
    /// `P`
    Parse {
        /// The prepared statement's name; empty for the unnamed one.
        name: &'a str,
        /// The text: one statement at most, which the server sees to.
        sql: &'a str,
        /// Type OIDs of the parameters, four bytes each, as far as the agent gives them.
        types: &'a [u8],
    },
    /// `B`
    Bind(Bind<'a>),
    /// `D`
    Describe {
        /// Of what.
        target: Target<'a>,
    },
    /// `E`; the limit on rows is the server's affair.
    Execute {
        /// The portal's name.
        portal: &'a str,
    },
    /// `C`
    Close {
        /// Of what.
        target: Target<'a>,
    },
    /// `S`
    Sync,
    /// `H`
    Flush,
    /// `c`
    CopyDone,
    /// `f`
    CopyFail,
    /// `F`: runs a function by its OID, without a statement. Never forwarded, so its body isn't looked at.
    FunctionCall,
    /// `X`
    Terminate,
}

/// A prepared statement or a portal, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A prepared statement.
    Statement(&'a str),
    /// A portal.
    Portal(&'a str),
}

/// The fields of a Bind message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// The portal to make.
    pub portal: &'a str,
    /// The prepared statement to bind.
    pub statement: &'a str,
    /// Format codes, two bytes each: none, one for all, or one for each parameter.
    formats: &'a [u8],
    /// How many parameters follow.
    parameters: usize,
    /// Their lengths and values.
    values: &'a [u8],
    /// Format codes of the result's columns, two bytes each: none, one for all, or one for each.
    results: &'a [u8],
}

/// A message that is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrontendError {
    /// The type is none that a frontend sends now, or one that Weir refuses on principle.
    #[error("a message of type `{}` is not forwarded", tag.escape_ascii())]
    Tag {
        /// The type.
        tag: u8,
    },
    /// A name that the server would cut, so that two names become one.
    #[error("the name of a prepared statement or portal has {length} bytes; a server keeps {MAX_NAME_BYTES}")]
    Name {
        /// Its length.
        length: usize,
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
}

/// Decodes one whole message. CopyData (`d`) is not among them: it passes as a stream.
///
/// # Errors
/// Anything that is not exactly one message of the protocol.
pub fn decode(tag: u8, body: &[u8]) -> Result<Message<'_>, FrontendError> {
    match tag {
        b'F' => Ok(Message::FunctionCall),
        b'Q' | b'P' | b'B' | b'D' | b'E' | b'C' | b'S' | b'H' | b'c' | b'f' | b'X' => {
            let message = fields(tag, Fields::new(body)).map_err(|error| FrontendError::Body { tag, error })?;
            match message.names().into_iter().map(str::len).find(|&length| length > MAX_NAME_BYTES) {
                Some(length) => Err(FrontendError::Name { length }),
                None => Ok(message),
            }
        }
        _ => Err(FrontendError::Tag { tag }),
    }
}

fn fields(tag: u8, mut fields: Fields<'_>) -> Result<Message<'_>, FieldError> {
    let message = match tag {
        b'Q' => Message::Query { sql: fields.text()? },
        b'P' => {
            let (name, sql) = (fields.text()?, fields.text()?);
            let count = fields.count16()?;
            Message::Parse { name, sql, types: fields.bytes(count.saturating_mul(4))? }
        }
        b'B' => Message::Bind(bind(&mut fields)?),
        b'D' => Message::Describe { target: target(&mut fields)? },
        b'E' => {
            let portal = fields.text()?;
            fields.int32()?;
            Message::Execute { portal }
        }
        b'C' => Message::Close { target: target(&mut fields)? },
        b'f' => {
            fields.text()?;
            Message::CopyFail
        }
        b'S' => Message::Sync,
        b'H' => Message::Flush,
        b'c' => Message::CopyDone,
        _ => Message::Terminate,
    };
    fields.end()?;
    Ok(message)
}

fn target<'a>(fields: &mut Fields<'a>) -> Result<Target<'a>, FieldError> {
    match fields.byte()? {
        b'S' => Ok(Target::Statement(fields.text()?)),
        b'P' => Ok(Target::Portal(fields.text()?)),
        other => Err(FieldError::Value { value: other.into() }),
    }
}

fn bind<'a>(fields: &mut Fields<'a>) -> Result<Bind<'a>, FieldError> {
    let (portal, statement) = (fields.text()?, fields.text()?);
    let count = fields.count16()?;
    let formats = fields.bytes(count.saturating_mul(2))?;
    let parameters = fields.count16()?;
    // The server refuses any other number of format codes; so do we, since they say how a value is read.
    if count > 1 && count != parameters {
        return Err(FieldError::Count { count: i32::try_from(count).unwrap_or(i32::MAX) });
    }
    let start = fields.rest();
    for _ in 0..parameters {
        value(fields)?;
    }
    let values = start.split_at_checked(start.len() - fields.rest().len()).ok_or(FieldError::Cut)?.0;
    let results = fields.count16()?;
    let results = fields.bytes(results.saturating_mul(2))?;
    Ok(Bind { portal, statement, formats, parameters, values, results })
}

/// One length-prefixed value; `None` is NULL (-1).
fn value<'a>(fields: &mut Fields<'a>) -> Result<Option<&'a [u8]>, FieldError> {
    match fields.int32()? {
        -1 => Ok(None),
        length => {
            let length = usize::try_from(length).map_err(|_| FieldError::Count { count: length })?;
            fields.bytes(length).map(Some)
        }
    }
}

impl<'a> Message<'a> {
    /// Bytes of the longest name in it.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn longest_name(&self) -> usize {
        self.names().into_iter().map(str::len).max().unwrap_or_default()
    }

    /// The names of prepared statements and portals in it; empty where it has fewer than two.
    const fn names(&self) -> [&'a str; 2] {
        match self {
            Self::Parse { name, .. }
            | Self::Describe { target: Target::Statement(name) | Target::Portal(name) }
            | Self::Execute { portal: name }
            | Self::Close { target: Target::Statement(name) | Target::Portal(name) } => [name, ""],
            Self::Bind(bind) => [bind.portal, bind.statement],
            Self::Query { .. }
            | Self::Sync
            | Self::Flush
            | Self::CopyDone
            | Self::CopyFail
            | Self::FunctionCall
            | Self::Terminate => ["", ""],
        }
    }
}

impl<'a> Bind<'a> {
    /// The parameters in order, `None` for NULL.
    pub fn parameters(&self) -> impl Iterator<Item = Option<&'a [u8]>> + use<'a> {
        let mut fields = Fields::new(self.values);
        // `decode` walked them already, so none fails here; a failure would end the list, not a promise.
        (0..self.parameters).map_while(move |_| value(&mut fields).ok())
    }

    /// One format code for each parameter: 0 text, 1 binary.
    pub fn formats(&self) -> impl Iterator<Item = u16> + use<'a> {
        let codes = self.formats;
        (0..self.parameters).map(move |n| {
            let at = if codes.len() == 2 { 0 } else { n * 2 };
            match codes.get(at..at + 2) {
                Some(&[high, low]) => u16::from_be_bytes([high, low]),
                _ => 0,
            }
        })
    }

    /// The format codes of the result's columns as they were sent: none for all text, one for all, or one for each.
    pub fn results(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.results.as_chunks().0.iter().map(|code| u16::from_be_bytes(*code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_string_behind_the_query_is_refused() {
        assert_eq!(
            decode(b'Q', b"SELECT 1\0DROP\0"),
            Err(FrontendError::Body { tag: b'Q', error: FieldError::Trailing { extra: 5 } })
        );
    }

    #[test]
    fn function_calls_and_unknown_types_are_refused() {
        assert_eq!(decode(b'F', b""), Ok(Message::FunctionCall));
        for tag in [b'p', b'd', b'z', 0, 255] {
            assert_eq!(decode(tag, b""), Err(FrontendError::Tag { tag }));
        }
    }

    #[test]
    fn parameters_come_out_as_they_were_bound() {
        let body = b"portal\0stmt\0\0\x02\0\0\0\x01\0\x02\0\0\0\x02hi\xff\xff\xff\xff\0\x02\0\x01\0\0";
        let Ok(Message::Bind(bind)) = decode(b'B', body) else { panic!("not a Bind") };
        assert_eq!((bind.portal, bind.statement), ("portal", "stmt"));
        assert_eq!(bind.parameters().collect::<Vec<_>>(), [Some(&b"hi"[..]), None]);
        assert_eq!(bind.formats().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(bind.results().collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn names_that_a_server_would_cut_are_refused() {
        let long = "n".repeat(MAX_NAME_BYTES + 1);
        let body = format!("S{long}\0");
        assert_eq!(decode(b'C', body.as_bytes()), Err(FrontendError::Name { length: 64 }));
        let body = format!("{}\0SELECT 1\0\0\0", &long[1..]);
        assert!(decode(b'P', body.as_bytes()).is_ok());
    }

    #[test]
    fn a_value_longer_than_the_message_is_refused() {
        assert!(decode(b'B', b"\0\0\0\0\0\x01\0\0\0\x09short\0\0").is_err());
        assert!(decode(b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0").is_err());
    }
}
