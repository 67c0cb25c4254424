//! A session's end of the record: appends without waiting, hands over in pieces, and waits for what it must not outrun.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    Answer, Event, Receipt, SessionEnd, SessionId, StoreError,
    block::SPILL,
    pack::{CHUNK, Packed, Packer, message_len, whole_messages},
    queue::{Direction, Item, Piece, Progress, Role, Shared},
};
use crate::limits::Account;

/// Bytes after which events go to the writer without a [`SessionLog::commit`], so that a session holds little itself.
const HAND_OVER: usize = 256 * 1024;

/// One session's record. Dropped before its `SessionEnd` was appended, it appends one that says so.
#[derive(Debug)]
pub struct SessionLog {
    id: SessionId,
    /// `None` under `--unsafe-no-record`.
    shared: Option<Arc<Shared>>,
    progress: Arc<Progress>,
    /// Events appended; of those, packed into `data` with all their bytes; of those, handed over.
    appended: u64,
    packed: u64,
    handed: u64,
    /// Bytes of all that was ever packed.
    bytes: u64,
    packer: Packer,
    open: Option<Open>,
    data: Vec<u8>,
    items: Vec<Item>,
    phase: Phase,
    totals: SessionEnd,
}

/// Bytes of one request and direction that wait to become a chunk.
#[derive(Debug)]
struct Open {
    direction: Direction,
    request: u64,
    raw: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    New,
    Started,
    Ended,
}

impl SessionLog {
    /// Its bytes count as those of the `account`'s agent.
    pub(super) fn new(id: SessionId, shared: Option<Arc<Shared>>, account: Option<Arc<Account>>) -> Self {
        if let Some(account) = &account {
            account.log_begins();
        }
        let reason = "cut off: the session ended without a word".into();
        Self {
            id,
            shared,
            progress: Arc::new(Progress::of(account)),
            appended: 0,
            packed: 0,
            handed: 0,
            bytes: 0,
            packer: Packer::default(),
            open: None,
            data: Vec::new(),
            items: Vec::new(),
            phase: Phase::New,
            totals: SessionEnd { session: id, reason, requests: 0, refused: 0, rows: 0, bytes: 0, observed: 0 },
        }
    }

    /// The session.
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// Appends an event, and gives the session's count of appended events with it (from 1). Never waits; nothing is
    /// durable before [`commit`](Self::commit) and a receipt.
    ///
    /// # Errors
    /// When the store is in trouble or too much waits for it: then the event is not on the record. A `SessionEnd` is
    /// taken even while the store is in trouble, and written when it recovers.
    pub fn append(&mut self, event: &Event) -> Result<u64, StoreError> {
        match event {
            Event::Answer(Answer { request, bytes, .. }) => {
                return self.append_answer(*request, bytes);
            }
            Event::CopyIn(Answer { request, bytes, .. }) => {
                return self.append_copy_in(*request, bytes);
            }
            Event::SessionStart(_)
            | Event::Request(_)
            | Event::Outcome(_)
            | Event::SessionEnd(_)
            | Event::Refused(_)
            | Event::Admin(_) => {}
        }
        let role = self.note(event);
        let Some(shared) = self.shared.clone() else { return Ok(self.count()) };
        if role != Role::End {
            shared.trouble().map_or(Ok(()), Err)?;
        }
        self.seal();
        let before = self.data.len();
        let packed = pack_event(event, Some(self.id), role, &mut self.packer, &mut self.data);
        let item = packed.and_then(|item| {
            shared.reserve(&self.progress, len(self.data.len() - before))?;
            Ok(item)
        });
        match item {
            Ok(item) => self.items.push(item),
            Err(error) => {
                self.data.truncate(before);
                return Err(error);
            }
        }
        self.bytes = self.bytes.saturating_add(len(self.data.len() - before));
        let count = self.count();
        self.packed = count;
        self.hand_over_if_big(&shared);
        Ok(count)
    }

    /// Appends a part of the answer to a request: whole protocol messages, as they cross the agent's side. As
    /// [`append`](Self::append) of an [`Event::Answer`], without the copy. Parts are gathered until a chunk is full,
    /// another event comes, or [`commit`](Self::commit).
    ///
    /// # Errors
    /// See [`append`](Self::append).
    pub fn append_answer(&mut self, request: u64, bytes: &[u8]) -> Result<u64, StoreError> {
        self.append_bytes(Direction::Answer, request, bytes)
    }

