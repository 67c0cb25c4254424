//! A process that connects, from the cgroup and as the user that a test wants, in every way that there is.
//!
//! `connector [--enter FOLDER] [--uid UID] VERB …` does one thing and prints one line of JSON: see [`Outcome`].

use std::{
    io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use end_to_end::kernel_support::{Outcome, Worker, ring, uring_connect, uring_send};
use gateway_daemon::redirect::cgroup::id_of;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        self, AddressFamily, Protocol, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
    },
};

/// How long any single step may take.
const PATIENCE: Duration = Duration::from_secs(20);
const MPTCP: u32 = 262;

fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let enter = option(&mut arguments, "--enter")?;
    let uid = option(&mut arguments, "--uid")?;
    if let Some(folder) = enter {
        enter_cgroup(&folder)?;
    }
    if let Some(uid) = uid {
        let uid: u32 = uid.parse()?;
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_gid(rustix::process::Gid::from_raw(uid))?;
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(uid))?;
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["tcp", address] => talk(&stream(address.parse()?, None)?, address.parse()?, Way::Blocking),
        ["mptcp", address] => {
            let address = address.parse()?;
            stream(address, Some(MPTCP)).and_then(|socket| talk(&socket, address, Way::Blocking))
        }
        ["fastopen", address] => talk(&stream(address.parse()?, None)?, address.parse()?, Way::FastOpen),
        ["nonblocking", address] => talk(&stream(address.parse()?, None)?, address.parse()?, Way::NonBlocking),
        ["uring", address] => through_ring(None, Worker::Inline, address.parse()?)?,
        ["uring-queue", address] => through_ring(None, Worker::Queue, address.parse()?)?,
        ["uring-poll", address] => through_ring(None, Worker::Poll, address.parse()?)?,
        ["ring-made-before", folder, address] => through_ring(Some(folder), Worker::Queue, address.parse()?)?,
        ["poll-ring-made-before", folder, address] => through_ring(Some(folder), Worker::Poll, address.parse()?)?,
        ["udp-send", address] => datagram(address.parse()?, false),
        ["udp-connect", address] => datagram(address.parse()?, true),
        ["udp-many", address] => datagrams(address.parse()?),
        ["udp-uring", address] => {
            let address = address.parse()?;
            let socket = net::socket(family(address), SocketType::DGRAM, None)?;
            uring_send(&mut ring(Worker::Queue)?, &socket, ECHO, address).map(|()| Outcome::default())
        }
        ["ping", address] => ping_socket(address.parse()?).and_then(|socket| ping(&socket, address)),
        ["ping-connect", address] => ping_socket(address.parse()?).and_then(|socket| {
            net::connect(&socket, &address.parse::<SocketAddr>().map_err(|_| Errno::INVAL)?)?;
            Ok(Outcome::default())
        }),
        ["give-ping", address] => {
            ping_socket(address.parse()?).and_then(|socket| give(&socket)).map(|()| Outcome::default())
        }
        ["give-udp", address] => {
            let address: SocketAddr = address.parse()?;
            net::socket(family(address), SocketType::DGRAM, None)
                .and_then(|socket| give(&socket))
                .map(|()| Outcome::default())
        }
        ["take-send", address] => take().and_then(|socket| echo(&socket, address)).map(|()| Outcome::default()),
        ["take-ping", address] => take().and_then(|socket| ping(&socket, address)),
        ["socket", family, kind, protocol] => make(family.parse()?, kind.parse()?, protocol.parse()?),
        ["bind", address, protocol] => bind(address.parse()?, protocol.parse()?),
        ["bound", source, address] => bound(source.parse()?, address.parse()?),
        ["device", device, address] => {
            let socket = stream(address.parse()?, None)?;
            socket2::SockRef::from(&socket).bind_device(Some(device.as_bytes()))?;
            talk(&socket, address.parse()?, Way::Blocking)
        }
        ["made-before", folder, address] => {
            let socket = stream(address.parse()?, None)?;
            enter_cgroup(folder)?;
            talk(&socket, address.parse()?, Way::Blocking)
        }
        ["inherited", address] => talk(io::stdin().as_fd(), address.parse()?, Way::Blocking),
        ["give"] => {
            give(&stream(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), None)?)?;
            Ok(Outcome::default())
        }
        ["give-mptcp"] => {
            give(&stream(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Some(MPTCP))?)?;
            Ok(Outcome::default())
        }
        ["give-used", address] => {
            let socket = stream(address.parse()?, None)?;
            let outcome = talk(&socket, address.parse()?, Way::Blocking);
            net::connect_unspec(&socket)?;
            give(&socket)?;
            outcome
        }
        ["take", address] => talk(&take()?, address.parse()?, Way::Blocking),
        ["from-port", source, address] => from_port(source.parse()?, address.parse()?),
        ["many", count, threads, addresses @ ..] => many(count.parse()?, threads.parse()?, addresses),
        ["hang", count, address] => hang(count.parse()?, address.parse()?, |_| Ok(())),
        ["hang-deaf", count, address] => hang(count.parse()?, address.parse()?, deafen),
        ["stay", sent, address] => stay(sent.as_bytes(), address.parse()?),
        other => bail!("unknown: {other:?}"),
    };
    let outcome = outcome.unwrap_or_else(|errno| Outcome { errno: Some(errno.raw_os_error()), ..Outcome::default() });
    println!("{}", serde_json::to_string(&Outcome { own_pid: std::process::id(), ..outcome })?);
    Ok(())
}

