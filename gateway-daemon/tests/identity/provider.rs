//! A provider that serves what a test wants, over http or https, and counts what it is asked.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use gateway_daemon::identity::{
    IssuerSettings,
    clock::{Clock, Moment},
    token::{Algorithm, TokenSettings},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::keys::Key;

pub(crate) const DISCOVERY: &str = "/.well-known/openid-configuration";
pub(crate) const KEYS: &str = "/keys";

pub(crate) struct Provider {
    pub(crate) url: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    answers: Mutex<HashMap<String, Answer>>,
    asked: Mutex<HashMap<String, usize>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: &'static str,
    pub(crate) header: String,
    pub(crate) body: Vec<u8>,
    pub(crate) delay: Duration,
}

impl Answer {
    pub(crate) fn json(body: &Value) -> Self {
        Self { status: "200 OK", header: String::new(), body: body.to_string().into(), delay: Duration::ZERO }
    }
}

impl Provider {
    /// Serves a discovery document and these keys, over http.
    pub(crate) async fn with(keys: &[&Key]) -> Self {
        Self::start(None, "127.0.0.1").await.serving(keys)
    }

    /// Over https, with this certificate for `localhost`.
    pub(crate) async fn with_tls(
        keys: &[&Key],
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate");
        Self::start(Some(TlsAcceptor::from(Arc::new(config))), "localhost").await.serving(keys)
    }

    fn serving(self, keys: &[&Key]) -> Self {
        let jwks_uri = format!("{}{KEYS}", self.url);
        self.answer(DISCOVERY, Answer::json(&json!({"issuer": self.url, "jwks_uri": jwks_uri})));
        self.serve_keys(keys);
        self
    }

    async fn start(tls: Option<TlsAcceptor>, host: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{host}:{}", listener.local_addr().expect("an address").port());
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, shared) = (tls.clone(), Arc::clone(&serving));
                tokio::spawn(async move {
                    match tls {
                        None => serve(tcp, &shared).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(tcp).await {
                                serve(stream, &shared).await;
                            }
                        }
                    }
                });
            }
        });
        Self { url, shared, task }
    }

    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.shared.answers.lock().expect("answers").insert(path.to_owned(), answer);
    }

    pub(crate) fn serve_keys(&self, keys: &[&Key]) {
        let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
        self.answer(KEYS, Answer::json(&json!({ "keys": keys })));
    }

    /// Answers nothing but this status from now on.
    pub(crate) fn fail(&self, status: &'static str) {
        for path in [DISCOVERY, KEYS] {
            self.answer(path, Answer { status, ..Answer::json(&json!({})) });
        }
    }

    /// How often a path was asked for.
    pub(crate) fn asked(&self, path: &str) -> usize {
        self.shared.asked.lock().expect("counts").get(path).copied().unwrap_or(0)
    }

    /// The most requests that were open at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.shared.most_at_once.load(Ordering::SeqCst)
    }

    /// Settings for this issuer.
    pub(crate) fn settings(&self) -> IssuerSettings {
        let mut token = TokenSettings::new("corp", &self.url, "weir");
        token.algorithms = Algorithm::ALL.to_vec();
        IssuerSettings::new(token)
    }

    /// Claims that hold at `now`.
    pub(crate) fn claims(&self, now: Moment) -> Value {
        let now = now.wall.duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        json!({"iss": self.url, "aud": "weir", "sub": "agent-7", "exp": now + 3600, "groups": ["developers"]})
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, shared: &Shared) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    *shared.asked.lock().expect("counts").entry(path.clone()).or_default() += 1;
    let open = shared.at_once.fetch_add(1, Ordering::SeqCst) + 1;
    shared.most_at_once.fetch_max(open, Ordering::SeqCst);
    let answer = shared.answers.lock().expect("answers").get(&path).cloned();
    let answer = answer.unwrap_or(Answer { status: "404 Not Found", ..Answer::json(&json!({})) });
    tokio::time::sleep(answer.delay).await;
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n",
        answer.status,
        answer.body.len(),
        answer.header
    );
    shared.at_once.fetch_sub(1, Ordering::SeqCst);
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(&answer.body).await;
    let _ = stream.shutdown().await;
}

/// A clock that a test moves.
#[derive(Clone)]
pub(crate) struct TestClock(Arc<Mutex<Moment>>);

impl TestClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Moment { wall: SystemTime::now(), boot: Duration::from_secs(1000) })))
    }

    pub(crate) fn advance(&self, by: Duration) {
        let mut now = self.0.lock().expect("the clock");
        now.wall += by;
        now.boot += by;
    }

    /// As an operator, or a time server, sets the wall clock.
    pub(crate) fn set_back(&self, by: Duration) {
        self.0.lock().expect("the clock").wall -= by;
    }

    pub(crate) fn set_forward(&self, by: Duration) {
        self.0.lock().expect("the clock").wall += by;
    }
}

impl Clock for TestClock {
    fn now(&self) -> Moment {
        *self.0.lock().expect("the clock")
    }
}

/// A CA's certificate in a file, and a certificate of its for `localhost`.
pub(crate) fn certificate(ca_file: &Path) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(ca_file, ca.self_signed(&ca_key).expect("a CA").pem()).expect("a file");
    let ca = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let leaf = leaf.signed_by(&key, &ca).expect("a certificate");
    (leaf.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).expect("a key"))
}
