//! Destroys the connections that a tree has already and may not have: to protected targets, and to what its agent's egress
//! refuses, for the programs judge a connection when it is made. By the kernel's tables of sockets (sock_diag(7)).
//!
//! A connection is the tree's when one of its processes holds it, and also when its user made it: it may be on its way from one
//! process to another. The tables are a network namespace's own, so all of the tree's are gone through. Afterwards what the
//! processes hold must lead nowhere refused any more; a connection of a namespace that nobody is in is told there. Where a
//! connection leads the tables say: getpeername(2) shows the address that was asked for, of one that Weir serves as well. Who
//! began it they do not say, so one that somebody made to the agent goes as well when the agent may not have it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use rustix::{
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, getpeername, netlink, recv, send, socket_with,
    },
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{Fault, Process, Refusal, Rules, Why, held, tree::is_gone};

/// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;
/// Where an inet_diag_msg has what is read of it (linux/inet_diag.h).
const ID: std::ops::Range<usize> = 4..52;
const UID: usize = 64;
const INODE: usize = 68;
const MESSAGE: usize = 72;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Destroys them; gives how many there were, or why one is left.
///
/// # Errors
/// The tables of a namespace cannot be read.
pub(super) fn destroy(processes: &BTreeSet<Process>, rules: &Rules<'_>) -> io::Result<(usize, Vec<Fault>)> {
    let mut inodes = HashSet::new();
    let mut namespaces: BTreeMap<(u64, u64), File> = BTreeMap::new();
    for process in processes {
        inodes.extend(held::descriptors(process)?.values().filter_map(held::inode));
        for namespace in namespaces_of(process)? {
            let metadata = namespace.metadata()?;
            namespaces.entry((metadata.dev(), metadata.ino())).or_insert(namespace);
        }
    }
    let mut destroyed = 0_usize;
    let mut failed = Vec::new();
    let mut elsewhere = HashSet::new();
    for namespace in namespaces.values() {
        let tables = Tables::of(namespace)?;
        for entry in tables.all()? {
            let Some(refusal) = refusal(entry.target, rules) else {
                elsewhere.insert(u64::from(entry.inode));
                continue;
            };
            if entry.uid != rules.uid && !inodes.contains(&u64::from(entry.inode)) {
                continue;
            }
            match tables.destroy(&entry) {
                Ok(()) => destroyed = destroyed.saturating_add(1),
                Err(error) => failed.push((entry.target, refusal, error)),
            }
        }
    }
    Ok((destroyed, left(processes, rules, &failed, &elsewhere)?))
}

/// The network namespaces of a process's threads. One that has ended meanwhile has none.
fn namespaces_of(process: &Process) -> io::Result<Vec<File>> {
    let threads = match process.threads() {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        threads => threads?,
    };
    let mut found = Vec::new();
    for thread in threads {
        match File::open(format!("/proc/{}/task/{thread}/ns/net", process.pid)) {
            Err(error) if is_gone(&error) => {}
            opened => found.push(opened?),
        }
    }
    Ok(found)
}

/// Why a connection may not be. What listens, and what waits for datagrams from everywhere, is connected to nothing.
fn refusal(target: SocketAddr, rules: &Rules<'_>) -> Option<Refusal> {
    if target.ip().is_unspecified() && target.port() == 0 { None } else { (rules.refused)(target) }
}

/// The connections that may not be and are still held; those of `elsewhere` lead to where the agent may go.
fn left(
    processes: &BTreeSet<Process>,
    rules: &Rules<'_>,
    failed: &[(SocketAddr, Refusal, io::Error)],
    elsewhere: &HashSet<u64>,
) -> io::Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for process in processes {
        for descriptor in held::descriptors(process)?.values() {
            if held::inode(descriptor).is_some_and(|inode| elsewhere.contains(&inode)) {
                continue;
            }
            let Some(target) = peer(descriptor) else { continue };
            let Some(refusal) = refusal(target, rules) else { continue };
            let reason = failed.iter().find(|(failed, ..)| *failed == target);
            let reason = reason.map_or_else(
                || "it is in a network namespace that none of the processes is in".to_owned(),
                |(.., error)| format!("{error}; the kernel wants CONFIG_INET_DIAG_DESTROY"),
            );
            faults.push(process.fault(Why::Connected { target, refusal, reason }));
        }
    }
    // What only its maker's uid names, or what is on its way, has no holder to tell.
    for (target, refusal, error) in failed {
        if !faults.iter().any(|fault| matches!(&fault.why, Why::Connected { target: told, .. } if told == target)) {
            let Some(process) = processes.first() else { continue };
            let reason = error.to_string();
            faults.push(process.fault(Why::Connected { target: *target, refusal: *refusal, reason }));
        }
    }
    Ok(faults)
}

/// Where an internet socket is connected to.
fn peer(descriptor: &OwnedFd) -> Option<SocketAddr> {
    let peer = SocketAddr::try_from(getpeername(descriptor).ok()??).ok()?;
    Some(SocketAddr::new(peer.ip().to_canonical(), peer.port()))
}

/// A socket in a table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    family: u8,
    protocol: u8,
    /// What names it to the kernel: an inet_diag_sockid.
    id: [u8; 48],
    target: SocketAddr,
    uid: u32,
    inode: u32,
}

/// The tables of a network namespace.
struct Tables {
    netlink: OwnedFd,
}

