//! Moves a tree into a run's cgroup, where it stands still until it has been looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    Fault, Journal, Look, Process, Rules, Why, faults, sockets, strays,
    tree::{is_gone, lies_in, lies_in_one, tree},
};
use crate::redirect::cgroup::{CgroupError, CgroupRoot};

/// How long a tree may take to stand still.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How often a tree is looked through until nothing new is found: one that forks all the time does not win for long, since
/// what was moved stands still.
const ROUNDS: usize = 200;

/// Why a tree was not moved.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Its processes are not what an agent's must be.
    #[error("{}", told(.0))]
    Faults(Vec<Fault>),
    /// There is no such process.
    #[error("there is no process {pid}")]
    Gone {
        /// The number.
        pid: u32,
    },
    /// It is some run's already.
    #[error("process {pid} is in `{cgroup}`, which is Weir's own: it is a run's already")]
    Taken {
        /// The process.
        pid: u32,
        /// Its cgroup.
        cgroup: String,
    },
    /// It cannot be held still.
    #[error("the processes could not be stopped within {limit:?}; is one of them stuck in a system call?")]
    Restless {
        /// The limit.
        limit: Duration,
    },
    /// It forks faster than it is moved.
    #[error("the tree grew faster than it could be moved; stop it first (`kill -STOP`)")]
    Growing,
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// /proc, or a table of sockets.
    #[error("the processes cannot be looked at: {0}")]
    Io(#[from] io::Error),
}

fn told(faults: &[Fault]) -> String {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    format!("these processes cannot be the agent's:\n{}", lines.join("\n"))
}

/// How often what runs is gone through: a connection that it makes meanwhile looks like one that was left.
const PASSES: usize = 3;

/// A tree in a run's cgroup, frozen. Dropped before it is settled it goes back where each process was.
pub struct Captured<'a> {
    cgroups: &'a CgroupRoot,
    folder: PathBuf,
    /// Where each was.
    moved: BTreeMap<Process, String>,
    /// The same, for a daemon that comes after this one.
    journal: Journal,
    settled: bool,
}

/// Looks at a tree without touching it.
///
/// # Errors
/// All faults at once.
fn look(root: Process, rules: &Rules<'_>) -> Result<(), CaptureError> {
    if let Some(cgroup) = root.cgroup().filter(|cgroup| lies_in_one(cgroup, rules.own)) {
        return Err(CaptureError::Taken { pid: root.pid, cgroup });
    }
    let tree = tree(root, rules.uid, rules.own, [])?;
    let mut faults = faults(&tree, rules, Look::Running);
    // What is born meanwhile where some of the tree lives is taken with it.
    let known: Vec<String> = tree.iter().filter_map(Process::cgroup).chain(rules.own.iter().cloned()).collect();
    faults.extend(strays(&tree, &Rules { own: &known, ..*rules })?);
    none(faults)
}

/// Looks at processes where they are, and destroys the connections that they may not have.
///
/// # Errors
/// All faults at once.
pub fn clean(processes: &BTreeSet<Process>, rules: &Rules<'_>) -> Result<(), CaptureError> {
    none(faults(processes, rules, Look::Running))?;
    cut(processes, rules).map(drop)
}

/// Destroys the connections that processes may not have, while they run; says how many there were.
///
/// # Errors
/// One is left.
pub fn cut(processes: &BTreeSet<Process>, rules: &Rules<'_>) -> Result<usize, CaptureError> {
    let mut destroyed = 0_usize;
    for pass in 1.. {
        let (found, faults) = sockets::destroy(processes, rules)?;
        destroyed = destroyed.saturating_add(found);
        if faults.is_empty() || pass == PASSES {
            none(faults)?;
            break;
        }
    }
    Ok(destroyed)
}

fn none(faults: Vec<Fault>) -> Result<(), CaptureError> {
    if faults.is_empty() { Ok(()) } else { Err(CaptureError::Faults(faults)) }
}

impl<'a> Captured<'a> {
    /// Moves the tree of `root` into `cgroup`, which is empty and enrolled already, and lets nothing of it run.
    ///
    /// # Errors
    /// All faults at once; every process is back then, and runs.
    pub fn take(
        cgroups: &'a CgroupRoot,
        cgroup: &str,
        root: Process,
        rules: &Rules<'_>,
        journal: Journal,
    ) -> Result<Self, CaptureError> {
        look(root, rules)?;
        let folder = cgroups.path(cgroup);
        let mut captured = Self { cgroups, folder, moved: BTreeMap::new(), journal, settled: false };
        captured.freeze(true)?;
        for _ in 0..ROUNDS {
            let found = tree(root, rules.uid, rules.own, captured.moved.values())?;
            let mut new = captured.new_of(found);
            if new.is_empty() {
                // Where all stands still nothing is born; what was born until then the cgroup knows, if /proc did not.
                captured.wait_until_still()?;
                new = captured.new_of(captured.members()?);
                new.extend(captured.new_of(tree(root, rules.uid, rules.own, captured.moved.values())?));
            }
            if new.is_empty() {
                return Ok(captured);
            }
            none(faults(&new, rules, Look::Running))?;
            for process in new {
                captured.move_in(process, cgroup, rules)?;
            }
        }
        Err(CaptureError::Growing)
    }

