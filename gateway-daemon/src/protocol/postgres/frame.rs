//! The frame of every message after start-up: a tag, a length that counts itself, a body
//! (`PostgreSQL` manual, "Message Formats").

/// Bytes of a frame's header: tag and length.
pub const HEADER: usize = 5;

/// A frame's header, its length already judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The message type.
    pub tag: u8,
    /// Bytes of the body, header left out.
    pub body: usize,
}

/// A frame that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is below its own size.
    #[error("a message of type `{}` claims {claimed} bytes, less than its own length field", tag.escape_ascii())]
    Short {
        /// The message type.
        tag: u8,
        /// The length field.
        claimed: u32,
    },
    /// The length is over the limit.
    #[error("a message of type `{}` claims {claimed} bytes, over the limit of {limit} ({name})", tag.escape_ascii())]
    Long {
        /// The message type.
        tag: u8,
        /// The length field.
        claimed: u32,
        /// The limit in bytes.
        limit: usize,
        /// The limit's name in the configuration.
        name: &'static str,
    },
}

/// A limit on a message's length, with the name under which it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageLimit {
    /// Bytes, the length field included.
    pub bytes: usize,
    /// Where to change it.
    pub name: &'static str,
}

impl Header {
    /// The header at the front of `buf`, or `None` when it is not whole yet.
    ///
    /// # Errors
    /// A length below four or over `limit`: judged before the body is waited for, since it is only the peer's claim.
    pub fn decode(buf: &[u8], limit: MessageLimit) -> Result<Option<Self>, FrameError> {
        let Some((&[tag, len @ ..], _)) = buf.split_first_chunk::<HEADER>() else { return Ok(None) };
        let claimed = u32::from_be_bytes(len);
        let length = usize::try_from(claimed).unwrap_or(usize::MAX);
        if length > limit.bytes {
            return Err(FrameError::Long { tag, claimed, limit: limit.bytes, name: limit.name });
        }
        match length.checked_sub(4) {
            Some(body) => Ok(Some(Self { tag, body })),
            None => Err(FrameError::Short { tag, claimed }),
        }
    }

    /// Bytes of the whole frame.
    pub const fn frame(self) -> usize {
        HEADER + self.body
    }
}

/// Reads fields from a message's body; every reader fails when the body is too short.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// A body that does not have the fields of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The body ends within a field.
    #[error("a field is cut off")]
    Cut,
    /// A string is not UTF-8, which is what the agent's side speaks.
    #[error("a text field is not UTF-8")]
    Encoding,
    /// There is more than the type has fields.
    #[error("{extra} bytes after the last field")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A count or length is negative where it may not be.
    #[error("a count of {count} makes no sense")]
    Count {
        /// As sent.
        count: i32,
    },
    /// A field has a value that the protocol does not know.
    #[error("a field has the value {value}, which the protocol does not know")]
    Value {
        /// As sent.
        value: i32,
    },
}

impl<'a> Fields<'a> {
    /// Over a whole body.
    pub const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// What has not been read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// [`FieldError::Cut`]
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], FieldError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(FieldError::Cut)?;
        self.rest = rest;
        Ok(head)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`FieldError::Cut`]
    pub fn byte(&mut self) -> Result<u8, FieldError> {
        let (&head, rest) = self.rest.split_first().ok_or(FieldError::Cut)?;
        self.rest = rest;
        Ok(head)
    }

    /// A 16-bit integer.
    ///
    /// # Errors
    /// [`FieldError::Cut`]
    pub fn int16(&mut self) -> Result<i16, FieldError> {
        let (&head, rest) = self.rest.split_first_chunk::<2>().ok_or(FieldError::Cut)?;
        self.rest = rest;
        Ok(i16::from_be_bytes(head))
    }

    /// A 32-bit integer.
    ///
    /// # Errors
    /// [`FieldError::Cut`]
    pub fn int32(&mut self) -> Result<i32, FieldError> {
        let (&head, rest) = self.rest.split_first_chunk::<4>().ok_or(FieldError::Cut)?;
        self.rest = rest;
        Ok(i32::from_be_bytes(head))
    }

    /// A 16-bit count. The manual calls it signed; servers read it as unsigned.
    ///
    /// # Errors
    /// [`FieldError::Cut`]
    pub fn count16(&mut self) -> Result<usize, FieldError> {
        Ok(self.int16()?.cast_unsigned().into())
    }

    /// A string up to its zero byte.
    ///
    /// # Errors
    /// [`FieldError::Cut`], [`FieldError::Encoding`]
    pub fn text(&mut self) -> Result<&'a str, FieldError> {
        let end = memchr_zero(self.rest).ok_or(FieldError::Cut)?;
        let text = self.bytes(end)?;
        self.byte()?;
        std::str::from_utf8(text).map_err(|_| FieldError::Encoding)
    }

    /// That nothing is left.
    ///
    /// # Errors
    /// [`FieldError::Trailing`]
    pub const fn end(self) -> Result<(), FieldError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(FieldError::Trailing { extra }),
        }
    }
}

fn memchr_zero(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: MessageLimit = MessageLimit { bytes: 64, name: "limits.message_bytes" };

    #[test]
    fn a_header_waits_for_its_five_bytes() {
        for cut in 0..HEADER {
            assert_eq!(Header::decode(&b"Q\0\0\0\x04"[..cut], LIMIT), Ok(None));
        }
        assert_eq!(Header::decode(b"Q\0\0\0\x04", LIMIT), Ok(Some(Header { tag: b'Q', body: 0 })));
    }

    #[test]
    fn a_length_outside_its_bounds_is_refused_before_the_body_comes() {
        assert!(matches!(Header::decode(b"Q\0\0\0\x03", LIMIT), Err(FrameError::Short { claimed: 3, .. })));
        assert!(matches!(Header::decode(b"Q\xff\xff\xff\xff", LIMIT), Err(FrameError::Long { .. })));
        assert!(matches!(Header::decode(b"Q\0\0\0\x41", LIMIT), Err(FrameError::Long { claimed: 65, .. })));
    }

    #[test]
    fn a_field_never_reads_past_the_body() {
        assert_eq!(Fields::new(b"abc").text(), Err(FieldError::Cut));
        assert_eq!(Fields::new(b"\xff\0").text(), Err(FieldError::Encoding));
        assert_eq!(Fields::new(b"\0").int16(), Err(FieldError::Cut));
        assert_eq!(Fields::new(b"\xff\xff").count16(), Ok(65_535));
        assert_eq!(Fields::new(b"x").end(), Err(FieldError::Trailing { extra: 1 }));
    }
}