impl Tables {
    /// A socket stays in the namespace in which it was made, so a thread that goes there makes it, and ends.
    fn of(namespace: &File) -> io::Result<Self> {
        let made = std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> io::Result<OwnedFd> {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                let kind = (AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC);
                Ok(socket_with(kind.0, kind.1, kind.2, Some(netlink::SOCK_DIAG))?)
            });
            thread.join().map_err(|_| io::Error::other("the thread for a network namespace failed"))
        })?;
        Ok(Self { netlink: made? })
    }

    /// Every socket that is connected or about to be.
    fn all(&self) -> io::Result<Vec<Entry>> {
        let mut found = Vec::new();
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            for protocol in [TCP, UDP] {
                let family = u8::try_from(family.as_raw()).map_err(io::Error::other)?;
                send(
                    &self.netlink,
                    &request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, protocol, &[0; 48]),
                    SendFlags::empty(),
                )?;
                self.answers(|kind, body| {
                    if kind == SOCK_DIAG_BY_FAMILY {
                        found.extend(entry(protocol, body));
                    }
                    kind == NLMSG_DONE
                })?;
            }
        }
        Ok(found)
    }

    fn destroy(&self, entry: &Entry) -> io::Result<()> {
        send(
            &self.netlink,
            &request(SOCK_DESTROY, NLM_F_ACK, entry.family, entry.protocol, &entry.id),
            SendFlags::empty(),
        )?;
        match self.answers(|_, _| false) {
            // It has gone by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Reads answers until `each` says that it was the last, or the kernel tells how it came out.
    fn answers(&self, mut each: impl FnMut(u16, &[u8]) -> bool) -> io::Result<()> {
        let mut buffer = vec![0_u8; 64 * 1024];
        loop {
            let (length, _) = recv(&self.netlink, &mut buffer, RecvFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, body, behind)) = message(rest) {
                rest = behind;
                if kind == NLMSG_ERROR {
                    return match body.first_chunk().map(|number| i32::from_ne_bytes(*number)) {
                        Some(0) => Ok(()),
                        Some(number) => Err(io::Error::from_raw_os_error(number.saturating_neg())),
                        None => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
                if each(kind, body) {
                    return Ok(());
                }
            }
        }
    }
}

/// An nlmsghdr with an inet_diag_req_v2: all states, no extensions.
fn request(kind: u16, flags: u16, family: u8, protocol: u8, id: &[u8; 48]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 56);
    bytes.extend(72_u32.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, protocol, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// The first message of `bytes`: its type, its body, and what is behind it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..6)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    let next = length.checked_next_multiple_of(4)?;
    Some((kind, body, bytes.get(next..).unwrap_or_default()))
}

fn entry(protocol: u8, body: &[u8]) -> Option<Entry> {
    let body = body.get(..MESSAGE)?;
    let family = *body.first()?;
    let id: [u8; 48] = *body.get(ID)?.first_chunk()?;
    // idiag_sport, idiag_dport, idiag_src, idiag_dst.
    let port = u16::from_be_bytes(*id.get(2..4)?.first_chunk()?);
    let address: [u8; 16] = *id.get(20..36)?.first_chunk()?;
    let ip = if i32::from(family) == libc::AF_INET {
        IpAddr::from(Ipv4Addr::from(*address.first_chunk::<4>()?))
    } else {
        IpAddr::from(Ipv6Addr::from(address)).to_canonical()
    };
    let number = |at: usize| Some(u32::from_ne_bytes(*body.get(at..)?.first_chunk()?));
    Some(Entry { family, protocol, id, target: SocketAddr::new(ip, port), uid: number(UID)?, inode: number(INODE)? })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream, UdpSocket},
    };

    use super::*;

    fn own() -> Tables {
        Tables::of(&File::open("/proc/self/ns/net").unwrap()).unwrap()
    }

    /// Another protocol may have the same port, for another test.
    fn to(target: SocketAddr, protocol: u8) -> Vec<Entry> {
        let is_it = |entry: &Entry| entry.target == target && entry.protocol == protocol;
        own().all().unwrap().into_iter().filter(is_it).collect()
    }

    #[test]
    fn a_connection_is_found_and_destroyed_and_both_ends_see_it() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let target = listener.local_addr().unwrap();
            let mut client = TcpStream::connect(target).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let [entry] = to(target, TCP).try_into().unwrap();
            assert_eq!(Some(u64::from(entry.inode)), held::inode(&rustix::io::dup(&client).unwrap()));
            own().destroy(&entry).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
            assert_eq!(server.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(to(target, TCP), []);
            // One that is gone is what was wanted.
            own().destroy(&entry).unwrap();
        }
    }

    #[test]
    fn a_connected_datagram_socket_is_destroyed_as_well() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(target).unwrap();
        let [entry] = to(target, UDP).try_into().unwrap();
        own().destroy(&entry).unwrap();
        assert!(peer(&client.into()).is_none());
    }

    #[test]
    fn messages_that_are_cut_off_are_no_messages() {
        let whole = request(SOCK_DESTROY, 0, 2, TCP, &[7; 48]);
        let (kind, body, behind) = message(&whole).unwrap();
        assert_eq!((kind, body.len(), behind.len()), (SOCK_DESTROY, 56, 0));
        for length in 0..whole.len() {
            assert!(message(&whole[..length]).is_none(), "{length}");
        }
        for length in 0..MESSAGE {
            assert_eq!(entry(TCP, &vec![2; length]), None);
        }
    }
}
