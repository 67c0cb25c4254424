//! What the store is told, and where its world begins: the clock and the files.

use std::{
    fmt,
    fs::OpenOptions,
    io,
    ops::Bound,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{BackendError, StorageBackend, backends::FileBackend};

use super::Time;
use crate::limits::Accounts;

const MIB: u64 = 1024 * 1024;

/// The store's settings, checked by whoever makes them.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// The folder; made with mode 0700 where it is missing.
    pub dir: PathBuf,
    /// Bytes after which a window ends before its day does.
    pub window_bytes: u64,
    /// redb's cache, in bytes, for writing and reading together.
    pub cache_bytes: usize,
    /// Bytes that may wait for the disk, of all sessions together; over them events are refused.
    pub queue_bytes: u64,
    /// Of whom each agent's bytes are counted.
    pub accounts: Arc<Accounts>,
    /// Clock and files; other ones in tests.
    pub(super) world: Arc<dyn World>,
}

impl StoreSettings {
    /// The defaults: windows of 512 MiB, 64 MiB of cache, 256 MiB that may wait.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            window_bytes: 512 * MIB,
            cache_bytes: 64 * 1024 * 1024,
            queue_bytes: 256 * MIB,
            accounts: Arc::default(),
            world: Arc::new(Host),
        }
    }
}

/// Where the world begins: replaced by a disk that dies on command in tests.
pub(super) trait World: Send + Sync + fmt::Debug {
    fn now(&self) -> Time;
    fn open(&self, path: &Path, create: bool) -> Result<Backend, redb::Error>;
}

/// The host's own clock and files.
#[derive(Debug)]
struct Host;

impl World for Host {
    fn now(&self) -> Time {
        Time::now()
    }

    fn open(&self, path: &Path, create: bool) -> Result<Backend, redb::Error> {
        Ok(Backend(Box::new(open_file(path, create)?)))
    }
}

/// Opens a window's file for its one writer, mode 0600.
pub(super) fn open_file(path: &Path, create: bool) -> Result<FileBackend, redb::Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(create).mode(0o600);
    Ok(FileBackend::new(options.open(path)?)?)
}

/// Any backend, since redb takes them by type.
#[derive(Debug)]
pub(super) struct Backend(pub(super) Box<dyn StorageBackend>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
