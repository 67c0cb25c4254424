//! The daemon's side of the control socket.

use std::{
    collections::HashMap,
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::fs::FlockOperation;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::{FrameError, Incoming, Outgoing, Reply, Step};

/// How long the other side may take to read one message.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

/// The pause after an `accept` that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections may be open at once, and how long one may say nothing. Root is counted but never refused: it
/// must be able to mend things.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of one user; each `weir run` holds one while it lasts.
    pub per_uid: usize,
    /// Of all users.
    pub total: usize,
    /// How long a connection may stay silent before its request.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_uid: 128, total: 1024, silence: Duration::from_secs(10) }
    }
}

/// Why the control socket could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A daemon answers at this path, or holds its lock.
    #[error("another daemon already serves `{path}`")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Someone but root could replace what lies in the folder.
    #[error("`{folder}` must be a folder that only its owner, the daemon's user, can write to")]
    UnsafeFolder {
        /// The socket's folder.
        folder: PathBuf,
    },
    /// Something that is not a socket lies at the path.
    #[error("`{path}` is there and is not a socket: move it away")]
    NotASocket {
        /// The socket's path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {doing} `{path}`: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The listening control socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    open: Arc<Mutex<Open>>,
    limits: Limits,
    /// Held as long as the daemon serves; opened for root alone, so that no one else can take it.
    _lock: File,
}

/// How many connections are open.
#[derive(Debug, Default)]
struct Open {
    by_uid: HashMap<u32, usize>,
    total: usize,
}

impl Server {
    /// Makes the socket at `path` with the permission bits `mode`. Its folder is made (0755) where it is missing, and
    /// a socket that nobody answers at is replaced. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Another daemon serves there, the folder is open to others, or the system refuses.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, BindError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| BindError::Io { doing, path, source }
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        make_folder(folder)?;
        let lock_path = path.with_extension("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io("open", &lock_path))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(BindError::InUse { path: path.to_owned() });
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(io("bind", path))?;
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io("set the mode of", path))?;
        let path = path.to_owned();
        Ok(Self { listener, path, open: Arc::default(), limits: Limits::default(), _lock: lock })
    }

    /// Replaces the default [`Limits`].
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Waits for the next connection within the limits. One above them is told so and closed. Cancel safe.
    pub async fn accept(&self) -> Connection {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "control socket cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(peer) = Peer::of(&stream) else { continue };
            match Slot::take(&self.open, self.limits, peer.uid) {
                Some(slot) => {
                    let incoming = Incoming::default();
                    return Connection {
                        peer,
                        stream,
                        incoming,
                        first: First::Awaited { limit: self.limits.silence },
                        _slot: slot,
                    };
                }
                None => refuse(&stream, peer.uid),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One place among the open connections, given back on drop.
#[derive(Debug)]
struct Slot {
    open: Arc<Mutex<Open>>,
    uid: u32,
}

impl Slot {
    fn take(open: &Arc<Mutex<Open>>, limits: Limits, uid: u32) -> Option<Self> {
        let mut now = open.lock().unwrap_or_else(PoisonError::into_inner);
        let total = now.total;
        let of_uid = now.by_uid.entry(uid).or_default();
        if uid != 0 && (*of_uid >= limits.per_uid || total >= limits.total) {
            return None;
        }
        *of_uid += 1;
        now.total += 1;
        drop(now);
        Some(Self { open: Arc::clone(open), uid })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut now = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        now.total = now.total.saturating_sub(1);
        if let Some(of_uid) = now.by_uid.get_mut(&self.uid) {
            *of_uid = of_uid.saturating_sub(1);
            if *of_uid == 0 {
                now.by_uid.remove(&self.uid);
            }
        }
    }
}

/// Who is at the other end, as the kernel noted it when they connected.
#[derive(Debug)]
pub struct Peer {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process, in the daemon's pid namespace.
    pub pid: i32,
    /// That very process, whoever gets its number later; `None` before Linux 6.5 or when it is gone.
    pub pidfd: Option<OwnedFd>,
}

impl Peer {
    fn of(stream: &UnixStream) -> rustix::io::Result<Self> {
        let of = rustix::net::sockopt::socket_peercred(stream)?;
        let pid = of.pid.as_raw_nonzero().get();
        let pidfd = crate::launch::peer_pidfd(stream.as_fd());
        Ok(Self { uid: of.uid.as_raw(), gid: of.gid.as_raw(), pid, pidfd })
    }
}

/// Whether the request has come, before which silence is cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Awaited { limit: Duration },
    Received,
}

/// Why nothing more can be said on a connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The other side closed it.
    #[error("the other side closed the connection")]
    Closed,
    /// It was silent, or did not read, for too long.
    #[error("the other side took longer than {limit:?}")]
    Deadline {
        /// The limit.
        limit: Duration,
    },
    /// What came was no message, or the socket failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// One accepted connection.
#[derive(Debug)]
pub struct Connection {
    /// Who connected.
    pub peer: Peer,
    stream: UnixStream,
    incoming: Incoming,
    first: First,
    _slot: Slot,
}

impl Connection {
    /// The next message and its descriptors. Cancel safe: what had come stays.
    ///
    /// # Errors
    /// The other side closed, was silent for too long before its first message, or sent something else than a `T`.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), ConnectionError> {
        match self.first {
            First::Received => self.recv_whenever().await,
            First::Awaited { limit } => {
                let got = timeout(limit, self.recv_whenever()).await;
                let got = got.map_err(|_| ConnectionError::Deadline { limit })??;
                self.first = First::Received;
                Ok(got)
            }
        }
    }

    async fn recv_whenever<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), ConnectionError> {
        loop {
            match receive(&self.stream, &mut self.incoming).await? {
                Step::More => {}
                Step::Closed => return Err(ConnectionError::Closed),
                Step::Message(message) => return Ok((message.parse()?, message.descriptors)),
            }
        }
    }

    /// Sends a message. Not cancel safe: one that is given up may be half sent.
    ///
    /// # Errors
    /// The message is too long, the other side is gone, or it did not read for thirty seconds.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ConnectionError> {
        let sending = send(&self.stream, message, &[]);
        let limit = SEND_DEADLINE;
        timeout(limit, sending).await.map_err(|_| ConnectionError::Deadline { limit })??;
        Ok(())
    }
}

