//! The tokio part: TCP, the request for TLS, the handshake, and the loop around [`super::startup`].

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::{Handle, RuntimeFlavor},
    time::Instant,
};
use tokio_rustls::{TlsConnector, client};

use super::{
    super::version::ProtocolVersion,
    AuthKind, BackendKey, Greeting, StartupParameters, Upstream, UpstreamSettings, UpstreamStream,
    binding::tls_server_end_point,
    error::{Failure, Phase, UpstreamError},
    frame::put_counted,
    roots::TlsMode,
    startup::{Means, Progress, Startup, Transport},
    verify::certificate_fault,
};
use crate::secret::Credential;

/// SSLRequest: its length and code 1234.5679.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// CancelRequest: its code 1234.5678.
const CANCEL_REQUEST: [u8; 4] = [0x04, 0xd2, 0x16, 0x2e];

/// Idle time after which TCP asks whether the server is still there, and the time between further questions.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 6;

/// How much is read at once before ReadyForQuery.
const READ: usize = 4096;

/// Connects to `address` and brings the connection to ReadyForQuery.
///
/// # Errors
/// What failed, on which connection; [`Failure::help`] says what to do.
pub async fn connect(
    settings: &UpstreamSettings,
    address: SocketAddr,
    parameters: &StartupParameters,
) -> Result<Upstream, UpstreamError> {
    let clock = Clock::start(settings.deadline);
    establish(settings, &clock, address, parameters).await.map_err(|failure| settings.error(address, failure))
}

/// Asks the server at `address` to cancel what the backend of `key` is doing. The server says neither whether the
/// key was right nor whether there was anything to cancel; it has taken note when this returns.
///
/// # Errors
/// The server could not be asked.
pub async fn cancel(settings: &UpstreamSettings, address: SocketAddr, key: &BackendKey) -> Result<(), UpstreamError> {
    let clock = Clock::start(settings.deadline);
    let ask = async {
        let (mut stream, _) = open(settings, &clock, address).await?;
        let mut request = Vec::new();
        put_counted(&mut request, &[&CANCEL_REQUEST[..], &key.process.to_be_bytes(), &key.secret].concat())?;
        clock.write(Phase::Cancel, &mut stream, &request).await?;
        // The server closes when the signal is sent. Some cut without closing TLS, which is no failure here.
        let mut rest = [0; 64];
        let end = clock.run(Phase::Cancel, async { Ok(stream.read(&mut rest).await) }).await?;
        match end {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => Err(Failure::Unexpected { tag: char::from(rest[0]), phase: Phase::Cancel }),
        }
    };
    ask.await.map_err(|failure| settings.error(address, failure))
}

impl UpstreamSettings {
    pub(in super::super) fn error(&self, address: SocketAddr, failure: Failure) -> UpstreamError {
        UpstreamError { connection: Arc::clone(&self.connection), address, failure }
    }
}

async fn establish(
    settings: &UpstreamSettings,
    clock: &Clock,
    address: SocketAddr,
    parameters: &StartupParameters,
) -> Result<Upstream, Failure> {
    let Some(source) = &settings.credential else {
        return log_in(settings, clock, address, parameters, None).await;
    };
    let current = async { source.current().await.map_err(Failure::Credential) };
    let credential = clock.run(Phase::Credential, current).await?;
    match log_in(settings, clock, address, parameters, Some(&credential)).await {
        Err(failure) if failure.is_wrong_password() => {
            // It may have been changed since it was fetched: once more, if there is another.
            let other = async { source.instead_of(&credential).await.map_err(Failure::Credential) };
            match clock.run(Phase::Credential, other).await? {
                Some(other) => log_in(settings, clock, address, parameters, Some(&other)).await,
                None => Err(failure),
            }
        }
        outcome => outcome,
    }
}

/// Logs in with the newest version of the protocol that the server takes.
async fn log_in(
    settings: &UpstreamSettings,
    clock: &Clock,
    address: SocketAddr,
    parameters: &StartupParameters,
    credential: Option<&Credential>,
) -> Result<Upstream, Failure> {
    let asked = settings.spoken.to_ask();
    let attempt = Attempt { settings, clock, address, parameters, credential };
    match attempt.make(asked).await {
        Ok(upstream) => Ok(upstream),
        Err(Refused { failure, unheard: true }) if asked > ProtocolVersion::V3_0 => {
            let again = attempt.make(ProtocolVersion::V3_0).await;
            // One who does not talk about the older version either has refused something else.
            let is_mute = |again: &Refused| again.unheard || matches!(again.failure, Failure::Connect(_));
            let upstream = again.map_err(|again| if is_mute(&again) { failure } else { again.failure })?;
            settings.spoken.is_old();
            Ok(upstream)
        }
        Err(refused) => Err(refused.failure),
    }
}

