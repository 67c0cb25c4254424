//! What one commit writes: pieces of many sessions become blocks, bales and rows.

use std::{collections::BTreeMap, sync::Arc};

use minicbor::bytes::ByteSlice;

use super::{
    SessionId, Time,
    block::{Builder, Bytes, Chunk, KIND_ANSWER, KIND_COPY_IN, KIND_EVENT, KIND_SPILLED, Place, Spilled, VALUE_LIMIT},
    index::Postings,
    pack::Packed,
    queue::{Direction, Item, Piece, Progress, Role},
    window::{Chain, Rows, SessionRow},
};

/// A batch, ready to be written as often as it takes.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) rows: Rows,
    pub(super) last_seq: u64,
    /// Bytes of all pieces.
    pub(super) bytes: u64,
    pub(super) acks: Vec<Ack>,
}

/// News for one session.
#[derive(Debug)]
pub(super) struct Ack {
    pub(super) progress: Arc<Progress>,
    pub(super) upto: u64,
    pub(super) bytes_upto: u64,
    /// Bytes of the piece.
    pub(super) bytes: u64,
}

/// Makes a batch; moves the chain, the open sessions and the index on.
#[derive(Debug)]
pub(super) struct Maker<'a> {
    chain: &'a mut Chain,
    live: &'a mut BTreeMap<u64, SessionRow>,
    postings: &'a mut Postings,
    now: Time,
    batch: Batch,
    block: Builder,
    bale: Vec<u8>,
    scratch: Vec<u8>,
}

impl<'a> Maker<'a> {
    pub(super) fn new(
        chain: &'a mut Chain,
        live: &'a mut BTreeMap<u64, SessionRow>,
        postings: &'a mut Postings,
        now: Time,
    ) -> Self {
        // Never backwards: a clock that was set back stands still here until it has caught up.
        chain.time = chain.time.max(now);
        Self {
            now: chain.time,
            batch: Batch { rows: Rows::default(), last_seq: 0, bytes: 0, acks: Vec::new() },
            block: Builder::new(chain.next_seq, chain.hash, chain.time),
            bale: Vec::new(),
            scratch: Vec::new(),
            chain,
            live,
            postings,
        }
    }

    pub(super) fn add(&mut self, piece: Piece) {
        for item in &piece.items {
            self.item(item, &piece.data);
        }
        let bytes = u64::try_from(piece.data.len()).unwrap_or(u64::MAX);
        self.batch.bytes = self.batch.bytes.saturating_add(bytes);
        let Piece { progress, upto, bytes_upto, .. } = piece;
        self.batch.acks.push(Ack { progress, upto, bytes_upto, bytes });
    }

    pub(super) fn finish(mut self) -> Batch {
        self.end_block();
        self.end_bale();
        if self.postings.full() {
            self.batch.rows.index = Some((self.chain.next_seq, self.postings.take()));
            self.chain.indexed_to = self.chain.next_seq;
        }
        self.batch.last_seq = self.chain.next_seq.saturating_sub(1);
        self.batch
    }

    fn item(&mut self, item: &Item, data: &[u8]) {
        match item {
            Item::Event { session, role, start, end } => {
                let encoded = data.get(*start..*end).unwrap_or_default();
                self.frame(*session, KIND_EVENT, encoded);
                self.session_row(*session, *role, encoded);
            }
            Item::Spilled { session, role, chunks, encoded } => {
                let chunks = chunks.iter().map(|chunk| self.chunk(chunk, data)).collect();
                self.encoded_frame(*session, KIND_SPILLED, &Spilled { session: *session, chunks });
                self.session_row(*session, *role, encoded);
            }
            Item::Bytes { direction, session, request, chunk } => {
                let kind = match direction {
                    Direction::Answer => KIND_ANSWER,
                    Direction::CopyIn => KIND_COPY_IN,
                };
                let chunk = self.chunk(chunk, data);
                self.encoded_frame(Some(*session), kind, &Bytes { session: *session, request: *request, chunk });
            }
        }
    }

    fn encoded_frame(&mut self, session: Option<SessionId>, kind: u8, content: &impl minicbor::Encode<()>) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        // Writing to a `Vec` cannot fail: its error is `Infallible`.
        let _ = minicbor::encode(content, &mut scratch);
        self.frame(session, kind, &scratch);
        self.scratch = scratch;
    }

    fn frame(&mut self, session: Option<SessionId>, kind: u8, content: &[u8]) {
        if !self.block.fits(content.len()) {
            self.end_block();
        }
        if let Some(session) = session {
            self.postings.add(session.0, self.block.first);
        }
        self.block.push(self.now, kind, content);
        self.chain.next_seq = self.chain.next_seq.saturating_add(1);
    }

    /// Ends the block and begins the next; an empty one is none.
    fn end_block(&mut self) {
        if self.block.first == self.chain.next_seq {
            return;
        }
        let first = self.block.first;
        let next = Builder::new(self.chain.next_seq, self.chain.hash, self.now);
        let (value, hash) = std::mem::replace(&mut self.block, next).finish();
        self.chain.hash = hash;
        self.block = Builder::new(self.chain.next_seq, hash, self.now);
        self.batch.rows.blocks.push((first, value));
    }

    /// Where a chunk lies: short ones in the log itself, the others in bales that are filled up.
    fn chunk<'d>(&mut self, packed: &Packed, data: &'d [u8]) -> Chunk<'d> {
        let Packed { raw_len, coding, start, end, sha256 } = *packed;
        let stored = data.get(start..end).unwrap_or_default();
        let Some(sha256) = sha256 else {
            return Chunk { raw_len, coding, inline: Some(<&ByteSlice>::from(stored)), place: None };
        };
        if self.bale.len().saturating_add(stored.len()) > VALUE_LIMIT {
            self.end_bale();
        }
        // Both are below the limit of a value.
        let place = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let place =
            Place { bale: self.chain.next_bale, offset: place(self.bale.len()), len: place(stored.len()), sha256 };
        self.bale.extend_from_slice(stored);
        Chunk { raw_len, coding, inline: None, place: Some(place) }
    }

    fn end_bale(&mut self) {
        if !self.bale.is_empty() {
            self.batch.rows.bales.push((self.chain.next_bale, std::mem::take(&mut self.bale)));
            self.chain.next_bale = self.chain.next_bale.saturating_add(1);
        }
    }

    fn session_row(&mut self, session: Option<SessionId>, role: Role, encoded: &[u8]) {
        let Some(SessionId(session)) = session else { return };
        let (seq, time) = (self.chain.next_seq.saturating_sub(1), self.now.0);
        match role {
            Role::Other => {}
            Role::Start => {
                let start = encoded.to_vec();
                let row =
                    SessionRow { start_seq: seq, start_time: time, start, end_seq: None, end_time: None, end: None };
                self.live.insert(session, row.clone());
                self.batch.rows.sessions.insert(session, row);
                self.chain.last_session = self.chain.last_session.max(session);
            }
            Role::End => {
                let Some(mut row) = self.live.remove(&session) else { return };
                (row.end_seq, row.end_time, row.end) = (Some(seq), Some(time), Some(encoded.to_vec()));
                self.batch.rows.sessions.insert(session, row);
            }
        }
    }
}
