//! Who talks to the servers today: from the daemon's first start on, who is neither an agent nor on `[[allow]]` is refused.
//!
//! The kernel's table of sockets says which connections are open, the descriptors below /proc whose they are. Only this
//! network namespace is seen, and only what is open at this moment.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs,
    net::IpAddr,
};

use anyhow::{Context, Result};

use super::super::doctor::ports::{parse_address, socket_inode};
use crate::{config::Config, daemon::protected_by};

/// The state ESTABLISHED in the kernel's tables (Linux, include/net/tcp_states.h).
const ESTABLISHED: &str = "01";

/// Somebody who has connections to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Talker {
    /// The user.
    pub(super) uid: u32,
    /// The name of the process, which it gives itself.
    pub(super) comm: String,
    /// Its cgroup, where it can be told.
    pub(super) cgroup: Option<String>,
    /// One of its processes.
    pub(super) pid: u32,
    /// How many connections.
    pub(super) connections: usize,
}

/// An open connection.
#[derive(Debug, PartialEq, Eq)]
struct Established {
    remote: IpAddr,
    port: u16,
    uid: u32,
    inode: u64,
}

/// Who talks to what this configuration would protect.
pub(super) fn of(config: &Config) -> Result<Vec<Talker>> {
    let protected = protected_by(config)?;
    let mut sockets = Vec::new();
    for name in ["tcp", "tcp6"] {
        let path = format!("/proc/self/net/{name}");
        let table = match fs::read_to_string(&path) {
            // A kernel without IPv6 has no such table.
            Err(error) if name == "tcp6" && error.kind() == std::io::ErrorKind::NotFound => continue,
            table => table?,
        };
        sockets.extend(parse(&table).with_context(|| format!("{path} cannot be read"))?);
    }
    sockets.retain(|socket| {
        protected.iter().any(|target| target.port == socket.port && target.network.contains(socket.remote))
    });
    Ok(grouped(&sockets, &holders(&sockets)))
}

/// Reads one table (proc(5), /proc/net/tcp); `None` when a line is not as it should be.
fn parse(table: &str) -> Option<Vec<Established>> {
    let mut found = Vec::new();
    for row in table.lines().skip(1) {
        let words: Vec<&str> = row.split_ascii_whitespace().collect();
        let &[_, _, remote, state, _, _, _, uid, _, inode, ..] = words.as_slice() else { return None };
        if state != ESTABLISHED {
            continue;
        }
        let (address, port) = remote.split_once(':')?;
        found.push(Established {
            remote: parse_address(address)?.to_canonical(),
            port: u16::from_str_radix(port, 16).ok()?,
            uid: uid.parse().ok()?,
            inode: inode.parse().ok()?,
        });
    }
    Some(found)
}

/// A process that holds sockets.
#[derive(Debug, Clone)]
struct Holder {
    pid: u32,
    comm: String,
    cgroup: Option<String>,
}

/// The processes that hold the sockets, by inode. Where several hold one, the oldest.
fn holders(sockets: &[Established]) -> HashMap<u64, Holder> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let mut found = HashMap::new();
    for pid in pids {
        // One that is gone meanwhile tells nothing.
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Some(inode) = fs::read_link(descriptor.path()).ok().as_deref().and_then(socket_inode) else { continue };
            if sockets.iter().any(|socket| socket.inode == inode) {
                found.entry(inode).or_insert_with(|| holder(pid));
            }
        }
    }
    found
}

fn holder(pid: u32) -> Holder {
    let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    Holder {
        pid,
        comm: String::from_utf8_lossy(comm.trim_ascii_end()).into_owned(),
        cgroup: cgroups.lines().find_map(|row| row.strip_prefix("0::")).map(str::to_owned),
    }
}

fn grouped(sockets: &[Established], holders: &HashMap<u64, Holder>) -> Vec<Talker> {
    let mut talkers: BTreeMap<(u32, String, Option<String>), Talker> = BTreeMap::new();
    for socket in sockets {
        // A socket without a process is on its way out.
        let Some(holder) = holders.get(&socket.inode) else { continue };
        let Holder { pid, comm, cgroup } = holder.clone();
        let talker = talkers.entry((socket.uid, comm.clone(), cgroup.clone())).or_insert(Talker {
            uid: socket.uid,
            comm,
            cgroup,
            pid,
            connections: 0,
        });
        talker.connections = talker.connections.saturating_add(1);
    }
    talkers.into_values().collect()
}

/// For people; a process gives itself its name, so it is escaped by whoever shows it.
impl fmt::Display for Talker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uid, comm, cgroup, pid, connections } = self;
        let cgroup = cgroup.as_deref().unwrap_or("?");
        write!(f, "{comm} (pid {pid}), uid {uid}, cgroup {cgroup}, {connections} open")
    }
}

impl Talker {
    /// The cgroup to let through, where it is a service's: sessions and the root are too wide, or gone tomorrow.
    pub(super) fn service(&self) -> Option<&str> {
        let is_plain = |cgroup: &str| cgroup.chars().all(|c| c.is_ascii_graphic() && c != '"');
        self.cgroup.as_deref().filter(|cgroup| cgroup.ends_with(".service") && is_plain(cgroup))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn who_talks_to_a_server_is_found_with_process_and_user() {
        let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let _talks = [(); 2].map(|()| TcpStream::connect(("127.0.0.1", port)).unwrap());
        let text = format!(
            "[[connection]]\nname = \"orders\"\nprotocol = \"postgres\"\nhost = \"127.0.0.1\"\nport = {port}\nuser = \"x\"\n"
        );
        let config = Config::parse("weir.toml".as_ref(), &text).unwrap();
        let talkers = of(&config).unwrap();
        let [talker] = talkers.as_slice() else { panic!("{talkers:?}") };
        assert_eq!(talker.connections, 2);
        assert_eq!((talker.uid, talker.pid), (rustix::process::geteuid().as_raw(), std::process::id()));
        assert_eq!(talker.comm, fs::read_to_string("/proc/self/comm").unwrap().trim_end());
    }

    #[test]
    fn a_service_is_let_through_by_its_cgroup_and_others_by_their_user() {
        let talker = |cgroup: &str| Talker {
            uid: 70,
            comm: "x".to_owned(),
            cgroup: Some(cgroup.to_owned()),
            pid: 1,
            connections: 1,
        };
        assert_eq!(talker("/system.slice/backup.service").service(), Some("/system.slice/backup.service"));
        for other in ["/", "/user.slice/user-1000.slice/session-3.scope", "/a\"\n[[allow]]\nuid = 0 .service"] {
            assert_eq!(talker(other).service(), None, "{other}");
        }
    }
}