/// All that a login is made of.
struct Attempt<'a> {
    settings: &'a UpstreamSettings,
    clock: &'a Clock,
    address: SocketAddr,
    parameters: &'a StartupParameters,
    credential: Option<&'a Credential>,
}

/// A login that failed.
struct Refused {
    failure: Failure,
    /// Whether the server may not even have understood the start-up message.
    unheard: bool,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, unheard: false }
    }
}

impl Attempt<'_> {
    async fn make(&self, version: ProtocolVersion) -> Result<Upstream, Refused> {
        let (mut stream, transport) = open(self.settings, self.clock, self.address).await?;
        let means = means(self.settings, self.credential, transport);
        let user = Arc::clone(&means.user);
        let (mut startup, packet) = Startup::new(means, self.parameters, version)?;
        match converse(self.clock, &mut startup, &packet, &mut stream).await {
            Ok((authenticated, greeting, leftover)) => {
                Ok(Upstream { stream, greeting, address: self.address, user, authenticated, leftover })
            }
            Err(failure) => {
                let unheard = match startup.messages() {
                    0 => failure.is_an_end(),
                    1 => failure.may_mean_the_version(),
                    _ => false,
                };
                Err(Refused { failure, unheard })
            }
        }
    }
}

fn means(settings: &UpstreamSettings, credential: Option<&Credential>, transport: Transport) -> Means {
    let named = credential.and_then(|credential| credential.user.as_deref()).map(Arc::from);
    Means {
        user: named.unwrap_or_else(|| Arc::clone(&settings.user)),
        password: credential.map(|credential| credential.password.clone()),
        transport,
        channel_binding: settings.channel_binding,
    }
}

/// The loop around [`Startup`].
async fn converse(
    clock: &Clock,
    startup: &mut Startup,
    packet: &[u8],
    stream: &mut UpstreamStream,
) -> Result<(AuthKind, Greeting, BytesMut), Failure> {
    let mut buf = BytesMut::with_capacity(READ);
    if let Err(broke) = clock.write(startup.phase(), stream, packet).await {
        // Why the server went away may be there to be read: an alert of its TLS.
        let phase = startup.phase();
        let read = clock.run(phase, broken(phase, stream.read_buf(&mut buf))).await;
        return Err(match read {
            Err(told @ Failure::ClientCertificateRefused { .. }) => told,
            Ok(_) | Err(_) => broke,
        });
    }
    loop {
        match receive(startup, &mut buf)? {
            Progress::Ready(authenticated, greeting) => return Ok((authenticated, greeting, buf)),
            Progress::Send(bytes) => clock.write(startup.phase(), stream, &bytes).await?,
            Progress::More => {
                buf.reserve(READ);
                let phase = startup.phase();
                let count = clock.run(phase, broken(phase, stream.read_buf(&mut buf))).await?;
                if count == 0 {
                    return Err(Failure::Closed { phase });
                }
            }
        }
    }
}

/// Proving a password takes milliseconds of computing: the thread's other sessions are not to wait for it.
fn receive(startup: &mut Startup, buf: &mut BytesMut) -> Result<Progress, Failure> {
    // Elsewhere it would only cost the hand-over to another thread.
    let proves = startup.will_prove() && !buf.is_empty();
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread if proves => tokio::task::block_in_place(|| startup.receive(buf)),
        _ => startup.receive(buf),
    }
}