/// Reads once from a tokio socket, when it can be.
pub(crate) async fn receive(stream: &UnixStream, incoming: &mut Incoming) -> Result<Step, FrameError> {
    let got = stream.async_io(Interest::READABLE, || match incoming.receive(stream.as_fd()) {
        Err(FrameError::Io { source }) => Err(source),
        other => Ok(other),
    });
    got.await.map_err(|source| FrameError::Io { source })?
}

/// Writes one message to a tokio socket.
pub(crate) async fn send<T: Serialize>(
    stream: &UnixStream,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    let mut outgoing = Outgoing::new(message, descriptors)?;
    loop {
        let sent = stream.async_io(Interest::WRITABLE, || match outgoing.send(stream.as_fd()) {
            Err(FrameError::Io { source }) => Err(source),
            other => Ok(other),
        });
        if sent.await.map_err(|source| FrameError::Io { source })?? {
            return Ok(());
        }
    }
}

/// Tells a connection above the limits why it is closed, without waiting for it.
fn refuse(stream: &UnixStream, uid: u32) {
    tracing::warn!(peer.uid = uid, "control connection above the limit refused");
    let message = "too many connections to the daemon are open; end some and try again".to_owned();
    let reply = Reply::Failed { message, exit_code: 1 };
    // The socket is fresh: its buffer takes this at once, or the other side just sees the end.
    if let Ok(mut outgoing) = Outgoing::new(&reply, &[]) {
        let _ = outgoing.send(stream.as_fd());
    }
}

