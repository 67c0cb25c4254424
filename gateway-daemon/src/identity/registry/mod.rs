//! The runs of the agents, by their cgroups, and the standing of each.
//!
//! One uid has one subject at a time: processes of one uid can trace and signal each other, so a second subject on it
//! would not be a second identity. A run that ends loses its identity at once, and its uid only when its last process is
//! gone ([`Registry::end`], [`Registry::release`]). A frozen agent stays frozen across restarts of the daemon. A run does not keep its
//! identity across one: it is known again (its cgroup still leads to it, its uid is still taken), but is
//! [`Standing::Unidentified`] until a token for its subject is verified anew.

mod run;
mod state;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

pub use run::{CgroupId, Freeze, Run, RunId, RunIdError, Standing};
pub use state::StateError;

use self::{
    run::{Lease, Life, Parts},
    state::{FrozenAgent, KnownRun, State, StateFile},
};
use super::{
    Identity, Subject,
    clock::{Clock, Moment, SystemClock},
};

/// How long the timer sleeps at most: a suspended machine or a clock that was set is noticed after this. Nothing
/// that decides waits for it.
const RECHECK: Duration = Duration::from_secs(1);

/// Why a run is not enrolled, refreshed, or an agent not frozen.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Root can undo all that is done to it.
    #[error("agent `{agent}` would run as root, which nothing could hold back")]
    Root {
        /// The agent.
        agent: Arc<str>,
    },
    /// The agent is frozen.
    #[error("agent `{agent}` was frozen by {}; `weir agent thaw {agent}` ends that", .freeze.by)]
    Frozen {
        /// The agent.
        agent: Arc<str>,
        /// By whom, since when.
        freeze: Freeze,
    },
    /// Another subject's run lives on this uid.
    #[error(
        "uid {uid} already runs `{other}` (run {run}) for another subject; end that run first, or give this agent a uid of its own"
    )]
    UidTaken {
        /// The uid.
        uid: u32,
        /// The agent of the run that lives.
        other: Arc<str>,
        /// That run.
        run: RunId,
    },
    /// Every uid of the agent's pool is taken.
    #[error(
        "all {size} uids of agent `{agent}`'s `uid_pool` are taken ({held} by its runs, {busy} by processes or homes that are left over); end \
         a run, or widen the pool"
    )]
    PoolExhausted {
        /// The agent.
        agent: Arc<str>,
        /// The pool's size.
        size: u32,
        /// How many runs hold one.
        held: usize,
        /// How many are kept back for processes and homes of no run.
        busy: usize,
    },
    /// The cgroup is another run's.
    #[error("cgroup {} already belongs to run {run}", .cgroup.0)]
    CgroupTaken {
        /// The cgroup.
        cgroup: CgroupId,
        /// That run.
        run: RunId,
    },
    /// The identity ended before it could be used.
    #[error("the token has expired")]
    Expired,
    /// No run with this name lives.
    #[error("there is no run {run}")]
    NoRun {
        /// The name.
        run: RunId,
    },
    /// The agent has no run for the token's subject.
    #[error("agent `{agent}` has no run for the token's subject")]
    NoRunForSubject {
        /// The agent.
        agent: Arc<str>,
    },
    /// The token is another subject's, or was verified for another agent.
    #[error("run {run} speaks for another subject than the token")]
    OtherSubject {
        /// The run.
        run: RunId,
    },
    /// The agent is not frozen.
    #[error("agent `{agent}` is not frozen")]
    NotFrozen {
        /// The agent.
        agent: Arc<str>,
    },
    /// The file that outlives the daemon cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What it takes to enrol a run.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// From [`Registry::next_run_id`].
    pub id: RunId,
    /// The uid that its processes have.
    pub uids: Uids,
    /// The cgroup, made for it and still empty.
    pub cgroup: CgroupId,
    /// The uid of whoever starts it.
    pub starter: u32,
    /// Where a renewed token appears, if anywhere.
    pub token_file: Option<PathBuf>,
    /// As verified; it names the agent.
    pub identity: Identity,
}

/// Which uid a run gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uids {
    /// This one.
    One(u32),
    /// One of a pool that no run holds: the next after the one that was given last, so that none comes back soon.
    Pool {
        /// The pool.
        range: RangeInclusive<u32>,
        /// Those that must not be given: a process lives that has one, or a home is left over that belongs to one.
        busy: HashSet<u32>,
    },
}

/// The runs that live. Cheap to ask, for one is asked for at each connection.
pub struct Registry {
    by_cgroup: ArcSwap<HashMap<CgroupId, Arc<Run>>>,
    /// Held by those who change anything.
    book: Mutex<Book>,
    last_id: AtomicU64,
    clock: Arc<dyn Clock>,
    /// Wakes the timer: some run ends sooner than it knew.
    changed: Arc<Notify>,
}

