//! A block: events in a row, chained to the block before. See `FORMAT.md`.

use aws_lc_rs::digest;
use minicbor::{Decode, Decoder, Encode, Encoder, bytes::ByteSlice};

use super::{Event, SessionId, Time, pack::Coding};

/// What one value of the store holds at most: redb rounds pages to powers of two, this is what fits 64 KiB.
pub(super) const VALUE_LIMIT: usize = 65_400;
/// An event whose encoding is longer lies in bales, not in the block.
pub(super) const SPILL: usize = 16 * 1024;

const VERSION: u8 = 1;
/// version, hash of the block before, own hash, time of the first event
const HEADER: usize = 1 + 32 + 32 + 8;
/// What a frame adds to its content at most: time (9), kind (1), length of the byte string (5).
const FRAME: usize = 15;

/// A SHA-256.
pub(super) type Hash = [u8; 32];

/// SHA-256 over the parts, one behind the other.
pub(super) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    for (to, from) in hash.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    hash
}

/// Where a chunk lies outside the log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Place {
    #[n(0)]
    pub(super) bale: u64,
    #[n(1)]
    pub(super) offset: u32,
    #[n(2)]
    pub(super) len: u32,
    /// Of the stored bytes.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub(super) sha256: Hash,
}

/// A chunk as a block refers to it: in itself, or in a bale.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Chunk<'b> {
    #[n(0)]
    pub(super) raw_len: u32,
    #[n(1)]
    pub(super) coding: Coding,
    #[b(2)]
    pub(super) inline: Option<&'b ByteSlice>,
    #[n(3)]
    pub(super) place: Option<Place>,
}

/// A part of an answer, or of what the agent sends.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Bytes<'b> {
    #[n(0)]
    pub(super) session: SessionId,
    #[n(1)]
    pub(super) request: u64,
    #[b(2)]
    pub(super) chunk: Chunk<'b>,
}

/// An event too long for a block.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Spilled<'b> {
    #[n(0)]
    pub(super) session: Option<SessionId>,
    #[b(1)]
    pub(super) chunks: Vec<Chunk<'b>>,
}

/// What stands at one sequence number.
#[derive(Debug)]
pub(super) enum Content<'b> {
    Event(Box<Event>),
    Spilled(Spilled<'b>),
    Answer(Bytes<'b>),
    CopyIn(Bytes<'b>),
    /// Written by a later version: its kind, or what the decoder said.
    Unknown(String),
}

pub(super) const KIND_EVENT: u8 = 0;
pub(super) const KIND_SPILLED: u8 = 1;
pub(super) const KIND_ANSWER: u8 = 2;
pub(super) const KIND_COPY_IN: u8 = 3;

/// A block in the making.
#[derive(Debug)]
pub(super) struct Builder {
    pub(super) first: u64,
    previous: Hash,
    /// Time of the frame before.
    time: Time,
    value: Vec<u8>,
}

impl Builder {
    pub(super) fn new(first: u64, previous: Hash, time: Time) -> Self {
        let mut value = Vec::with_capacity(1024);
        value.push(VERSION);
        value.extend_from_slice(&previous);
        value.extend_from_slice(&[0; 32]);
        value.extend_from_slice(&time.0.to_be_bytes());
        Self { first, previous, time, value }
    }

    /// Whether a frame with `len` bytes of content still fits.
    pub(super) const fn fits(&self, len: usize) -> bool {
        self.value.len().saturating_add(len).saturating_add(FRAME) <= VALUE_LIMIT
    }

    pub(super) fn push(&mut self, time: Time, kind: u8, content: &[u8]) {
        let since = time.0.saturating_sub(self.time.0);
        self.time = time;
        let mut to = Encoder::new(&mut self.value);
        // Writing to a `Vec` cannot fail: its error is `Infallible`.
        let _ = to.u64(since).and_then(|to| to.u8(kind)).and_then(|to| to.bytes(content));
    }

    /// The block's value and its hash.
    pub(super) fn finish(mut self) -> (Vec<u8>, Hash) {
        let hash = block_hash(self.first, &self.previous, self.value.get(1 + 64..).unwrap_or_default());
        if let Some(to) = self.value.get_mut(1 + 32..1 + 64) {
            to.copy_from_slice(&hash);
        }
        (self.value, hash)
    }
}

fn block_hash(first: u64, previous: &Hash, rest: &[u8]) -> Hash {
    sha256(&[&[VERSION], &first.to_be_bytes(), previous, rest])
}

/// A block as it was read. Its hash is not yet checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'b> {
    pub(super) first: u64,
    pub(super) previous: Hash,
    pub(super) hash: Hash,
    pub(super) time: Time,
    /// From the time on: what the hash covers besides number and predecessor.
    rest: &'b [u8],
}

/// One frame of a block.
#[derive(Debug)]
pub(super) struct Frame<'b> {
    pub(super) seq: u64,
    pub(super) time: Time,
    pub(super) kind: u8,
    pub(super) content: &'b [u8],
}

