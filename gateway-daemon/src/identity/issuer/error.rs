//! Why an issuer cannot be used, or its keys cannot be had.

use std::{path::PathBuf, sync::Arc};

use crate::identity::token::{KeySetError, RulesError};

/// What is wrong with [`super::IssuerSettings`]: an operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// See [`RulesError`].
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The issuer's URL cannot be one.
    #[error("issuer `{url}`: {fault}")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong with it.
        fault: UrlError,
    },
    /// The CA file cannot be read, or has no certificate.
    #[error("CA file `{}`: {reason}", .path.display())]
    CaFile {
        /// As configured.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file of keys cannot be used.
    #[error("{reason}")]
    KeysFile {
        /// Which, and why.
        reason: String,
    },
    /// The system's roots cannot be read.
    #[error("the system's CA certificates cannot be read ({reason}); name a `ca_file`")]
    SystemRoots {
        /// Why.
        reason: String,
    },
    /// The TLS provider refuses.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[source] rustls::Error),
}

/// Why a URL is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL with a host.
    #[error("it is not a URL with scheme and host")]
    Malformed,
    /// Neither scheme.
    #[error("its scheme is neither https nor http")]
    Scheme,
    /// Plain http to somewhere else.
    #[error("plain http is for loopback addresses only")]
    PlainHttp,
    /// Key sets of an https issuer come by https.
    #[error("it is plain http, while the issuer is https")]
    Downgrade,
    /// `user:password@`.
    #[error("it has a user name")]
    UserInfo,
    /// `?` or `#` in an issuer (`OpenID` Connect Discovery section 2), `#` elsewhere.
    #[error("it has a query or a fragment")]
    QueryOrFragment,
}

/// Why one document could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Took too long as a whole.
    #[error("no answer within {limit_ms} ms")]
    Timeout {
        /// The limit.
        limit_ms: u128,
    },
    /// The name has no address.
    #[error("`{host}` cannot be resolved")]
    Resolve {
        /// The host.
        host: String,
        /// The resolver's words.
        #[source]
        source: std::io::Error,
    },
    /// No address answers, or plain http to an address that is not loopback.
    #[error("`{host}` cannot be connected to")]
    Connect {
        /// The host.
        host: String,
        /// Of the last address tried.
        #[source]
        source: std::io::Error,
    },
    /// The server's certificate is not trusted, or the handshake failed.
    #[error("TLS with `{host}` failed: {source}")]
    Tls {
        /// The host.
        host: String,
        /// rustls' words.
        #[source]
        source: std::io::Error,
    },
    /// Not HTTP, or cut off.
    #[error("the answer of `{host}` is broken")]
    Http {
        /// The host.
        host: String,
        /// hyper's words.
        #[source]
        source: hyper::Error,
    },
    /// A redirect; followed, it would let anyone on the way choose the keys.
    #[error("`{host}` answers with a redirect, which is not followed")]
    Redirect {
        /// The host.
        host: String,
    },
    /// Neither 200 nor a redirect.
    #[error("`{host}` answers with status {status}")]
    Status {
        /// The host.
        host: String,
        /// The status.
        status: u16,
    },
    /// Over the limit, or cut off.
    #[error("the answer of `{host}` is longer than {limit} bytes or ends early")]
    Body {
        /// The host.
        host: String,
        /// The limit.
        limit: usize,
    },
}

/// Why an issuer's keys cannot be had now.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IssuerError {
    /// See [`FetchError`].
    #[error("`{url}`: {}", chain(.source.as_ref()))]
    Fetch {
        /// What was asked for.
        url: Arc<str>,
        /// Why it failed.
        #[source]
        source: Arc<FetchError>,
    },
    /// The discovery document is no JSON object, or lacks what it must have.
    #[error("`{url}` is not a discovery document: {fault}")]
    Discovery {
        /// What was asked for.
        url: Arc<str>,
        /// What is wrong.
        fault: &'static str,
    },
    /// The document is another issuer's (`OpenID` Connect Discovery section 4.3).
    #[error("`{url}` is the discovery document of another issuer: its `issuer` is not exactly `{expected}`")]
    OtherIssuer {
        /// What was asked for.
        url: Arc<str>,
        /// As configured.
        expected: Arc<str>,
    },
    /// `jwks_uri` may not be asked.
    #[error("`jwks_uri` of `{url}`: {fault}")]
    KeysUrl {
        /// The discovery document.
        url: Arc<str>,
        /// Why.
        fault: UrlError,
    },
    /// The key set is malformed.
    #[error("`{url}`: {fault}")]
    KeySet {
        /// What was asked for.
        url: Arc<str>,
        /// What is wrong.
        fault: KeySetError,
    },
    /// The file of keys cannot be used.
    #[error("`jwks_file` {}: {fault}", .path.display())]
    File {
        /// As configured.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// The last attempt failed a moment ago; the next comes later.
    #[error("tried a moment ago, tried again in {in_seconds} s: {last}")]
    Waiting {
        /// Until the next attempt is made.
        in_seconds: u64,
        /// Why the last one failed.
        #[source]
        last: Arc<IssuerError>,
    },
    /// The keys at hand are too old to be believed.
    #[error("those at hand are older than {limit_seconds} s (`stale_window`), and newer ones: {last}")]
    Stale {
        /// The stale window.
        limit_seconds: u64,
        /// Why there are no newer ones.
        #[source]
        last: Arc<IssuerError>,
    },
    /// Keys were fetched a moment ago and did not have the token's; asked again later.
    #[error("the token's `kid` is unknown and the keys were asked for a moment ago; asked again in {in_seconds} s")]
    RecentlyFetched {
        /// Until the next attempt is made.
        in_seconds: u64,
    },
}

/// An error with its causes: what hyper and the resolver know is in those.
fn chain(error: &FetchError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.ends_with(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}
