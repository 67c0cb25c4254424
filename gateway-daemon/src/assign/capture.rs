//! Moves a tree into a run's cgroup, where it stands still until it has been looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    Fault, Look, Process, Rules, faults, sockets,
    tree::{is_gone, lies_in, tree},
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

/// A tree in a run's cgroup, frozen. Dropped before it is settled it goes back where each process was.
pub struct Captured<'a> {
    cgroups: &'a CgroupRoot,
    folder: PathBuf,
    own: &'a str,
    /// Where each was.
    moved: BTreeMap<Process, String>,
    settled: bool,
}

/// Looks at a tree without touching it.
///
/// # Errors
/// All faults at once.
fn look(root: Process, own: &str, rules: &Rules<'_>) -> Result<(), CaptureError> {
    if let Some(cgroup) = root.cgroup().filter(|cgroup| lies_in(cgroup, own)) {
        return Err(CaptureError::Taken { pid: root.pid, cgroup });
    }
    checked(&tree(root, rules.uid, own, [])?, rules, Look::Running)
}

/// Looks at processes where they are, and destroys their connections to protected targets.
///
/// # Errors
/// All faults at once.
pub fn clean(processes: &BTreeSet<Process>, rules: &Rules<'_>) -> Result<(), CaptureError> {
    checked(processes, rules, Look::Running)?;
    let (_, faults) = sockets::destroy(processes, rules)?;
    if faults.is_empty() { Ok(()) } else { Err(CaptureError::Faults(faults)) }
}

fn checked(processes: &BTreeSet<Process>, rules: &Rules<'_>, look: Look) -> Result<(), CaptureError> {
    let faults = faults(processes, rules, look);
    if faults.is_empty() { Ok(()) } else { Err(CaptureError::Faults(faults)) }
}

impl<'a> Captured<'a> {
    /// Moves the tree of `root` into `cgroup`, which is empty and enrolled already, and lets nothing of it run. `own` is the
    /// cgroup below which all runs are.
    ///
    /// # Errors
    /// All faults at once; every process is back then, and runs.
    pub fn take(
        cgroups: &'a CgroupRoot,
        cgroup: &str,
        own: &'a str,
        root: Process,
        rules: &Rules<'_>,
    ) -> Result<Self, CaptureError> {
        look(root, own, rules)?;
        let folder = cgroups.path(cgroup);
        let mut captured = Self { cgroups, folder, own, moved: BTreeMap::new(), settled: false };
        captured.freeze(true)?;
        let mut rounds = 0;
        loop {
            let found = tree(root, rules.uid, own, captured.moved.values())?;
            let new: BTreeSet<Process> =
                found.into_iter().filter(|process| !captured.moved.contains_key(process)).collect();
            if new.is_empty() {
                break;
            }
            rounds += 1;
            if rounds > ROUNDS {
                return Err(CaptureError::Growing);
            }
            checked(&new, rules, Look::Running)?;
            for process in new {
                captured.move_in(process, cgroup)?;
            }
        }
        captured.wait_until_still()?;
        Ok(captured)
    }

    /// The processes that are there and alive.
    fn processes(&self) -> BTreeSet<Process> {
        self.moved.keys().filter(|process| process.is_alive()).copied().collect()
    }

    /// Looks at the tree as it stands, destroys its connections to protected targets, and lets it run. Gives how many
    /// processes there are and how many connections there were.
    ///
    /// # Errors
    /// All faults at once; connections that were destroyed by then stay so.
    pub fn settle(mut self, rules: &Rules<'_>) -> Result<(usize, usize), CaptureError> {
        let processes = self.processes();
        let Some(first) = self.moved.keys().next().copied() else { return Ok((0, 0)) };
        if processes.is_empty() {
            return Err(CaptureError::Gone { pid: first.pid });
        }
        checked(&processes, rules, Look::Still)?;
        let (destroyed, faults) = sockets::destroy(&processes, rules)?;
        if !faults.is_empty() {
            return Err(CaptureError::Faults(faults));
        }
        for process in &processes {
            leave_no_core(*process)?;
        }
        self.settled = true;
        self.freeze(false)?;
        Ok((processes.len(), destroyed))
    }

    fn move_in(&mut self, process: Process, cgroup: &str) -> Result<(), CaptureError> {
        let Some(before) = process.cgroup() else { return Ok(()) };
        if lies_in(&before, cgroup) {
            // Born of one that was moved and did not stand still yet; it would go back where the first of them was.
            let first = self.moved.values().next().cloned().unwrap_or_else(|| "/".to_owned());
            self.moved.insert(process, first);
            return Ok(());
        }
        if lies_in(&before, self.own) {
            return Err(CaptureError::Taken { pid: process.pid, cgroup: before });
        }
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
        for (process, before) in self.moved.iter().filter(|(process, _)| process.is_alive()) {
            // A cgroup that became empty may be gone: then the one above it.
            let mut above = std::path::Path::new(before).ancestors().filter_map(|path| path.to_str());
            if !above.any(|cgroup| self.cgroups.move_process(cgroup, process.pid).is_ok()) {
                tracing::error!(pid = process.pid, cgroup = before, "a process cannot go back");
            }
        }
        if let Err(error) = self.freeze(false) {
            tracing::error!(%error, "a cgroup cannot be thawed");
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
