//! One window: a redb file with the record of a day, or of what fits it. Names and tables: `FORMAT.md`.

use std::{
    collections::BTreeMap,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use minicbor::{Decode, Encode};
use redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{
    SessionId, StoreError, StoreSettings, Time,
    block::{Block, Hash},
    usage::{STORED, Stored},
};

pub(super) const BLOCKS: TableDefinition<u64, &[u8]> = TableDefinition::new("blocks");
pub(super) const BALES: TableDefinition<u64, &[u8]> = TableDefinition::new("bales");
pub(super) const SESSIONS: TableDefinition<u64, &[u8]> = TableDefinition::new("sessions");
pub(super) const INDEX: TableDefinition<u64, &[u8]> = TableDefinition::new("index");
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// The key of a window's head in [`META`].
pub(super) const HEAD: &str = "head";
/// How window files end; what is in the making ends in `.new` and holds nothing yet.
const SUFFIX: &str = ".redb";
const UNFINISHED: &str = ".new";

/// What a window says of itself, written when it is made and never again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct Head {
    /// The first sequence number in it, and when it was made.
    #[n(0)]
    pub(super) first: u64,
    #[n(1)]
    pub(super) time: u64,
    /// The file name of the window before; `None` in a store's first.
    #[n(2)]
    pub(super) previous: Option<String>,
    /// The hash of the last block of the window before; zeros in a store's first.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub(super) hash: Hash,
    /// The number of the first bale.
    #[n(4)]
    pub(super) bale: u64,
}

/// A row of [`SESSIONS`]: found by key, taken from events that stand in blocks as well.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct SessionRow {
    #[n(0)]
    pub(super) start_seq: u64,
    #[n(1)]
    pub(super) start_time: u64,
    /// The encoded `SessionStart`.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub(super) start: Vec<u8>,
    #[n(3)]
    pub(super) end_seq: Option<u64>,
    #[n(4)]
    pub(super) end_time: Option<u64>,
    /// The encoded `SessionEnd`.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub(super) end: Option<Vec<u8>>,
}

/// Where the chain of blocks stands: what the next one needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) next_seq: u64,
    pub(super) next_bale: u64,
    pub(super) hash: Hash,
    pub(super) time: Time,
    /// The first block that no index row covers.
    pub(super) indexed_to: u64,
    /// The highest session that the window knows.
    pub(super) last_session: u64,
}

/// What one commit writes. The same batch written twice gives the same rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) blocks: Vec<(u64, Vec<u8>)>,
    pub(super) bales: Vec<(u64, Vec<u8>)>,
    pub(super) sessions: BTreeMap<u64, SessionRow>,
    pub(super) index: Option<(u64, Vec<u8>)>,
}

/// A window open for writing; readers share the database.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub(super) path: PathBuf,
    pub(super) db: Arc<Database>,
}

/// A name that sorts by time, and by sequence number within one microsecond.
pub(super) fn file_name(time: Time, first: u64) -> String {
    format!("{}-{first:016x}{SUFFIX}", time.file_name())
}

/// The first sequence number of the window with this name.
pub(super) fn first_seq(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    u64::from_str_radix(name.rsplit_once('-')?.1, 16).ok()
}

/// When the window with this name was made.
pub(super) fn time_of(path: &Path) -> Option<Time> {
    let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    Time::from_file_name(name.rsplit_once('-')?.0)
}

/// The windows of a folder, oldest first.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(dir).map_err(|error| StoreError::from_io(dir, &error))?;
    let mut windows = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| StoreError::from_io(dir, &error))?.path();
        if first_seq(&path).is_some() {
            windows.push(path);
        }
    }
    windows.sort();
    Ok(windows)
}

/// Removes what a crash left of windows in the making. They hold no event yet.
pub(super) fn remove_unfinished(dir: &Path) -> Result<(), StoreError> {
    let io = |error: io::Error| StoreError::from_io(dir, &error);
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.to_str().is_some_and(|path| path.ends_with(&format!("{SUFFIX}{UNFINISHED}"))) {
            fs::remove_file(&path).map_err(io)?;
        }
    }
    Ok(())
}

/// Runs what reads or writes a file that may be damaged: redb panics on some of that, and a panic is an error here.
pub(super) fn guarded<T>(path: &Path, run: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let cause = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("panic");
        Err(StoreError::Damaged { path: path.into(), cause: format!("the store's code gave up: {cause}") })
    })
}

