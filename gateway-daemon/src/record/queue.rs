//! From the sessions to the writer: pieces of events, and back the news of what is durable.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use atomic_waker::AtomicWaker;
use tokio::sync::watch;

use super::{Receipt, SessionId, StoreError, backlog::Backlog, pack::Packed, window::Window};
use crate::limits::{Account, AgentLimits};

/// Of the queue, what one agent may always have waiting, however much of it others hold.
const OWN_PART: u64 = 16;
/// Of the queue, what one agent's sessions together may run ahead before their servers are no longer read.
const AHEAD_PART: u64 = 8;
/// Bytes that a session may run ahead of the disk, and those that it always may.
const AHEAD_BYTES: u64 = 4 << 20;
const LEAST_AHEAD_BYTES: u64 = 64 << 10;

/// What one session handed over at once.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) progress: Arc<Progress>,
    /// The session's count with this piece.
    pub(super) upto: u64,
    /// The session's bytes with this piece, as [`Progress::bytes`] counts them.
    pub(super) bytes_upto: u64,
    pub(super) data: Vec<u8>,
    pub(super) items: Vec<Item>,
}

/// One thing to append; its bytes lie in the piece's `data`.
#[derive(Debug)]
pub(super) enum Item {
    Event { session: Option<SessionId>, role: Role, start: usize, end: usize },
    Spilled { session: Option<SessionId>, role: Role, chunks: Vec<Packed>, encoded: Vec<u8> },
    Bytes { direction: Direction, session: SessionId, request: u64, chunk: Packed },
}

/// What an event is to the table of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Start,
    End,
    Other,
}

/// Which way bytes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Answer,
    CopyIn,
}

/// How far one session's events are durable. Written by the writer, read by the session.
#[derive(Debug, Default)]
pub(super) struct Progress {
    durable: AtomicU64,
    bytes: AtomicU64,
    waker: AtomicWaker,
    /// Whose bytes they are.
    pub(super) account: Option<Arc<Account>>,
}

impl Progress {
    pub(super) fn of(account: Option<Arc<Account>>) -> Self {
        Self { account, ..Self::default() }
    }

    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Durable bytes of all that the session ever appended.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Says how far it is; waking is apart, so that a session with several pieces is woken once.
    pub(super) fn advance(&self, upto: u64, bytes: u64) {
        self.bytes.store(bytes, Ordering::Release);
        self.durable.store(upto, Ordering::Release);
    }

    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// Waits until `done` says so, or the store is in trouble.
    pub(super) fn poll(
        &self,
        shared: &Shared,
        cx: &mut Context<'_>,
        done: impl Fn(&Self) -> bool,
    ) -> Poll<Result<(), StoreError>> {
        if done(self) {
            return Poll::Ready(Ok(()));
        }
        self.waker.register(cx.waker());
        // Again, since the writer may have woken between the look and the registration. What is durable is so even
        // when the store came into trouble behind it.
        if done(self) {
            return Poll::Ready(Ok(()));
        }
        match shared.trouble() {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Pending,
        }
    }

    pub(super) fn poll_receipt(
        &self,
        shared: &Shared,
        cx: &mut Context<'_>,
        upto: u64,
    ) -> Poll<Result<Receipt, StoreError>> {
        self.poll(shared, cx, |progress| progress.durable() >= upto).map_ok(|()| Receipt::new(self.durable()))
    }
}

/// What sessions, writer and readers of one store share.
#[derive(Debug)]
pub(super) struct Shared {
    queue: Mutex<Waiting>,
    wake: Condvar,
    /// Bytes appended and not yet durable, of all sessions.
    waiting: AtomicU64,
    limit: u64,
    /// What is Weir's own counts as that of one more agent.
    pub(super) own: Arc<Account>,
    in_trouble: AtomicBool,
    trouble: Mutex<Option<StoreError>>,
    /// The last durable sequence number, for those who follow.
    durable: watch::Sender<u64>,
    /// The window that is open for writing.
    live: Mutex<Option<Window>>,
}

#[derive(Debug, Default)]
struct Waiting {
    pieces: VecDeque<Piece>,
    asleep: bool,
    closing: bool,
}