struct Book {
    runs: BTreeMap<RunId, Arc<Run>>,
    /// Ended, with processes that may still live: they keep their uid and cgroup from others.
    ended: BTreeMap<RunId, Arc<Run>>,
    frozen: BTreeMap<Arc<str>, Freeze>,
    /// The uid that was given last, of each agent with a pool.
    last_uids: BTreeMap<Arc<str>, u32>,
    boot_id: String,
    file: StateFile,
}

impl Registry {
    /// Opens the registry whose file is in `state_dir`, with what a daemon before this one left there. Starts a task
    /// that tells of expiries, so it wants a tokio runtime.
    ///
    /// # Errors
    /// When the file is there and cannot be used: without it nobody knows who is frozen.
    pub fn open(state_dir: &Path) -> Result<Arc<Self>, RegistryError> {
        Self::open_with_clock(state_dir, Arc::new(SystemClock))
    }

    /// [`Registry::open`] with a clock of the caller's.
    ///
    /// # Errors
    /// See there.
    pub fn open_with_clock(state_dir: &Path, clock: Arc<dyn Clock>) -> Result<Arc<Self>, RegistryError> {
        let book = Book::open(state_dir, &clock)?;
        let by_cgroup = book.runs.values().map(|run| (run.cgroup, Arc::clone(run))).collect();
        let last_id = book.all().map(|run| run.id.count()).max().unwrap_or(0);
        let registry = Arc::new(Self {
            by_cgroup: ArcSwap::from_pointee(by_cgroup),
            book: Mutex::new(book),
            last_id: AtomicU64::new(last_id),
            clock,
            changed: Arc::new(Notify::new()),
        });
        tokio::spawn(keep_time(Arc::downgrade(&registry), Arc::clone(&registry.changed)));
        Ok(registry)
    }

    /// A name for the next run, later than every one before.
    pub fn next_run_id(&self) -> RunId {
        let now = millis(self.clock.now().wall).saturating_mul(1000);
        let next = |last: u64| now.max(last.saturating_add(1));
        let last = self.last_id.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        RunId::from_count(next(last.unwrap_or_else(|last| last)))
    }

    /// Enrols a run, before its first process enters the cgroup. Blocks while a small file is written.
    ///
    /// # Errors
    /// When the agent is frozen, the uid speaks for another subject, the cgroup is taken, the identity has ended, or
    /// the file cannot be written.
    pub fn enrol(&self, enrolment: Enrolment) -> Result<Arc<Run>, RegistryError> {
        let Enrolment { id, uids, cgroup, starter, token_file, identity } = enrolment;
        let agent = Arc::clone(&identity.agent);
        let now = self.clock.now();
        let mut book = self.book();
        let uid = book.uid(&agent, &uids)?;
        if uid == 0 {
            return Err(RegistryError::Root { agent });
        }
        if let Some(freeze) = book.frozen.get(&agent) {
            return Err(RegistryError::Frozen { agent, freeze: freeze.clone() });
        }
        if let Some(run) = book.all().find(|run| run.cgroup == cgroup || run.id == id) {
            return Err(RegistryError::CgroupTaken { cgroup, run: run.id });
        }
        if let Some(run) = book.all().find(|run| run.uid == uid && run.subject != identity.subject) {
            return Err(RegistryError::UidTaken { uid, other: Arc::clone(&run.agent), run: run.id });
        }
        let subject = identity.subject.clone();
        let lease = Lease::new(identity, now).ok_or(RegistryError::Expired)?;
        let parts = Parts { id, agent, uid, cgroup, subject, starter, started: now.wall, token_file };
        let life = Life { identity: Some(lease), frozen: None, ended: false };
        let run = Arc::new(Run::new(parts, Arc::clone(&self.clock), life));
        book.runs.insert(id, Arc::clone(&run));
        if let Uids::Pool { .. } = uids {
            book.last_uids.insert(Arc::clone(&run.agent), uid);
        }
        if let Err(error) = book.store() {
            book.runs.remove(&id);
            return Err(error.into());
        }
        self.republish(&book);
        self.changed.notify_one();
        Ok(run)
    }

    /// The run that a cgroup was enrolled for. Takes no lock.
    pub fn by_cgroup(&self, cgroup: CgroupId) -> Option<Arc<Run>> {
        self.by_cgroup.load().get(&cgroup).map(Arc::clone)
    }

    /// The run with this name.
    pub fn run(&self, id: RunId) -> Option<Arc<Run>> {
        self.book().runs.get(&id).map(Arc::clone)
    }

