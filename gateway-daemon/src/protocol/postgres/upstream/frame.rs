//! Messages of the server, one at a time, without I/O.

use std::ffi::CStr;

use bytes::{Bytes, BytesMut};

use super::{
    super::frame::{self, FrameError, HEADER, Header, MessageLimit},
    error::Failure,
};

/// One message of the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its type.
    pub(super) tag: u8,
    /// The whole message as it came, type and length included.
    pub(super) raw: Bytes,
}

impl Frame {
    /// What stands behind type and length.
    pub(super) fn body(&self) -> &[u8] {
        self.raw.get(HEADER..).unwrap_or_default()
    }
}

/// Takes the first message off `buf`; `None` asks for more. `limit` bounds the length that a message claims.
pub(super) fn take_frame(buf: &mut BytesMut, limit: usize) -> Result<Option<Frame>, Failure> {
    let header = Header::decode(buf, MessageLimit { bytes: limit, name: "" }).map_err(|error| match error {
        FrameError::Short { tag, claimed } | FrameError::Long { tag, claimed, .. } => Failure::MessageLength {
            tag: char::from(tag),
            length: usize::try_from(claimed).unwrap_or(usize::MAX),
            limit,
        },
    })?;
    match header {
        Some(header) if buf.len() >= header.frame() => {
            Ok(Some(Frame { tag: header.tag, raw: buf.split_to(header.frame()).freeze() }))
        }
        Some(_) | None => Ok(None),
    }
}

/// The fields of a message's body, taken from its front; whatever is wrong with one is the message's fault.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    fields: frame::Fields<'a>,
    tag: u8,
}

impl<'a> Fields<'a> {
    pub(super) fn of(frame: &'a Frame) -> Self {
        Self { fields: frame::Fields::new(frame.body()), tag: frame.tag }
    }

    pub(super) fn i32(&mut self) -> Result<i32, Failure> {
        self.fields.int32().map_err(|_| self.malformed())
    }

    pub(super) fn u16(&mut self) -> Result<u16, Failure> {
        self.fields.int16().map(i16::cast_unsigned).map_err(|_| self.malformed())
    }

    pub(super) fn byte(&mut self) -> Result<u8, Failure> {
        self.fields.byte().map_err(|_| self.malformed())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Failure> {
        self.slice(N)?.try_into().map_err(|_| self.malformed())
    }

    pub(super) fn slice(&mut self, length: usize) -> Result<&'a [u8], Failure> {
        self.fields.bytes(length).map_err(|_| self.malformed())
    }

    /// A string up to its NUL. Servers may send other encodings before the client's is settled.
    pub(super) fn text(&mut self) -> Result<String, Failure> {
        let text = CStr::from_bytes_until_nul(self.fields.rest()).map_err(|_| self.malformed())?;
        self.slice(text.count_bytes().saturating_add(1))?;
        Ok(text.to_string_lossy().into_owned())
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.fields.rest()
    }

    pub(super) fn end(self) -> Result<(), Failure> {
        self.fields.end().map_err(|_| self.malformed())
    }

    pub(super) fn malformed(&self) -> Failure {
        Failure::Malformed { tag: char::from(self.tag) }
    }
}

/// Appends a message: type, length, and what `body` appends.
pub(super) fn put_message(out: &mut Vec<u8>, tag: u8, body: &[u8]) -> Result<(), Failure> {
    out.push(tag);
    put_counted(out, body)
}

/// Appends a length that counts itself, then `body`.
pub(super) fn put_counted(out: &mut Vec<u8>, body: &[u8]) -> Result<(), Failure> {
    let length = i32::try_from(body.len().saturating_add(4)).map_err(|_| Failure::TooLongToSend)?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
    Ok(())
}
