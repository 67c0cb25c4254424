//! Finding things on the record again: from the daemon beside its writer, or offline from a store's folder or one file.
//!
//! Everything is read in pages, each in one short read transaction, so that a slow reader holds back no page of the
//! writer's file. What cannot be read is told in its place; nothing is repaired where it lies.

mod filter;
mod log;
mod sessions;

use std::{
    collections::VecDeque,
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use redb::{
    Builder, Database, DatabaseError, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, TransactionError,
    backends::FileBackend,
};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::watch;

pub use filter::{DecisionFilter, LogFilter, SessionFilter};
pub use log::{Log, Row, RowContent, SessionInfo};
pub use sessions::{SessionSummary, Sessions};

use super::{
    Recorder, SessionId, StoreError,
    queue::Shared,
    window::{self, Window, at, guarded},
};

/// What of the settings' cache readers of closed windows use.
const READ_CACHE_BYTES: usize = 16 * 1024 * 1024;

/// How long a reader waits for the writer's window when that is just being opened.
const REOPEN: Duration = Duration::from_secs(1);

/// A reader of the record. Cheap to make; its queries block their thread.
#[derive(Debug, Clone)]
pub struct Reader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    /// The window that was opened last.
    kept: Mutex<Option<(PathBuf, Arc<Readable>)>>,
}

#[derive(Debug)]
enum Source {
    /// Beside the writer of this process.
    Daemon { dir: PathBuf, shared: Arc<Shared> },
    /// A folder that no daemon holds.
    Folder { dir: PathBuf, _lock: OwnedFd },
    /// One window.
    File { path: PathBuf },
}

impl Reader {
    fn new(source: Source) -> Self {
        Self(Arc::new(Inner { source, kept: Mutex::new(None) }))
    }

    /// Reads offline: a store's folder while no daemon has it, or one window's file.
    ///
    /// # Errors
    /// When a daemon holds the folder, or it cannot be read.
    pub fn offline(path: &Path) -> Result<Self, StoreError> {
        let io = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Absent { path: path.into() },
            _ => StoreError::Unreadable { path: path.into(), cause: error.to_string() },
        };
        if !fs::metadata(path).map_err(io)?.is_dir() {
            return Ok(Self::new(Source::File { path: path.into() }));
        }
        let lock = OwnedFd::from(File::open(path).map_err(io)?);
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) if window::list(path)?.is_empty() => Err(StoreError::Absent { path: path.into() }),
            Ok(()) => Ok(Self::new(Source::Folder { dir: path.into(), _lock: lock })),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked { path: path.into() }),
            Err(error) => Err(io(error.into())),
        }
    }

    /// Events in the order of their numbers that pass the filter. Ends at the record's end, and goes on from there when it
    /// is asked again: with [`follow`](Self::follow) that is `log -f`.
    pub fn log(&self, filter: LogFilter) -> Log {
        Log::new(self.clone(), filter, log::Bytes::Left)
    }

    /// All events of one session, with the bytes of its answers.
    pub fn session(&self, id: SessionId) -> Log {
        let filter = LogFilter { session: Some(id), ..LogFilter::default() };
        Log::new(self.clone(), filter, log::Bytes::Read)
    }

    /// Sessions, the newest first.
    pub fn sessions(&self, filter: SessionFilter) -> Sessions {
        Sessions::new(self.clone(), filter)
    }

    /// The last durable sequence number, and each later one; `None` offline, where nothing comes any more.
    pub fn follow(&self) -> Option<watch::Receiver<u64>> {
        match &self.0.source {
            Source::Daemon { shared, .. } => Some(shared.subscribe()),
            Source::Folder { .. } | Source::File { .. } => None,
        }
    }

    /// Checks the chain of every window, and that each follows the one before. Gives what is wrong; nothing is changed.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn verify(&self) -> Result<Vec<StoreError>, StoreError> {
        let mut wrong = Vec::new();
        for path in self.windows()? {
            let checked = guarded(&path, || match &*self.open(&path)? {
                Readable::Live(window) => window::verify(&*window.db, &path),
                Readable::Closed(db) => window::verify(&**db, &path),
                Readable::Copy(db) => window::verify(&**db, &path),
            });
            wrong.extend(checked.err());
        }
        Ok(wrong)
    }

    /// The windows, oldest first.
    fn windows(&self) -> Result<Vec<PathBuf>, StoreError> {
        match &self.0.source {
            Source::Daemon { dir, .. } | Source::Folder { dir, .. } => window::list(dir),
            Source::File { path } => Ok(vec![path.clone()]),
        }
    }

    /// A window, kept open for the next page.
    fn open(&self, path: &Path) -> Result<Arc<Readable>, StoreError> {
        if let Source::Daemon { dir, shared } = &self.0.source
            && let Some(window) = live(dir, shared, path)?
        {
            return Ok(Arc::new(Readable::Live(window)));
        }
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, readable)) = kept.as_ref().filter(|(of, _)| of == path) {
            return Ok(readable.clone());
        }
        let readable = match reader().open_read_only(path) {
            Ok(db) => Readable::Closed(Box::new(db)),
            Err(DatabaseError::RepairAborted) => Readable::Copy(Box::new(copy(path)?)),
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::Locked { path: path.into() }),
            Err(error) => return Err(StoreError::from_redb(path, error)),
        };
        let readable = Arc::new(readable);
        *kept = Some((path.into(), readable.clone()));
        Ok(readable)
    }
}

