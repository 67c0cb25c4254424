//! What a process holds that reaches around Weir: there is a list of what passes, and all else is a fault.
//!
//! Ordinary sockets pass, since the programs judge who connects, not the socket; connections to protected targets are
//! destroyed afterwards ([`super::sockets`]). A ring of `io_uring` may act as who made it, which its descriptor does not say.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, OFlags, fcntl_getfl, fstat, fstatfs, major, minor},
    io::ioctl_fionread,
    net::{AddressFamily, SocketAddrUnix, SocketType, getpeername, sockopt},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use super::{
    Look, Process, Rules, Why, same_file,
    tree::{is_gone, numbers},
};

/// The kernel's objects without a file that an agent may hold: they wait, count, or mean a process, whose own rules hold.
const HARMLESS_OBJECTS: [&str; 8] =
    ["[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]", "[pidfd]", "inotify", "[fanotify]", "[landlock-ruleset]"];
/// File systems that are the kernel's own switches (linux/magic.h): cgroup, cgroup2, proc, sysfs, bpf, debugfs, tracefs,
/// securityfs. A file of theirs may have been opened for writing by somebody who may do more.
const SWITCHES: [u64; 8] =
    [0x0027_e0eb, 0x6367_7270, 0x9fa0, 0x6265_6572, 0xcafe_4a11, 0x6462_6720, 0x7472_6163, 0x7363_6673];
/// Major number of memory devices, and of them null, zero, full, random and urandom.
const MEMORY: u32 = 1;
const HARMLESS_MEMORY: [u32; 5] = [3, 5, 7, 8, 9];
/// Protocols of sockets that are judged when they connect or send: TCP, UDP, MPTCP; and ping's.
const STREAMS: [u32; 3] = [0, 6, 262];
const DATAGRAMS: [u32; 4] = [0, 17, 1, 58];
/// What a mapping of a ring is called.
const RING: &str = "anon_inode:[io_uring]";

/// What a process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// A ring, by its descriptor or a mapping.
    Ring,
    /// A socket that no program judges.
    Socket {
        /// Its family, `AF_…`.
        family: u32,
        /// Its protocol.
        protocol: u32,
    },
    /// A Unix socket with something in it that nobody has taken: descriptors, maybe.
    Queue,
    /// A connection to a Unix socket that leads around Weir.
    Connection {
        /// The socket.
        path: PathBuf,
    },
    /// A device, or a file of the kernel's that switches something.
    File {
        /// What it is called.
        name: String,
    },
    /// An object of the kernel's that is on no list.
    Object {
        /// What it is called.
        name: String,
    },
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring => {
                f.write_str("an io_uring, which may act as whoever made it; start it without (Node: UV_USE_IO_URING=0)")
            }
            Self::Socket { family, protocol } => {
                write!(f, "a socket of family {family} and protocol {protocol}, which nothing polices")
            }
            Self::Queue => f.write_str(
                "a Unix socket with messages in it that were not read, which may hold descriptors; let it read them, and try again",
            ),
            Self::Connection { path } => write!(f, "a connection to {}, which leads around Weir", path.display()),
            Self::File { name } => write!(f, "`{name}`, opened so that it may change the system"),
            Self::Object { name } => write!(f, "an object of the kernel's that an agent may not have, `{name}`"),
        }
    }
}

