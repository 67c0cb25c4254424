//! The one thread that writes. It takes all that waits, commits it, and tells the sessions. When a commit fails everyone is
//! refused, the store is closed, and the same batch is written again, with the same keys, until it is durable.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rustix::fs::statvfs;

use super::{
    AdminEvent, Event, StoreError, StoreSettings, Time,
    backlog::Backlog,
    batch::{Batch, Maker},
    index::Postings,
    pack::Packer,
    queue::{Piece, Progress, Role, Shared},
    session::pack_event,
    usage::{Stored, Usage},
    window::{Chain, Head, Rows, SessionRow, Window, guarded},
};

/// Between two attempts to write a batch that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What a commit needs beside its own bytes (redb copies the pages on the way to each change).
const SPARE_BYTES: u64 = 1024 * 1024;

/// The writer's state. Moves to its thread.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) settings: StoreSettings,
    /// `None` after a failure, until it is opened again.
    pub(super) window: Option<Window>,
    /// The open window's file, also while it is closed.
    pub(super) path: std::path::PathBuf,
    /// When the window was made, and the bytes that it was given.
    pub(super) since: Time,
    pub(super) filled: u64,
    pub(super) chain: Chain,
    pub(super) live: BTreeMap<u64, SessionRow>,
    pub(super) postings: Postings,
    pub(super) backlog: Backlog,
    pub(super) usage: Usage,
}

/// What ends one window and begins the next. Made once, done as often as it takes.
#[derive(Debug)]
struct Turn {
    /// The last index row of the window that ends.
    index: (u64, Vec<u8>),
    head: Head,
    /// The sessions that are open, so that each window tells whose its events are.
    live: BTreeMap<u64, SessionRow>,
    stored: Stored,
}

impl Writer {
    /// Until the store is closed and all that waited is written, or cannot be.
    pub(super) fn run(&mut self) {
        self.shared.set_live(self.window.clone());
        let mut before = 0;
        while self.shared.take(&mut self.backlog) {
            // Sessions that were just told are about to hand over their next: one commit for all of them is cheaper for
            // each. This gives up the processor while that brings something, and waits for nobody.
            let mut had = 0;
            while (had + 1..before).contains(&self.backlog.len()) {
                had = self.backlog.len();
                std::thread::yield_now();
                self.shared.take(&mut self.backlog);
            }
            let now = self.settings.world.now().max(self.chain.time);
            let turn = self.is_due(now).then(|| self.turn(now));
            let batch = self.next_batch(now);
            before = batch.acks.len();
            if !self.write_until_durable(turn.as_ref(), &batch) {
                return;
            }
            self.usage.look_now_and_then(&self.settings);
        }
        if let Some(window) = &self.window
            && let Err(error) = window.write_stored(&self.usage.closed(self.chain.next_seq))
        {
            tracing::warn!(%error, "the next start counts anew what each agent has on the record");
        }
        self.close_window();
    }

    fn is_due(&self, now: Time) -> bool {
        now.day() != self.since.day() || self.filled >= self.settings.window_bytes
    }

    /// What ends one window and begins the next.
    fn turn(&mut self, now: Time) -> Turn {
        // Two windows never have one name.
        let now = now.max(Time(self.since.0.saturating_add(1)));
        self.chain.time = now;
        let Chain { next_seq, next_bale, hash, .. } = self.chain;
        let previous = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        Turn {
            stored: self.usage.next(previous.as_deref().unwrap_or_default(), next_seq),
            index: (next_seq, self.postings.take()),
            head: Head { first: next_seq, time: now.0, previous, hash, bale: next_bale },
            live: self.live.clone(),
        }
    }

    fn next_batch(&mut self, now: Time) -> Batch {
        let mut maker = Maker::new(&mut self.chain, &mut self.live, &mut self.postings, now);
        self.backlog.next_batch(|piece| maker.add(piece));
        maker.finish()
    }

    /// Wakes whoever waits for what will not be written any more.
    pub(super) fn wake_all(&self) {
        self.backlog.iter().for_each(|piece| piece.progress.wake());
    }

