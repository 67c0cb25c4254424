//! The Unix socket between the CLI and the daemon.
//!
//! Every verb but `weir daemon` is a client of this socket. Both sides exchange [`frame`]s: JSON behind a length, with
//! up to four file descriptors. The socket itself is open to every local user, since starters of agents are ordinary
//! users: the daemon authorises each verb by [`Peer::uid`], which the kernel vouches for.
//!
//! - [`Server`] accepts within [`Limits`] and hands out a [`Connection`].
//! - [`Client`] is the blocking other side, with errors made for the person at the terminal.
//! - [`Request`] and [`Reply`] are what they say; [`RunInput`] follows a [`Request::Run`].

mod client;
mod frame;
mod message;
mod server;

pub(crate) use client::ClientStep;
pub use client::{Client, ClientError};
pub use frame::{FRAME_MAX, FrameError, MAX_DESCRIPTORS};
pub(crate) use frame::{Incoming, Outgoing, Step};
pub use message::{ConnectionTestRequest, ExplainRequest, RecordRequest, Reply, Request, RunInput, RunRequest, Text};
pub use server::{BindError, Connection, ConnectionError, Limits, Peer, Server};
pub(crate) use server::{receive, send};