fn option(arguments: &mut Vec<String>, name: &str) -> Result<Option<String>> {
    let Some(place) = arguments.iter().position(|argument| argument == name) else { return Ok(None) };
    ensure!(place + 1 < arguments.len(), "{name} wants a value");
    arguments.remove(place);
    Ok(Some(arguments.remove(place)))
}

fn enter_cgroup(folder: &str) -> Result<()> {
    std::fs::write(Path::new(folder).join("cgroup.procs"), "0").with_context(|| format!("enter {folder}"))
}

type Tried<T> = std::result::Result<T, Errno>;

enum Way<'a> {
    Blocking,
    FastOpen,
    NonBlocking,
    Ring(&'a mut io_uring::IoUring, Worker),
}

fn stream(address: SocketAddr, protocol: Option<u32>) -> Tried<OwnedFd> {
    let protocol = protocol.and_then(std::num::NonZeroU32::new).map(Protocol::from_raw);
    net::socket_with(family(address), SocketType::STREAM, SocketFlags::CLOEXEC, protocol)
}

fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// Connects, and reads the line that whoever accepts sends.
fn talk(socket: impl std::os::fd::AsFd, address: SocketAddr, way: Way<'_>) -> Tried<Outcome> {
    let socket = socket.as_fd();
    match way {
        Way::Blocking => net::connect(socket, &address)?,
        Way::FastOpen => {
            const MSG_FASTOPEN: u32 = 0x2000_0000;
            net::sendto(socket, b"x", SendFlags::from_bits_retain(MSG_FASTOPEN), &address)?;
            ready(socket, PollFlags::IN)?;
        }
        Way::NonBlocking => {
            rustix::io::ioctl_fionbio(socket, true)?;
            match net::connect(socket, &address) {
                Ok(()) => {}
                Err(Errno::INPROGRESS) => {
                    ready(socket, PollFlags::OUT)?;
                    sockopt::socket_error(socket)??;
                }
                Err(errno) => return Err(errno),
            }
            rustix::io::ioctl_fionbio(socket, false)?;
        }
        Way::Ring(ring, worker) => uring_connect(ring, worker, socket, address)?,
    }
    let peer = net::getpeername(socket)?.and_then(|peer| SocketAddr::try_from(peer).ok());
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let stream = TcpStream::from(socket.try_clone_to_owned().map_err(errno)?);
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).map_err(errno)?;
    Ok(Outcome { peer, answer: serde_json::from_str(&line).ok(), ..Outcome::default() })
}

