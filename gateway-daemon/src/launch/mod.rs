//! Starts an agent's processes: `weir run`.
//!
//! ```text
//!  weir run ──control socket──▶ weir daemon ──▶ weir launcher (root, no threads, no sockets but one to the daemon)
//!     ▲                                              │ forks for each run
//!     └─────── pty, pipes: descriptors 0-2 ───────▶ the small launcher: enters the cgroup, drops everything,
//!                                                   and becomes the command, or on a terminal its session's leader
//! ```
//!
//! - The launcher is split off ([`split_off`]) before the daemon opens a socket, a ring or a secret, by executing the
//!   binary anew: it shares no memory, no environment and no descriptor with the daemon but one socket.
//! - It ends when that socket does. Running agents stay as they are then: their connects are refused, as the daemon is.
//! - What the command inherits is written out in [`RunSpec`] and in `child`; there is nothing else.
//! - [`attend`] is the daemon's part while a run lasts, [`client::run`] the caller's.

mod apart;
mod attend;
mod child;
pub mod client;
mod cover;
mod descriptors;
mod environment;
mod handle;
mod monitor;
mod process;
mod seccomp;
mod sys;

use std::{ffi::OsString, io, path::PathBuf};

use rustix::process::{Signal, WaitStatus};
use serde::{Deserialize, Serialize};

pub use apart::{Apartness, apartness};
pub use attend::{attend, kill_cgroup};
pub use environment::{Account, environment};
pub use handle::{Event, Launcher, LauncherProcess, Running, split_off, split_off_from};
pub use process::{NotALauncher, launcher_main};
pub(crate) use sys::peer_pidfd;

use crate::control::{FrameError, Text};

/// The signals that `weir run` hands on to the command.
pub const FORWARDED: [Signal; 10] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::TSTP,
    Signal::STOP,
    Signal::CONT,
];

/// All that a command starts with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunSpec {
    /// The run's cgroup (v2), absolute, made already: the whole process tree lives below it.
    pub cgroup: PathBuf,
    /// The agent's user; never 0.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its supplementary groups. The caller of [`Launcher::launch`] leaves out those that may speak to a container
    /// runtime.
    pub groups: Vec<u32>,
    /// The command, looked up in the environment's PATH as the agent, and its arguments.
    pub argv: Vec<Text>,
    /// The whole environment; see [`environment()`].
    pub env: Vec<(Text, Text)>,
    /// The working folder, entered as the agent.
    pub cwd: Text,
    /// Set when the terminals among the descriptors are a pty made for this run; without it no terminal is passed.
    pub terminal: Option<Terminal>,
    /// Folders and single socket files that the run does not see; those that are not there are passed over.
    pub cover: Vec<PathBuf>,
}

/// A run's own pty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Who made it: the starter's uid. A terminal of anyone else is refused.
    pub owner: u32,
    /// How the command begins on it.
    pub ground: Ground,
}

/// Whether a command has its terminal, as job control has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ground {
    /// It reads and is signalled by keys.
    Foreground,
    /// It stops when it reads.
    Background,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// By itself, with this status.
    Code(u8),
    /// By this signal.
    Signal(i32),
    /// The launcher died, so nobody knows; what is left in the cgroup must be killed.
    Lost,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with status {code}"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::Lost => f.write_str("lost sight of: its launcher died"),
        }
    }
}

impl Exit {
    /// Reads what wait(2) tells; `None` for a process that has not ended.
    fn of(status: WaitStatus) -> Option<Self> {
        let code = status.exit_status().map(|code| Self::Code(u8::try_from(code).unwrap_or(u8::MAX)));
        code.or_else(|| status.terminating_signal().map(Self::Signal))
    }
}

/// What the small launcher was about when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Looking at the descriptors 0 to 2.
    Descriptors,
    /// Making a session and taking the terminal.
    Session,
    /// Entering the cgroup.
    Cgroup,
    /// Leaving the host's mounts.
    Mounts,
    /// Covering a path.
    Cover,
    /// Closing and placing descriptors.
    Close,
    /// Becoming the agent's user.
    User,
    /// Giving up capabilities.
    Capabilities,
    /// Setting limits, umask and signals.
    Limits,
    /// Leaving the daemon's session keyring.
    Keyring,
    /// Entering a domain of the run's own.
    Domain,
    /// Installing the system call filter.
    Seccomp,
    /// Entering the working folder.
    Folder,
    /// Splitting off the command from its session's leader.
    Fork,
    /// Executing the command.
    Exec,
}

