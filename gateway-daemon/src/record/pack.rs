//! Bytes on their way to the disk: cut into chunks at message boundaries, compressed where it pays, named by a digest.

use std::cell::RefCell;

use super::block::{Hash, VALUE_LIMIT, sha256};

/// Raw bytes of one chunk. A chunk that does not compress still fills one value of the store and no more.
pub(super) const CHUNK: usize = VALUE_LIMIT;
/// What is shorter is not worth a call of the compressor.
const COMPRESS_FROM: usize = 256;
/// Stored bytes up to which a chunk lies in the log itself, where `log` passes over it for nothing.
pub(super) const INLINE: usize = 1024;
/// After a chunk that did not compress, so many are stored as they are before another is tried.
const REST: u8 = 15;
const LEVEL: i32 = 1;

/// How a chunk's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub(super) enum Coding {
    #[n(0)]
    Raw,
    #[n(1)]
    Zstd,
}

/// One chunk, its bytes at the end of the caller's buffer.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) raw_len: u32,
    pub(super) coding: Coding,
    /// Where the stored bytes lie in the piece's buffer.
    pub(super) start: usize,
    pub(super) end: usize,
    /// Of the stored bytes; absent for what lies in the log, which its block's hash covers.
    pub(super) sha256: Option<Hash>,
}

thread_local! {
    /// One a thread, not one a session: an idle session owns no compressor.
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

/// Packs chunks, and remembers whether compressing pays.
#[derive(Debug, Default)]
pub(super) struct Packer {
    rest: u8,
}

impl Packer {
    /// Appends the stored form of `raw` (at most [`CHUNK`] bytes) to `data`.
    pub(super) fn pack(&mut self, raw: &[u8], data: &mut Vec<u8>) -> Packed {
        let start = data.len();
        let coding = if self.compress(raw, data) { Coding::Zstd } else { Coding::Raw };
        if coding == Coding::Raw {
            data.truncate(start);
            data.extend_from_slice(raw);
        }
        let stored = data.get(start..).unwrap_or_default();
        let sha256 = (stored.len() > INLINE).then(|| sha256(&[stored]));
        Packed { raw_len: u32::try_from(raw.len()).unwrap_or(u32::MAX), coding, start, end: data.len(), sha256 }
    }

    fn compress(&mut self, raw: &[u8], data: &mut Vec<u8>) -> bool {
        if raw.len() < COMPRESS_FROM {
            return false;
        }
        if let Some(rest) = self.rest.checked_sub(1) {
            self.rest = rest;
            return false;
        }
        // A chunk that would grow does not fit, fails, and is stored as it is.
        let before = data.len();
        let room = raw.len() - raw.len() / 16;
        data.resize(before + room, 0);
        let written = COMPRESSOR.with_borrow_mut(|slot| {
            let compressor = match slot {
                Some(compressor) => compressor,
                None => slot.insert(zstd::bulk::Compressor::new(LEVEL).ok()?),
            };
            compressor.compress_to_buffer(raw, data.get_mut(before..)?).ok()
        });
        data.truncate(before + written.unwrap_or(0));
        if written.is_none() && raw.len() > CHUNK / 2 {
            self.rest = REST;
        }
        written.is_some()
    }
}

/// Undoes [`Packer::pack`].
pub(super) fn unpack(coding: Coding, raw_len: u32, stored: &[u8]) -> Result<Vec<u8>, String> {
    let raw_len = usize::try_from(raw_len).unwrap_or(usize::MAX);
    if raw_len > CHUNK {
        return Err(format!("a chunk of {raw_len} bytes, at most {CHUNK} are written"));
    }
    let raw = match coding {
        Coding::Raw => stored.to_vec(),
        Coding::Zstd => zstd::bulk::decompress(stored, raw_len).map_err(|error| error.to_string())?,
    };
    if raw.len() == raw_len { Ok(raw) } else { Err(format!("a chunk of {} bytes, {raw_len} were written", raw.len())) }
}

/// How many of `bytes` go into a chunk that has `room` left: up to the last message boundary that fits. `inside` bytes at
/// the front belong to a message that began before. 0 when nothing whole fits.
///
/// `PostgreSQL` frames (a tag, then a length that counts itself). Bytes of another protocol give boundaries that mean
/// nothing and do no harm: a cut is never wrong, only less readable.
pub(super) fn whole_messages(bytes: &[u8], inside: usize, room: usize) -> usize {
    let (mut next, mut whole) = (inside, 0);
    while next <= room && next <= bytes.len() {
        whole = next;
        let Some(len) = message_len(bytes, next) else { break };
        next = next.saturating_add(len);
    }
    whole
}

/// The length of the message that begins at `at`, its header included; `None` when the header is cut off or absurd.
pub(super) fn message_len(bytes: &[u8], at: usize) -> Option<usize> {
    let header = bytes.get(at..)?.first_chunk::<5>()?;
    let [_, len @ ..] = header;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    (len >= 4).then(|| len.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Vec<u8> {
        let mut bytes = vec![b'D'];
        bytes.extend_from_slice(&u32::try_from(len - 1).unwrap().to_be_bytes());
        bytes.resize(len, b'x');
        bytes
    }

    #[test]
    fn a_chunk_ends_where_a_message_ends() {
        let bytes = [message(10), message(20), message(30)].concat();
        for (room, whole) in [(9, 0), (10, 10), (29, 10), (30, 30), (59, 30), (60, 60), (100, 60)] {
            assert_eq!(whole_messages(&bytes, 0, room), whole, "room {room}");
        }
        assert_eq!(whole_messages(&bytes[4..], 6, 26), 26, "the rest of the first and the second");
    }

    #[test]
    fn what_does_not_compress_is_stored_as_it_is_and_not_tried_again_at_once() {
        let mut random = vec![0u8; CHUNK];
        let mut state = 1u64;
        for byte in &mut random {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = state.to_be_bytes()[0];
        }
        let (mut packer, mut data) = (Packer::default(), Vec::new());
        let packed = packer.pack(&random, &mut data);
        assert_eq!((packed.coding, data.len()), (Coding::Raw, CHUNK));
        let text = vec![b'a'; CHUNK];
        assert_eq!(packer.pack(&text, &mut data).coding, Coding::Raw);
        for _ in 0..REST {
            packer.pack(&text, &mut data);
        }
        let packed = packer.pack(&text, &mut data);
        assert_eq!(packed.coding, Coding::Zstd);
        assert_eq!(unpack(packed.coding, packed.raw_len, &data[packed.start..packed.end]).unwrap(), text);
    }
}