/// Connects through a ring, made before the process enters the folder's cgroup where one is given.
fn through_ring(enter: Option<&str>, worker: Worker, address: SocketAddr) -> Result<Tried<Outcome>> {
    let mut ring = ring(worker)?;
    if let Some(folder) = enter {
        enter_cgroup(folder)?;
    }
    let socket = stream(address, None)?;
    Ok(talk(&socket, address, Way::Ring(&mut ring, worker)))
}

fn ready(socket: BorrowedFd<'_>, flags: PollFlags) -> Tried<()> {
    let patience = Timespec::try_from(PATIENCE).map_err(|_| Errno::INVAL)?;
    match poll(&mut [PollFd::from_borrowed_fd(socket, flags)], Some(&patience))? {
        0 => Err(Errno::TIMEDOUT),
        _ => Ok(()),
    }
}

fn datagram(address: SocketAddr, connect: bool) -> Tried<Outcome> {
    let socket = net::socket(family(address), SocketType::DGRAM, None)?;
    if connect {
        net::connect(&socket, &address)?;
    } else {
        net::sendto(&socket, b"x", SendFlags::empty(), &address)?;
    }
    Ok(Outcome::default())
}

/// Two at once, by one call.
fn datagrams(address: SocketAddr) -> Tried<Outcome> {
    let socket = net::socket(family(address), SocketType::DGRAM, None)?;
    let address = net::SocketAddrAny::from(address);
    let (bytes, other) = ([IoSlice::new(b"x")], [IoSlice::new(b"y")]);
    let (mut none, mut nothing) = (SendAncillaryBuffer::default(), SendAncillaryBuffer::default());
    let mut messages = [
        net::MMsgHdr::new_with_addr(&address, &bytes, &mut none),
        net::MMsgHdr::new_with_addr(&address, &other, &mut nothing),
    ];
    net::sendmmsg(&socket, &mut messages, SendFlags::empty()).map(|_| Outcome::default())
}

/// An echo request; the kernel fills in what is missing. To a UDP socket bytes like any others.
const ECHO: &[u8] = &[8, 0, 0, 0, 0, 0, 0, 1];
const ECHO_V6: &[u8] = &[128, 0, 0, 0, 0, 0, 0, 1];

fn ping_socket(address: SocketAddr) -> Tried<OwnedFd> {
    let protocol = if address.is_ipv4() { net::ipproto::ICMP } else { net::ipproto::ICMPV6 };
    net::socket(family(address), SocketType::DGRAM, Some(protocol))
}

fn echo(socket: &OwnedFd, address: &str) -> Tried<()> {
    let address: SocketAddr = address.parse().map_err(|_| Errno::INVAL)?;
    let request = if address.is_ipv4() { ECHO } else { ECHO_V6 };
    net::sendto(socket, request, SendFlags::empty(), &address).map(drop)
}

/// Waits for the reply, which comes from this host: the kernel does not say that an IPv6 echo request did not leave.
fn ping(socket: &OwnedFd, address: &str) -> Tried<Outcome> {
    echo(socket, address)?;
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&second))? {
        0 => Err(Errno::TIMEDOUT),
        _ => Ok(Outcome::default()),
    }
}

fn make(family: u16, kind: u32, protocol: u32) -> Tried<Outcome> {
    let protocol = std::num::NonZeroU32::new(protocol).map(Protocol::from_raw);
    net::socket(AddressFamily::from_raw(family), SocketType::from_raw(kind), protocol).map(|_| Outcome::default())
}

fn bind(address: SocketAddr, protocol: u32) -> Tried<Outcome> {
    let socket = stream(address, Some(protocol))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, 1)?;
    Ok(Outcome::default())
}

fn bound(source: SocketAddr, address: SocketAddr) -> Tried<Outcome> {
    let socket = stream(address, None)?;
    net::bind(&socket, &source)?;
    talk(&socket, address, Way::Blocking)
}

