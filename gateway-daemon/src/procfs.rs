//! What /proc tells of TCP sockets and of the processes that hold them (proc(5), proc_pid_net(5)).
//!
//! Only this network namespace is seen, and only what is there at the moment of looking.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

/// A TCP socket's state, as the kernel numbers it (Linux, include/net/tcp_states.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TcpState {
    /// A connection.
    Established,
    /// It waits for connections.
    Listen,
    /// Any other.
    Other,
}

/// A TCP socket. Addresses of IPv4 are such, also in sockets of IPv6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TcpSocket {
    /// Its own address and port.
    pub(crate) local: (IpAddr, u16),
    /// The other end's.
    pub(crate) remote: (IpAddr, u16),
    /// Its state.
    pub(crate) state: TcpState,
    /// Its owner.
    pub(crate) uid: u32,
    /// By which descriptors name it.
    pub(crate) inode: u64,
}

/// All TCP sockets of a process's `net` folder.
///
/// # Errors
/// A table cannot be read, or is not as it should be.
pub(crate) fn tcp_sockets(net: &Path) -> io::Result<Vec<TcpSocket>> {
    let mut found = Vec::new();
    for name in ["tcp", "tcp6"] {
        let path = net.join(name);
        let table = match fs::read_to_string(&path) {
            // A kernel without IPv6 has no such table.
            Err(error) if name == "tcp6" && error.kind() == io::ErrorKind::NotFound => continue,
            table => table?,
        };
        let sockets = table.lines().skip(1).map(tcp_socket).collect::<Option<Vec<_>>>();
        found.extend(sockets.ok_or_else(|| io::Error::other(format!("{} cannot be read", path.display())))?);
    }
    Ok(found)
}

/// One row of a table; `None` when it is not as it should be.
fn tcp_socket(row: &str) -> Option<TcpSocket> {
    let words: Vec<&str> = row.split_ascii_whitespace().collect();
    let &[_, local, remote, state, _, _, _, uid, _, inode, ..] = words.as_slice() else { return None };
    Some(TcpSocket {
        local: end(local)?,
        remote: end(remote)?,
        state: match state {
            "01" => TcpState::Established,
            "0A" => TcpState::Listen,
            _ => TcpState::Other,
        },
        uid: uid.parse().ok()?,
        inode: inode.parse().ok()?,
    })
}

/// `ADDRESS:PORT`, both hexadecimal.
fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    Some((address_of(address)?.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

/// An address as the kernel prints it: words of 32 bits that lie in memory in network order, each read as a number.
fn address_of(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// The processes that hold the sockets of these inodes. Where several hold one, the oldest: it has opened it.
pub(crate) fn holders(inodes: &HashSet<u64>) -> HashMap<u64, u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let mut found = HashMap::new();
    for pid in pids {
        // One that is gone, or another user's, tells nothing.
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let inode = fs::read_link(descriptor.path()).ok().as_deref().and_then(socket_inode);
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                found.entry(inode).or_insert(pid);
            }
        }
    }
    found
}

/// `socket:[INODE]`
fn socket_inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The name that a process gives itself; `None` when it is gone.
pub(crate) fn comm(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(name.trim_ascii_end()).into_owned())
}

/// A process's cgroup in the version 2 hierarchy; `None` when it is gone.
pub(crate) fn cgroup(pid: u32) -> Option<String> {
    own_entry(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// The version 2 entry of a /proc/PID/cgroup.
fn own_entry(table: &str) -> Option<String> {
    table.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 12345 1 ffff 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1 ffff 100 0 0 10 0
   2: 0100007F:1538 0100007F:D431 01 00000000:00000000 00:00000000 00000000   101        0 12399 1 ffff 20 4 30 10 -1
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:1538 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 12344 1 ffff 100 0 0 10 0
   1: 0000000000000000FFFF00000200000A:0CEA 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9 1 ffff 100 0 0 10 0
   2: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 8 1 ffff 100 0 0 10 0
";

    fn listening(table: &str) -> Vec<(String, u64)> {
        let sockets: Option<Vec<_>> = table.lines().skip(1).map(tcp_socket).collect();
        let listening = sockets.unwrap().into_iter().filter(|socket| socket.state == TcpState::Listen);
        listening.map(|TcpSocket { local: (address, port), inode, .. }| (format!("{address} {port}"), inode)).collect()
    }

    // The tables' numbers are in the host's order; these are a little-endian machine's.
    #[cfg(target_endian = "little")]
    #[test]
    fn sockets_are_read_from_the_kernels_tables() {
        assert_eq!(listening(TCP), [("127.0.0.1 5432".to_owned(), 12345), ("0.0.0.0 22".to_owned(), 777)]);
        let expected = [("::1 5432", 12344), ("10.0.0.2 3306", 9), ("2001:db8::1 80", 8)];
        assert_eq!(listening(TCP6), expected.map(|(local, inode)| (local.to_owned(), inode)));
        let connected = tcp_socket(TCP.lines().nth(3).unwrap()).unwrap();
        assert_eq!((connected.state, connected.uid), (TcpState::Established, 101));
        assert_eq!(connected.remote, (IpAddr::V4(Ipv4Addr::LOCALHOST), 54_321));
    }

    #[test]
    fn a_table_that_cannot_be_read_is_no_empty_table() {
        let folder = tempfile::tempdir().unwrap();
        let sockets_of = |table: &str| {
            fs::write(folder.path().join("tcp"), table).unwrap();
            tcp_sockets(folder.path())
        };
        let header = TCP.lines().next().unwrap();
        assert_eq!(sockets_of(header).unwrap(), []);
        let row = TCP.lines().nth(1).unwrap();
        for (good, bad) in [("0100007F:1538", "0100007F"), ("0100007F", "010000é7F"), ("1538", "15380"), ("12345", "x")]
        {
            sockets_of(&format!("{header}\n{}\n", row.replace(good, bad))).unwrap_err();
        }
        sockets_of(&format!("{header}\n   0: 0100007F:1538 00000000:0000 0A\n")).unwrap_err();
        fs::remove_file(folder.path().join("tcp")).unwrap();
        tcp_sockets(folder.path()).unwrap_err();
    }

    #[test]
    fn a_process_entry_is_the_one_of_version_2() {
        assert_eq!(own_entry("3:cpu:/x\n0::/weir/a\n"), Some("/weir/a".to_owned()));
        assert_eq!(own_entry("3:cpu:/x\n"), None);
    }
}