    /// The runs that have ended and were not released, the oldest first.
    pub fn ended(&self) -> Vec<Arc<Run>> {
        self.book().ended.values().map(Arc::clone).collect()
    }

    /// All runs that have not ended, the oldest first.
    pub fn list(&self) -> Vec<Arc<Run>> {
        self.book().runs.values().map(Arc::clone).collect()
    }

    /// The frozen agents.
    pub fn frozen(&self) -> Vec<(Arc<str>, Freeze)> {
        self.book().frozen.iter().map(|(agent, freeze)| (Arc::clone(agent), freeze.clone())).collect()
    }

    /// Gives a run a new identity of the same agent and subject. A frozen run stays frozen.
    ///
    /// # Errors
    /// When the run is gone, the identity is another's, or it has ended.
    pub fn refresh(&self, id: RunId, identity: Identity) -> Result<(), RegistryError> {
        let book = self.book();
        let run = book.runs.get(&id).ok_or(RegistryError::NoRun { run: id })?;
        if run.subject != identity.subject || run.agent != identity.agent {
            return Err(RegistryError::OtherSubject { run: id });
        }
        self.renew(run, identity)
    }

    /// Gives all runs of the identity's agent and subject this new identity, and says which they are.
    ///
    /// # Errors
    /// When there is none, or the identity has ended.
    pub fn refresh_agent(&self, identity: &Identity) -> Result<Vec<RunId>, RegistryError> {
        let book = self.book();
        let mut refreshed = Vec::new();
        for run in book.runs.values() {
            if run.subject == identity.subject && run.agent == identity.agent {
                self.renew(run, identity.clone())?;
                refreshed.push(run.id);
            }
        }
        if refreshed.is_empty() {
            return Err(RegistryError::NoRunForSubject { agent: Arc::clone(&identity.agent) });
        }
        Ok(refreshed)
    }

    /// Freezes an agent: its runs at once, and new ones. Holds even when the file cannot be written, which is then
    /// the error: the freeze would not outlive the daemon.
    ///
    /// # Errors
    /// See above.
    pub fn freeze(&self, agent: &str, by: &str) -> Result<(), RegistryError> {
        let now = self.clock.now();
        let mut book = self.book();
        let freeze = Freeze { by: by.into(), since: now.wall };
        let freeze = book.frozen.entry(agent.into()).or_insert(freeze).clone();
        for run in book.runs.values().filter(|run| *run.agent == *agent) {
            run.change(now, |life| life.frozen = Some(freeze.clone()));
        }
        Ok(book.store()?)
    }

    /// Ends a freeze, once that is on disk.
    ///
    /// # Errors
    /// When the agent is not frozen or the file cannot be written; then it stays frozen.
    pub fn thaw(&self, agent: &str) -> Result<(), RegistryError> {
        let mut book = self.book();
        let (agent, freeze) =
            book.frozen.remove_entry(agent).ok_or_else(|| RegistryError::NotFrozen { agent: agent.into() })?;
        if let Err(error) = book.store() {
            book.frozen.insert(agent, freeze);
            return Err(error.into());
        }
        let now = self.clock.now();
        for run in book.runs.values().filter(|run| run.agent == agent) {
            run.change(now, |life| life.frozen = None);
        }
        Ok(())
    }

    /// Ends a run: its cgroup leads nowhere from now on. For when the cgroup is empty, or its processes are to be
    /// cut off. Its uid stays taken until [`Registry::release`]. Holds even when the file cannot be written, which is
    /// then the error.
    ///
    /// # Errors
    /// When there is no such run; else see above.
    pub fn end(&self, id: RunId) -> Result<(), RegistryError> {
        let mut book = self.book();
        let run = book.runs.remove(&id).ok_or(RegistryError::NoRun { run: id })?;
        run.change(self.clock.now(), |life| life.ended = true);
        book.ended.insert(id, run);
        self.republish(&book);
        Ok(book.store()?)
    }

    /// Gives the uid of a run that has ended free: its last process is gone. Holds even when the file cannot be written,
    /// which is then the error.
    ///
    /// # Errors
    /// When no such run has ended; else see above.
    pub fn release(&self, id: RunId) -> Result<(), RegistryError> {
        let mut book = self.book();
        book.ended.remove(&id).ok_or(RegistryError::NoRun { run: id })?;
        Ok(book.store()?)
    }

