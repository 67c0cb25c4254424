//! One run and its standing.

use std::{
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::identity::{
    Identity, Subject,
    clock::{Clock, Moment},
};

/// The id of a cgroup of the v2 hierarchy: the inode number of its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CgroupId(pub u64);

/// A run's name: 16 lower-case hex digits, in the order of starting. Not a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(u64);

impl RunId {
    pub(super) const fn from_count(count: u64) -> Self {
        Self(count)
    }

    pub(super) const fn count(self) -> u64 {
        self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Not 16 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run's name is 16 lower-case hex digits")]
pub struct RunIdError;

impl FromStr for RunId {
    type Err = RunIdError;

    fn from_str(text: &str) -> Result<Self, RunIdError> {
        let well_formed = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let count = if well_formed { u64::from_str_radix(text, 16).ok() } else { None };
        count.map(Self).ok_or(RunIdError)
    }
}

impl TryFrom<String> for RunId {
    type Error = RunIdError;

    fn try_from(text: String) -> Result<Self, RunIdError> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.to_string()
    }
}

/// Who froze an agent, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freeze {
    /// For people: `root`, `uid 1000`.
    pub by: Arc<str>,
    /// When.
    pub since: SystemTime,
}

/// Whether a run may act. [`Standing::Valid`] alone says yes. `Display` is the reason, for the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Yes, as this identity.
    Valid(Arc<Identity>),
    /// Its token has ended. A new one for the same subject makes it valid again.
    Expired {
        /// When.
        at: SystemTime,
    },
    /// Someone froze the agent. Only thawing ends it.
    Frozen(Freeze),
    /// It was started under a daemon before this one. The identity went with that daemon; a token for the same subject
    /// brings it back.
    Unidentified,
    /// It is over, for good.
    Ended,
}

impl Standing {
    /// What to do about it, for the agent and those who read its errors; `None` when there is nothing.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Expired { .. } | Self::Unidentified => {
                Some("renew the run's token file, or run `weir agent refresh` with a new token for the same subject")
            }
            Self::Frozen(_) => Some("ask whoever froze the agent; `weir agent thaw` ends it"),
            Self::Valid(_) | Self::Ended => None,
        }
    }

    /// The SHA-256 of the token in force, if one is.
    pub fn token_sha256(&self) -> Option<[u8; 32]> {
        match self {
            Self::Valid(identity) => Some(identity.token_sha256),
            Self::Expired { .. } | Self::Frozen(_) | Self::Unidentified | Self::Ended => None,
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid(_) => f.write_str("the run is identified"),
            Self::Expired { at } => {
                f.write_str("the run's token has expired")?;
                match jiff::Timestamp::try_from(*at) {
                    Ok(at) => write!(f, " at {at:.0}"),
                    Err(_) => Ok(()),
                }
            }
            Self::Frozen(freeze) => write!(f, "the agent was frozen by {}", freeze.by),
            Self::Unidentified => f.write_str("the run has no identity since the daemon was restarted"),
            Self::Ended => f.write_str("the run has ended"),
        }
    }
}

/// One `weir run`: a cgroup that speaks for one subject.
pub struct Run {
    /// Its name.
    pub id: RunId,
    /// The agent's configured name.
    pub agent: Arc<str>,
    /// The uid of its processes.
    pub uid: u32,
    /// The cgroup that it was enrolled with; its processes are in it or below.
    pub cgroup: CgroupId,
    /// Who it speaks for. Never changes.
    pub subject: Subject,
    /// The uid of whoever started it.
    pub starter: u32,
    /// When it was enrolled.
    pub started: SystemTime,
    /// Where a renewed token appears, if anywhere.
    pub token_file: Option<PathBuf>,
    pid: OnceLock<u32>,
    clock: Arc<dyn Clock>,
    /// Locked while `standing` is sent, so that what is sent last is what holds.
    life: RwLock<Life>,
    standing: watch::Sender<Standing>,
}

/// What a standing is made of.
pub(super) struct Life {
    pub(super) identity: Option<Lease>,
    pub(super) frozen: Option<Freeze>,
    pub(super) ended: bool,
}

/// An identity and the end of it, on the clock that nobody can set.
pub(super) struct Lease {
    identity: Arc<Identity>,
    until: Duration,
}