/// Takes a port over at once, as whoever watches for it would.
fn from_port(source: SocketAddr, address: SocketAddr) -> Tried<Outcome> {
    let socket = stream(address, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    let end = Instant::now() + PATIENCE;
    while let Err(errno) = net::bind(&socket, &source) {
        if errno != Errno::ADDRINUSE || Instant::now() > end {
            return Err(errno);
        }
        thread::yield_now();
    }
    talk(&socket, address, Way::Blocking)
}

/// Passes a socket to whoever holds the other end of standard input.
fn give(socket: &OwnedFd) -> Tried<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let descriptors = [socket.as_fd()];
    message.push(SendAncillaryMessage::ScmRights(&descriptors));
    net::sendmsg(io::stdin(), &[IoSlice::new(b"x")], &mut message, SendFlags::empty()).map(drop)
}

fn take() -> Tried<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    net::recvmsg(io::stdin(), &mut [IoSliceMut::new(&mut byte)], &mut message, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = message.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    descriptors.next().and_then(|mut descriptors| descriptors.next()).ok_or(Errno::BADMSG)
}

/// Connects over and over in many threads, and counts the answers that speak of anybody else.
fn many(count: usize, threads: usize, addresses: &[&str]) -> Tried<Outcome> {
    let addresses: Vec<SocketAddr> = addresses.iter().filter_map(|address| address.parse().ok()).collect();
    let own = own_cgroup().map_err(errno)?;
    let started = Instant::now();
    let results = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let addresses = &addresses;
                scope.spawn(move || {
                    let mut good = 0;
                    let mut bad = Vec::new();
                    for round in 0..count / threads {
                        let Some(&address) = addresses.get((worker + round) % addresses.len()) else { break };
                        let outcome = stream(address, None).and_then(|socket| talk(&socket, address, Way::Blocking));
                        match outcome {
                            Ok(outcome) if outcome.is_own(own, address) => good += 1,
                            Ok(outcome) => bad.push(format!("{address}: {outcome:?}")),
                            Err(errno) => bad.push(format!("{address}: {errno}")),
                        }
                    }
                    (good, bad)
                })
            })
            .collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect::<Vec<_>>()
    });
    let good = results.iter().map(|(good, _)| good).sum();
    let bad: Vec<String> = results.into_iter().flat_map(|(_, bad)| bad).collect();
    Ok(Outcome { good, bad, seconds: started.elapsed().as_secs_f64(), ..Outcome::default() })
}

/// The cgroup of the process, which is the one that a test enrolled.
fn own_cgroup() -> io::Result<u64> {
    let root = gateway_daemon::redirect::cgroup::CgroupRoot::find().map_err(io::Error::other)?;
    let own = root.of_self().ok_or(io::ErrorKind::NotFound)?;
    id_of(&root.path(&own)).map(|id| id.get()).map_err(io::Error::other)
}

/// Connects that nobody accepts; they are given up when standard input ends.
fn hang(count: usize, address: SocketAddr, prepare: impl Fn(&OwnedFd) -> Tried<()>) -> Tried<Outcome> {
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = stream(address, None)?;
        prepare(&socket)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        match net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => sockets.push(socket),
            Err(errno) => return Err(errno),
        }
    }
    until_told("hanging").map(|()| Outcome::default())
}

/// Lets the socket hear nothing: its handshake never ends.
fn deafen(socket: &OwnedFd) -> Tried<()> {
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K: how much of a packet is kept
    let nothing = socket2::SockFilter::new(RETURN, 0, 0, 0);
    socket2::SockRef::from(socket).attach_filter(&[nothing]).map_err(errno)
}

/// Connects, sends something, and keeps the connection until standard input ends.
fn stay(sent: &[u8], address: SocketAddr) -> Tried<Outcome> {
    let socket = stream(address, None)?;
    net::connect(&socket, &address)?;
    net::send(&socket, sent, SendFlags::empty())?;
    until_told("staying").map(|()| Outcome::default())
}

fn until_told(line: &str) -> Tried<()> {
    println!("{line}");
    io::stdout().flush().map_err(errno)?;
    io::stdin().read_to_end(&mut Vec::new()).map(drop).map_err(errno)
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
