//! PostgreSQL's Unix sockets. The redirect does not see them: permissions are the wall. A declared connection whose server
//! is on this host is not served while an agent's user can open one of its sockets.

use std::{
    fs,
    net::ToSocketAddrs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::unistd::User;

use crate::config::{Config, Connection};

/// Where servers put their sockets unless told otherwise.
const USUAL_FOLDERS: [&str; 3] = ["/run/postgresql", "/var/run/postgresql", "/tmp"];

/// The sockets of one connection: those that it names, else those of its port in the usual places when its server is on
/// this host. Blocks while a name is looked up.
pub(super) fn of(connection: &Connection) -> Vec<PathBuf> {
    match &connection.unix_sockets {
        Some(sockets) => sockets.clone(),
        None if !is_here(connection) => Vec::new(),
        None => {
            let name = format!(".s.PGSQL.{}", connection.port);
            USUAL_FOLDERS.iter().map(|folder| Path::new(folder).join(&name)).collect()
        }
    }
}

/// Whether a connection's server is on this host. A name that leads nowhere may be: then it counts as such.
fn is_here(connection: &Connection) -> bool {
    let own = super::targets::own_addresses();
    match (connection.host.as_str(), connection.port).to_socket_addrs() {
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
    let sockets: Vec<PathBuf> = of(connection).into_iter().filter(|path| is_socket(path)).collect();
    for agent in &config.agents {
        let Ok(Some(user)) = User::from_name(&agent.user) else { continue };
        let groups = groups_of(&user);
        for socket in &sockets {
            if may_connect(socket, user.uid.as_raw(), &groups) {
                return Some(format!(
                    "the user `{}` of agent `{}` can open the server's Unix socket {}, which the kernel does not redirect. \
                     Set `unix_socket_permissions = 0770` and `unix_socket_group` to a group that has no agent, and restart \
                     the server",
                    agent.user,
                    agent.name,
                    socket.display()
                ));
            }
        }
    }
    None
}

/// Whether permission bits let a user open a socket.
pub(crate) fn may_user_connect(socket: &Path, user: &User) -> bool {
    is_socket(socket) && may_connect(socket, user.uid.as_raw(), &groups_of(user))
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn groups_of(user: &User) -> Vec<u32> {
    let groups = std::ffi::CString::new(user.name.as_str()).map(|name| nix::unistd::getgrouplist(&name, user.gid));
    match groups {
        Ok(Ok(groups)) => groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        Ok(Err(_)) | Err(_) => vec![user.gid.as_raw()],
    }
}

/// Whether permission bits let a user write to a socket: to the file itself, and through every folder above it.
fn may_connect(socket: &Path, uid: u32, groups: &[u32]) -> bool {
    let Ok(real) = socket.canonicalize() else { return false };
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
    bits(&real, 0o2) && real.ancestors().skip(1).all(|folder| bits(folder, 0o1))
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixListener};

    use super::*;

    #[test]
    fn a_socket_is_open_to_whom_its_bits_and_its_folders_let_in() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let stranger = 54_321;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(may_connect(&path, stranger, &[stranger]));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(!may_connect(&path, stranger, &[stranger]));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!may_connect(&path, stranger, &[stranger]));
    }
}
