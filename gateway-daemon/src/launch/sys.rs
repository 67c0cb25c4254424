//! The few system calls that neither std nor rustix offers without `unsafe`.

use std::{
    ffi::c_int,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
    ptr,
};

use rustix::process::{Pid, Signal};

/// asm-generic/socket.h; the libc crate does not have it for every target yet.
const SO_PEERPIDFD: c_int = 77;

/// Signals of Linux are numbered 1 to 64.
const SIGNALS: std::ops::RangeInclusive<c_int> = 1..=64;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Who goes on after [`fork`].
pub(super) enum Fork {
    Child,
    Parent(Pid),
}

/// Splits this process in two. Refused when it has more than one thread: then only fork's few async-signal-safe calls
/// would be allowed in the child.
#[expect(unsafe_code, reason = "fork")]
pub(super) fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads must not fork"));
    }
    // SAFETY: there is but this thread, so no lock is held and no state half changed by another one.
    let pid = check(unsafe { libc::fork() })?;
    Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent))
}

/// Moves `kept` to `number` (close-on-exec) and closes every other descriptor from there on. Whoever calls this must
/// hold no other [`OwnedFd`] that it still means to use.
#[expect(unsafe_code, reason = "dup3 and close_range")]
pub(super) fn keep_only(kept: OwnedFd, number: u32) -> io::Result<OwnedFd> {
    let from = kept.into_raw_fd();
    let to = c_int::try_from(number).map_err(io::Error::other)?;
    if from != to {
        // SAFETY: dup3 takes numbers alone; what was open at `to` is given up, as all others are below.
        check(unsafe { libc::dup3(from, to, libc::O_CLOEXEC) })?;
    }
    // SAFETY: as above.
    check(unsafe { libc::close_range(number.saturating_add(1), u32::MAX, 0) })?;
    // SAFETY: `to` is open, and `kept` was given up for it.
    Ok(unsafe { OwnedFd::from_raw_fd(to) })
}

/// Gives every signal its default disposition.
#[expect(unsafe_code, reason = "signal")]
pub(super) fn reset_dispositions() {
    for signal in SIGNALS {
        // SAFETY: SIG_DFL runs no code of ours. KILL, STOP and the two of the C library refuse, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// A set of signals.
#[derive(Clone, Copy)]
pub(super) struct SignalSet(libc::sigset_t);

impl SignalSet {
    #[expect(unsafe_code, reason = "sigemptyset")]
    pub(super) fn of(signals: &[Signal]) -> Self {
        // SAFETY: a sigset_t is plain numbers, for which zeroes are valid.
        let mut set = unsafe { mem::zeroed() };
        // SAFETY: `set` lives and is written by the call alone.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in signals {
            // SAFETY: as above; a wrong number is refused and leaves the set as it is.
            unsafe { libc::sigaddset(&raw mut set, signal.as_raw()) };
        }
        Self(set)
    }

    #[expect(unsafe_code, reason = "sigfillset")]
    pub(super) fn all() -> Self {
        let mut set = Self::of(&[]);
        // SAFETY: `set` lives and is written by the call alone.
        unsafe { libc::sigfillset(&raw mut set.0) };
        set
    }

    /// Blocks exactly these signals in this thread.
    pub(super) fn block_only(&self) -> io::Result<()> {
        self.change_mask(libc::SIG_SETMASK)
    }

    /// Blocks these signals in this thread, besides those that are.
    pub(super) fn block(&self) -> io::Result<()> {
        self.change_mask(libc::SIG_BLOCK)
    }

    /// Lets these signals through in this thread; pending ones are delivered before this returns.
    pub(super) fn unblock(&self) -> io::Result<()> {
        self.change_mask(libc::SIG_UNBLOCK)
    }

    #[expect(unsafe_code, reason = "pthread_sigmask")]
    fn change_mask(&self, how: c_int) -> io::Result<()> {
        // SAFETY: the set lives for the call, and the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(how, &raw const self.0, ptr::null_mut()) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// A descriptor that is readable while one of these signals is pending; it does not block.
    #[expect(unsafe_code, reason = "signalfd")]
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set lives for the call.
        let fd = check(unsafe { libc::signalfd(-1, &raw const self.0, flags) })?;
        // SAFETY: the call made this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// The next pending signal of a [`SignalSet::descriptor`], if there is one.
pub(super) fn next_signal(descriptor: BorrowedFd<'_>) -> io::Result<Option<c_int>> {
    // signalfd_siginfo opens with the number, 32 bits wide, and is 128 bytes long (signalfd(2)).
    let mut info = [0_u8; 128];
    match rustix::io::read(descriptor, &mut info) {
        Ok(_) => Ok(info.first_chunk().map(|number| i32::from_ne_bytes(*number))),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The process at the other end of a Unix socket, as a pidfd; `None` before Linux 6.5 or when it is gone.
#[expect(unsafe_code, reason = "SO_PEERPIDFD")]
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> Option<OwnedFd> {
    let mut fd: c_int = -1;
    let mut len = libc::socklen_t::try_from(mem::size_of::<c_int>()).ok()?;
    // SAFETY: `fd` and `len` live for the call, and `len` is the size of `fd`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut len)
    };
    if result < 0 || fd < 0 {
        return None;
    }
    // SAFETY: the call made this descriptor (close-on-exec), and nobody else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives this process a session keyring of its own, empty, in place of the one that it inherited (`keyctl(2)`).
#[expect(unsafe_code, reason = "keyctl")]
pub(super) fn join_new_session_keyring() -> io::Result<()> {
    // SAFETY: takes numbers alone; no name means a keyring without one, which nobody else can join.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0_usize) };
    match io::Error::last_os_error() {
        _ if joined >= 0 => Ok(()),
        // A kernel that was built without keys.
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        error => Err(error),
    }
}

/// Gives this process mounts of its own.
#[expect(unsafe_code, reason = "unshare")]
pub(super) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: NEWNS changes what paths mean and leaves memory and descriptors alone.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    Ok(())
}
