//! The configuration, `/etc/weir/weir.toml`: read whole, checked whole, every fault told at once with file, line, key and
//! the mend. Behind this module stand values that cannot be wrong.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

mod across;
mod check;
mod egress;
mod error;
mod host;
mod limits;
mod load;
mod network;
mod pool;
mod raw;
mod servers;
#[cfg(test)]
mod tests;
mod tree;
mod words;

pub(crate) use check::lies_below;
pub use egress::{Egress, EgressAllow, EgressMode, Reach};
pub use error::{ConfigError, Fault};
pub use host::Host;
pub use network::Network;
pub use pool::UidPool;

pub use crate::protocol::postgres::upstream::SessionAttributes;

use crate::{limits::AgentLimits, secret::SecretRef};

/// Where the configuration is looked for unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/weir/weir.toml";

/// A whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// The daemon itself.
    pub daemon: Daemon,
    /// The record.
    pub store: Store,
    /// Identity providers.
    pub issuers: Vec<Issuer>,
    /// Enrolled agents.
    pub agents: Vec<Agent>,
    /// Declared connections; a connection's place in this list is its number in the kernel's maps.
    pub connections: Vec<Connection>,
    /// Addresses that are refused to everyone.
    pub protect: Vec<Protect>,
    /// Who is let through beside the agents.
    pub allow: Vec<Allow>,
    /// Limits.
    pub limits: Limits,
    /// Where each key stands, by the name that people are told: `agent "claude".user`.
    lines: BTreeMap<String, usize>,
}

/// `[daemon]`
#[derive(Debug, Clone)]
pub struct Daemon {
    /// Keys and certificates.
    pub state_dir: PathBuf,
    /// The control socket and what agents are shown.
    pub runtime_dir: PathBuf,
    /// The folder of the home folders of runs that have a uid of a pool.
    pub homes: PathBuf,
    /// The cgroup at which programs are attached, `/` for the root.
    pub scope: String,
    /// The cgroup below which Weir makes its own.
    pub cgroup: String,
    /// The folder on a bpffs in which programs and maps are pinned.
    pub pins: PathBuf,
    /// The listener's port.
    pub listener_port: u16,
    /// Whom a protected target is refused to.
    pub guard: Guard,
    /// The folder of policies.
    pub policies: PathBuf,
    /// Threads that serve sessions.
    pub workers: usize,
    /// Unix users who may read the record beside root.
    pub auditors: Vec<String>,
    /// How a refused agent may ask; ends each refusal.
    pub refusal_hint: String,
}

/// Whom a protected target is refused to outside of the agents' cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Every process of the host that is not on `[[allow]]`.
    Host,
    /// The agents' users only.
    Agents,
}

/// `[store]`
#[derive(Debug, Clone)]
pub struct Store {
    /// The folder of the record.
    pub dir: PathBuf,
    /// A window's file is closed at this size.
    pub window_bytes: u64,
    /// Bytes of one answer that are recorded; beyond them its digest alone.
    pub answer_bytes: u64,
}

/// `[[issuer]]`
#[derive(Debug, Clone)]
pub struct Issuer {
    /// The name that qualifies groups.
    pub name: String,
    /// The issuer's URL, exactly as in tokens.
    pub issuer: String,
    /// The audience that tokens must have.
    pub audience: String,
    /// JWS algorithms that are accepted.
    pub algorithms: Vec<String>,
    /// JSON pointers to groups.
    pub groups: Vec<String>,
    /// The CA that signed the provider's certificate; the system's roots without.
    pub ca_file: Option<PathBuf>,
    /// A JWK set in a file, in place of discovery.
    pub jwks_file: Option<PathBuf>,
    /// The `typ`s that a token must have one of; the usual ones or none when empty.
    pub types: Vec<String>,
    /// The `azp`s that a token must have one of; any or none when empty.
    pub authorized_parties: Vec<String>,
    /// How far ahead a token's end may lie.
    pub max_lifetime: Duration,
    /// How old a token may get.
    pub max_age: Option<Duration>,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// How long keys serve while the provider cannot be reached.
    pub stale: Duration,
}

/// `[[agent]]`
#[derive(Debug, Clone)]
pub struct Agent {
    /// The agent's name.
    pub name: String,
    /// What its processes run as.
    pub runs_as: RunsAs,
    /// The name of its issuer.
    pub issuer: String,
    /// The only subject accepted, where one is given.
    pub subject: Option<String>,
    /// Unix users who may start it, beside root.
    pub starters: Vec<String>,
    /// The token, unless `weir run` names another.
    pub token_file: Option<PathBuf>,
    /// What it may reach beside declared addresses.
    pub egress: Egress,
    /// What it may use up.
    pub limits: AgentLimits,
}

