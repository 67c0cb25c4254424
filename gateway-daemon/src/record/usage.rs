//! How much of the store is whose: what each agent has in every window that is there, kept across restarts in the windows
//! themselves, and how much the disk could hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use minicbor::{Decode, Encode};
use redb::ReadableTable;
use rustix::fs::statvfs;

use super::{
    Event, SessionId, StoreError, StoreSettings,
    batch::Batch,
    block::Block,
    unfold,
    window::{self, BLOCKS, Chain, META, SESSIONS, SessionRow, Window, at, damaged, encode, guarded},
};

/// The key in [`META`] of what follows.
pub(super) const STORED: &str = "stored";
/// How often the disk is looked at while something is written.
const LOOK: Duration = Duration::from_secs(5);

/// What a window says of whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub(super) struct Stored {
    /// The sequence number behind the last event that is counted; another than the window's own when the daemon died.
    #[n(0)]
    upto: u64,
    /// Bytes in this window, by agent.
    #[n(1)]
    agents: BTreeMap<String, u64>,
    /// The same of the windows before, by the name of their file.
    #[n(2)]
    before: BTreeMap<String, BTreeMap<String, u64>>,
}

/// The writer's count.
#[derive(Debug)]
pub(super) struct Usage {
    stored: Stored,
    looked: Instant,
}

impl Usage {
    /// Of a store whose last window is this one. What it has is counted anew only when it was not closed.
    pub(super) fn of(window: &Window, chain: &Chain) -> Result<Self, StoreError> {
        let path = &window.path;
        guarded(path, || {
            let txn = redb::ReadableDatabase::begin_read(&*window.db).map_err(at(path))?;
            let row = txn.open_table(META).map_err(at(path))?.get(STORED).map_err(at(path))?;
            let row = row.map(|row| minicbor::decode::<Stored>(row.value()));
            let mut stored = row.transpose().map_err(|error| damaged(path, error.to_string()))?.unwrap_or_default();
            if stored.upto != chain.next_seq {
                // A window that is damaged is told of elsewhere; what cannot be counted is nobody's.
                stored.agents = count(&txn, path).unwrap_or_default();
            }
            Ok(Self { stored, looked: Instant::now() })
        })
    }

    /// A batch is on the disk.
    pub(super) fn add(&mut self, batch: &Batch) {
        for ack in &batch.acks {
            let Some(account) = &ack.progress.account else { continue };
            match self.stored.agents.get_mut(&*account.agent) {
                Some(bytes) => *bytes = bytes.saturating_add(ack.bytes),
                None => drop(self.stored.agents.insert(account.agent.to_string(), ack.bytes)),
            }
        }
    }

    /// What the present window says when it is closed behind the event before `upto`.
    pub(super) fn closed(&self, upto: u64) -> Stored {
        Stored { upto, ..self.stored.clone() }
    }

    /// What the next window begins with, when the one in the file `name` ends.
    pub(super) fn next(&self, name: &str, upto: u64) -> Stored {
        let mut before = self.stored.before.clone();
        before.insert(name.to_owned(), self.stored.agents.clone());
        Stored { upto, agents: BTreeMap::new(), before }
    }

    /// The next window has begun.
    pub(super) fn turned(&mut self, next: Stored) {
        self.stored = next;
    }

    /// Looks at the disk now and then, and tells the agents' accounts.
    pub(super) fn look_now_and_then(&mut self, settings: &StoreSettings) {
        if self.looked.elapsed() >= LOOK {
            self.look(settings);
        }
    }

    /// Looks at the disk, and tells the agents' accounts. What cannot be seen leaves them as they are.
    pub(super) fn look(&mut self, settings: &StoreSettings) {
        self.looked = Instant::now();
        let (Ok(windows), Ok(disk)) = (window::list(&settings.dir), statvfs(&settings.dir)) else { return };
        let sizes = windows.iter().filter_map(|path| fs::metadata(path).ok());
        let taken = sizes.fold(0u64, |sum, meta| sum.saturating_add(super::recorder::blocks(&meta)));
        let names: BTreeSet<_> = windows.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        self.stored.before.retain(|name, _| names.contains(name.as_str()));
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        settings.accounts.note_stored(taken.saturating_add(free), |agent| {
            let before = self.stored.before.values().filter_map(|agents| agents.get(agent));
            before.chain(self.stored.agents.get(agent)).fold(0, |sum, bytes| sum.saturating_add(*bytes))
        });
    }
}

impl Window {
    /// Says whose it is, before it is closed.
    pub(super) fn write_stored(&self, stored: &Stored) -> Result<(), StoreError> {
        let path = &self.path;
        guarded(path, || {
            let txn = self.db.begin_write().map_err(at(path))?;
            let mut meta = txn.open_table(META).map_err(at(path))?;
            meta.insert(STORED, encode(stored)?.as_slice()).map_err(at(path))?;
            drop(meta);
            txn.commit().map_err(at(path))
        })
    }
}

/// Counts a window's bytes by agent: its events, and the chunks that they name.
fn count(txn: &redb::ReadTransaction, path: &Path) -> Result<BTreeMap<String, u64>, StoreError> {
    let mut agents: BTreeMap<u64, String> = BTreeMap::new();
    for row in txn.open_table(SESSIONS).map_err(at(path))?.iter().map_err(at(path))? {
        let (key, value) = row.map_err(at(path))?;
        let row = SessionRow::decode(SessionId(key.value()), value.value(), path)?;
        if let Ok(Event::SessionStart(start)) = minicbor::decode(&row.start) {
            agents.insert(key.value(), start.agent);
        }
    }
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    for row in txn.open_table(BLOCKS).map_err(at(path))?.iter().map_err(at(path))? {
        let (key, value) = row.map_err(at(path))?;
        let block = Block::parse(key.value(), value.value()).map_err(|cause| damaged(path, cause))?;
        for frame in block.frames() {
            let frame = frame.map_err(|cause| damaged(path, cause))?;
            let Some(agent) = frame.session().and_then(|session| agents.get(&session.0)) else { continue };
            let chunks: u64 = unfold::places(&frame).iter().map(|place| u64::from(place.len)).sum();
            let bytes = u64::try_from(frame.content.len()).unwrap_or(u64::MAX).saturating_add(chunks);
            let sum = counted.entry(agent.clone()).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }
    Ok(counted)
}
