//! A real provider: PyPI's `nanoidp`, in a virtual environment below `target/`, started anew for each test.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use gateway_daemon::identity::{
    Issuer, IssuerSettings,
    clock::{Clock as _, Moment, SystemClock},
    token::TokenSettings,
};
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;

const VERSION: &str = "nanoidp==3.4.0";
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// One provider, ended with the test.
struct NanoIdp {
    process: Child,
    port: u16,
    folder: TempDir,
}

impl NanoIdp {
    fn start() -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
        std::fs::create_dir(folder.path().join("keys")).expect("a folder for its keys");
        let settings = format!(
            "config_version: 1\n\
             server: {{host: 127.0.0.1, port: {port}}}\n\
             oauth:\n  issuer: \"http://127.0.0.1:{port}\"\n  audience: weir\n  token_expiry_minutes: 60\n  \
             clients:\n    - {{client_id: agents, client_secret: agents-secret, description: agents}}\n"
        );
        let users = "config_version: 1\nusers:\n  agent-7:\n    password: pass-7\n    email: a7@example.org\n    \
                     roles: [USER]\n    groups: [developers, oncall]\n    tenant: default\n";
        std::fs::write(folder.path().join("settings.yaml"), settings).expect("written");
        std::fs::write(folder.path().join("users.yaml"), users).expect("written");
        let log = std::fs::File::create(folder.path().join("log")).expect("a log");
        let process = Command::new(program())
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--config"])
            .arg(folder.path())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("nanoidp starts");
        let mut provider = Self { process, port, folder };
        provider.wait();
        provider
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + STARTS_WITHIN;
        while self.request("GET", "/.well-known/openid-configuration", "").is_none() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(self.process.try_wait().expect("a child").is_none(), "nanoidp ended: {}", log());
            assert!(Instant::now() < deadline, "nanoidp does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The answer's JSON; `None` unless it is 200.
    fn request(&self, method: &str, path: &str, form: &str) -> Option<Value> {
        let kind = if form.starts_with('{') { "application/json" } else { "application/x-www-form-urlencoded" };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(STARTS_WITHIN)).ok()?;
        // RFC 7617: agents:agents-secret.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{}\r\nAuthorization: Basic YWdlbnRzOmFnZW50cy1zZWNyZXQ=\r\n\
             Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{form}",
            self.port,
            form.len()
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        if head.split(' ').nth(1) != Some("200") {
            return None;
        }
        serde_json::from_str(body).ok()
    }

    /// Access token and ID token of agent-7, by the password grant.
    fn tokens(&self) -> (SecretString, SecretString) {
        let form = "grant_type=password&username=agent-7&password=pass-7&scope=openid";
        let answer = self.request("POST", "/token", form).expect("tokens");
        let token = |name: &str| answer[name].as_str().expect("a token").into();
        (token("access_token"), token("id_token"))
    }

    fn rotate_keys(&self) {
        let answer = self.request("POST", "/api/keys/rotate", "").expect("rotated");
        assert_eq!(answer["success"], json!(true));
    }

    fn issuer(&self, change: impl FnOnce(&mut IssuerSettings)) -> Issuer {
        let mut settings = IssuerSettings::new(TokenSettings::new("corp", &self.url(), "weir"));
        change(&mut settings);
        Issuer::new(settings).expect("settings")
    }
}

impl Drop for NanoIdp {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn now() -> Moment {
    SystemClock.now()
}

/// Now and `seconds` later, as if that long had passed.
fn in_seconds(seconds: u64) -> Moment {
    let (now, later) = (now(), Duration::from_secs(seconds));
    Moment { wall: now.wall + later, boot: now.boot + later }
}

#[tokio::test]
async fn a_token_of_a_real_provider_is_verified_with_its_groups() {
    let provider = NanoIdp::start();
    let issuer = provider.issuer(|settings| settings.token.groups = vec!["/groups".into(), "/roles".into()]);
    let (access, id) = provider.tokens();
    let verified = issuer.verify(&access, now()).await.expect("good");
    let identity = verified.into_identity("claude".into(), Some("agent-7")).expect("the subject");
    assert_eq!((&*identity.subject.issuer, &*identity.subject.subject), (&*provider.url(), "agent-7"));
    let groups: Vec<_> = identity.groups.iter().map(|group| &*group.0).collect();
    assert_eq!(groups, ["corp/USER", "corp/developers", "corp/oncall"]);
    assert!(identity.token_id.is_some_and(|id| !id.is_empty()));
    let left = identity.expires.duration_since(SystemTime::now()).expect("ahead");
    assert!((3500..=3600).contains(&left.as_secs()), "{left:?}");
    // An ID token says who logged in at the client; it is no leave to act here.
    let error = issuer.verify(&id, now()).await.unwrap_err();
    assert_eq!(error.to_string(), "the token's `aud` does not name `weir`");
}

#[tokio::test]
async fn a_real_token_expires_and_holds_for_its_issuer_alone() {
    let provider = NanoIdp::start();
    let issuer = provider.issuer(|_| {});
    let (access, _) = provider.tokens();
    issuer.verify(&access, now()).await.expect("good");
    let error = issuer.verify(&access, in_seconds(3601)).await.unwrap_err().to_string();
    assert!(error.starts_with("the token has expired"), "{error}");
    // The same provider by another of its names is another issuer.
    let by_name = format!("http://localhost:{}", provider.port);
    let other = Issuer::new(IssuerSettings::new(TokenSettings::new("corp", &by_name, "weir"))).expect("settings");
    let error = other.verify(&access, now()).await.unwrap_err().to_string();
    assert!(error.contains("is the discovery document of another issuer"), "{error}");
}

#[tokio::test]
async fn a_real_provider_rotates_its_keys() {
    let provider = NanoIdp::start();
    let issuer = provider.issuer(|_| {});
    let (old, _) = provider.tokens();
    issuer.verify(&old, now()).await.expect("good");
    provider.rotate_keys();
    let (new, _) = provider.tokens();
    let error = issuer.verify(&new, now()).await.unwrap_err().to_string();
    assert!(error.contains("asked again in"), "not before 30 seconds: {error}");
    issuer.verify(&new, in_seconds(31)).await.expect("the new key");
    issuer.verify(&old, in_seconds(31)).await.expect("the provider still publishes the old key");
}

/// The program, installed if it isn't yet: where `cargo xtask setup` puts it too. Tests are processes of their own under
/// nextest, so a lock on a file beside it keeps them from installing it twice at once.
fn program() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    std::fs::create_dir_all(&tools).expect("a folder for tools");
    let lock = std::fs::File::create(tools.join("nanoidp.lock")).expect("a lock");
    lock.lock().expect("the lock");
    let (folder, program) = (tools.join("nanoidp"), tools.join("nanoidp/bin/nanoidp"));
    // pip puts what a package needs in place before the package itself.
    if !program.exists() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", VERSION]));
    }
    program
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nanoidp, a provider for tests, cannot be installed: {command:?}: {errors}");
}

/// A port that nobody has now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}
