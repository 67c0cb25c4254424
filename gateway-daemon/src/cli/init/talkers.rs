//! Who talks to the servers today: from the daemon's first start on, who is neither an agent nor on `[[allow]]` is refused.
//!
//! Only this network namespace is seen, and only what is open at this moment.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
};

use anyhow::Result;

use crate::{
    config::Config,
    daemon::protected_by,
    procfs::{self, TcpSocket, TcpState},
    redirect::Protected,
};

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

/// Who talks to what this configuration would protect.
pub(super) fn of(config: &Config) -> Result<Vec<Talker>> {
    let protected = protected_by(config)?;
    let mut sockets = procfs::tcp_sockets(Path::new("/proc/self/net"))?;
    sockets.retain(|socket| {
        let (address, port) = socket.remote;
        let is_it = |target: &Protected| target.port == port && target.network.contains(address);
        socket.state == TcpState::Established && protected.iter().any(is_it)
    });
    let holders = procfs::holders(&sockets.iter().map(|socket| socket.inode).collect());
    Ok(grouped(&sockets, &holders))
}

fn grouped(sockets: &[TcpSocket], holders: &HashMap<u64, u32>) -> Vec<Talker> {
    let mut talkers: BTreeMap<(u32, String, Option<String>), Talker> = BTreeMap::new();
    for socket in sockets {
        // A socket without a process is on its way out.
        let Some(&pid) = holders.get(&socket.inode) else { continue };
        let (comm, cgroup) = (procfs::comm(pid).unwrap_or_default(), procfs::cgroup(pid));
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
        assert_eq!(talker.comm, std::fs::read_to_string("/proc/self/comm").unwrap().trim_end());
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
