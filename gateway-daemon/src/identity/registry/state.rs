//! What of the registry outlives the daemon: who is frozen, and which runs there were. No token, and no identity that
//! could be used: a run found here is refused until a new token is verified.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::run::{CgroupId, RunId};

const FILE: &str = "agents.json";
const VERSION: u32 = 1;

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    version: u32,
    /// Cgroup ids are counted anew at each boot.
    pub(super) boot_id: String,
    pub(super) frozen: Vec<FrozenAgent>,
    pub(super) runs: Vec<KnownRun>,
    /// The uid that was given last, of each agent with a pool.
    #[serde(default)]
    pub(super) last_uids: BTreeMap<String, u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FrozenAgent {
    pub(super) agent: String,
    pub(super) by: String,
    /// Milliseconds since 1970.
    pub(super) since_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KnownRun {
    pub(super) id: RunId,
    pub(super) agent: String,
    pub(super) uid: u32,
    pub(super) cgroup: CgroupId,
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) starter: u32,
    /// Milliseconds since 1970.
    pub(super) started_ms: u64,
    pub(super) token_file: Option<PathBuf>,
    /// Whether it has ended, and only keeps its uid.
    #[serde(default)]
    pub(super) ended: bool,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read.
    #[error("`{}` cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not what this version writes. Not ignored: it says who is frozen.
    #[error("`{}` is damaged or of another version ({reason}); who was frozen is not known: remove the file to start with nobody frozen", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
    /// It cannot be written.
    #[error("`{}` cannot be written", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel's boot id cannot be read.
    #[error("`{BOOT_ID}` cannot be read")]
    BootId {
        /// Why.
        #[source]
        source: io::Error,
    },
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl State {
    pub(super) fn new(
        boot_id: String,
        frozen: Vec<FrozenAgent>,
        runs: Vec<KnownRun>,
        last_uids: BTreeMap<String, u32>,
    ) -> Self {
        Self { version: VERSION, boot_id, frozen, runs, last_uids }
    }
}

/// The file.
pub(super) struct StateFile {
    dir: PathBuf,
}

impl StateFile {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// What a daemon before this one left, if one did.
    pub(super) fn load(&self) -> Result<Option<State>, StateError> {
        let path = self.path();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Read { path, source }),
        };
        match serde_json::from_slice::<State>(&text) {
            Ok(state) if state.version == VERSION => Ok(Some(state)),
            Ok(state) => Err(StateError::Damaged { path, reason: format!("version {}", state.version) }),
            Err(error) => Err(StateError::Damaged { path, reason: error.to_string() }),
        }
    }

    /// Puts `state` in the file's place: after a crash there is the old one or the new one, whole.
    pub(super) fn store(&self, state: &State) -> Result<(), StateError> {
        let path = self.path();
        self.replace(&path, state).map_err(|source| StateError::Write { path, source })
    }

    fn replace(&self, path: &Path, state: &State) -> io::Result<()> {
        let new = self.dir.join(format!("{FILE}.new"));
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(state)?)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(&self.dir)?.sync_all()
    }
}

/// Names this boot of the machine.
pub(super) fn boot_id() -> Result<String, StateError> {
    let id = std::fs::read_to_string(BOOT_ID).map_err(|source| StateError::BootId { source })?;
    Ok(id.trim().to_owned())
}