impl Shared {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            queue: Mutex::default(),
            wake: Condvar::new(),
            waiting: AtomicU64::new(0),
            limit,
            own: Account::alone("", AgentLimits::default()),
            in_trouble: AtomicBool::new(false),
            trouble: Mutex::default(),
            durable: watch::Sender::new(0),
            live: Mutex::default(),
        }
    }

    /// Takes room for bytes that are being appended. When the queue is full, those are refused who fill it: an agent that
    /// has little waiting still gets room, from a reserve as large as the queue.
    pub(super) fn reserve(&self, progress: &Progress, bytes: u64) -> Result<(), StoreError> {
        let waiting = self.waiting.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let own = progress.account.as_ref().map_or(waiting, |account| account.wait(bytes));
        let has_little = own <= self.limit / OWN_PART && waiting <= self.limit.saturating_mul(2);
        if waiting <= self.limit || has_little {
            return Ok(());
        }
        self.release(progress, bytes);
        Err(StoreError::Queue { waiting, limit: self.limit })
    }

    /// Gives room back.
    pub(super) fn release(&self, progress: &Progress, bytes: u64) {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(account) = &progress.account {
            account.wait_no_longer(bytes);
        }
    }

    /// How far a session may run ahead of the disk: the less, the more sessions its agent has, so that they cannot fill
    /// the queue together.
    pub(super) fn allowance(&self, progress: &Progress) -> u64 {
        let Some(account) = &progress.account else { return AHEAD_BYTES };
        let logs = u64::try_from(account.logs()).unwrap_or(u64::MAX).max(1);
        (self.limit / AHEAD_PART / logs).clamp(LEAST_AHEAD_BYTES, AHEAD_BYTES)
    }

    /// Hands a piece over. One lock a piece, a system call only when the writer sleeps.
    pub(super) fn push(&self, piece: Piece) {
        let mut queue = self.lock();
        if queue.closing {
            return;
        }
        if let Some(account) = &piece.progress.account {
            account.charge_record(u64::try_from(piece.data.len()).unwrap_or(u64::MAX));
        }
        queue.pieces.push_back(piece);
        let asleep = std::mem::take(&mut queue.asleep);
        drop(queue);
        if asleep {
            self.wake.notify_one();
        }
    }

    /// Moves all that waits to `backlog`; waits while there is nothing at all. False when the store is closing and
    /// everything was taken.
    pub(super) fn take(&self, backlog: &mut Backlog) -> bool {
        let mut queue = self.lock();
        loop {
            backlog.append(&mut queue.pieces);
            if !backlog.is_empty() {
                return true;
            }
            if queue.closing {
                return false;
            }
            queue.asleep = true;
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.asleep = false;
        }
    }

    /// Waits before another attempt. False when the store is closing.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let queue = self.lock();
        let (queue, _) =
            self.wake.wait_timeout_while(queue, pause, |queue| !queue.closing).unwrap_or_else(PoisonError::into_inner);
        !queue.closing
    }

    /// No piece is taken from here on; what waits is still written.
    pub(super) fn close(&self) {
        // First, so that whoever's piece is no longer taken finds it said why.
        self.set_trouble(Some(StoreError::Closed));
        self.lock().closing = true;
        self.wake.notify_all();
    }

    /// What keeps the store from recording, if anything does.
    pub(super) fn trouble(&self) -> Option<StoreError> {
        if !self.in_trouble.load(Ordering::Acquire) {
            return None;
        }
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what is wrong (`None`: nothing any more), and wakes whoever waits in the queue.
    pub(super) fn set_trouble(&self, error: Option<StoreError>) {
        let now = error.is_some();
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        // What is closed stays so.
        if *trouble != Some(StoreError::Closed) {
            *trouble = error;
            self.in_trouble.store(now, Ordering::Release);
        }
        drop(trouble);
        if now {
            self.lock().pieces.iter().for_each(|piece| piece.progress.wake());
        }
    }

    pub(super) fn set_durable(&self, seq: u64) {
        self.durable.send_replace(seq);
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.durable.subscribe()
    }

    pub(super) fn set_live(&self, window: Option<Window>) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = window;
    }

    pub(super) fn live(&self) -> Option<Window> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // The lock is held for moves alone, which leave the queue whole even if one could panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> Progress {
        Progress::of(Some(Account::alone(name, AgentLimits::NONE)))
    }

    #[test]
    fn whoever_fills_the_queue_is_refused_and_nobody_else() {
        let shared = Shared::new(1_600);
        let (greedy, modest) = (agent("greedy"), agent("modest"));
        shared.reserve(&greedy, 1_600).unwrap();
        assert!(matches!(shared.reserve(&greedy, 1), Err(StoreError::Queue { waiting: 1_601, limit: 1_600 })));
        shared.reserve(&modest, 100).unwrap();
        assert!(shared.reserve(&modest, 1).is_err(), "a sixteenth, and no more while it is full");
        shared.reserve(&Progress::of(Some(shared.own.clone())), 50).unwrap();
        shared.release(&greedy, 1_600);
        shared.reserve(&modest, 1_000).unwrap();
        shared.reserve(&greedy, 400).unwrap();
    }

    #[test]
    fn an_agent_s_sessions_share_what_they_may_run_ahead() {
        let shared = Shared::new(256 << 20);
        let greedy = agent("greedy");
        assert_eq!(shared.allowance(&greedy), AHEAD_BYTES);
        for _ in 0..64 {
            greedy.account.as_ref().unwrap().log_begins();
        }
        assert_eq!(shared.allowance(&greedy), 512 << 10);
        for _ in 0..10_000 {
            greedy.account.as_ref().unwrap().log_begins();
        }
        assert_eq!(shared.allowance(&greedy), LEAST_AHEAD_BYTES);
    }
}