/// What is wrong with what a process holds.
pub(super) fn whys(process: &Process, rules: &Rules<'_>, look: Look) -> Vec<Why> {
    let mut whys = Vec::new();
    match descriptors(process) {
        Ok(descriptors) => {
            for (number, descriptor) in descriptors {
                let queue = || is_queue(&descriptor, look).map(|queue| queue.then_some(Held::Queue));
                match judge(&descriptor, rules).and_then(|held| held.map_or_else(queue, |held| Ok(Some(held)))) {
                    Ok(None) => {}
                    Ok(Some(held)) => whys.push(Why::Holds { held, place: format!("descriptor {number}") }),
                    Err(source) => whys.push(Why::Unknown { what: "one of its descriptors", source }),
                }
            }
        }
        Err(source) => whys.push(Why::Unknown { what: "its descriptors", source }),
    }
    match fs::read(format!("/proc/{}/maps", process.pid)) {
        // A closed ring lives on while it is mapped, and one with a thread of the kernel's needs no more.
        Ok(maps) if maps.windows(RING.len()).any(|window| window == RING.as_bytes()) => {
            whys.push(Why::Holds { held: Held::Ring, place: "mapped".to_owned() });
        }
        Ok(_) => {}
        Err(error) if is_gone(&error) => {}
        Err(source) => whys.push(Why::Unknown { what: "its mappings", source }),
    }
    match worker(process) {
        Ok(None) => {}
        Ok(Some(thread)) => whys.push(Why::Holds { held: Held::Ring, place: format!("its thread {thread}") }),
        Err(source) => whys.push(Why::Unknown { what: "its threads", source }),
    }
    match look {
        Look::Running => {}
        Look::Still => match differing_thread(process) {
            Ok(None) => {}
            Ok(Some(thread)) => whys.push(Why::Thread { thread, what: "descriptors" }),
            Err(source) => whys.push(Why::Unknown { what: "its threads", source }),
        },
    }
    whys
}

/// Copies of a process's descriptors, by number: what it holds itself, whatever has its name.
pub(super) fn descriptors(process: &Process) -> io::Result<BTreeMap<u32, OwnedFd>> {
    let mut found = BTreeMap::new();
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    let pidfd = match pidfd_open(pid.ok_or(io::ErrorKind::InvalidInput)?, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(found),
        Err(errno) => return Err(errno.into()),
    };
    let numbers = match numbers(&format!("/proc/{}/fd", process.pid)) {
        Err(error) if is_gone(&error) => return Ok(found),
        numbers => numbers?,
    };
    for number in numbers {
        let raw = i32::try_from(number).map_err(io::Error::other)?;
        match pidfd_getfd(&pidfd, raw, PidfdGetfdFlags::empty()) {
            Ok(descriptor) => found.insert(number, descriptor),
            // Closed meanwhile, or the process has ended.
            Err(rustix::io::Errno::BADF | rustix::io::Errno::SRCH) => continue,
            Err(errno) => return Err(errno.into()),
        };
    }
    Ok(found)
}

