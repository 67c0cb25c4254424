//! The way into the record: opening the store, and the handle from which sessions take their logs.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    thread::JoinHandle,
};

use redb::ReadableDatabase;
use rustix::fs::{FlockOperation, flock};

use super::{
    AdminEvent, Event, Receipt, SessionId, SessionLog, StoreError, StoreSettings, Time,
    backlog::Backlog,
    block::Block,
    index::Postings,
    pack::Packer,
    queue::{Piece, Progress, Role, Shared},
    session::pack_event,
    usage::{Stored, Usage},
    window::{self, BLOCKS, Chain, Head, Window, at, damaged, guarded},
    writer::Writer,
};
use crate::limits::Account;

/// Low bits of a session's number that count within the millisecond of the start.
const SESSION_BITS: u32 = 22;
/// No event takes less: bounds how many a file that cannot be read may hold.
const LEAST_EVENT: u64 = 16;

/// The handle of the store; clones are handles of the same one. The last one that goes closes the store.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` under `--unsafe-no-record`.
    store: Option<Store>,
    next_session: AtomicU64,
}

#[derive(Debug)]
struct Store {
    settings: StoreSettings,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Holds the folder's lock.
    _lock: OwnedFd,
}

/// Something that was found wrong when the store was opened, already on the record. What is damaged is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding(pub StoreError);

impl Recorder {
    /// Opens the store, makes its folder where it is missing, and starts its writer. A window that was not closed is
    /// checked whole; a damaged one is left as evidence, told in the findings and on the record, and a new one begun.
    ///
    /// # Errors
    /// When another process holds the folder, or it cannot be read or written.
    pub fn open(settings: StoreSettings) -> Result<(Self, Vec<Finding>), StoreError> {
        let lock = lock_dir(&settings.dir)?;
        window::remove_unfinished(&settings.dir)?;
        let (mut writer, findings) = open_writer(&settings)?;
        let shared = writer.shared.clone();
        shared.set_live(writer.window.clone());
        shared.set_durable(writer.chain.next_seq.saturating_sub(1));
        let start = Time::now().0.checked_div(1000).unwrap_or(0) << SESSION_BITS;
        let next_session = AtomicU64::new(start.max(writer.chain.last_session.saturating_add(1)));
        let closing = shared.clone();
        let thread = std::thread::Builder::new()
            .name("weir-record".into())
            .spawn(move || {
                if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
                    tracing::error!("the record's writer died: agents are refused until the daemon is started again");
                }
                closing.close();
                writer.wake_all();
            })
            .map_err(|error| StoreError::from_io(&settings.dir, &error))?;
        let thread = Mutex::new(Some(thread));
        let recorder =
            Self(Arc::new(Inner { store: Some(Store { settings, shared, thread, _lock: lock }), next_session }));
        for Finding(error) in &findings {
            let what = "record-damaged".into();
            drop(recorder.record(&Event::Admin(AdminEvent { uid: None, what, detail: error.to_string() }))?);
        }
        Ok((recorder, findings))
    }

    /// No record at all, `--unsafe-no-record`: every receipt is given at once.
    pub fn without_record() -> Self {
        let start = Time::now().0.checked_div(1000).unwrap_or(0) << SESSION_BITS;
        Self(Arc::new(Inner { store: None, next_session: AtomicU64::new(start) }))
    }

    /// Whether anything is recorded.
    pub fn is_recording(&self) -> bool {
        self.0.store.is_some()
    }

    /// What keeps the store from recording now, if anything does.
    pub fn trouble(&self) -> Option<StoreError> {
        self.0.store.as_ref()?.shared.trouble()
    }

    /// A session number that no session of this store has had, above all of them.
    pub fn next_session(&self) -> SessionId {
        SessionId(self.0.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// The log of a new session. Its first event should be its `SessionStart`.
    pub fn session(&self, id: SessionId) -> SessionLog {
        SessionLog::new(id, self.0.store.as_ref().map(|store| store.shared.clone()), None)
    }

    /// The same, counted as what this agent uses up.
    pub fn session_of(&self, id: SessionId, account: &Arc<Account>) -> SessionLog {
        SessionLog::new(id, self.0.store.as_ref().map(|store| store.shared.clone()), Some(account.clone()))
    }

    /// Records an event that belongs to no session: what the kernel refused, what people did. It is on its way when this
    /// returns; await the result to know it durable. Taken even while the store is in trouble, and written when it
    /// recovers.
    ///
    /// # Errors
    /// When too much waits for the disk.
    pub fn record(&self, event: &Event) -> Result<Recorded, StoreError> {
        let Some(store) = &self.0.store else { return Ok(Recorded { shared: None, progress: Arc::default() }) };
        let progress = Arc::new(Progress::of(Some(store.shared.own.clone())));
        let mut data = Vec::new();
        let item = pack_event(event, event.session(), Role::Other, &mut Packer::default(), &mut data)?;
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        store.shared.reserve(&progress, bytes)?;
        let items = vec![item];
        store.shared.push(Piece { progress: progress.clone(), upto: 1, bytes_upto: bytes, data, items });
        Ok(Recorded { shared: Some(store.shared.clone()), progress })
    }

    /// Writes what waits, closes the file and gives up the folder. Sessions that are still open are refused from here on.
    /// Blocks its thread.
    pub fn close(&self) {
        if let Some(store) = &self.0.store {
            store.close();
        }
    }

    /// What readers in this process share.
    pub(super) fn shared(&self) -> Option<(&StoreSettings, &Arc<Shared>)> {
        self.0.store.as_ref().map(|store| (&store.settings, &store.shared))
    }
}

impl Store {
    fn close(&self) {
        self.shared.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It caught its own panic.
            let _ = thread.join();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

/// An event on its way to the disk. Dropped, it gets there all the same.
#[derive(Debug)]
#[must_use = "await it to know the event durable, or drop it by name"]
pub struct Recorded {
    shared: Option<Arc<Shared>>,
    progress: Arc<Progress>,
}

impl Future for Recorded {
    type Output = Result<Receipt, StoreError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &self.shared {
            None => Poll::Ready(Ok(Receipt::new(1))),
            Some(shared) => self.progress.poll_receipt(shared, cx, 1),
        }
    }
}

/// Takes the folder for this process, made 0700 and kept so.
fn lock_dir(dir: &Path) -> Result<OwnedFd, StoreError> {
    let io = |error: std::io::Error| StoreError::from_io(dir, &error);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io)?;
    let fd = OwnedFd::from(fs::File::open(dir).map_err(io)?);
    match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(fd),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked { path: dir.into() }),
        Err(error) => Err(io(error.into())),
    }
}

