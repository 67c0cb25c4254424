//! The small launcher: what happens between fork and the command, in this order, each step an error of its own.
//!
//! Nothing of the agent runs before the last step, so until then the process is as trusted as the launcher. The cgroup
//! comes before anything that could make a socket; capabilities fall when nothing needs them any more; the filter of
//! system calls comes last of all, since it would bind the steps before it as well.

use std::{
    convert::Infallible,
    ffi::OsStr,
    fmt::Display,
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::Path,
    process::Command,
};

use rustix::{
    fs::{Gid, Mode, Uid, fchown, fstat, fstatfs},
    process::DumpableBehavior,
    thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets},
};

use super::{
    Ground, Report, RunSpec, Step,
    descriptors::{Kind, kind},
    monitor, os,
    sys::{self, SignalSet},
};
use crate::control::Outgoing;

/// statfs(2)'s type of a v2 cgroup.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// More capabilities than any kernel has; the first that is not there ends the loop.
const CAPABILITIES: u32 = 64;

/// Where the channel to the daemon lies while the steps are taken.
pub(super) const CHANNEL: u32 = 3;

/// A step that failed, and on what.
pub(super) struct Failure {
    step: Step,
    subject: String,
    source: io::Error,
}

/// Says at which step an error came up, and what it was about.
pub(super) trait At<T> {
    /// Makes the step's error.
    fn at(self, step: Step, subject: impl Display) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: Step, subject: impl Display) -> Result<T, Failure> {
        self.map_err(|source| Failure { step, subject: subject.to_string(), source: source.into() })
    }
}

/// Turns this freshly forked process into the command of `spec`. Tells the daemon why when it cannot, and never comes
/// back.
pub(super) fn become_command(spec: &RunSpec, stdio: [OwnedFd; 3], channel: OwnedFd) -> ! {
    let channel = match place(stdio, channel) {
        Ok(channel) => channel,
        // Without descriptors there is no one to tell; the daemon sees the channel close before it was ready.
        Err(_) => std::process::exit(1),
    };
    let Err(failure) = confine(spec).and_then(|()| start(spec, channel.as_fd()));
    report_failure(channel.as_fd(), &failure);
    std::process::exit(1)
}

/// Tells the daemon, as well as it can be told.
pub(super) fn report_failure(channel: BorrowedFd<'_>, failure: &Failure) {
    let report = Report::Failed {
        step: failure.step,
        subject: failure.subject.clone(),
        errno: failure.source.raw_os_error().unwrap_or(libc::EINVAL),
    };
    report_to(channel, &report);
}

/// Tells the daemon something. One that is gone needs to know nothing.
pub(super) fn report_to(channel: BorrowedFd<'_>, report: &Report) {
    if let Ok(outgoing) = Outgoing::new(report, &[]) {
        let _ = outgoing.send_blocking(channel);
    }
}

/// Puts the descriptors in their places and closes all others, those of the launcher included.
fn place(stdio: [OwnedFd; 3], channel: OwnedFd) -> io::Result<OwnedFd> {
    let [stdin, stdout, stderr] = stdio;
    rustix::stdio::dup2_stdin(&stdin)?;
    rustix::stdio::dup2_stdout(&stdout)?;
    rustix::stdio::dup2_stderr(&stderr)?;
    drop((stdin, stdout, stderr));
    sys::keep_only(channel, CHANNEL)
}

/// Every step but the command itself.
fn confine(spec: &RunSpec) -> Result<(), Failure> {
    check_descriptors(spec)?;
    let command = spec.argv.first().map(|name| os(name).display().to_string()).unwrap_or_default();
    own_session(spec).at(Step::Session, &command)?;
    enter_cgroup(&spec.cgroup).at(Step::Cgroup, spec.cgroup.display())?;
    super::cover::own_mounts().at(Step::Mounts, &command)?;
    for path in &spec.cover {
        super::cover::cover(path).at(Step::Cover, path.display())?;
    }
    set_limits().at(Step::Limits, &command)?;
    leave_the_daemons(&command)?;
    drop_privileges(spec, &command)?;
    let cwd = os(&spec.cwd);
    std::env::set_current_dir(&cwd).at(Step::Folder, cwd.display())?;
    super::apart::enter_domain().at(Step::Domain, &command)?;
    install_filter().at(Step::Seccomp, &command)
}

/// The daemon's caller may be anyone, so what `weir run` sees to is seen to again here.
fn check_descriptors(spec: &RunSpec) -> Result<(), Failure> {
    for (number, descriptor) in standard() {
        let kind = kind(descriptor).at(Step::Descriptors, number)?;
        let pass = match (kind, spec.terminal) {
            (Kind::Bytes, _) => true,
            (Kind::Terminal, Some(terminal)) => {
                fstat(descriptor).at(Step::Descriptors, number)?.st_uid == terminal.owner
            }
            (Kind::Terminal, None) | (Kind::Other, _) => false,
        };
        if !pass {
            return Err(io::Error::from_raw_os_error(libc::EPERM)).at(Step::Descriptors, number);
        }
    }
    Ok(())
}

/// The descriptors 0, 1 and 2.
fn standard() -> [(u32, BorrowedFd<'static>); 3] {
    [(0, rustix::stdio::stdin()), (1, rustix::stdio::stdout()), (2, rustix::stdio::stderr())]
}

/// The first terminal among the descriptors 0, 1 and 2.
pub(super) fn terminal() -> Option<BorrowedFd<'static>> {
    standard().into_iter().map(|(_, descriptor)| descriptor).find(|fd| rustix::termios::isatty(fd))
}