/// `map_err` for redb's many error types.
pub(super) fn at<E: Into<redb::Error>>(path: &Path) -> impl Fn(E) -> StoreError + '_ {
    move |error| StoreError::from_redb(path, error)
}

impl Window {
    /// Makes a window with the sessions that are open now. It appears under its name only when it is whole.
    pub(super) fn create(
        settings: &StoreSettings,
        head: &Head,
        live: &BTreeMap<u64, SessionRow>,
        stored: &Stored,
    ) -> Result<Self, StoreError> {
        let path = settings.dir.join(file_name(Time(head.time), head.first));
        let mut unfinished = path.clone().into_os_string();
        unfinished.push(UNFINISHED);
        let unfinished = PathBuf::from(unfinished);
        // Of an attempt before that could not even be taken away.
        let _ = fs::remove_file(&unfinished);
        let made = guarded(&path, || {
            let backend = settings.world.open(&unfinished, true).map_err(at(&path))?;
            let db = builder(settings).create_with_backend(backend).map_err(at(&path))?;
            write_head(&db, (head, live, stored), &path)?;
            fs::rename(&unfinished, &path).map_err(|error| StoreError::from_io(&path, &error))?;
            sync_dir(&settings.dir)?;
            Ok(Self { path: path.clone(), db: Arc::new(db) })
        });
        if made.is_err() {
            // What cannot be removed now is removed at the next start.
            let _ = fs::remove_file(&unfinished);
        }
        made
    }

    /// Opens a window; says whether redb found that it had not been closed.
    pub(super) fn open(settings: &StoreSettings, path: &Path) -> Result<(Self, bool), StoreError> {
        guarded(path, || {
            let crashed = Arc::new(AtomicBool::new(false));
            let mut builder = builder(settings);
            let seen = crashed.clone();
            builder.set_repair_callback(move |_| seen.store(true, Ordering::Relaxed));
            let backend = settings.world.open(path, false).map_err(at(path))?;
            let db = builder.create_with_backend(backend).map_err(at(path))?;
            Ok((Self { path: path.into(), db: Arc::new(db) }, crashed.load(Ordering::Relaxed)))
        })
    }

    /// One commit: durable when it returns.
    pub(super) fn write(&self, rows: &Rows) -> Result<(), StoreError> {
        let path = &self.path;
        let mut txn = self.db.begin_write().map_err(at(path))?;
        txn.set_durability(Durability::Immediate).map_err(at(path))?;
        if !rows.bales.is_empty() {
            let mut table = txn.open_table(BALES).map_err(at(path))?;
            for (key, value) in &rows.bales {
                table.insert(key, value.as_slice()).map_err(at(path))?;
            }
        }
        if !rows.blocks.is_empty() {
            let mut table = txn.open_table(BLOCKS).map_err(at(path))?;
            for (key, value) in &rows.blocks {
                table.insert(key, value.as_slice()).map_err(at(path))?;
            }
        }
        if !rows.sessions.is_empty() {
            let mut table = txn.open_table(SESSIONS).map_err(at(path))?;
            for (key, row) in &rows.sessions {
                table.insert(key, encode(row)?.as_slice()).map_err(at(path))?;
            }
        }
        if let Some((key, value)) = &rows.index {
            let mut table = txn.open_table(INDEX).map_err(at(path))?;
            table.insert(key, value.as_slice()).map_err(at(path))?;
        }
        txn.commit().map_err(at(path))
    }

    /// Where the chain stands at this window's end. Nothing but the last rows is read.
    pub(super) fn chain(&self) -> Result<Chain, StoreError> {
        let path = &self.path;
        guarded(path, || {
            let txn = self.db.begin_read().map_err(at(path))?;
            let head = read_head(&txn, path)?;
            let mut chain = Chain {
                next_seq: head.first,
                next_bale: head.bale,
                hash: head.hash,
                time: Time(head.time),
                indexed_to: head.first,
                last_session: 0,
            };
            let blocks = txn.open_table(BLOCKS).map_err(at(path))?;
            if let Some((key, value)) = blocks.last().map_err(at(path))? {
                let block = Block::parse(key.value(), value.value()).map_err(|cause| damaged(path, cause))?;
                chain.hash = block.hash;
                for frame in block.frames() {
                    let frame = frame.map_err(|cause| damaged(path, cause))?;
                    (chain.next_seq, chain.time) = (frame.seq.saturating_add(1), frame.time);
                }
            }
            if let Some((key, _)) = txn.open_table(BALES).map_err(at(path))?.last().map_err(at(path))? {
                chain.next_bale = key.value().saturating_add(1);
            }
            if let Some((key, _)) = txn.open_table(SESSIONS).map_err(at(path))?.last().map_err(at(path))? {
                chain.last_session = key.value();
            }
            if let Some((key, _)) = txn.open_table(INDEX).map_err(at(path))?.last().map_err(at(path))? {
                chain.indexed_to = key.value();
            }
            Ok(chain)
        })
    }
}

