//! What `cargo xtask test` started for all tests.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

/// Where everything is that tests share.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Servers {
    /// The binary under test.
    pub weir: PathBuf,
    /// A folder for what tests write; it goes with the run.
    pub folder: PathBuf,
    /// Where the cgroup v2 hierarchy is mounted.
    pub cgroups: PathBuf,
    /// The cgroup of this run, with a slash in front; it goes with the run.
    pub cgroup: String,
    /// A mounted bpffs; it goes with the run.
    pub bpffs: PathBuf,
    /// Unix users without rights: [`crate::UnixUser`] hands them out.
    pub users: Vec<String>,
    /// The database server.
    pub postgres: PostgresServer,
    /// The identity provider.
    pub idp: Idp,
}

/// A PostgreSQL server with TLS that lets people in by SCRAM, on 127.0.0.1 and ::1.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresServer {
    /// The folder of `psql` and its kin.
    pub programs: PathBuf,
    /// Its TCP port.
    pub port: u16,
    /// The folder of a Unix socket that root alone can open, and is the superuser on.
    pub private_sockets: PathBuf,
    /// The folder of a Unix socket that everybody can open.
    pub public_sockets: PathBuf,
    /// The authority of the server's certificate (PEM), which is for localhost, 127.0.0.1 and ::1.
    pub ca_certificate: PathBuf,
    /// That authority's key, for tests that need another certificate.
    pub ca_key: PathBuf,
    /// The database that [`crate::Database`] copies: tables `customers` (100 rows) and `orders` (1000 rows).
    pub template: String,
    /// The role that Weir logs in as; it owns the databases of the tests.
    pub role: String,
    /// That role's password, which no agent may ever see.
    pub password: String,
}

/// An OIDC provider (nanoidp).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Idp {
    /// Its `iss`, which is its address.
    pub issuer: String,
    /// The `aud` of its tokens.
    pub audience: String,
    /// The client that asks for tokens.
    pub client: String,
    /// That client's secret.
    pub secret: String,
    /// The private key that it signs with (PEM, RSA).
    pub key: PathBuf,
    /// That key's `kid`.
    pub key_id: String,
}

/// The servers of this run. Fails with what to do when there are none.
pub fn servers() -> Result<&'static Servers> {
    static SERVERS: OnceLock<Result<Servers, String>> = OnceLock::new();
    let servers = SERVERS.get_or_init(|| read().map_err(|error| format!("{error:#}")));
    servers.as_ref().map_err(|error| anyhow!("{error}"))
}

fn read() -> Result<Servers> {
    let file = std::env::var_os("WEIR_TEST_SERVERS")
        .context("end-to-end tests need servers: run them by `cargo xtask test`")?;
    let file = PathBuf::from(file);
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} isn't what this test expects", file.display()))
}