    /// This moment on the registry's clock.
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    fn renew(&self, run: &Run, identity: Identity) -> Result<(), RegistryError> {
        let now = self.clock.now();
        let lease = Lease::new(identity, now).ok_or(RegistryError::Expired)?;
        run.change(now, |life| life.identity = Some(lease));
        self.changed.notify_one();
        Ok(())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn republish(&self, book: &Book) {
        self.by_cgroup.store(Arc::new(book.runs.values().map(|run| (run.cgroup, Arc::clone(run))).collect()));
    }

    /// Tells of what has expired, and says when to look again.
    fn tell_expired(&self) -> Duration {
        let now = self.clock.now();
        let mut next = RECHECK;
        for run in self.book().runs.values() {
            match run.remaining(now) {
                Some(left) => next = next.min(left),
                None => run.publish(now),
            }
        }
        next
    }
}

/// Looks at the clock when the next run expires, and at least every [`RECHECK`].
async fn keep_time(registry: Weak<Registry>, changed: Arc<Notify>) {
    while let Some(wait) = registry.upgrade().map(|registry| registry.tell_expired()) {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changed.notified() => {}
        }
    }
}

impl Book {
    fn open(state_dir: &Path, clock: &Arc<dyn Clock>) -> Result<Self, StateError> {
        let (boot_id, file) = (state::boot_id()?, StateFile::new(state_dir));
        let mut book = Self {
            runs: BTreeMap::new(),
            ended: BTreeMap::new(),
            frozen: BTreeMap::new(),
            last_uids: BTreeMap::new(),
            boot_id,
            file,
        };
        let Some(left) = book.file.load()? else { return Ok(book) };
        for FrozenAgent { agent, by, since_ms } in left.frozen {
            book.frozen.insert(agent.into(), Freeze { by: by.into(), since: at_millis(since_ms) });
        }
        book.last_uids = left.last_uids.into_iter().map(|(agent, uid)| (agent.into(), uid)).collect();
        // After a boot the cgroups are gone, and their ids are given to others.
        if left.boot_id == book.boot_id {
            for run in left.runs {
                book.adopt(run, clock);
            }
        }
        Ok(book)
    }

    fn adopt(&mut self, known: KnownRun, clock: &Arc<dyn Clock>) {
        let KnownRun { id, agent, uid, cgroup, issuer, subject, starter, started_ms, token_file, ended } = known;
        let agent: Arc<str> = agent.into();
        let life = Life { identity: None, frozen: self.frozen.get(&agent).cloned(), ended };
        let subject = Subject { issuer: issuer.into(), subject: subject.into() };
        let started = at_millis(started_ms);
        let parts = Parts { id, agent, uid, cgroup, subject, starter, started, token_file };
        let run = Arc::new(Run::new(parts, Arc::clone(clock), life));
        if ended {
            self.ended.insert(id, run)
        } else {
            self.runs.insert(id, run)
        };
    }

    /// The uid for a run of an agent.
    fn uid(&self, agent: &Arc<str>, uids: &Uids) -> Result<u32, RegistryError> {
        let (range, busy) = match uids {
            Uids::One(uid) => return Ok(*uid),
            Uids::Pool { range, busy } => (range, busy),
        };
        let held: HashSet<u32> = self.all().map(|run| run.uid).filter(|uid| range.contains(uid)).collect();
        let last = self.last_uids.get(agent).copied().filter(|last| range.contains(last));
        let next = last.and_then(|last| last.checked_add(1)).unwrap_or(*range.start());
        let free =
            (next..=*range.end()).chain(*range.start()..next).find(|uid| !held.contains(uid) && !busy.contains(uid));
        free.ok_or_else(|| RegistryError::PoolExhausted {
            agent: Arc::clone(agent),
            size: range.end().saturating_sub(*range.start()).saturating_add(1),
            held: held.len(),
            busy: busy.difference(&held).count(),
        })
    }

    /// All whose processes may live.
    fn all(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.runs.values().chain(self.ended.values())
    }

    fn store(&self) -> Result<(), StateError> {
        let frozen = self.frozen.iter().map(|(agent, Freeze { by, since })| FrozenAgent {
            agent: agent.to_string(),
            by: by.to_string(),
            since_ms: millis(*since),
        });
        let runs = self.all().map(|run| KnownRun {
            id: run.id,
            agent: run.agent.to_string(),
            uid: run.uid,
            cgroup: run.cgroup,
            issuer: run.subject.issuer.to_string(),
            subject: run.subject.subject.to_string(),
            starter: run.starter,
            started_ms: millis(run.started),
            token_file: run.token_file.clone(),
            ended: self.ended.contains_key(&run.id),
        });
        let last_uids = self.last_uids.iter().map(|(agent, uid)| (agent.to_string(), *uid)).collect();
        self.file.store(&State::new(self.boot_id.clone(), frozen.collect(), runs.collect(), last_uids))
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn at_millis(millis: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH)
}
