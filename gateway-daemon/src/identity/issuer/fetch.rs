//! One document by GET: https, or plain http to loopback addresses; no redirect, no proxy, bounded in time and size.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderMap},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{FetchError, SettingsError, UrlError};

/// Bytes of an answer's body.
const MAX_BODY: usize = 1024 * 1024;
/// Bytes of an answer's head.
const MAX_HEAD: usize = 64 * 1024;
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// A URL that may be asked.
#[derive(Debug, Clone)]
pub(super) struct Url {
    text: Arc<str>,
    scheme: Scheme,
    /// Without the brackets of an IPv6 address.
    host: String,
    /// As in the URL: what the Host header says.
    authority: String,
    port: u16,
    path_and_query: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Https,
    /// Only to loopback addresses.
    Http,
}

impl Url {
    /// Checks a URL.
    pub(super) fn parse(text: &str) -> Result<Self, UrlError> {
        // Uri drops a fragment without a word.
        if text.contains('#') {
            return Err(UrlError::QueryOrFragment);
        }
        let uri: Uri = text.parse().map_err(|_| UrlError::Malformed)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(UrlError::Malformed);
        };
        if authority.as_str().contains('@') {
            return Err(UrlError::UserInfo);
        }
        let (scheme, default_port) = match scheme {
            "https" => (Scheme::Https, 443),
            "http" => (Scheme::Http, 80),
            _ => return Err(UrlError::Scheme),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(UrlError::Malformed);
        }
        if scheme == Scheme::Http && !names_loopback(&host) {
            return Err(UrlError::PlainHttp);
        }
        Ok(Self {
            text: text.into(),
            scheme,
            host,
            authority: authority.as_str().to_owned(),
            port: authority.port_u16().unwrap_or(default_port),
            path_and_query: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }

    pub(super) const fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub(super) fn text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    pub(super) fn has_query(&self) -> bool {
        self.text.contains('?')
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, FetchError> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        // RFC 6761 section 6.3: the name means loopback, whatever a resolver says.
        if self.host.eq_ignore_ascii_case("localhost") {
            return Ok(vec![(Ipv4Addr::LOCALHOST, self.port).into(), (Ipv6Addr::LOCALHOST, self.port).into()]);
        }
        match tokio::net::lookup_host((self.host.as_str(), self.port)).await {
            Ok(found) => Ok(found.take(MAX_ADDRESSES).collect()),
            Err(source) => Err(FetchError::Resolve { host: self.host.clone(), source }),
        }
    }
}

/// Whether a host in a URL means this machine without asking anyone.
fn names_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A document, and how long its server lets it be kept.
pub(super) struct Document {
    pub(super) body: Bytes,
    /// `max-age`; zero for `no-store` and `no-cache`; `None` when nothing is said.
    pub(super) max_age: Option<Duration>,
}

/// Asks for documents.
pub(super) struct Client {
    tls: TlsConnector,
    timeout: Duration,
}

impl Client {
    /// Trusts the certificates in `ca_file`, or else the system's.
    pub(super) fn new(ca_file: Option<&Path>, timeout: Duration) -> Result<Self, SettingsError> {
        let roots = ca_file.map_or_else(system_roots, roots_of_file)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(SettingsError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), timeout })
    }

    /// The document at `url`.
    pub(super) async fn get(&self, url: &Url) -> Result<Document, FetchError> {
        tokio::time::timeout(self.timeout, self.exchange(url))
            .await
            .unwrap_or_else(|_| Err(FetchError::Timeout { limit_ms: self.timeout.as_millis() }))
    }

    async fn exchange(&self, url: &Url) -> Result<Document, FetchError> {
        let tcp = connect(url).await?;
        match url.scheme {
            Scheme::Http => ask(url, tcp).await,
            Scheme::Https => {
                let name = ServerName::try_from(url.host.clone()).map_err(|error| FetchError::Tls {
                    host: url.host.clone(),
                    source: io::Error::new(io::ErrorKind::InvalidInput, error),
                })?;
                let tls = self.tls.connect(name, tcp).await;
                ask(url, tls.map_err(|source| FetchError::Tls { host: url.host.clone(), source })?).await
            }
        }
    }
}

