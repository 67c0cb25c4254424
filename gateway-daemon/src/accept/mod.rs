//! Step "accept": the listener that redirected connections reach, and where each of them wanted to go.
//!
//! In come sockets, out go [`Accepted`] ones with the origin that the kernel noted at connect, read from the socket's
//! own storage: there is no table to look in, and nothing to mix up. A socket without a note was connected straight to
//! the listener, and is [`Incoming::Straight`]: refuse and record it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use aya::maps::{MapData, MapError, SkStorage};
use gateway_common::Note;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::net::{TcpListener, TcpStream};

use crate::redirect::{Kernel, RedirectError, cgroup::CgroupId, to_socket_address};

/// Connections that wait to be accepted; the kernel caps it by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How long to wait when the process or the host is out of descriptors or memory.
const OUT_OF_RESOURCES: Duration = Duration::from_millis(20);
const UNPRIVILEGED_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// What keeps the listener's port from others when the daemon is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKeeping {
    /// The port is privileged, and the `bind` programs keep it. The one choice on a host.
    Privileged,
    /// The `bind` programs alone, for a container's network namespace, where Docker makes every port unprivileged.
    ProgramsAlone,
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A port that every user may bind.
    #[error(
        "the listener's port {port} is not privileged: every user may bind ports from {first_unprivileged} on; choose a \
         lower one"
    )]
    Unprivileged {
        /// The port.
        port: u16,
        /// The host's `net.ipv4.ip_unprivileged_port_start`.
        first_unprivileged: u32,
    },
    /// The host's setting.
    #[error("{UNPRIVILEGED_PORTS} cannot be read")]
    Setting {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An address.
    #[error("{address} cannot be listened on; only a process in the daemon's cgroup may")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The map of notes.
    #[error(transparent)]
    Notes(#[from] RedirectError),
}

/// A connection that reached the listener.
#[derive(Debug)]
pub enum Incoming {
    /// Redirected by the kernel.
    Accepted(Accepted),
    /// Connected straight to the listener by whoever: to be refused and recorded.
    Straight {
        /// The connection.
        stream: TcpStream,
        /// The other end.
        peer: SocketAddr,
    },
}

/// A redirected connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, without Nagle's delay.
    pub stream: TcpStream,
    /// The address that was asked for.
    pub origin: SocketAddr,
    /// The connection's index, as [`crate::redirect::Protected::connection`] gave it when the agent connected.
    pub connection: u32,
    /// The enrolled cgroup.
    pub cgroup: CgroupId,
    /// The process that connected. It may be gone, and its number another's.
    pub pid: u32,
    /// Its user, in the initial user namespace.
    pub uid: u32,
    /// The other end: the agent's own address and port.
    pub peer: SocketAddr,
}

/// The listener on both loopback addresses.
pub struct Listener {
    v4: TcpListener,
    /// Absent on a host without IPv6.
    v6: Option<TcpListener>,
    notes: SkStorage<MapData, Note>,
}

impl Listener {
    /// Listens on 127.0.0.1 and ::1. The process must be in the daemon's cgroup already, and in a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the port isn't privileged, or cannot be bound.
    pub fn bind(kernel: &Kernel, keeping: PortKeeping) -> Result<Self, ListenError> {
        let port = kernel.listener_port();
        if keeping == PortKeeping::Privileged {
            refuse_unprivileged(port)?;
        }
        let v4 = listen_on(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        let v6 = match listen_on(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
            Ok(listener) => Some(listener),
            Err(ListenError::Bind { source, .. }) if lacks_ipv6(&source) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6, notes: kernel.notes()? })
    }

    /// The next connection. What a single connection or a moment without resources breaks is passed over. May be
    /// dropped at any point: no connection is lost.
    ///
    /// # Errors
    ///
    /// When the listening socket itself is broken.
    pub async fn accept(&self) -> io::Result<Incoming> {
        loop {
            let accepted = match &self.v6 {
                Some(v6) => tokio::select! {
                    accepted = self.v4.accept() => accepted,
                    accepted = v6.accept() => accepted,
                },
                None => self.v4.accept().await,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => match AcceptFailure::of(&error) {
                    AcceptFailure::OneConnection => continue,
                    AcceptFailure::Resources => {
                        tracing::warn!(%error, "no connection can be accepted for now");
                        tokio::time::sleep(OUT_OF_RESOURCES).await;
                        continue;
                    }
                    AcceptFailure::Listener => return Err(error),
                },
            };
            if stream.set_nodelay(true).is_err() {
                continue; // reset by now
            }
            return Ok(self.incoming(stream, peer));
        }
    }

    fn incoming(&self, stream: TcpStream, peer: SocketAddr) -> Incoming {
        let note = match self.notes.get(&stream, 0) {
            Ok(note) => note,
            Err(MapError::KeyNotFound) => return Incoming::Straight { stream, peer },
            Err(error) => {
                tracing::error!(%error, "the note of a connection cannot be read");
                return Incoming::Straight { stream, peer };
            }
        };
        let Some(cgroup) = CgroupId::new(note.cgroup) else { return Incoming::Straight { stream, peer } };
        Incoming::Accepted(Accepted {
            stream,
            origin: to_socket_address(&note.destination),
            connection: note.connection,
            cgroup,
            pid: note.pid,
            uid: note.uid,
            peer,
        })
    }
}

/// What an error of accept(2) speaks of.
#[derive(Debug, PartialEq, Eq)]
enum AcceptFailure {
    /// The connection that was to be accepted: Linux passes its pending network errors on.
    OneConnection,
    /// The process or the host, for the moment.
    Resources,
    /// The listening socket.
    Listener,
}

impl AcceptFailure {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(
                libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EINTR
                | libc::EAGAIN
                | libc::EPROTO
                | libc::EPERM
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::ETIMEDOUT,
            ) => Self::OneConnection,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::Resources,
            _ => Self::Listener,
        }
    }
}

fn refuse_unprivileged(port: u16) -> Result<(), ListenError> {
    let text = std::fs::read_to_string(UNPRIVILEGED_PORTS).map_err(|source| ListenError::Setting { source })?;
    let first_unprivileged = text
        .trim()
        .parse()
        .map_err(|error| ListenError::Setting { source: io::Error::new(io::ErrorKind::InvalidData, error) })?;
    if u32::from(port) >= first_unprivileged {
        return Err(ListenError::Unprivileged { port, first_unprivileged });
    }
    Ok(())
}

fn listen_on(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let open = || -> io::Result<TcpListener> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        // Connections of the daemon before may still be in TIME_WAIT.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|source| ListenError::Bind { address, source })
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}
