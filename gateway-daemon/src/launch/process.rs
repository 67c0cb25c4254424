//! The launcher process: forks a small launcher for each order and tells how each ended. Nothing else.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::FileType,
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open},
};

use super::{
    Exit, Launch, Notice, child,
    sys::{self, Fork, SignalSet},
};
use crate::control::{Incoming, Outgoing, Step};

/// `weir launcher` was started by someone else than a daemon.
#[derive(Debug, thiserror::Error)]
pub enum NotALauncher {
    /// Descriptor 0 is not the daemon's socket.
    #[error("`weir launcher` is started by `weir daemon` alone")]
    NoSocket,
    /// The system refused what the launcher needs.
    #[error("the launcher cannot work: {source}")]
    Io {
        /// What it said.
        #[from]
        source: io::Error,
    },
}

impl From<Errno> for NotALauncher {
    fn from(errno: Errno) -> Self {
        Self::Io { source: errno.into() }
    }
}

/// The whole of `weir launcher`, a verb for the daemon's use alone: the daemon's socket is descriptor 0. Must be called
/// before anything starts a thread. Comes back when the daemon is gone.
///
/// # Errors
/// It was not started by [`super::split_off`], or the system refuses what it needs.
pub fn launcher_main() -> Result<(), NotALauncher> {
    let daemon = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&daemon)?.st_mode);
    if kind != FileType::Socket {
        return Err(NotALauncher::NoSocket);
    }
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    drop(null);
    // Whatever the daemon was started with and did not mark close-on-exec ends here.
    let daemon = sys::keep_only(daemon, 3)?;
    std::env::set_current_dir("/")?;
    let signals = SignalSet::of(&[Signal::CHILD]);
    // Ctrl-C at a daemon that runs in a terminal is the daemon's business; it ends us by its own end.
    SignalSet::of(&[Signal::CHILD, Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT]).block_only()?;
    let children = signals.descriptor()?;
    Launcher { daemon, children, incoming: Incoming::default(), runs: HashMap::new() }.serve()
}

struct Launcher {
    daemon: OwnedFd,
    children: OwnedFd,
    incoming: Incoming,
    /// Which order each child belongs to.
    runs: HashMap<Pid, u64>,
}

impl Launcher {
    fn serve(mut self) -> Result<(), NotALauncher> {
        loop {
            let mut events = [PollFd::new(&self.daemon, PollFlags::IN), PollFd::new(&self.children, PollFlags::IN)];
            match poll(&mut events, None) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let [daemon, children] = events.map(|event| !event.revents().is_empty());
            if children {
                while sys::next_signal(self.children.as_fd())?.is_some() {}
                self.reap();
            }
            if !daemon {
                continue;
            }
            match self.incoming.receive(self.daemon.as_fd()) {
                Ok(Step::More) => {}
                Ok(Step::Message(message)) => {
                    let order = message.parse().map_err(io::Error::other)?;
                    self.launch(order, message.descriptors);
                }
                // A daemon that is gone or talks nonsense: either way there is nothing left to serve.
                Ok(Step::Closed) | Err(_) => return Ok(()),
            }
        }
    }

    fn launch(&mut self, order: Launch, descriptors: Vec<OwnedFd>) {
        let id = order.id;
        let Ok([stdin, stdout, stderr, channel]) = <[OwnedFd; 4]>::try_from(descriptors) else {
            return self.tell(&Notice::NotForked { id, errno: libc::EBADF }, None);
        };
        match sys::fork() {
            Ok(Fork::Child) => child::become_command(&order.spec, [stdin, stdout, stderr], channel),
            Ok(Fork::Parent(pid)) => {
                self.runs.insert(pid, id);
                // It cannot be reaped in between, so the number still means this child.
                let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
                self.tell(&Notice::Forked { id, pid: pid.as_raw_nonzero().get() }, pidfd);
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
                self.tell(&Notice::NotForked { id, errno }, None);
            }
        }
    }

    /// Takes in every child that has ended.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let (Some(id), Some(exit)) = (self.runs.remove(&pid), Exit::of(status)) {
                self.tell(&Notice::Ended { id, exit }, None);
            }
        }
    }

    /// Tells the daemon; one that is gone is noticed at the next read.
    fn tell(&self, notice: &Notice, pidfd: Option<OwnedFd>) {
        let descriptors: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
        if let Ok(outgoing) = Outgoing::new(notice, &descriptors) {
            let _ = outgoing.send_blocking(self.daemon.as_fd());
        }
    }
}