impl<'b> Block<'b> {
    pub(super) fn parse(first: u64, value: &'b [u8]) -> Result<Self, String> {
        let cut = || format!("block {first} has {} bytes, its header alone has {HEADER}", value.len());
        let (version, rest) = value.split_first().ok_or_else(cut)?;
        if *version != VERSION {
            return Err(format!("block {first} is of version {version}, this reads {VERSION}"));
        }
        let (previous, rest) = rest.split_first_chunk::<32>().ok_or_else(cut)?;
        let (hash, rest) = rest.split_first_chunk::<32>().ok_or_else(cut)?;
        let time = rest.first_chunk::<8>().ok_or_else(cut)?;
        Ok(Self { first, previous: *previous, hash: *hash, time: Time(u64::from_be_bytes(*time)), rest })
    }

    /// Whether the content is what was written behind the block with the hash `previous`.
    pub(super) fn check(&self) -> Result<(), String> {
        if block_hash(self.first, &self.previous, self.rest) == self.hash {
            Ok(())
        } else {
            Err(format!("the hash of block {} does not match its content", self.first))
        }
    }

    pub(super) fn frames(&self) -> Frames<'b> {
        Frames {
            decoder: Decoder::new(self.rest.get(8..).unwrap_or_default()),
            next: self.first,
            time: self.time,
            broken: false,
        }
    }
}

/// The frames of a block, in order. Ends behind the first error.
#[derive(Debug)]
pub(super) struct Frames<'b> {
    decoder: Decoder<'b>,
    next: u64,
    time: Time,
    broken: bool,
}

impl<'b> Frames<'b> {
    fn frame(&mut self) -> Result<Frame<'b>, minicbor::decode::Error> {
        let since = self.decoder.u64()?;
        let kind = self.decoder.u8()?;
        let content = self.decoder.bytes()?;
        let seq = self.next;
        self.next = seq.saturating_add(1);
        self.time = Time(self.time.0.saturating_add(since));
        Ok(Frame { seq, time: self.time, kind, content })
    }
}

impl<'b> Iterator for Frames<'b> {
    type Item = Result<Frame<'b>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.broken || self.decoder.position() >= self.decoder.input().len() {
            return None;
        }
        let frame = self.frame();
        self.broken = frame.is_err();
        Some(frame.map_err(|error| format!("event {} cannot be read: {error}", self.next)))
    }
}

impl<'b> Frame<'b> {
    /// The session it belongs to.
    pub(super) fn session(&self) -> Option<SessionId> {
        match self.content() {
            Content::Event(event) => event.session(),
            Content::Spilled(spilled) => spilled.session,
            Content::Answer(bytes) | Content::CopyIn(bytes) => Some(bytes.session),
            Content::Unknown(_) => None,
        }
    }

    pub(super) fn content(&self) -> Content<'b> {
        let content = match self.kind {
            KIND_EVENT => minicbor::decode(self.content).map(|event| Content::Event(Box::new(event))),
            KIND_SPILLED => minicbor::decode(self.content).map(Content::Spilled),
            KIND_ANSWER => minicbor::decode(self.content).map(Content::Answer),
            KIND_COPY_IN => minicbor::decode(self.content).map(Content::CopyIn),
            kind => return Content::Unknown(format!("kind {kind}")),
        };
        content.unwrap_or_else(|error| Content::Unknown(error.to_string()))
    }
}
