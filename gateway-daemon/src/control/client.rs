//! The CLI's side of the control socket, blocking.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{FrameError, Incoming, Outgoing, Step};

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("the daemon is not running (nobody answers at `{path}`); start it with `weir daemon`")]
    NotRunning {
        /// The control socket.
        path: PathBuf,
    },
    /// The socket cannot be opened by this user.
    #[error("no permission to open the daemon's socket `{path}`")]
    Permission {
        /// The control socket.
        path: PathBuf,
    },
    /// The system refused otherwise.
    #[error("cannot connect to the daemon at `{path}`: {source}")]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The daemon went away before it answered.
    #[error("the daemon closed the connection before it answered")]
    Closed,
    /// What came was no message, or the socket failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    incoming: Incoming,
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// No daemon listens there, or this user may not connect.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning { path },
                io::ErrorKind::PermissionDenied => ClientError::Permission { path },
                _ => ClientError::Connect { path, source },
            }
        })?;
        Ok(Self { stream, incoming: Incoming::default() })
    }

    /// Sends `request` with `descriptors` and waits for one answer.
    ///
    /// # Errors
    /// The message or its answer cannot be carried, or the daemon closed the connection.
    pub fn request<T: Serialize, R: DeserializeOwned>(
        &mut self,
        request: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<R, ClientError> {
        self.send(request, descriptors)?;
        self.recv()?.ok_or(ClientError::Closed)
    }

    /// Sends a message without waiting for an answer.
    ///
    /// # Errors
    /// The message is too long, or the daemon is gone.
    pub fn send<T: Serialize>(&mut self, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match Outgoing::new(message, descriptors)?.send_blocking(self.stream.as_fd()) {
            // A daemon that refuses before it has read may have left its reason in our buffer: let it be read.
            Err(FrameError::Io { source }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    /// The next answer of a stream of them; `None` when the daemon has closed the connection.
    ///
    /// # Errors
    /// What came is not an `R`, or the socket failed.
    pub fn recv<R: DeserializeOwned>(&mut self) -> Result<Option<R>, ClientError> {
        match self.incoming.receive_blocking(self.stream.as_fd())? {
            Some(message) => Ok(Some(message.parse()?)),
            None => Ok(None),
        }
    }

    /// Reads once, after [`AsFd`] was seen to be readable.
    pub(crate) fn step<R: DeserializeOwned>(&mut self) -> Result<ClientStep<R>, ClientError> {
        Ok(match self.incoming.receive(self.stream.as_fd())? {
            Step::More => ClientStep::More,
            Step::Closed => ClientStep::Closed,
            Step::Message(message) => ClientStep::Reply(message.parse()?),
        })
    }
}

/// What one read brought.
#[derive(Debug)]
pub(crate) enum ClientStep<R> {
    /// Not a whole message yet.
    More,
    /// A whole one.
    Reply(R),
    /// The daemon closed the connection.
    Closed,
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl From<Client> for OwnedFd {
    fn from(client: Client) -> Self {
        client.stream.into()
    }
}