    /// Appends a part of what the agent sends behind a request. See [`append_answer`](Self::append_answer).
    ///
    /// # Errors
    /// See [`append`](Self::append).
    pub fn append_copy_in(&mut self, request: u64, bytes: &[u8]) -> Result<u64, StoreError> {
        self.append_bytes(Direction::CopyIn, request, bytes)
    }

    /// Hands all that was appended to the writer in one piece: it becomes durable in one commit. Does nothing when
    /// there is nothing.
    pub fn commit(&mut self) {
        self.seal();
        self.packed = self.appended;
        if let Some(shared) = self.shared.clone() {
            self.hand_over(&shared);
        }
    }

    /// Says how it ends, if it is dropped before its `SessionEnd`.
    pub fn ends_by(&mut self, reason: &str) {
        reason.clone_into(&mut self.totals.reason);
    }

    /// Whether something was appended that no [`commit`](Self::commit) has handed over.
    pub const fn keeps_back(&self) -> bool {
        self.shared.is_some() && self.handed < self.appended
    }

    /// Events appended so far, durable or not.
    pub const fn appended(&self) -> u64 {
        self.appended
    }

    /// How many of the session's events are durable.
    pub fn durable(&self) -> u64 {
        if self.shared.is_none() { self.appended } else { self.progress.durable() }
    }

    /// Bytes by which the session runs ahead of the disk (as they are stored).
    pub fn bytes_ahead(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |open| len(open.raw.len()));
        self.bytes.saturating_add(open).saturating_sub(self.progress.bytes())
    }

    /// Bytes by which the session may run ahead: beyond them it takes no more of its server's answers until
    /// [`below`](Self::below) says so.
    pub fn allowance(&self) -> u64 {
        self.shared.as_ref().map_or(u64::MAX, |shared| shared.allowance(&self.progress))
    }

    /// Whether it is further ahead than it may be.
    pub fn is_ahead(&self) -> bool {
        self.bytes_ahead() > self.allowance()
    }

    /// Waits until the first `upto` events are durable, and hands over what of them was not. The receipt is for all that
    /// is durable by then, so that what one commit wrote leaves in one go.
    ///
    /// # Errors
    /// When the store is in trouble, or so many were never appended.
    pub async fn receipt(&mut self, upto: u64) -> Result<Receipt, StoreError> {
        poll_fn(|cx| self.poll_receipt(cx, upto)).await
    }

    /// [`receipt`](Self::receipt) for a loop written by hand. One task polls a session: the last one is woken.
    pub fn poll_receipt(&mut self, cx: &mut Context<'_>, upto: u64) -> Poll<Result<Receipt, StoreError>> {
        if upto > self.appended {
            return Poll::Ready(Err(StoreError::NotAppended { upto, appended: self.appended }));
        }
        if upto > self.handed {
            self.commit();
        }
        match &self.shared {
            None => Poll::Ready(Ok(Receipt::new(self.appended))),
            Some(shared) => self.progress.poll_receipt(shared, cx, upto),
        }
    }

    /// Waits until at most `limit` bytes are ahead of the disk.
    ///
    /// # Errors
    /// When the store is in trouble.
    pub async fn below(&mut self, limit: u64) -> Result<(), StoreError> {
        poll_fn(|cx| self.poll_below(cx, limit)).await
    }

    /// [`below`](Self::below) for a loop written by hand.
    pub fn poll_below(&mut self, cx: &mut Context<'_>, limit: u64) -> Poll<Result<(), StoreError>> {
        if self.bytes_ahead() <= limit {
            return Poll::Ready(Ok(()));
        }
        self.commit();
        let bytes = self.bytes;
        match &self.shared {
            None => Poll::Ready(Ok(())),
            Some(shared) => self.progress.poll(shared, cx, |progress| bytes.saturating_sub(progress.bytes()) <= limit),
        }
    }

    fn append_bytes(&mut self, direction: Direction, request: u64, mut bytes: &[u8]) -> Result<u64, StoreError> {
        let Some(shared) = self.shared.clone() else { return Ok(self.count()) };
        shared.trouble().map_or(Ok(()), Err)?;
        if self.open.as_ref().is_some_and(|open| (open.direction, open.request) != (direction, request)) {
            self.seal();
        }
        shared.reserve(&self.progress, len(bytes.len()))?;
        let mut inside = 0;
        while !bytes.is_empty() {
            let open = self.open.get_or_insert_with(|| Open { direction, request, raw: Vec::new() });
            let room = CHUNK.saturating_sub(open.raw.len());
            let cut = if bytes.len() <= room {
                bytes.len()
            } else {
                match whole_messages(bytes, inside, room) {
                    // Not one message fits any chunk: it is cut where the chunk ends.
                    0 if open.raw.is_empty() => room,
                    whole => whole,
                }
            };
            let (now, rest) = bytes.split_at_checked(cut).unwrap_or((bytes, &[]));
            open.raw.extend_from_slice(now);
            inside = left_of_message(bytes, inside, cut);
            bytes = rest;
            if !bytes.is_empty() {
                self.seal();
            }
        }
        let count = self.count();
        self.hand_over_if_big(&shared);
        Ok(count)
    }

    /// What the table of sessions wants to know of an event, and the sums for an end that is never appended.
    fn note(&mut self, event: &Event) -> Role {
        match event {
            Event::SessionStart(_) => {
                self.phase = Phase::Started;
                Role::Start
            }
            Event::SessionEnd(_) => {
                self.phase = Phase::Ended;
                Role::End
            }
            Event::Request(request) => {
                self.totals.requests = self.totals.requests.saturating_add(1);
                self.totals.refused = self.totals.refused.saturating_add(u64::from(!request.decision.passed()));
                self.totals.observed = self.totals.observed.saturating_add(u64::from(request.decision.is_observed()));
                Role::Other
            }
            Event::Outcome(outcome) => {
                self.totals.rows = self.totals.rows.saturating_add(outcome.rows);
                self.totals.bytes = self.totals.bytes.saturating_add(outcome.bytes);
                Role::Other
            }
            Event::Answer(_) | Event::CopyIn(_) | Event::Refused(_) | Event::Admin(_) => Role::Other,
        }
    }

    const fn count(&mut self) -> u64 {
        self.appended = self.appended.saturating_add(1);
        self.appended
    }

    /// Makes a chunk of the bytes that were gathered. All events counted so far are packed then.
    fn seal(&mut self) {
        let (Some(open), Some(shared)) = (self.open.take(), &self.shared) else { return };
        let chunk = self.packer.pack(&open.raw, &mut self.data);
        let stored = len(chunk.end.saturating_sub(chunk.start));
        // Compressed it takes less room than was taken for it.
        shared.release(&self.progress, len(open.raw.len()).saturating_sub(stored));
        self.bytes = self.bytes.saturating_add(stored);
        let Open { direction, request, .. } = open;
        self.items.push(Item::Bytes { direction, session: self.id, request, chunk });
        self.packed = self.appended;
    }

    fn hand_over_if_big(&mut self, shared: &Shared) {
        if self.data.len() >= HAND_OVER {
            self.hand_over(shared);
        }
    }

    /// Bytes that are still gathered stay, with the events that they belong to.
    fn hand_over(&mut self, shared: &Shared) {
        if self.handed == self.packed {
            return;
        }
        self.handed = self.packed;
        shared.push(Piece {
            progress: self.progress.clone(),
            upto: self.packed,
            bytes_upto: self.bytes,
            data: std::mem::take(&mut self.data),
            items: std::mem::take(&mut self.items),
        });
    }
}