    /// False when the store is closing and the batch could not be written.
    fn write_until_durable(&mut self, turn: Option<&Turn>, batch: &Batch) -> bool {
        let mut pause = FIRST_PAUSE;
        let mut failed: Option<(Time, StoreError)> = None;
        while let Err(error) = self.write(turn, batch) {
            self.close_window();
            failed.get_or_insert_with(|| {
                tracing::error!(%error, "the record cannot be written: agents are refused until it can");
                (self.settings.world.now(), error.clone())
            });
            self.shared.set_trouble(Some(error));
            let waiting = batch.acks.iter().map(|ack| &ack.progress);
            waiting.chain(self.backlog.iter().map(|piece| &piece.progress)).for_each(|progress| progress.wake());
            if !self.shared.pause(pause) {
                return self.write(turn, batch).map(|()| self.publish(batch)).is_ok();
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.publish(batch);
        if let Some((since, error)) = failed {
            tracing::warn!("the record is written again");
            self.report(since, &error);
            self.shared.set_trouble(None);
        }
        true
    }

    /// One attempt. An error leaves it open whether the batch is on the disk; written again it gives the same rows.
    fn write(&mut self, turn: Option<&Turn>, batch: &Batch) -> Result<(), StoreError> {
        let path = self.path.clone();
        guarded(&path, || {
            if self.window.is_none() {
                self.reopen(batch)?;
            }
            if let Some(turn) = turn {
                self.next_window(turn)?;
            }
            let window = self.window.as_ref().ok_or(StoreError::Closed)?;
            window.write(&batch.rows)
        })?;
        self.filled = self.filled.saturating_add(batch.bytes);
        Ok(())
    }

    fn publish(&mut self, batch: &Batch) {
        for ack in &batch.acks {
            self.shared.release(&ack.progress, ack.bytes);
            ack.progress.advance(ack.upto, ack.bytes_upto);
        }
        self.usage.add(batch);
        // One wake a session: its last piece alone.
        for ack in &batch.acks {
            if ack.progress.durable() == ack.upto {
                ack.progress.wake();
            }
        }
        self.shared.set_durable(batch.last_seq);
    }

    /// Ends the window and begins the next; done before, it does nothing.
    fn next_window(&mut self, turn: &Turn) -> Result<(), StoreError> {
        if self.since.0 == turn.head.time {
            return Ok(());
        }
        let window = self.window.as_ref().ok_or(StoreError::Closed)?;
        if !turn.index.1.is_empty() {
            window.write(&Rows { index: Some(turn.index.clone()), ..Rows::default() })?;
        }
        let window = Window::create(&self.settings, &turn.head, &turn.live, &turn.stored)?;
        self.usage.turned(turn.stored.clone());
        self.path = window.path.clone();
        self.since = Time(turn.head.time);
        self.filled = 0;
        self.shared.set_live(Some(window.clone()));
        self.window = Some(window);
        Ok(())
    }

    fn reopen(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let stat =
            statvfs(&self.settings.dir).map_err(|error| StoreError::from_io(&self.settings.dir, &error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let wanted = batch.bytes.saturating_add(SPARE_BYTES);
        if free < wanted {
            // Opening repairs what the failure left, which reads the whole file: not while it cannot help.
            let cause = format!("{free} bytes are free, {wanted} are needed");
            return Err(StoreError::Full { path: self.settings.dir.clone(), cause });
        }
        let (window, _) = Window::open(&self.settings, &self.path)?;
        self.shared.set_live(Some(window.clone()));
        self.window = Some(window);
        Ok(())
    }

    /// The last thing before a failure is forgotten: it goes on the record.
    fn report(&mut self, since: Time, error: &StoreError) {
        let until = self.settings.world.now();
        let detail = format!("from {since} to {until} agents were refused: {error}");
        let event = Event::Admin(AdminEvent { uid: None, what: "store-recovered".into(), detail });
        let mut data = Vec::new();
        if let Ok(item) = pack_event(&event, None, Role::Other, &mut Packer::default(), &mut data)
            && let progress = Arc::new(Progress::of(Some(self.shared.own.clone())))
            && self.shared.reserve(&progress, u64::try_from(data.len()).unwrap_or(u64::MAX)).is_ok()
        {
            let items = vec![item];
            self.backlog.push_front(Piece { progress, upto: 1, bytes_upto: 0, data, items });
        }
    }

    fn close_window(&mut self) {
        self.shared.set_live(None);
        let window = self.window.take();
        // redb may give up on closing what has failed; the next opening repairs it.
        let _ = guarded(&self.path, || {
            drop(window);
            Ok(())
        });
    }
}
