//! Messages of the server, one at a time, without I/O.

use std::ffi::CStr;

use bytes::{Buf, Bytes, BytesMut};

use super::error::Failure;

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

/// Type and length.
const HEADER: usize = 5;

/// Takes the first message off `buf`; `None` asks for more. `limit` bounds the length that a message claims.
pub(super) fn take_frame(buf: &mut BytesMut, limit: usize) -> Result<Option<Frame>, Failure> {
    let Some((&[tag, length @ ..], _)) = buf.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    // Judged before the body is waited for: a length is only the peer's claim.
    if !(4..=limit).contains(&length) {
        return Err(Failure::MessageLength { tag: char::from(tag), length, limit });
    }
    let whole = length.saturating_add(1); // the length leaves out the type
    if buf.len() < whole {
        return Ok(None);
    }
    let raw = buf.split_to(whole).freeze();
    Ok(Some(Frame { tag, raw }))
}

/// The fields of a message's body, taken from its front.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    tag: u8,
}

impl<'a> Fields<'a> {
    pub(super) fn of(frame: &'a Frame) -> Self {
        Self { rest: frame.body(), tag: frame.tag }
    }

    pub(super) fn i32(&mut self) -> Result<i32, Failure> {
        let value = self.rest.try_get_i32();
        value.map_err(|_| self.malformed())
    }

    pub(super) fn u16(&mut self) -> Result<u16, Failure> {
        let value = self.rest.try_get_u16();
        value.map_err(|_| self.malformed())
    }

    pub(super) fn byte(&mut self) -> Result<u8, Failure> {
        let value = self.rest.try_get_u8();
        value.map_err(|_| self.malformed())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Failure> {
        let chunk = self.slice(N)?;
        chunk.try_into().map_err(|_| self.malformed())
    }

    pub(super) fn slice(&mut self, length: usize) -> Result<&'a [u8], Failure> {
        let taken = self.rest.split_off(..length);
        taken.ok_or_else(|| self.malformed())
    }

    /// A string up to its NUL. Servers may send other encodings before the client's is settled.
    pub(super) fn text(&mut self) -> Result<String, Failure> {
        let text = CStr::from_bytes_until_nul(self.rest).map_err(|_| self.malformed())?;
        self.rest.advance(text.count_bytes().saturating_add(1));
        Ok(text.to_string_lossy().into_owned())
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn end(self) -> Result<(), Failure> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed()) }
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