fn make_folder(folder: &Path) -> Result<(), BindError> {
    let io = |doing| move |source| BindError::Io { doing, path: folder.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(io("make"))?;
    let found = std::fs::symlink_metadata(folder).map_err(io("look at"))?;
    let own = found.uid() == rustix::process::geteuid().as_raw();
    if !found.is_dir() || !own || found.mode() & 0o022 != 0 {
        return Err(BindError::UnsafeFolder { folder: folder.to_owned() });
    }
    Ok(())
}

/// Removes a socket that a dead daemon left. The lock is held, so no other daemon is about to do the same.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let io = |doing| move |source| BindError::Io { doing, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io("remove"))
        }
        Err(error) => Err(io("ask at")(error)),
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::{Client, ClientError};
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        folder
    }

    #[tokio::test]
    async fn a_request_is_answered_and_the_kernel_says_who_asked() {
        let folder = folder();
        let path = folder.path().join("made/control.sock");
        let server = Server::bind(&path, 0o666).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
        let asking = std::thread::spawn({
            let path = path.clone();
            move || Client::connect(&path).unwrap().request::<_, String>(&"ping", &[]).unwrap()
        });
        let mut connection = server.accept().await;
        let (request, descriptors): (String, _) = connection.recv().await.unwrap();
        assert_eq!((request.as_str(), descriptors.len()), ("ping", 0));
        assert_eq!(connection.peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(connection.peer.pid, rustix::process::getpid().as_raw_nonzero().get());
        connection.send(&"pong").await.unwrap();
        assert_eq!(asking.join().unwrap(), "pong");
        assert!(matches!(connection.recv::<String>().await, Err(ConnectionError::Closed)));
        drop(server);
        assert!(!path.exists());
        assert!(matches!(Client::connect(&path), Err(ClientError::NotRunning { .. })));
    }

    #[tokio::test]
    async fn a_message_that_is_waited_for_in_vain_is_not_lost() {
        let folder = folder();
        let server = Server::bind(&folder.path().join("control.sock"), 0o600).unwrap();
        let mut client = std::os::unix::net::UnixStream::connect(folder.path().join("control.sock")).unwrap();
        let mut connection = server.accept().await;
        client.write_all(&[0, 0, 0, 2, b'4']).unwrap();
        let given_up = timeout(Duration::from_millis(50), connection.recv::<u8>()).await;
        assert!(given_up.is_err());
        client.write_all(b"2").unwrap();
        assert_eq!(connection.recv::<u8>().await.unwrap().0, 42);
    }

    #[tokio::test]
    async fn silence_before_the_request_is_cut_short() {
        let folder = folder();
        let server = Server::bind(&folder.path().join("control.sock"), 0o600).unwrap();
        let silence = Duration::from_millis(20);
        let server = server.with_limits(Limits { silence, ..Limits::default() });
        let _client = Client::connect(&folder.path().join("control.sock")).unwrap();
        let mut connection = server.accept().await;
        let got = connection.recv::<u8>().await;
        assert!(matches!(got, Err(ConnectionError::Deadline { limit }) if limit == silence));
    }

    #[tokio::test]
    async fn a_socket_is_replaced_only_when_nobody_answers() {
        let folder = folder();
        let path = folder.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let server = Server::bind(&path, 0o600).unwrap();
        assert!(matches!(Server::bind(&path, 0o600), Err(BindError::InUse { .. })));
        drop(server);
        // One that answers but took no lock, as a program of another kind would.
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(Server::bind(&path, 0o600), Err(BindError::InUse { .. })));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Server::bind(&path, 0o600), Err(BindError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_folder_that_others_can_write_to_is_refused() {
        let folder = folder();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let bound = Server::bind(&folder.path().join("control.sock"), 0o600);
        assert!(matches!(bound, Err(BindError::UnsafeFolder { .. })));
    }

    #[test]
    fn one_user_cannot_take_every_place_and_root_always_finds_one() {
        let open = Arc::default();
        let limits = Limits { per_uid: 2, total: 3, ..Limits::default() };
        let take = |uid| Slot::take(&open, limits, uid);
        let (a, _b) = (take(1).unwrap(), take(1).unwrap());
        assert!(take(1).is_none());
        let _c = take(2).unwrap();
        assert!(take(3).is_none());
        let _root = take(0).unwrap();
        drop(a);
        assert!(take(1).is_none(), "root's counts as well");
        drop(_root);
        assert!(take(1).is_some());
    }
}