impl Drop for SessionLog {
    fn drop(&mut self) {
        if self.phase == Phase::Started {
            // Refused only when too much waits; then the session's row stays open, which says the same.
            let _ = self.append(&Event::SessionEnd(self.totals.clone()));
        }
        self.commit();
        if let Some(account) = &self.progress.account {
            account.log_ends();
        }
    }
}

/// Encodes an event to the end of `data`; a long one as chunks for the bales.
pub(super) fn pack_event(
    event: &Event,
    session: Option<SessionId>,
    role: Role,
    packer: &mut Packer,
    data: &mut Vec<u8>,
) -> Result<Item, StoreError> {
    let start = data.len();
    minicbor::encode(event, &mut *data).map_err(|error| StoreError::Encode { cause: error.to_string() })?;
    if data.len().saturating_sub(start) <= SPILL {
        return Ok(Item::Event { session, role, start, end: data.len() });
    }
    let encoded = data.split_off(start);
    let chunks: Vec<Packed> = encoded.chunks(CHUNK).map(|raw| packer.pack(raw, data)).collect();
    Ok(Item::Spilled { session, role, chunks, encoded })
}

/// How much of the message at `cut` began before it.
fn left_of_message(bytes: &[u8], inside: usize, cut: usize) -> usize {
    let mut next = inside;
    while next < cut {
        let Some(message) = message_len(bytes, next) else { return 0 };
        next = next.saturating_add(message);
    }
    next - cut
}

fn len(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