impl Step {
    /// For a sentence: "cannot {words} `{subject}`".
    fn words(self) -> &'static str {
        match self {
            Self::Descriptors => "pass the descriptor",
            Self::Session => "take the terminal in",
            Self::Cgroup => "enter the cgroup",
            Self::Mounts => "leave the host's mounts for",
            Self::Cover => "cover",
            Self::Close => "close the descriptors of",
            Self::User => "become the user",
            Self::Capabilities => "give up the capabilities of",
            Self::Limits => "set the limits of",
            Self::Keyring => "make a keyring for",
            Self::Domain => "keep from other processes",
            Self::Seccomp => "filter the system calls of",
            Self::Folder => "enter the folder",
            Self::Fork => "fork for",
            Self::Exec => "exec",
        }
    }
}

/// Why a command was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// One of the steps towards the command failed.
    #[error("cannot {} `{subject}`: {source}", .step.words())]
    Step {
        /// Which one.
        step: Step,
        /// What it was about: a path, a user, the command.
        subject: String,
        /// What the system said.
        source: io::Error,
    },
    /// The command's process ended before the command was executed.
    #[error("the command's process ended before it began")]
    Died,
    /// The command was not executed in time; its process is killed.
    #[error("the command did not begin within {limit:?}")]
    Deadline {
        /// The limit.
        limit: std::time::Duration,
    },
    /// The user would be root.
    #[error("an agent cannot run as root")]
    Root,
    /// There is no command.
    #[error("no command was given")]
    NoCommand,
    /// The order cannot be laid out, above all when arguments and environment are too long.
    #[error("the command, its arguments and environment cannot be passed on: {source}")]
    Order {
        /// Why.
        source: FrameError,
    },
    /// The launcher process is gone; the daemon must be started anew.
    #[error("the launcher is gone: restart the daemon")]
    Gone,
    /// The daemon itself could not open what a run needs.
    #[error("cannot prepare the run: {source}")]
    Prepare {
        /// What the system said.
        source: io::Error,
    },
}

impl LaunchError {
    /// What `weir run` exits with, as a shell would: 127 when the command was not found, 126 when it could not be
    /// executed, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Step { step: Step::Exec, source, .. } => match source.kind() {
                io::ErrorKind::NotFound => 127,
                _ => 126,
            },
            _ => 1,
        }
    }
}

/// What the small launcher tells the daemon, over a channel that closes when the command is executed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
enum Report {
    /// A step failed and the command will not start.
    Failed { step: Step, subject: String, errno: i32 },
    /// All steps but the last are done: when the channel now closes, the command runs.
    Ready,
    /// On a terminal, where the channel stays open: the command runs.
    Running { pid: i32 },
    /// It stopped.
    Stopped { signal: i32 },
    /// It ended.
    Ended { exit: Exit },
}

/// What the daemon tells the leader of a session on a terminal.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
enum Order {
    /// Signal the command.
    Signal { signal: i32 },
    /// Let it go on.
    Resume { ground: Ground },
}

/// What the daemon asks of the launcher process; with it come the descriptors 0, 1, 2 and the channel.
#[derive(Debug, Serialize, Deserialize)]
struct Launch {
    id: u64,
    spec: RunSpec,
}

/// What the launcher process tells the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "kebab-case")]
enum Notice {
    /// A small launcher was forked; with it comes its pidfd.
    Forked { id: u64, pid: i32 },
    /// It could not be.
    NotForked { id: u64, errno: i32 },
    /// It, or the command that it became, has ended.
    Ended { id: u64, exit: Exit },
}

/// The bytes of `argv`, `env` and paths as std wants them.
fn os(text: &Text) -> OsString {
    text.clone().into()
}
