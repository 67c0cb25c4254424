//! Takes a process tree that runs already for an agent's: `weir agent assign`; and looks at what lives in an agent's slice.
//!
//! In comes a process, out goes its tree in the run's cgroup, or every fault that keeps it out. A tree is taken only if it is
//! confined as `weir run` would have confined it: what it was given before (a privilege, a ring, a connection) it would keep.
//!
//! - `tree` finds the processes, `credentials` reads what each may do, `held` what it holds, `sockets` destroys its
//!   connections to protected targets, `capture` moves it.
//! - What cannot be read is a fault: unknown means refuse.
//! - Nothing is moved before the first look is without a fault; the second, which counts, is at a frozen tree.

mod capture;
mod credentials;
mod held;
mod sockets;
mod tree;

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

pub use capture::{CaptureError, Captured, clean};
pub use credentials::CredentialsError;
pub use held::Held;
pub use tree::{Process, living_uids};

/// What a process must be to be an agent's.
pub struct Rules<'a> {
    /// The agent's user: every process has it, and all its four ids are that.
    pub uid: u32,
    /// Groups whose members reach around Weir, by name.
    pub barred_groups: &'a [(u32, String)],
    /// Unix sockets that lead around Weir: servers' and container runtimes'.
    pub barred_sockets: &'a [PathBuf],
    /// Whether an address is protected.
    pub protected: &'a dyn Fn(SocketAddr) -> bool,
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
    #[error(
        "holds a connection to {target}, which is protected, and it cannot be destroyed: {reason}; end the process"
    )]
    Connected {
        /// Where to.
        target: SocketAddr,
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
        // A process that ends while it is looked at shows all sorts of errors; it is no fault any more.
        if process.is_alive() {
            faults.extend(whys.into_iter().map(|why| Fault { pid: process.pid, name: process.name(), why }));
        }
    }
    faults
}

/// Whether two paths mean the same file, as far as can be told.
fn same_file(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
