//! TLS on the agent's side: certificates that Weir issues from the host's own CA, and the start of TLS.
//!
//! [`HostCa`] keeps the key, issues a CA certificate that is good for the declared names and addresses alone
//! (critical name constraints, RFC 5280 chapter 4.2.1.10), and server certificates for them that live a week, in
//! memory. [`accept_tls`] runs the handshake that the session's machine has decided on.

mod accept;
mod ca;
mod files;
mod names;
mod stream;

pub use accept::{AcceptError, TlsStart, accept_tls, is_direct_tls};
pub use ca::{CaError, CaView, HostCa, bundle};
pub use files::FileError;
pub use names::{DeclaredNames, NameError, ServerNameEntry};
pub use stream::{AgentStream, MaybeTls, Prefixed, UpstreamStream};

/// ALPN protocol of PostgreSQL, on both sides.
pub(super) const ALPN: &[u8] = b"postgresql";