async fn connect(url: &Url) -> Result<TcpStream, FetchError> {
    let mut source = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in url.addresses().await? {
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => source = error,
        }
    }
    Err(FetchError::Connect { host: url.host.clone(), source })
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(url: &Url, io: S) -> Result<Document, FetchError> {
    let broken = |source| FetchError::Http { host: url.host.clone(), source };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(io))
        .await
        .map_err(broken)?;
    // Ends with the answer, or when this future is dropped at the deadline: then the sender is gone.
    let connection = AbortOnDrop(tokio::spawn(connection));
    let request = Request::get(url.path_and_query.as_str())
        .header(header::HOST, url.authority.as_str())
        .header(header::ACCEPT, "application/json, application/jwk-set+json")
        .header(header::USER_AGENT, concat!("weir/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new());
    let Ok(request) = request else {
        return Err(FetchError::Resolve {
            host: url.host.clone(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "not a host for a request"),
        });
    };
    let response = sender.send_request(request).await.map_err(broken)?;
    let document = read(url, response).await;
    drop(connection);
    document
}

async fn read(url: &Url, response: Response<Incoming>) -> Result<Document, FetchError> {
    let (host, status) = (url.host.clone(), response.status());
    if status.is_redirection() {
        return Err(FetchError::Redirect { host });
    }
    if status != StatusCode::OK {
        return Err(FetchError::Status { host, status: status.as_u16() });
    }
    let max_age = max_age(response.headers());
    match Limited::new(response.into_body(), MAX_BODY).collect().await {
        Ok(body) => Ok(Document { body: body.to_bytes(), max_age }),
        Err(_) => Err(FetchError::Body { host, limit: MAX_BODY }),
    }
}

/// `Cache-Control` (RFC 9111 section 5.2.2), as far as it says how long.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let mut found = None;
    for directive in
        headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','))
    {
        let (name, value) = directive.trim().split_once('=').unwrap_or((directive.trim(), ""));
        if name.eq_ignore_ascii_case("no-store") || name.eq_ignore_ascii_case("no-cache") {
            return Some(Duration::ZERO);
        }
        if name.eq_ignore_ascii_case("max-age") {
            found = value.trim_matches('"').parse().ok().map(Duration::from_secs);
        }
    }
    found
}

fn roots_of_file(path: &Path) -> Result<RootCertStore, SettingsError> {
    let fail = |reason: String| SettingsError::CaFile { path: path.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| fail(error.to_string()))? {
        let certificate = certificate.map_err(|error| fail(error.to_string()))?;
        roots.add(certificate).map_err(|error| fail(error.to_string()))?;
    }
    if roots.is_empty() { Err(fail("it has no certificate".to_owned())) } else { Ok(roots) }
}

fn system_roots() -> Result<RootCertStore, SettingsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let reason = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(SettingsError::SystemRoots { reason });
    }
    Ok(roots)
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_https_or_loopback_and_nothing_hides_in_it() {
        for good in [
            "https://idp.example",
            "https://idp.example:8443/realms/x?y=1",
            "http://127.0.0.1:80/x",
            "http://127.9.9.9",
            "http://[::1]:9/",
            "http://localhost:8000",
        ] {
            assert!(Url::parse(good).is_ok(), "{good}");
        }
        for (bad, fault) in [
            ("http://idp.example", UrlError::PlainHttp),
            ("http://10.0.0.1", UrlError::PlainHttp),
            ("http://127.0.0.1.evil.example", UrlError::PlainHttp),
            ("http://localhost.evil.example", UrlError::PlainHttp),
            ("http://[::ffff:127.0.0.1]/", UrlError::PlainHttp),
            ("http://0.0.0.0/", UrlError::PlainHttp),
            ("ftp://idp.example", UrlError::Scheme),
            ("file:///etc/passwd", UrlError::Malformed),
            ("https://user:pw@idp.example", UrlError::UserInfo),
            ("http://127.0.0.1@evil.example/", UrlError::UserInfo),
            ("https://idp.example/#x", UrlError::QueryOrFragment),
            ("idp.example", UrlError::Malformed),
            ("https://", UrlError::Malformed),
            ("https://a b", UrlError::Malformed),
            ("", UrlError::Malformed),
        ] {
            assert_eq!(Url::parse(bad).err(), Some(fault), "{bad}");
        }
    }

    #[test]
    fn cache_control_is_read() {
        let max_age_of = |value: &'static str| {
            max_age(&HeaderMap::from_iter([(header::CACHE_CONTROL, header::HeaderValue::from_static(value))]))
        };
        assert_eq!(max_age_of("public, max-age=900, must-revalidate"), Some(Duration::from_secs(900)));
        assert_eq!(max_age_of("Max-Age=\"60\""), Some(Duration::from_secs(60)));
        assert_eq!(max_age_of("max-age=900, no-store"), Some(Duration::ZERO));
        assert_eq!(max_age_of("no-cache"), Some(Duration::ZERO));
        assert_eq!(max_age_of("max-age=-1"), None);
        assert_eq!(max_age_of("s-maxage=5"), None);
        assert_eq!(max_age(&HeaderMap::new()), None);
    }
}
