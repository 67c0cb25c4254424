//! The connection to the server: TCP, TLS as libpq's modes, start-up and authentication with the credential that
//! only Weir holds.
//!
//! In comes where to connect and as whom, out comes an [`Upstream`] that has said ReadyForQuery. The conversation
//! itself is [`startup`], which knows no sockets; TLS verification is `verify`. Everything up to ReadyForQuery
//! has one deadline, and every message and their number a limit. Documents: `PostgreSQL` manual, chapters
//! "Message Flow" and "SASL Authentication"; RFC 5802, RFC 5929, RFC 7677.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};

use crate::secret::CredentialSource;

mod attributes;
mod binding;
mod client;
mod connect;
mod error;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod query;
mod roots;
mod spoken;
pub mod startup;
mod verify;

pub use super::tls::UpstreamStream;
pub use attributes::{ServerKind, SessionAttributes, kind_of};
pub use client::{ClientCertificate, ClientCertificateError};
pub use connect::{cancel, connect};
pub use error::{Failure, Phase, UpstreamError};
pub use query::{RowLimits, simple_query_rows};
pub use roots::{Roots, TlsMode, TlsSettingsError, UpstreamTls};
pub use spoken::Spoken;

/// How to reach the servers of one declared connection.
#[derive(Debug, Clone)]
pub struct UpstreamSettings {
    /// The connection's configured name, for messages.
    pub connection: Arc<str>,
    /// The server's name or address as configured: what `verify-full` compares, and what is asked for by SNI.
    pub host: Arc<str>,
    /// TLS, prepared once.
    pub tls: UpstreamTls,
    /// Whether the server must prove that it ends the TLS connection (SCRAM-SHA-256-PLUS).
    pub channel_binding: ChannelBinding,
    /// The role, where the credential does not name one.
    pub user: Arc<str>,
    /// The credential; without one only a server that asks for none lets Weir in.
    pub credential: Option<Arc<CredentialSource>>,
    /// Which version of the protocol its servers are asked for.
    pub spoken: Arc<Spoken>,
    /// For the TCP connection alone.
    pub tcp_deadline: Duration,
    /// For everything from the first packet to ReadyForQuery.
    pub deadline: Duration,
}

/// libpq's `channel_binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Used where server and certificate can.
    Prefer,
    /// A server that authenticates without it is refused.
    Require,
}

/// What one session asks of the server at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupParameters {
    /// The database.
    pub database: String,
    /// The whole `application_name`.
    pub application_name: String,
    /// Further settings, judged by the caller. `user`, `database`, `application_name`, `client_encoding`,
    /// `standard_conforming_strings`, `replication`, `options` and `_pq_.*` are refused here.
    pub settings: Vec<(String, String)>,
}

/// How the server came to let Weir in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthKind {
    /// It asked for nothing: anyone who reaches it gets in, or the certificate that Weir showed was enough for it.
    Trust,
    /// The password itself, under verified TLS.
    Cleartext,
    /// `md5`.
    Md5,
    /// SCRAM-SHA-256.
    Scram,
    /// SCRAM-SHA-256-PLUS: bound to the TLS connection.
    ScramPlus,
}

/// BackendKeyData: what a CancelRequest must name.
#[derive(Clone, PartialEq, Eq)]
pub struct BackendKey {
    /// The backend's process id.
    pub process: i32,
    /// Its secret: 4 bytes, under protocol 3.2 up to 256.
    pub secret: Arc<[u8]>,
}

impl fmt::Debug for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendKey").field("process", &self.process).finish_non_exhaustive()
    }
}

/// A connection that has said ReadyForQuery.
#[derive(Debug)]
pub struct Upstream {
    /// The connection.
    pub stream: UpstreamStream,
    /// What the server said before ReadyForQuery.
    pub greeting: Greeting,
    /// Where it leads.
    pub address: SocketAddr,
    /// The role that was asked for.
    pub user: Arc<str>,
    /// How the server let Weir in.
    pub authenticated: AuthKind,
    /// What came behind ReadyForQuery.
    pub leftover: BytesMut,
}

impl Upstream {
    /// Whether the connection is under TLS.
    pub const fn tls(&self) -> bool {
        self.stream.is_tls()
    }
}

/// What a server says between AuthenticationOk and ReadyForQuery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Greeting {
    /// The server's parameters, the last value of each.
    pub parameters: BTreeMap<String, String>,
    /// The ParameterStatus messages as they came, one after the other.
    pub parameter_frames: Bytes,
    /// The NoticeResponse messages as they came, one after the other.
    pub notice_frames: Bytes,
    /// For cancelling; some poolers give none.
    pub key: Option<BackendKey>,
}
