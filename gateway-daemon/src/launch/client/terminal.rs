//! The caller's terminal on one side, the run's pty on the other.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, open},
    io::Errno,
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr, tcsetwinsize},
};

use super::{Doing, RunError};
use crate::launch::{Ground, descriptors::Kind};

/// Bytes kept between the two sides, each way.
const BUFFER: usize = 16 << 10;

/// How long the caller's terminal may stand still (Ctrl-S, a window that hangs) while the last output is written.
const FLUSH_PAUSE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Both terminals and what is on its way between them.
#[derive(Debug)]
pub(super) struct Screen {
    /// The caller's, opened anew: that it does not block must not be seen by whoever shares it.
    user: OwnedFd,
    master: OwnedFd,
    /// How the caller had it.
    cooked: Termios,
    held: Held,
    /// Keys, towards the command.
    keys: Buffer,
    /// Output, towards the caller.
    output: Buffer,
    ground: Ground,
}

/// How the caller's terminal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// As the caller had it; no key is read.
    Cooked,
    /// Every key is passed on as it is.
    Raw,
    /// It is gone.
    Gone,
}

/// Bytes on their way.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    done: usize,
}

impl Buffer {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads once, when everything before is written; `None` at the end.
    fn fill(&mut self, from: &OwnedFd) -> Option<usize> {
        let mut chunk = [0; BUFFER];
        match rustix::io::read(from, &mut chunk) {
            Ok(0) => None,
            Ok(read) => {
                self.bytes.extend_from_slice(chunk.get(..read).unwrap_or_default());
                Some(read)
            }
            Err(Errno::AGAIN | Errno::INTR) => Some(0),
            // A pty whose other side is closed says EIO.
            Err(_) => None,
        }
    }

    /// Writes once; `None` when nobody takes it any more.
    fn flush(&mut self, to: &OwnedFd) -> Option<()> {
        match rustix::io::write(to, self.bytes.get(self.done..).unwrap_or_default()) {
            Ok(written) => self.done += written,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return None,
        }
        if self.done >= self.bytes.len() {
            self.bytes.clear();
            self.done = 0;
        }
        Some(())
    }
}

impl Screen {
    /// Makes a pty like the caller's terminal `user`; gives the side for the command as well. `kinds` are those of the
    /// caller's descriptors: in a pipeline the command begins in the background.
    pub(super) fn open(user: BorrowedFd<'_>, kinds: [Kind; 3]) -> Result<(Self, OwnedFd), RunError> {
        let cooked = tcgetattr(user).doing("look at the terminal")?;
        let size = tcgetwinsize(user).doing("look at the terminal")?;
        let user = reopen(user).doing("open the terminal")?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).doing("make a pty")?;
        unlockpt(&master).doing("make a pty")?;
        let slave = ioctl_tiocgptpeer(&master, flags).doing("make a pty")?;
        tcsetattr(&slave, OptionalActions::Now, &cooked).doing("set up the pty")?;
        tcsetwinsize(&slave, size).doing("set up the pty")?;
        rustix::io::ioctl_fionbio(&master, true).doing("set up the pty")?;
        let [stdin, stdout, _] = kinds;
        let alone = stdin == Kind::Terminal && stdout == Kind::Terminal;
        let ground = Ground::foreground_if(alone && in_foreground(&user));
        let (keys, output) = Default::default();
        Ok((Self { user, master, cooked, held: Held::Cooked, keys, output, ground }, slave))
    }

    /// How the command begins.
    pub(super) fn ground(&self) -> Ground {
        self.ground
    }

    /// Takes the caller's terminal for the command if `weir run` is in its foreground; says whether it did.
    pub(super) fn take(&mut self) -> Ground {
        let ground = Ground::foreground_if(in_foreground(&self.user));
        if ground.is_foreground() && self.held == Held::Cooked {
            let mut raw = self.cooked.clone();
            raw.make_raw();
            if tcsetattr(&self.user, OptionalActions::Drain, &raw).is_ok() {
                self.held = Held::Raw;
            }
        }
        self.resize();
        ground
    }

    /// Gives the terminal back to the caller as it was.
    pub(super) fn restore(&mut self) {
        if self.held == Held::Raw {
            // One that is gone needs nothing.
            let _ = tcsetattr(&self.user, OptionalActions::Drain, &self.cooked);
            self.held = Held::Cooked;
        }
    }

    /// Gives the pty the caller's window size; the kernel tells the command.
    pub(super) fn resize(&self) {
        if let Ok(size) = tcgetwinsize(&self.user) {
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    /// What to wait for. A side of which nothing is wanted is left out: its hang-up would wake us without end.
    pub(super) fn wants(&self) -> Vec<PollFd<'_>> {
        let mut wants = Vec::with_capacity(2);
        match (self.output.is_empty(), self.held == Held::Raw && self.keys.is_empty()) {
            (true, true) => wants.push(PollFd::new(&self.user, PollFlags::IN)),
            (false, true) => wants.push(PollFd::new(&self.user, PollFlags::IN | PollFlags::OUT)),
            (false, false) => wants.push(PollFd::new(&self.user, PollFlags::OUT)),
            (true, false) => {}
        }
        match (self.output.is_empty(), self.keys.is_empty()) {
            (true, true) => wants.push(PollFd::new(&self.master, PollFlags::IN)),
            (true, false) => wants.push(PollFd::new(&self.master, PollFlags::IN | PollFlags::OUT)),
            (false, false) => wants.push(PollFd::new(&self.master, PollFlags::OUT)),
            (false, true) => {}
        }
        wants
    }

    /// Moves what can be moved now.
    pub(super) fn relay(&mut self) {
        if self.held == Held::Raw && self.keys.is_empty() && self.keys.fill(&self.user).is_none() {
            self.held = Held::Gone;
        }
        if !self.keys.is_empty() && self.keys.flush(&self.master).is_none() {
            self.keys = Buffer::default();
        }
        if self.output.is_empty() {
            // The end of the pty is the end of the command's session, which the daemon tells.
            let _ = self.output.fill(&self.master);
        }
        if !self.output.is_empty() && self.output.flush(&self.user).is_none() {
            self.output = Buffer::default();
        }
    }

    /// Passes on what the ended command wrote last. A read of a pty waits for what the kernel has on its way to it, so
    /// "nothing there" is the truth.
    pub(super) fn drain(&mut self) {
        loop {
            while !self.output.is_empty() {
                if self.output.flush(&self.user).is_none() {
                    return;
                }
                let mut events = [PollFd::new(&self.user, PollFlags::OUT)];
                if !self.output.is_empty() && matches!(poll(&mut events, Some(&FLUSH_PAUSE)), Ok(0)) {
                    return;
                }
            }
            if matches!(self.output.fill(&self.master), None | Some(0)) {
                return;
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.restore();
    }
}

/// The caller's terminal in a description of our own, so that it can be read without blocking.
fn reopen(user: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let by_name = format!("/proc/self/fd/{}", user.as_raw_fd());
    // By its name where it is ours; after `su` only the session's terminal can be opened.
    open(by_name, flags, Mode::empty()).or_else(|_| open("/dev/tty", flags, Mode::empty())).map_err(io::Error::from)
}

/// Whether keys and signals of this terminal are for our process group; with a terminal that is not our session's there
/// is no job control, and we have it.
fn in_foreground(terminal: &OwnedFd) -> bool {
    match tcgetpgrp(terminal) {
        Ok(group) => group == rustix::process::getpgrp(),
        Err(errno) => errno == Errno::NOTTY,
    }
}