/// The Unix accounts of an agent's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunsAs {
    /// This user, for all runs.
    User(String),
    /// A uid of its own for each run.
    Pool(UidPool),
}

impl std::fmt::Display for RunsAs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User(name) => write!(f, "user `{name}`"),
            Self::Pool(pool) => write!(f, "uid pool {pool}"),
        }
    }
}

/// `[[connection]]`
#[derive(Debug, Clone)]
pub struct Connection {
    /// The connection's name, as policies use it.
    pub name: String,
    /// Its servers, at least one, in the order in which they are tried.
    pub hosts: Vec<Host>,
    /// What the server of a session must be.
    pub attributes: SessionAttributes,
    /// More addresses that mean this connection.
    pub targets: Vec<Network>,
    /// The only database, where one is given.
    pub database: Option<String>,
    /// The upstream role.
    pub user: String,
    /// Users that an agent may name; all when empty.
    pub accept_users: Vec<String>,
    /// The upstream credential; none for a server that asks none.
    pub password: Option<SecretRef>,
    /// How the upstream side is encrypted.
    pub tls: UpstreamTls,
    /// The CA of the server's certificate; the system's roots without.
    pub ca_file: Option<PathBuf>,
    /// The certificate that Weir shows to servers, and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Whether SCRAM must bind to the TLS channel.
    pub require_channel_binding: bool,
    /// Whether the server is told whose a session is.
    pub identity_parameters: bool,
    /// The server's Unix sockets when it is local; `None` looks in the usual places.
    pub unix_sockets: Option<Vec<PathBuf>>,
    /// How long an address that dropped out of the name stays protected.
    pub linger: Duration,
    /// What becomes of the policies' denials.
    pub mode: Mode,
}

/// What becomes of the policies' denials on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The statement is refused.
    Enforce,
    /// The statement passes, and the record says that it was denied.
    Observe,
}

/// libpq's `sslmode`, as far as it makes sense for a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamTls {
    /// Plain text.
    Disable,
    /// Encrypted, whoever answers.
    Require,
    /// A certificate of a known CA.
    VerifyCa,
    /// … for the name asked for.
    VerifyFull,
}

/// `[[protect]]`
#[derive(Debug, Clone)]
pub struct Protect {
    /// What is refused.
    pub network: Network,
    /// Why.
    pub reason: String,
}

/// `[[allow]]`
#[derive(Debug, Clone)]
pub struct Allow {
    /// Who.
    pub who: Allowed,
    /// Why.
    pub reason: String,
}

/// Who is let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// Processes of this user.
    Uid(u32),
    /// Processes below this cgroup.
    Cgroup(String),
}

/// `[limits]`
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest message from an agent in bytes, COPY data left out: that streams.
    pub message_bytes: usize,
    /// Largest message from a server in bytes; rows and COPY data stream within it.
    pub server_message_bytes: usize,
    /// Largest statement in bytes.
    pub statement_bytes: usize,
    /// How deep a statement may nest, by Weir's estimate.
    pub statement_nesting: usize,
    /// Tokens of one statement.
    pub statement_tokens: usize,
    /// From accept to the start-up message, TLS included.
    pub startup: Duration,
    /// Longest time without a byte either way; `None` for no limit.
    pub idle: Option<Duration>,
    /// Sessions at once.
    pub connections: usize,
    /// Messages of one session that wait for the server's answer.
    pub pipeline: usize,
    /// Prepared statements and cursors of one session.
    pub prepared_statements: usize,
    /// What an agent may use up that has no limits of its own.
    pub agent: AgentLimits,
}

impl std::fmt::Display for Allowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Cgroup(cgroup) => write!(f, "cgroup {cgroup}"),
        }
    }
}

impl Config {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// Every fault of the file at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &load::read(path)?)
    }

    /// Checks a text as if it stood in `path`.
    ///
    /// # Errors
    /// Every fault of the text at once.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        check::check(path, text)
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.daemon.runtime_dir.join("control.sock")
    }

    /// The agent of that name.
    pub fn agent(&self, name: &str) -> Option<&Agent> {
        self.agents.iter().find(|agent| agent.name == name)
    }

    /// Connections on which the policies' denials are let pass.
    pub fn observed(&self) -> impl Iterator<Item = &str> {
        let observes = |connection: &&Connection| connection.mode == Mode::Observe;
        self.connections.iter().filter(observes).map(|connection| connection.name.as_str())
    }

    /// The connection of that name.
    pub fn connection(&self, name: &str) -> Option<&Connection> {
        self.connections.iter().find(|connection| connection.name == name)
    }
}