/// What a run is made of; see the fields of [`Run`].
pub(super) struct Parts {
    pub(super) id: RunId,
    pub(super) agent: Arc<str>,
    pub(super) uid: u32,
    pub(super) cgroup: CgroupId,
    pub(super) subject: Subject,
    pub(super) starter: u32,
    pub(super) started: SystemTime,
    pub(super) token_file: Option<PathBuf>,
}

impl Run {
    pub(super) fn new(parts: Parts, clock: Arc<dyn Clock>, life: Life) -> Self {
        let Parts { id, agent, uid, cgroup, subject, starter, started, token_file } = parts;
        let (standing, _) = watch::channel(life.standing(clock.now()));
        let (pid, life) = (OnceLock::new(), RwLock::new(life));
        Self { id, agent, uid, cgroup, subject, starter, started, token_file, pid, clock, life, standing }
    }

    /// Whether it may act, now: compares the clocks itself, and so holds even if no timer ever fires.
    pub fn standing_now(&self) -> Standing {
        let now = self.clock.now();
        let life = self.life.read().unwrap_or_else(PoisonError::into_inner);
        let standing = life.standing(now);
        drop(life);
        if matches!(standing, Standing::Expired { .. }) {
            self.publish(now);
        }
        standing
    }

    /// Told of each change, for who must close what is open. What it holds may be as old as the last change: decide
    /// with [`Run::standing_now`].
    pub fn subscribe(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// The first process, once it is started.
    pub fn pid(&self) -> Option<u32> {
        self.pid.get().copied()
    }

    /// Notes the first process. The first note stays.
    pub fn note_pid(&self, pid: u32) {
        self.pid.get_or_init(|| pid);
    }

    /// How long the identity still lasts at `now`; `None` without one, or when it has ended.
    pub(super) fn remaining(&self, now: Moment) -> Option<Duration> {
        let life = self.life.read().unwrap_or_else(PoisonError::into_inner);
        life.identity.as_ref().and_then(|lease| lease.remaining(now))
    }

    /// Changes its life and tells those who listen.
    pub(super) fn change(&self, now: Moment, change: impl FnOnce(&mut Life)) {
        let mut life = self.life.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut life);
        self.send(&life, now);
    }

    /// Tells those who listen, if time has changed the standing.
    pub(super) fn publish(&self, now: Moment) {
        self.send(&self.life.write().unwrap_or_else(PoisonError::into_inner), now);
    }

    fn send(&self, life: &Life, now: Moment) {
        let standing = life.standing(now);
        self.standing.send_if_modified(|sent| {
            let changed = *sent != standing;
            *sent = standing;
            changed
        });
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, agent, uid, cgroup, .. } = self;
        write!(f, "Run({id}, {agent}, uid {uid}, cgroup {})", cgroup.0)
    }
}

impl Life {
    /// The strongest word first.
    fn standing(&self, now: Moment) -> Standing {
        match self {
            Self { ended: true, .. } => Standing::Ended,
            Self { frozen: Some(freeze), .. } => Standing::Frozen(freeze.clone()),
            Self { identity: None, .. } => Standing::Unidentified,
            Self { identity: Some(lease), .. } => match lease.remaining(now) {
                Some(_) => Standing::Valid(Arc::clone(&lease.identity)),
                None => Standing::Expired { at: lease.identity.expires },
            },
        }
    }
}

impl Lease {
    /// The end is fixed on both clocks: whichever reaches it first ends the lease, so that neither a wall clock set
    /// back nor a suspended machine makes it longer. `None` when it has ended already.
    pub(super) fn new(identity: Identity, now: Moment) -> Option<Self> {
        let left = identity.expires.duration_since(now.wall).ok().filter(|left| !left.is_zero())?;
        Some(Self { identity: Arc::new(identity), until: now.boot.saturating_add(left) })
    }

    fn remaining(&self, now: Moment) -> Option<Duration> {
        let by_wall = self.identity.expires.duration_since(now.wall).ok()?;
        let by_boot = self.until.checked_sub(now.boot)?;
        Some(by_wall.min(by_boot)).filter(|left| !left.is_zero())
    }
}