    fn new_of(&self, found: BTreeSet<Process>) -> BTreeSet<Process> {
        found.into_iter().filter(|process| !self.moved.contains_key(process)).collect()
    }

    /// The processes that the kernel says are in the cgroup.
    fn members(&self) -> io::Result<BTreeSet<Process>> {
        let mut members = BTreeSet::new();
        for pid in fs::read_to_string(self.folder.join("cgroup.procs"))?.lines() {
            let pid = pid.parse().map_err(io::Error::other)?;
            members.extend(Process::find(pid)?);
        }
        Ok(members)
    }

    /// Looks at the tree as it stands, destroys the connections that it may not have, and lets it run. Gives how many
    /// processes there are and how many connections there were.
    ///
    /// # Errors
    /// All faults at once; connections that were destroyed by then stay so.
    pub fn settle(mut self, rules: &Rules<'_>) -> Result<(usize, usize), CaptureError> {
        let Some(first) = self.moved.keys().next().copied() else { return Ok((0, 0)) };
        let processes = self.all_in()?;
        if processes.is_empty() {
            return Err(CaptureError::Gone { pid: first.pid });
        }
        let mut faults = faults(&processes, rules, Look::Still);
        faults.extend(strays(&processes, rules)?);
        none(faults)?;
        let (destroyed, faults) = sockets::destroy(&processes, rules)?;
        none(faults)?;
        for process in &processes {
            leave_no_core(*process)?;
        }
        self.settled = true;
        self.freeze(false)?;
        self.journal.end()?;
        Ok((processes.len(), destroyed))
    }

    /// The members, when all that was moved and lives is among them and they among it.
    fn all_in(&self) -> Result<BTreeSet<Process>, CaptureError> {
        let until = Instant::now() + FREEZE_DEADLINE;
        loop {
            let members = self.members()?;
            if !self.new_of(members.clone()).is_empty() {
                return Err(CaptureError::Growing);
            }
            let lost: Vec<Process> =
                self.moved.keys().filter(|process| !members.contains(process) && process.is_alive()).copied().collect();
            if lost.is_empty() {
                return Ok(members);
            }
            // One that was ending when it was frozen goes on with that.
            if Instant::now() > until {
                return none(lost.iter().map(|process| process.fault(Why::Moved)).collect()).map(|()| members);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn move_in(&mut self, process: Process, cgroup: &str, rules: &Rules<'_>) -> Result<(), CaptureError> {
        let Some(before) = process.cgroup() else { return Ok(()) };
        if lies_in(&before, cgroup) {
            // Born of one that was moved and did not stand still yet; it would go back where the first of them was.
            let first = self.moved.values().next().cloned().unwrap_or_else(|| "/".to_owned());
            self.journal.note(process, &first)?;
            self.moved.insert(process, first);
            return Ok(());
        }
        if lies_in_one(&before, rules.own) {
            return Err(CaptureError::Taken { pid: process.pid, cgroup: before });
        }
        self.journal.note(process, &before)?;
        match self.cgroups.move_process(cgroup, process.pid) {
            Ok(()) => {
                self.moved.insert(process, before);
                Ok(())
            }
            Err(CgroupError::Io { source, .. }) if is_gone(&source) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(self.folder.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    fn wait_until_still(&self) -> Result<(), CaptureError> {
        let until = Instant::now() + FREEZE_DEADLINE;
        while !fs::read_to_string(self.folder.join("cgroup.events"))?.lines().any(|line| line == "frozen 1") {
            if Instant::now() > until {
                return Err(CaptureError::Restless { limit: FREEZE_DEADLINE });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Captured<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        for (process, before) in &self.moved {
            process.go_back(self.cgroups, before);
        }
        if let Err(error) = self.freeze(false).and_then(|()| self.journal.end()) {
            tracing::error!(%error, "a cgroup cannot be thawed");
        }
    }
}

impl Process {
    /// Moves it back where it was, if it lives.
    pub(super) fn go_back(&self, cgroups: &CgroupRoot, before: &str) {
        // A cgroup that became empty may be gone: then the one above it.
        let mut above = std::path::Path::new(before).ancestors().filter_map(|path| path.to_str());
        if self.is_alive() && !above.any(|cgroup| cgroups.move_process(cgroup, self.pid).is_ok()) {
            tracing::error!(pid = self.pid, cgroup = before, "a process cannot go back");
        }
    }
}

/// What dies leaves no memory behind: its dump would have no mapping in it. (Its limit cannot be set by a root without
/// CAP_SYS_RESOURCE.)
fn leave_no_core(process: Process) -> io::Result<()> {
    match fs::write(format!("/proc/{}/coredump_filter", process.pid), "0") {
        // It has ended, or the kernel was built without core dumps.
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}
