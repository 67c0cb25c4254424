//! From a block's frames back to events: chunks are fetched from their bales, checked and unpacked.

use std::path::Path;

use redb::ReadableTable;

use super::{
    Answer, Event, StoreError,
    block::{Bytes, Chunk, Content, Frame, Place, sha256},
    pack::unpack,
    window::{at, damaged},
};

/// Where a frame's bytes lie outside the log.
pub(super) fn places(frame: &Frame<'_>) -> Vec<Place> {
    match frame.content() {
        Content::Answer(bytes) | Content::CopyIn(bytes) => bytes.chunk.place.into_iter().collect(),
        Content::Spilled(spilled) => spilled.chunks.into_iter().filter_map(|chunk| chunk.place).collect(),
        Content::Event(_) | Content::Unknown(_) => Vec::new(),
    }
}

/// The stored bytes at a place, checked against their digest.
pub(super) fn stored(
    bales: &impl ReadableTable<u64, &'static [u8]>,
    place: &Place,
    path: &Path,
) -> Result<Vec<u8>, StoreError> {
    let missing = || damaged(path, format!("bale {} lacks bytes {} + {}", place.bale, place.offset, place.len));
    let bale = bales.get(place.bale).map_err(at(path))?.ok_or_else(missing)?;
    let start = usize::try_from(place.offset).map_err(|_| missing())?;
    let len = usize::try_from(place.len).map_err(|_| missing())?;
    let bytes = bale.value().get(start..).and_then(|rest| rest.get(..len)).ok_or_else(missing)?;
    if sha256(&[bytes]) != place.sha256 {
        return Err(damaged(path, format!("bytes {start} + {len} of bale {} are not what was written", place.bale)));
    }
    Ok(bytes.to_vec())
}

/// A chunk's bytes as they were appended.
pub(super) fn raw(
    bales: &impl ReadableTable<u64, &'static [u8]>,
    chunk: &Chunk<'_>,
    path: &Path,
) -> Result<Vec<u8>, StoreError> {
    let stored = match (&chunk.inline, &chunk.place) {
        (Some(bytes), None) => bytes.to_vec(),
        (None, Some(place)) => stored(bales, place, path)?,
        (Some(_), Some(_)) | (None, None) => {
            return Err(damaged(path, "a chunk lies nowhere or twice".into()));
        }
    };
    unpack(chunk.coding, chunk.raw_len, &stored).map_err(|cause| damaged(path, cause))
}

/// A spilled event, put together again.
pub(super) fn spilled(
    bales: &impl ReadableTable<u64, &'static [u8]>,
    chunks: &[Chunk<'_>],
    path: &Path,
) -> Result<Event, StoreError> {
    let mut encoded = Vec::new();
    for chunk in chunks {
        encoded.extend_from_slice(&raw(bales, chunk, path)?);
    }
    minicbor::decode(&encoded).map_err(|error| damaged(path, format!("a long event cannot be read: {error}")))
}

/// A part of an answer with its bytes.
pub(super) fn answer(
    bales: &impl ReadableTable<u64, &'static [u8]>,
    bytes: &Bytes<'_>,
    path: &Path,
) -> Result<Answer, StoreError> {
    Ok(Answer { session: bytes.session, request: bytes.request, bytes: raw(bales, &bytes.chunk, path)? })
}