/// The writer's own window, if `path` is it. The newest one is the writer's even while it is closed by a failure: nobody
/// else opens it, so that nothing keeps the writer from it.
fn live(dir: &Path, shared: &Shared, path: &Path) -> Result<Option<Window>, StoreError> {
    let deadline = Instant::now() + REOPEN;
    loop {
        if let Some(window) = shared.live().filter(|window| window.path == path) {
            return Ok(Some(window));
        }
        if window::list(dir)?.last().is_none_or(|newest| newest != path) {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            return Err(shared.trouble().unwrap_or(StoreError::Closed));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Recorder {
    /// A reader beside the writer; `None` when nothing is recorded.
    pub fn reader(&self) -> Option<Reader> {
        let (settings, shared) = self.shared()?;
        Some(Reader::new(Source::Daemon { dir: settings.dir.clone(), shared: shared.clone() }))
    }
}

/// What is read page by page, and given one by one.
trait Pages {
    type Item;

    fn next_page(&mut self) -> Result<Option<Vec<Self::Item>>, StoreError>;
    fn ready(&mut self) -> &mut VecDeque<Self::Item>;
    /// Nothing comes any more.
    fn end(&mut self);
}

/// The next one; an error is told once, and nothing comes behind it.
fn next_of<P: Pages>(pages: &mut P) -> Option<Result<P::Item, StoreError>> {
    loop {
        if let Some(item) = pages.ready().pop_front() {
            return Some(Ok(item));
        }
        match pages.next_page() {
            Ok(Some(page)) => pages.ready().extend(page),
            Ok(None) => return None,
            Err(error) => {
                pages.end();
                return Some(Err(error));
            }
        }
    }
}

/// A window open for reading.
enum Readable {
    /// The writer's, shared with it.
    Live(Window),
    Closed(Box<ReadOnlyDatabase>),
    /// Of a window that was never closed: the copy was repaired, the file is as it was found.
    Copy(Box<Database>),
}

impl fmt::Debug for Readable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live(_) => "Live",
            Self::Closed(_) => "Closed",
            Self::Copy(_) => "Copy",
        })
    }
}

impl Readable {
    fn begin_read(&self) -> Result<ReadTransaction, TransactionError> {
        match self {
            Self::Live(window) => window.db.begin_read(),
            Self::Closed(db) => db.begin_read(),
            Self::Copy(db) => db.begin_read(),
        }
    }
}

fn reader() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(READ_CACHE_BYTES);
    builder
}

/// Copies a window to a nameless file and repairs it there.
fn copy(path: &Path) -> Result<Database, StoreError> {
    let nameless = || {
        let dir = std::env::temp_dir();
        let name = dir.join(format!("weir-record-{}-{:x}", std::process::id(), rand_u64()?));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&name)?;
        fs::remove_file(&name)?;
        io::copy(&mut File::open(path)?, &mut &file)?;
        Ok(file)
    };
    let file = nameless().map_err(|error: io::Error| StoreError::from_io(path, &error))?;
    let backend = FileBackend::new(file).map_err(at(path))?;
    reader().create_with_backend(backend).map_err(at(path))
}

fn rand_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_ne_bytes(bytes))
}