/// A thread that the kernel made for a ring (`iou-sqp-…`, `iou-wrk-…`): the ring may have neither descriptor nor mapping.
fn worker(process: &Process) -> io::Result<Option<u32>> {
    let threads = match process.threads() {
        Err(error) if is_gone(&error) => return Ok(None),
        threads => threads?,
    };
    for thread in threads {
        match fs::read(format!("/proc/{}/task/{thread}/comm", process.pid)) {
            Ok(name) if name.starts_with(b"iou-") => return Ok(Some(thread)),
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether a Unix socket has something in its queue. What is queued in a socket that is queued itself lies behind the outer one.
/// While its process runs that comes and goes.
fn is_queue(descriptor: &OwnedFd, look: Look) -> io::Result<bool> {
    if look == Look::Running
        || FileType::from_raw_mode(fstat(descriptor)?.st_mode) != FileType::Socket
        || sockopt::socket_domain(descriptor)? != AddressFamily::UNIX
    {
        return Ok(false);
    }
    let mut events = [PollFd::new(descriptor, PollFlags::IN | PollFlags::PRI | PollFlags::RDHUP)];
    poll(&mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let found = events.iter().fold(PollFlags::empty(), |found, event| found | event.revents());
    if !found.intersects(PollFlags::IN | PollFlags::PRI) {
        return Ok(false);
    }
    // The end of a stream is readable as well. Its bytes are counted; of datagrams an empty one may carry descriptors, too.
    let ended = found.intersects(PollFlags::RDHUP | PollFlags::HUP) && !found.contains(PollFlags::PRI);
    Ok(!(ended && sockopt::socket_type(descriptor)? == SocketType::STREAM && ioctl_fionread(descriptor) == Ok(0)))
}

/// A thread that has descriptors of its own (`unshare(CLONE_FILES)`): those were not looked at.
fn differing_thread(process: &Process) -> io::Result<Option<u32>> {
    let held = |thread: u32| -> io::Result<BTreeMap<u32, PathBuf>> {
        let folder = format!("/proc/{}/task/{thread}/fd", process.pid);
        let link = |number: u32| Ok((number, fs::read_link(format!("{folder}/{number}"))?));
        numbers(&folder)?.into_iter().map(link).collect()
    };
    let first = held(process.pid)?;
    for thread in process.threads()? {
        if held(thread)? != first {
            return Ok(Some(thread));
        }
    }
    Ok(None)
}

/// What is wrong with one thing held.
fn judge(descriptor: &OwnedFd, rules: &Rules<'_>) -> io::Result<Option<Held>> {
    let flags = fcntl_getfl(descriptor)?;
    let found = fstat(descriptor)?;
    let name = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?.display().to_string();
    let refused = Held::File { name: name.clone() };
    Ok(match FileType::from_raw_mode(found.st_mode) {
        FileType::Fifo | FileType::Symlink => None,
        FileType::Socket => socket(descriptor, rules)?,
        // A mere path: whoever opens it is asked then.
        _ if flags.contains(OFlags::PATH) => None,
        FileType::RegularFile | FileType::Directory | FileType::Unknown if !name.starts_with('/') => object(&name),
        FileType::RegularFile | FileType::Directory => {
            let system = u64::try_from(fstatfs(descriptor)?.f_type).map_or(true, |kind| SWITCHES.contains(&kind));
            let writable = flags.intersection(OFlags::RWMODE) != OFlags::RDONLY;
            let memory = system && Path::new(&name).file_name().is_some_and(|name| name == "mem");
            (system && (writable || memory)).then_some(refused)
        }
        FileType::CharacterDevice => {
            let device = found.st_rdev;
            let harmless = rustix::termios::isatty(descriptor)
                || (major(device) == MEMORY && HARMLESS_MEMORY.contains(&minor(device)));
            (!harmless).then_some(refused)
        }
        FileType::BlockDevice | FileType::Unknown => Some(refused),
    })
}

/// `anon_inode:[eventfd]`, `pidfd:[7]`, `net:[4026531840]`.
fn object(name: &str) -> Option<Held> {
    if name == RING {
        return Some(Held::Ring);
    }
    let plain = name.strip_prefix("anon_inode:").is_some_and(|kind| HARMLESS_OBJECTS.contains(&kind));
    if plain || name.starts_with("pidfd:[") { None } else { Some(Held::Object { name: name.to_owned() }) }
}

fn socket(descriptor: &OwnedFd, rules: &Rules<'_>) -> io::Result<Option<Held>> {
    let family = sockopt::socket_domain(descriptor)?;
    let kind = sockopt::socket_type(descriptor)?;
    let protocol = sockopt::socket_protocol(descriptor)?.map_or(0, |protocol| protocol.as_raw().get());
    let judged = match (family, kind) {
        (AddressFamily::NETLINK, _) => true,
        (AddressFamily::UNIX, _) => return Ok(barred(descriptor, rules).map(|path| Held::Connection { path })),
        (AddressFamily::INET | AddressFamily::INET6, SocketType::STREAM) => STREAMS.contains(&protocol),
        (AddressFamily::INET | AddressFamily::INET6, SocketType::DGRAM) => DATAGRAMS.contains(&protocol),
        _ => false,
    };
    Ok((!judged).then(|| Held::Socket { family: family.as_raw().into(), protocol }))
}

/// The socket that this one is connected to, if it leads around Weir.
fn barred(descriptor: impl AsFd, rules: &Rules<'_>) -> Option<PathBuf> {
    let peer = SocketAddrUnix::try_from(getpeername(descriptor).ok()??).ok()?;
    let path = Path::new(std::str::from_utf8(peer.path_bytes()?).ok()?).to_owned();
    rules.barred_sockets.iter().any(|barred| same_file(barred, &path)).then_some(path)
}

/// The number of a socket, as the kernel's tables have it.
pub(super) fn inode(descriptor: &OwnedFd) -> Option<u64> {
    let metadata = fs::metadata(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).ok()?;
    (FileType::from_raw_mode(metadata.mode()) == FileType::Socket).then(|| metadata.ino())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        net::TcpListener,
        os::unix::net::{UnixListener, UnixStream},
    };

    use super::*;

    fn told(held: impl Into<OwnedFd>, sockets: &[PathBuf]) -> Option<Held> {
        let rules = super::super::rules_of(7, &[], sockets);
        judge(&held.into(), &rules).unwrap()
    }

    #[test]
    fn what_an_ordinary_program_holds_passes() {
        let (pipe, _writer) = rustix::pipe::pipe().unwrap();
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(told(pipe, &[]), None);
        assert_eq!(told(one, &[]), None);
        assert_eq!(told(tempfile::tempfile().unwrap(), &[]), None);
        for path in ["/dev/null", "/dev/urandom", "/tmp", "/proc/self/status", "/proc"] {
            assert_eq!(told(File::open(path).unwrap(), &[]), None, "{path}");
        }
        assert_eq!(told(TcpListener::bind("127.0.0.1:0").unwrap(), &[]), None);
        assert_eq!(told(std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), &[]), None);
        let pty = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
        assert_eq!(told(pty, &[]), None);
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        assert_eq!(told(epoll, &[]), None);
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(told(event, &[]), None);
        let own = rustix::process::getpid();
        assert_eq!(told(pidfd_open(own, PidfdFlags::empty()).unwrap(), &[]), None);
    }

    #[test]
    fn what_reaches_around_is_told() {
        let ring: io_uring::IoUring = io_uring::IoUring::new(2).unwrap();
        let ring = rustix::io::dup(&ring).unwrap();
        assert_eq!(told(ring, &[]), Some(Held::Ring));
        let raw = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::ICMP)).unwrap();
        assert_eq!(told(raw, &[]), Some(Held::Socket { family: 2, protocol: 1 }));
        assert!(matches!(told(File::open("/proc/self/ns/net").unwrap(), &[]), Some(Held::Object { .. })));
        for path in ["/proc/self/comm", "/proc/self/mem"] {
            let file = File::options().read(true).write(true).open(path).unwrap();
            assert!(matches!(told(file, &[]), Some(Held::File { .. })), "{path}");
        }
        assert!(matches!(told(File::open("/proc/self/mem").unwrap(), &[]), Some(Held::File { .. })));
        assert!(matches!(
            told(File::open("/dev/fuse").or_else(|_| File::open("/dev/kmsg")).unwrap(), &[]),
            Some(Held::File { .. })
        ));
    }

    #[test]
    fn a_connection_to_a_barred_unix_socket_is_told_and_another_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".s.PGSQL.5432");
        let listener = UnixListener::bind(&path).unwrap();
        let connected = UnixStream::connect(&path).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(told(accepted, std::slice::from_ref(&path)), None, "the server's side is not the client's");
        assert_eq!(told(connected.try_clone().unwrap(), &[]), None);
        assert_eq!(told(connected, std::slice::from_ref(&path)), Some(Held::Connection { path }));
    }

    #[test]
    fn what_waits_in_a_unix_socket_is_told_and_a_socket_at_its_end_is_not() {
        use rustix::net::{SendFlags, SocketFlags, send, socketpair};
        let queued = |socket: &OwnedFd| is_queue(socket, Look::Still).unwrap();
        for kind in [SocketType::STREAM, SocketType::SEQPACKET, SocketType::DGRAM] {
            let (one, other) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
            assert!(!queued(&one) && !queued(&other), "{kind:?}");
            // A datagram may be empty and carry a descriptor all the same.
            send(&one, if kind == SocketType::STREAM { b"x" } else { b"" }, SendFlags::empty()).unwrap();
            assert!(queued(&other) && !queued(&one), "{kind:?}");
            assert!(!is_queue(&other, Look::Running).unwrap());
            drop(one);
            assert!(queued(&other), "{kind:?}: what was sent is there when the sender is gone");
        }
        let (one, other) = UnixStream::pair().unwrap();
        drop(one);
        assert!(!queued(&other.into()));
        assert!(!queued(&TcpListener::bind("127.0.0.1:0").unwrap().into()));
    }

    #[test]
    fn a_thread_of_a_ring_is_told() {
        let own = Process::find(std::process::id()).unwrap().unwrap();
        let _ring: io_uring::IoUring = io_uring::IoUring::builder().setup_sqpoll(10_000).build(2).unwrap();
        // It gives itself its name when it runs first.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while worker(&own).unwrap().is_none() {
            assert!(std::time::Instant::now() < until);
            std::thread::yield_now();
        }
    }
}