fn builder(settings: &StoreSettings) -> Builder {
    let mut builder = Builder::new();
    // The rest is the readers' of closed windows.
    builder.set_cache_size(settings.cache_bytes / 4 * 3);
    builder
}

fn write_head(
    db: &Database,
    (head, live, stored): (&Head, &BTreeMap<u64, SessionRow>, &Stored),
    path: &Path,
) -> Result<(), StoreError> {
    let txn = db.begin_write().map_err(at(path))?;
    {
        let mut meta = txn.open_table(META).map_err(at(path))?;
        meta.insert(HEAD, encode(head)?.as_slice()).map_err(at(path))?;
        meta.insert(STORED, encode(stored)?.as_slice()).map_err(at(path))?;
        for table in [BLOCKS, BALES, INDEX] {
            txn.open_table(table).map_err(at(path))?;
        }
        let mut sessions = txn.open_table(SESSIONS).map_err(at(path))?;
        for (key, row) in live {
            sessions.insert(key, encode(row)?.as_slice()).map_err(at(path))?;
        }
    }
    txn.commit().map_err(at(path))
}

/// A window's head.
pub(super) fn read_head(txn: &redb::ReadTransaction, path: &Path) -> Result<Head, StoreError> {
    let meta = txn.open_table(META).map_err(at(path))?;
    let head = meta.get(HEAD).map_err(at(path))?.ok_or_else(|| damaged(path, "it has no head".into()))?;
    minicbor::decode(head.value()).map_err(|error| damaged(path, format!("its head cannot be read: {error}")))
}

/// Walks the whole chain of a window: each block is what was written, and behind the one that stood before it. The
/// first break is told with its place.
pub(super) fn verify(db: &impl ReadableDatabase, path: &Path) -> Result<(), StoreError> {
    guarded(path, || {
        let txn = db.begin_read().map_err(at(path))?;
        let head = read_head(&txn, path)?;
        let bales = txn.open_table(BALES).map_err(at(path))?;
        let (mut hash, mut next) = (head.hash, head.first);
        for row in txn.open_table(BLOCKS).map_err(at(path))?.iter().map_err(at(path))? {
            let (key, value) = row.map_err(at(path))?;
            let block = Block::parse(key.value(), value.value()).map_err(|cause| damaged(path, cause))?;
            block.check().map_err(|cause| damaged(path, cause))?;
            if block.previous != hash || block.first != next {
                let first = block.first;
                return Err(damaged(path, format!("block {first} does not follow event {}", next.saturating_sub(1))));
            }
            hash = block.hash;
            for frame in block.frames() {
                let frame = frame.map_err(|cause| damaged(path, cause))?;
                next = frame.seq.saturating_add(1);
                for place in super::unfold::places(&frame) {
                    super::unfold::stored(&bales, &place, path)?;
                }
            }
        }
        Ok(())
    })
}

pub(super) fn damaged(path: &Path, cause: String) -> StoreError {
    StoreError::Damaged { path: path.into(), cause }
}

pub(super) fn encode(row: &impl Encode<()>) -> Result<Vec<u8>, StoreError> {
    minicbor::to_vec(row).map_err(|error| StoreError::Encode { cause: error.to_string() })
}

/// Makes a new name in the folder durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| StoreError::from_io(dir, &error))
}

impl SessionRow {
    pub(super) fn decode(id: SessionId, value: &[u8], path: &Path) -> Result<Self, StoreError> {
        minicbor::decode(value).map_err(|error| damaged(path, format!("session {id} cannot be read: {error}")))
    }
}