/// A connection on which the StartupMessage or a CancelRequest may be sent.
async fn open(
    settings: &UpstreamSettings,
    clock: &Clock,
    address: SocketAddr,
) -> Result<(UpstreamStream, Transport), Failure> {
    let connecting = async { TcpStream::connect(address).await.map_err(Failure::Connect) };
    let tcp_clock = Clock::start(settings.tcp_deadline);
    let mut tcp = clock.run(Phase::Tcp, tcp_clock.run(Phase::Tcp, connecting)).await?;
    keep_alive(&tcp).map_err(Failure::Connect)?;
    let mode = settings.tls.mode();
    let Some(config) = settings.tls.config() else {
        return Ok((UpstreamStream::Plain(tcp), Transport::Plain));
    };
    let host = Arc::clone(&settings.host);
    let name = ServerName::try_from(host.to_string()).map_err(|_| Failure::HostName { host })?;
    if let Some(client) = settings.tls.client() {
        let refresh = async { client.refresh().await.map_err(Failure::ClientCertificate) };
        clock.run(Phase::Credential, refresh).await?;
    }
    request_tls(clock, mode, &mut tcp).await?;
    let connector = TlsConnector::from(Arc::clone(config));
    let shake = async { connector.connect(name, tcp).await.map_err(|error| handshake_failure(mode, error)) };
    let tls = clock.run(Phase::TlsHandshake, shake).await?;
    let end_point = end_point(&tls);
    Ok((UpstreamStream::Tls(Box::new(tls)), Transport::Tls { mode, end_point }))
}

/// SSLRequest and its answer, which is one byte and nothing else.
async fn request_tls(clock: &Clock, mode: TlsMode, tcp: &mut TcpStream) -> Result<(), Failure> {
    let phase = Phase::TlsRequest;
    clock.run(phase, broken(phase, tcp.write_all(&SSL_REQUEST))).await?;
    // More than a byte is read so that what was sent behind it is seen, and refused, here.
    let mut answer = [0; 64];
    let count = clock.run(phase, broken(phase, tcp.read(&mut answer))).await?;
    let [first, ..] = answer;
    match (count, first) {
        (0, _) => Err(Failure::Closed { phase }),
        (1, b'S') => Ok(()),
        (more, b'S') => Err(Failure::Stuffed { count: more.saturating_sub(1) }),
        (_, b'N') => Err(Failure::NoTls { mode }),
        (_, byte) => Err(Failure::TlsAnswer { byte }),
    }
}

fn end_point(tls: &client::TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let (_, session) = tls.get_ref();
    session.peer_certificates()?.first().and_then(|certificate| tls_server_end_point(certificate))
}

fn handshake_failure(mode: TlsMode, error: io::Error) -> Failure {
    let said = tls_error(&error);
    if let Some(fault) = said.and_then(certificate_fault) {
        return Failure::Certificate { mode, fault };
    }
    match said.and_then(refused_certificate) {
        Some(alert) => Failure::ClientCertificateRefused { alert },
        None => Failure::Handshake(error),
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
}

/// The server's alert, where it is about the certificate that Weir showed, or did not. Under TLS 1.3 it comes when the
/// handshake is over for the client.
fn refused_certificate(error: &rustls::Error) -> Option<&'static str> {
    use rustls::AlertDescription as Alert;
    let rustls::Error::AlertReceived(alert) = error else { return None };
    Some(match alert {
        Alert::UnknownCA => "its CA is unknown",
        Alert::CertificateExpired => "it has expired",
        Alert::CertificateRevoked => "it is revoked",
        Alert::BadCertificate | Alert::UnsupportedCertificate | Alert::CertificateUnknown => "it is not accepted",
        Alert::DecryptError => "its signature is wrong",
        Alert::CertificateRequired => "there is none",
        _ => return None,
    })
}

fn keep_alive(tcp: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(tcp, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(tcp, KEEPALIVE_COUNT)?;
    Ok(())
}

/// One deadline for many steps, each of which is named when it is the one that took too long.
pub(super) struct Clock {
    until: Instant,
    limit: Duration,
}

impl Clock {
    pub(super) fn start(limit: Duration) -> Self {
        let now = Instant::now();
        // A limit beyond what the clock can count is a year.
        let until = now.checked_add(limit).unwrap_or(now + Duration::from_secs(365 * 24 * 3600));
        Self { until, limit }
    }

    pub(super) async fn run<T>(
        &self,
        phase: Phase,
        step: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout_at(self.until, step).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Deadline { phase, limit: self.limit }),
        }
    }

    pub(super) async fn write(&self, phase: Phase, stream: &mut UpstreamStream, bytes: &[u8]) -> Result<(), Failure> {
        let write = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        self.run(phase, broken(phase, write)).await
    }
}

pub(super) async fn broken<T>(phase: Phase, io: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    io.await.map_err(|source| match tls_error(&source).and_then(refused_certificate) {
        Some(alert) => Failure::ClientCertificateRefused { alert },
        None => Failure::Broken { phase, source },
    })
}
