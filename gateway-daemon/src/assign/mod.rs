//! Takes a process tree that runs already for an agent's: `weir agent assign`; and looks at what lives in an agent's slice.
//!
//! In comes a process, out goes its tree in the run's cgroup, or every fault that keeps it out. A tree is taken only if it is
//! confined as `weir run` would have confined it: what it was given before (a privilege, a ring, a connection) it would keep.
//!
//! - `tree` finds the processes, `credentials` reads what each may do, `held` what it holds, `sockets` destroys its
//!   connections to what it may not reach, `capture` moves it, `journal` knows the way back.
//! - What cannot be read is a fault: unknown means refuse.
//! - Nothing is moved before the first look is without a fault; the second, which counts, is at a frozen tree.

mod capture;
mod credentials;
mod held;
mod journal;
mod sockets;
mod sys;
mod tree;

use std::{
    collections::BTreeSet,
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

pub use capture::{CaptureError, Captured, clean, cut};
pub use credentials::CredentialsError;
pub use held::Held;
pub use journal::{Journal, undo};
pub use tree::{Process, living_uids};

/// What a process must be to be an agent's.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// The agent's user: every process has it, and all its four ids are that.
    pub uid: u32,
    /// Groups whose members reach around Weir, by name.
    pub barred_groups: &'a [(u32, String)],
    /// Unix sockets that lead around Weir: servers' and container runtimes'.
    pub barred_sockets: &'a [PathBuf],
    /// Why a connection to an address is not the agent's to have; `None` where it may have one.
    pub refused: &'a dyn Fn(SocketAddr) -> Option<Refusal>,
    /// Cgroups that are Weir's: what lives in or below one is policed already.
    pub own: &'a [String],
    /// Where its processes may be.
    pub namespaces: Namespaces,
}

/// Why an agent may have no connection to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is protected: Weir alone leads there.
    Protected,
    /// The agent's egress refuses it.
    Egress,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protected => "which is protected",
            Self::Egress => "which the agent's egress refuses",
        })
    }
}

/// In which user namespaces an agent's processes may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespaces {
    /// The host's alone: what holds capabilities elsewhere may have made something with them that nobody sees.
    Host,
    /// And those that the agent has made itself, as a sandbox does, in a place that was Weir's from the beginning.
    Own,
}

/// Why a process cannot be an agent's.
#[derive(Debug, thiserror::Error)]
#[error("process {pid} (`{name}`) {why}")]
pub struct Fault {
    /// The process.
    pub pid: u32,
    /// Its name: its own choice.
    pub name: String,
    /// Why.
    pub why: Why,
}

/// What is wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// It could gain rights by executing a setuid program.
    #[error("lacks no_new_privs; start it with `setpriv --no-new-privs`, or NoNewPrivileges=yes")]
    NewPrivileges,
    /// It has one already.
    #[error("holds capabilities ({sets}); start it without any")]
    Capabilities {
        /// Which sets.
        sets: String,
    },
    /// Another user's.
    #[error("runs as uid {found}, not as uid {expected} alone, which is the agent's")]
    User {
        /// One of its ids.
        found: u32,
        /// The agent's.
        expected: u32,
    },
    /// Root's group, or one that reaches a container runtime.
    #[error("is in the group `{group}`, which reaches around Weir; start it without (`setpriv --clear-groups`)")]
    Group {
        /// Its name.
        group: String,
    },
    /// Its ids mean something else.
    #[error("is in another user namespace, where it may hold every capability; assign it before it makes one")]
    UserNamespace,
    /// What it may do and holds cannot be seen.
    #[error("has ended its first thread while others run, so that what it holds cannot be seen; end it")]
    Headless,
    /// It has left the tree.
    #[error(
        "has the agent's user as well, and is not of the tree ({}); end it first, or start both from one process",
        .cgroup.as_deref().map_or_else(|| "its cgroup cannot be told".to_owned(), |cgroup| format!("it is in the cgroup `{cgroup}`"))
    )]
    Stray {
        /// Where it lives.
        cgroup: Option<String>,
    },
    /// Somebody else has moved it.
    #[error("was moved out of the run's cgroup by somebody else; assign it again")]
    Moved,
    /// A thread differs from the process.
    #[error("has a thread, {thread}, whose {what} differ from those of the others")]
    Thread {
        /// The thread.
        thread: u32,
        /// What differs.
        what: &'static str,
    },
    /// Somebody else steers it.
    #[error("is traced by process {by}, which is outside of the tree; end that first")]
    Traced {
        /// The tracer.
        by: u32,
    },
    /// It holds what reaches around Weir.
    #[error("holds {held} ({place})")]
    Holds {
        /// What.
        held: Held,
        /// Its descriptor, or where it is mapped.
        place: String,
    },
    /// A connection that outlives its being destroyed.
    #[error("holds a connection to {target}, {refusal}, and it cannot be destroyed: {reason}; end the process")]
    Connected {
        /// Where to.
        target: SocketAddr,
        /// Why it may not be.
        refusal: Refusal,
        /// Why not.
        reason: String,
    },
    /// Nobody knows.
    #[error("cannot be looked at: {what}: {source}")]
    Unknown {
        /// What was looked at.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether processes run while they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// They do: what takes more than one look cannot be told.
    Running,
    /// They stand still.
    Still,
}

/// Every reason why these processes cannot be an agent's. One that has ended has none.
fn faults(processes: &BTreeSet<Process>, rules: &Rules<'_>, look: Look) -> Vec<Fault> {
    let mut faults = Vec::new();
    for process in processes {
        let mut whys = credentials::whys(process, processes, rules);
        whys.extend(held::whys(process, rules, look));
        match process.is_headless() {
            Ok(false) => {}
            Ok(true) => whys.push(Why::Headless),
            Err(source) => whys.push(Why::Unknown { what: "its first thread", source }),
        }
        // A process that ends while it is looked at shows all sorts of errors; it is no fault any more.
        if process.is_alive() {
            faults.extend(whys.into_iter().map(|why| process.fault(why)));
        }
    }
    faults
}

/// The processes of the user that live neither among these nor where Weir polices them.
fn strays(processes: &BTreeSet<Process>, rules: &Rules<'_>) -> io::Result<Vec<Fault>> {
    let strays = tree::strays(rules.uid, processes, rules.own)?.into_iter();
    Ok(strays.map(|stray| stray.process.fault(Why::Stray { cgroup: stray.cgroup })).collect())
}

impl Process {
    /// A fault of this process's.
    fn fault(&self, why: Why) -> Fault {
        Fault { pid: self.pid, name: self.name(), why }
    }
}

/// Whether two paths mean the same file, as far as can be told.
fn same_file(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Rules that refuse no address.
#[cfg(test)]
fn rules_of<'a>(uid: u32, groups: &'a [(u32, String)], sockets: &'a [PathBuf]) -> Rules<'a> {
    Rules {
        uid,
        barred_groups: groups,
        barred_sockets: sockets,
        refused: &|_| None,
        own: &[],
        namespaces: Namespaces::Host,
    }
}