/// A session of its own, on the pty if there is one. That the kernel gives us the terminal without force shows that it
/// is nobody's: the caller's own one has a session already.
fn own_session(spec: &RunSpec) -> io::Result<()> {
    rustix::process::setsid()?;
    if spec.terminal.is_none() {
        return Ok(());
    }
    let terminal = terminal().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTTY))?;
    let device = fstat(terminal)?.st_rdev;
    for (_, other) in standard() {
        if rustix::termios::isatty(other) && fstat(other)?.st_rdev != device {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    rustix::process::ioctl_tiocsctty(terminal)?;
    // As its owner the agent can open it anew by name, as programs do that were given a pipe as well.
    fchown(terminal, Some(Uid::from_raw(spec.uid)), None)?;
    Ok(())
}

/// Enters the cgroup and looks whether it is in there.
fn enter_cgroup(cgroup: &Path) -> io::Result<()> {
    let procs = std::fs::File::options().write(true).open(cgroup.join("cgroup.procs"))?;
    if u64::try_from(fstatfs(&procs)?.f_type) != Ok(CGROUP2_SUPER_MAGIC) {
        return Err(io::Error::other("not in a v2 cgroup hierarchy"));
    }
    (&procs).write_all(b"0")?;
    let memberships = std::fs::read_to_string("/proc/self/cgroup")?;
    let entered = memberships
        .lines()
        .filter_map(|line| line.strip_prefix("0::"))
        .any(|path| path != "/" && cgroup.ends_with(path.trim_start_matches('/')));
    if entered { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

fn set_limits() -> io::Result<()> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    super::apart::leave_no_core()?;
    sys::reset_dispositions();
    SignalSet::of(&[]).block_only()
}

/// What the daemon was given for itself: to be spared when memory runs out, and a session's keys. Both go while this process may
/// do more than the agent: what is raised here the agent cannot lower again, and the keyring takes nothing of the agent's quota,
/// so that no agent can keep its own runs from starting.
fn leave_the_daemons(command: &str) -> Result<(), Failure> {
    const SPARED: &str = "/proc/self/oom_score_adj";
    let spared = std::fs::read_to_string(SPARED).at(Step::Limits, SPARED)?;
    // Who is to go first already stays so: to take that back wants a privilege.
    if spared.trim().parse::<i32>().map_err(io::Error::other).at(Step::Limits, SPARED)? < 0 {
        std::fs::write(SPARED, "0").at(Step::Limits, SPARED)?;
    }
    sys::join_new_session_keyring().at(Step::Keyring, command)
}

/// Becomes the agent's user, for good.
fn drop_privileges(spec: &RunSpec, command: &str) -> Result<(), Failure> {
    // uid 0 would mean nothing special any more, in this tree, even if it were reached.
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    rustix::thread::set_capabilities_secure_bits(bits).at(Step::Capabilities, command)?;
    empty_bounding_set().at(Step::Capabilities, command)?;
    rustix::thread::clear_ambient_capability_set().at(Step::Capabilities, command)?;
    become_user(spec).at(Step::User, spec.uid)?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).at(Step::Capabilities, command)?;
    rustix::thread::set_no_new_privs(true).at(Step::Capabilities, command)?;
    // Until exec resets it: processes of the same user can neither trace this one nor read its descriptors.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).at(Step::Capabilities, command)
}

fn empty_bounding_set() -> io::Result<()> {
    for number in 0..CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn become_user(spec: &RunSpec) -> io::Result<()> {
    if spec.uid == 0 {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let groups: Vec<Gid> = spec.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(spec.uid), Gid::from_raw(spec.gid));
    // These change this thread alone, and it is the only one.
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

fn install_filter() -> io::Result<()> {
    for program in super::seccomp::programs().map_err(io::Error::other)? {
        seccompiler::apply_filter(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

/// The last step: the command itself, or on a terminal the leader of its session.
fn start(spec: &RunSpec, channel: BorrowedFd<'_>) -> Result<Infallible, Failure> {
    match spec.terminal {
        None => {
            report_to(channel, &Report::Ready);
            exec(spec)
        }
        Some(terminal) => monitor::lead(spec, channel, terminal.ground),
    }
}

/// Becomes the command: PATH is searched as the agent, and the environment is the run's.
pub(super) fn exec(spec: &RunSpec) -> Result<Infallible, Failure> {
    let mut argv = spec.argv.iter().map(os);
    let name = argv.next().unwrap_or_default();
    let source = Command::new(&name)
        .args(argv)
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (os(name), os(value))))
        .exec();
    // A folder of PATH that the agent may not enter, as root's own are, makes it `permission denied` wherever the command
    // is not found.
    let denied = source.kind() == io::ErrorKind::PermissionDenied;
    let bare = !name.as_bytes().contains(&b'/');
    let source =
        if denied && bare && !is_on_path(spec, &name) { io::Error::from_raw_os_error(libc::ENOENT) } else { source };
    Err(source).at(Step::Exec, name.display())
}

/// Whether the agent can see a file of that name where the run's environment looks for commands.
fn is_on_path(spec: &RunSpec, name: &OsStr) -> bool {
    let path = spec.env.iter().find(|(variable, _)| os(variable) == "PATH");
    path.is_some_and(|(_, folders)| std::env::split_paths(&os(folders)).any(|folder| folder.join(name).exists()))
}

impl Ground {
    /// Whether this is the foreground.
    pub(super) fn is_foreground(self) -> bool {
        matches!(self, Self::Foreground)
    }
}
