//! The start of TLS on the agent's side.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{
    ALPN,
    stream::{AgentStream, Prefixed},
};

/// The first byte of a TLS connection: the record type of a handshake (RFC 8446 chapter 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// How a client came to speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsStart {
    /// It sent SSLRequest and was answered `S`.
    Requested,
    /// It began with TLS at once (`sslnegotiation=direct`), which needs ALPN `postgresql`.
    Direct,
}

/// Why there is no TLS with a client.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Bytes in the clear behind SSLRequest: they would pass for encrypted ones (CVE-2021-23214).
    #[error("{count} bytes in the clear came behind the request for TLS")]
    Stuffed {
        /// How many.
        count: usize,
    },
    /// The handshake failed.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// Direct TLS without ALPN: it might be a client of another protocol that was sent here.
    #[error("direct TLS without the ALPN protocol `postgresql`")]
    NoAlpn,
    /// Too slow.
    #[error("the TLS handshake took longer than {limit:?}")]
    Deadline {
        /// The limit.
        limit: Duration,
    },
}

/// Whether a connection that begins with `first` begins with TLS. No start-up packet does: its first byte would
/// mean more than 350 MB.
pub const fn is_direct_tls(first: u8) -> bool {
    first == TLS_HANDSHAKE
}

/// Runs the handshake. `read` is what was read from `stream` and not used: the beginning of TLS when it is direct,
/// nothing when it was requested.
///
/// # Errors
/// Why there is no TLS; the connection is gone.
pub async fn accept_tls(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    read: Bytes,
    start: TlsStart,
    limit: Duration,
) -> Result<AgentStream, AcceptError> {
    if start == TlsStart::Requested && !read.is_empty() {
        return Err(AcceptError::Stuffed { count: read.len() });
    }
    let handshake = TlsAcceptor::from(config).accept(Prefixed::new(read, stream));
    let tls = tokio::time::timeout(limit, handshake)
        .await
        .map_err(|_| AcceptError::Deadline { limit })?
        .map_err(AcceptError::Handshake)?;
    if start == TlsStart::Direct && tls.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(AcceptError::NoAlpn);
    }
    Ok(AgentStream::Tls(Box::new(tls)))
}