fn open_writer(settings: &StoreSettings) -> Result<(Writer, Vec<Finding>), StoreError> {
    let mut findings = Vec::new();
    let mut last = None;
    if let Some(path) = window::list(&settings.dir)?.pop() {
        match open_last(settings, &path) {
            Ok(opened) => last = Some(opened),
            Err(error @ StoreError::Damaged { .. }) => findings.push(Finding(error)),
            Err(error) => return Err(error),
        }
        if last.is_none() {
            last = Some(new_window_behind(settings, &path)?);
        }
    }
    let (window, chain, postings, since, filled) = match last {
        Some(last) => last,
        None => first_window(settings)?,
    };
    let mut usage = Usage::of(&window, &chain)?;
    usage.look(settings);
    let writer = Writer {
        usage,
        shared: Arc::new(Shared::new(settings.queue_bytes)),
        settings: settings.clone(),
        path: window.path.clone(),
        window: Some(window),
        since,
        filled,
        chain,
        live: BTreeMap::new(),
        postings,
        backlog: Backlog::default(),
    };
    Ok((writer, findings))
}

type Opened = (Window, Chain, Postings, Time, u64);

/// The last window, with where its chain stands. After a crash it is checked from its first block.
fn open_last(settings: &StoreSettings, path: &Path) -> Result<Opened, StoreError> {
    let (window, crashed) = Window::open(settings, path)?;
    if crashed {
        window::verify(&*window.db, path)?;
    }
    let chain = window.chain()?;
    let (postings, since) = guarded(path, || {
        let txn = window.db.begin_read().map_err(at(path))?;
        Ok((postings_from(&txn, chain.indexed_to, path)?, Time(window::read_head(&txn, path)?.time)))
    })?;
    let filled = fs::metadata(path).map(|meta| blocks(&meta)).map_err(|error| StoreError::from_io(path, &error))?;
    Ok((window, chain, postings, since, filled))
}

/// A store's first window.
fn first_window(settings: &StoreSettings) -> Result<Opened, StoreError> {
    let time = settings.world.now();
    new_window(settings, Head { first: 1, time: time.0, previous: None, hash: [0; 32], bale: 1 })
}

/// A window behind one that cannot be continued. How many events that one holds is not known: their numbers are left out.
fn new_window_behind(settings: &StoreSettings, path: &Path) -> Result<Opened, StoreError> {
    let meta = fs::metadata(path).map_err(|error| StoreError::from_io(path, &error))?;
    let gap = (meta.len() / LEAST_EVENT).max(1);
    let first = window::first_seq(path).unwrap_or(1).saturating_add(gap);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    // The clock may have been set back since: names sort by time all the same.
    let after = window::time_of(path).unwrap_or_default();
    let time = settings.world.now().max(Time(after.0.saturating_add(1)));
    new_window(settings, Head { first, time: time.0, previous: name, hash: [0; 32], bale: first })
}

fn new_window(settings: &StoreSettings, head: Head) -> Result<Opened, StoreError> {
    let window = Window::create(settings, &head, &BTreeMap::new(), &Stored::default())?;
    let chain = window.chain()?;
    Ok((window, chain, Postings::default(), Time(head.time), 0))
}

/// The index of the blocks from `from` on, which no row has yet.
fn postings_from(txn: &redb::ReadTransaction, from: u64, path: &Path) -> Result<Postings, StoreError> {
    let mut postings = Postings::default();
    for row in txn.open_table(BLOCKS).map_err(at(path))?.range(from..).map_err(at(path))? {
        let (key, value) = row.map_err(at(path))?;
        let block = Block::parse(key.value(), value.value()).map_err(|cause| damaged(path, cause))?;
        for frame in block.frames() {
            let frame = frame.map_err(|cause| damaged(path, cause))?;
            if let Some(session) = frame.session() {
                postings.add(session.0, block.first);
            }
        }
    }
    Ok(postings)
}

/// Bytes that a file takes on its disk.
pub(super) fn blocks(meta: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    meta.blocks().saturating_mul(512)
}
