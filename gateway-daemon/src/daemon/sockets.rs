//! PostgreSQL's Unix sockets. The redirect does not see them: permissions are the wall. A declared connection whose server
//! is on this host is not served while an agent's user can open one of its sockets.

use std::{
    collections::BTreeSet,
    fs,
    net::ToSocketAddrs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::accounts;
use crate::config::{Agent, Config, Connection, Host};

/// Where servers put their sockets unless told otherwise.
const USUAL_FOLDERS: [&str; 3] = ["/run/postgresql", "/var/run/postgresql", "/tmp"];

/// Container runtimes' sockets: whoever opens one is root.
pub(crate) const RUNTIME_SOCKETS: [&str; 4] =
    ["/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock", "/run/crio/crio.sock"];
/// Folders in which container runtimes have their sockets.
const RUNTIME_FOLDERS: [&str; 8] = [
    "/run/docker.sock",
    "/run/docker",
    "/run/containerd",
    "/run/crio",
    "/run/podman",
    "/run/buildkit",
    "/var/lib/lxd",
    "/var/lib/incus",
];

/// What a run does not see: folders of container runtimes, and the sockets of all connections.
pub(crate) fn covered(config: &Config) -> Vec<PathBuf> {
    RUNTIME_FOLDERS.iter().map(PathBuf::from).chain(of_all(config)).collect()
}

/// The sockets of one connection: those that it names, else those of its servers' ports in the usual places where they are on
/// this host. Blocks while a name is looked up.
pub(super) fn of(connection: &Connection) -> Vec<PathBuf> {
    match &connection.unix_sockets {
        Some(sockets) => sockets.clone(),
        None => {
            let here = connection.hosts.iter().filter(|host| is_here(host));
            here.flat_map(|host| {
                let name = format!(".s.PGSQL.{}", host.port);
                USUAL_FOLDERS.iter().map(move |folder| Path::new(folder).join(&name))
            })
            .collect()
        }
    }
}

/// Whether a server is on this host. A name that leads nowhere may be: then it counts as such.
fn is_here(host: &Host) -> bool {
    let own = super::targets::own_addresses();
    match (host.name.as_str(), host.port).to_socket_addrs() {
        Ok(mut addresses) => addresses.any(|address| address.ip().is_loopback() || own.contains(&address.ip())),
        Err(_) => true,
    }
}

/// The sockets of all connections.
pub(super) fn of_all(config: &Config) -> Vec<PathBuf> {
    let mut sockets: Vec<PathBuf> = config.connections.iter().flat_map(of).collect();
    sockets.sort_unstable();
    sockets.dedup();
    sockets
}

/// Why the connection must not be served, when an agent's user can open one of its sockets; with the mend.
pub(crate) fn open_to_agents(config: &Config, connection: &Connection) -> Option<String> {
    let is_counted = |path: &PathBuf| is_socket(path) && is_servers(path, config, connection);
    let sockets: Vec<PathBuf> = of(connection).into_iter().filter(is_counted).collect();
    for agent in &config.agents {
        let Some((uid, groups)) = accounts::rights(agent) else { continue };
        for socket in &sockets {
            let (can, mend) = match access(socket, uid, &groups) {
                Access::Closed => continue,
                Access::Open => (
                    "can open".to_owned(),
                    "Set `unix_socket_permissions = 0770` and `unix_socket_group` to a group that has no agent, and restart \
                     the server"
                        .to_owned(),
                ),
                Access::Acl(path) => (
                    format!("may be allowed, by the access control list of {}, to open", path.display()),
                    format!("Take the list away, which Weir does not read: `setfacl -b {}`", path.display()),
                ),
            };
            return Some(format!(
                "the {} of agent `{}` {can} the server's Unix socket {}, which the kernel does not redirect. {mend}",
                agent.runs_as,
                agent.name,
                socket.display()
            ));
        }
    }
    None
}

/// Whether what is at a server's path may be the server's. Where everybody can make a file, anybody can make one of that name,
/// and would withhold the connection from every agent by it: there its owner must be root, or whoever listens at the server's
/// port.
///
/// What an agent has made there is passed over without a loss. It may be a relay, but then to what its own maker reaches, and
/// that maker is policed wherever it connects; it needs no such path for that. The same holds for another user, who is kept from
/// the server by `guard`, and who could be an agent's relay at any path where they are not.
fn is_servers(path: &Path, config: &Config, connection: &Connection) -> bool {
    let shared = |folder: &Path| fs::metadata(folder).is_ok_and(|found| found.mode() & 0o002 != 0);
    if !path.ancestors().skip(1).any(shared) {
        return true;
    }
    // Of a link its own: who makes it chooses what it means.
    let Ok(owner) = fs::symlink_metadata(path).map(|found| found.uid()) else { return false };
    let is_agents = |uid: u32| {
        let mut ranges = config.agents.iter().filter_map(accounts::uids).flatten();
        ranges.any(|range| (range.first..=range.last).contains(&uid))
    };
    if is_agents(owner) {
        return false;
    }
    let ports = connection.hosts.iter().map(|host| host.port);
    owner == 0 || may_serve(owner, &ports.flat_map(listening_uids).collect())
}

/// Whether a user may be the server's, of whose ports these uids listen. Where nobody is seen to, or root, which passes on to
/// others, it may be anyone.
fn may_serve(uid: u32, listening: &BTreeSet<u32>) -> bool {
    listening.is_empty() || listening.contains(&0) || listening.contains(&uid)
}

/// The users whose sockets listen at a port of this host (proc(5), /proc/net/tcp).
fn listening_uids(port: u16) -> BTreeSet<u32> {
    const LISTEN: &str = "0A";
    let tables =
        ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let uid = |row: &str| {
        let words: Vec<&str> = row.split_ascii_whitespace().collect();
        let &[_, local, _, state, _, _, _, uid, ..] = words.as_slice() else { return None };
        let (_, at) = local.split_once(':')?;
        (state == LISTEN && u16::from_str_radix(at, 16) == Ok(port)).then(|| uid.parse().ok())?
    };
    tables.iter().flat_map(|table| table.lines().filter_map(uid)).collect()
}

/// Whether an agent's processes can open a socket; one with an access control list counts as open. `None` when the agent's
/// user does not exist.
pub(crate) fn may_connect(socket: &Path, agent: &Agent) -> Option<bool> {
    let (uid, groups) = accounts::rights(agent)?;
    Some(is_socket(socket) && access(socket, uid, &groups) != Access::Closed)
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Whether a user can open a socket.
#[derive(Debug, PartialEq, Eq)]
enum Access {
    /// Permission bits keep them out.
    Closed,
    /// Permission bits let them in.
    Open,
    /// This file or folder has an access control list, which may let them in: as good as open.
    Acl(PathBuf),
}

/// Whether a user can write to a socket: to the file itself, and through every folder above it.
fn access(socket: &Path, uid: u32, groups: &[u32]) -> Access {
    let Ok(real) = socket.canonicalize() else { return Access::Closed };
    let bits = |path: &Path, bit: u32| {
        fs::metadata(path).is_ok_and(|metadata| {
            let shift = if metadata.uid() == uid {
                6
            } else if groups.contains(&metadata.gid()) {
                3
            } else {
                0
            };
            metadata.mode() >> shift & bit != 0
        })
    };
    let mut list = None;
    // Some other step may be closed for certain, so all are looked at.
    for (depth, step) in real.ancestors().enumerate() {
        if has_acl(step) {
            list.get_or_insert_with(|| step.to_owned());
        } else if !bits(step, if depth == 0 { 0o2 } else { 0o1 }) {
            return Access::Closed;
        }
    }
    list.map_or(Access::Open, Access::Acl)
}

/// Whether a file or folder has an access control list (acl(5)): then its permission bits are not the whole truth. What
/// cannot be told counts as a list.
fn has_acl(path: &Path) -> bool {
    let mut no_room: [u8; 0] = [];
    match rustix::fs::getxattr(path, "system.posix_acl_access", &mut no_room) {
        Ok(_) => true,
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOENT) => false,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::unix::{fs::PermissionsExt, net::UnixListener},
    };

    use super::*;

    #[test]
    fn a_socket_is_open_to_whom_its_bits_and_its_folders_let_in() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let stranger = 54_321;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(access(&path, stranger, &[stranger]), Access::Open);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert_eq!(access(&path, stranger, &[stranger]), Access::Closed);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(access(&path, stranger, &[stranger]), Access::Closed);
    }

    #[test]
    fn an_access_control_list_counts_as_open_unless_another_step_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let stranger = 54_321;
        // acl(5) as the kernel has it: version 2; then owner rw, uid 54321 rw, group none, mask rw, others none.
        let entry = |tag: u16, bits: u16, id: u32| {
            [&tag.to_le_bytes()[..], &bits.to_le_bytes()[..], &id.to_le_bytes()[..]].concat()
        };
        let none = u32::MAX;
        let entries =
            [entry(1, 6, none), entry(2, 6, stranger), entry(4, 0, none), entry(16, 6, none), entry(32, 0, none)];
        let list = [2_u32.to_le_bytes().to_vec(), entries.concat()].concat();
        match rustix::fs::setxattr(&path, "system.posix_acl_access", &list, rustix::fs::XattrFlags::empty()) {
            Ok(()) => {}
            // Without lists there is nothing to tell.
            Err(rustix::io::Errno::OPNOTSUPP) => return,
            Err(error) => panic!("{error}"),
        }
        let real = path.canonicalize().unwrap();
        assert_eq!(access(&path, stranger, &[stranger]), Access::Acl(real));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(access(&path, stranger, &[stranger]), Access::Closed);
    }

    #[test]
    fn who_listens_at_a_port_is_known_and_who_may_be_its_server() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(listening_uids(port), BTreeSet::from([nix::unistd::getuid().as_raw()]));
        drop(listener);
        let set = |uids: &[u32]| uids.iter().copied().collect::<BTreeSet<_>>();
        assert!(may_serve(7, &set(&[7])) && may_serve(7, &set(&[])) && may_serve(7, &set(&[0])));
        assert!(!may_serve(7, &set(&[8])));
    }
}
