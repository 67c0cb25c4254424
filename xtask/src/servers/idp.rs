//! A real OIDC provider: nanoidp, with the people that it is started with; more can be added while it runs.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::paths;
use crate::process::{Server, free_port, random_word};

/// Whom its tokens are for.
pub(crate) const AUDIENCE: &str = "weir";
/// The client that asks for tokens.
pub(crate) const CLIENT: &str = "weir-tools";
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Somebody whom the provider knows.
pub(crate) struct Person<'a> {
    /// Their `sub`.
    pub(crate) name: &'a str,
    pub(crate) password: &'a str,
    pub(crate) groups: &'a [&'a str],
}

/// A provider that serves until this value is dropped.
pub(crate) struct Idp {
    folder: PathBuf,
    /// Its `iss`, which is its address.
    pub(crate) issuer: String,
    /// The client's secret.
    pub(crate) secret: String,
    _server: Server,
}

impl Idp {
    /// Starts it in `folder`, which it makes.
    pub(crate) fn start(folder: PathBuf, people: &[Person<'_>]) -> Result<Self> {
        let (port, secret) = (free_port()?, random_word()?);
        let issuer = format!("http://127.0.0.1:{port}");
        fs::create_dir(&folder)?;
        // JSON is YAML as well.
        let settings = json!({
            "config_version": 1,
            "server": { "host": "127.0.0.1", "port": port },
            "oauth": {
                "issuer": issuer,
                "audience": AUDIENCE,
                "clients": [{ "client_id": CLIENT, "client_secret": secret, "token_endpoint_auth_method": "client_secret_post", "description": "cargo xtask" }],
            },
            "authority_prefixes": { "roles": "", "groups": "", "identity_class": "", "entitlements": "" },
        });
        let users: serde_json::Map<_, _> = people
            .iter()
            .map(|person| (person.name.to_owned(), json!({ "password": person.password, "groups": person.groups })))
            .collect();
        fs::write(folder.join("settings.yaml"), settings.to_string())?;
        fs::write(folder.join("users.yaml"), json!({ "config_version": 1, "users": users }).to_string())?;
        let program = paths::tools().join("nanoidp/bin/nanoidp");
        let args = ["--strict-config", "--config", "."];
        let mut server = Server::start(&program, &args, None, folder.join("idp.log"), Signal::TERM)?;
        server.wait_until(START_DEADLINE, |_| TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        Ok(Self { folder, issuer, secret, _server: server })
    }

    /// A token for `person`, as the OAuth password grant gives it: valid for an hour.
    pub(crate) fn token(&self, person: &Person<'_>) -> Result<String> {
        let address = self.issuer.trim_start_matches("http://");
        // Names and passwords here have nothing that a form escapes.
        let form = format!(
            "grant_type=password&client_id={CLIENT}&client_secret={}&username={}&password={}",
            self.secret, person.name, person.password
        );
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(START_DEADLINE))?;
        // HTTP 1.0: the answer ends with the connection, and is never in chunks.
        write!(
            stream,
            "POST /token HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        )?;
        write!(stream, "Content-Length: {}\r\n\r\n{form}", form.len())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("the provider gave no body")?;
        let body: Value = serde_json::from_str(body).with_context(|| format!("the provider answered {answer}"))?;
        let token = body.get("access_token").and_then(Value::as_str);
        Ok(token.with_context(|| format!("no token for {}: {body}", person.name))?.to_owned())
    }

    /// The private key that it signs with (PEM), for tests that make tokens which it wouldn't.
    pub(crate) fn key(&self) -> PathBuf {
        self.folder.join("keys/rsa_private.pem")
    }

    /// That key's `kid`.
    pub(crate) fn key_id(&self) -> Result<String> {
        let file = self.folder.join("keys/kid.txt");
        let id = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(id.trim().to_owned())
    }
}
