//! `weir connection test`: goes a connection's whole way to its server as a session would, and says of each step what was
//! found, or how to mend it. In comes a connection of the configuration, out comes a [`Report`], which holds no secret.

use std::{error::Error, net::SocketAddr, sync::Arc, time::Instant};

use nix::unistd::User;
use serde::{Deserialize, Serialize};
use tokio::task::block_in_place;

use super::{Weir, servers, sockets};
use crate::{
    config::{self, Config, RunsAs},
    control::{Connection as ControlConnection, ConnectionTestRequest, Reply},
    protocol::postgres::{
        serve::{Server, Target},
        upstream::{self, Failure, Phase, StartupParameters, Upstream, UpstreamSettings},
    },
};

mod certificate;
mod server;

/// The database that is tried where any may be asked for: every server has it.
const ANY_DATABASE: &str = "postgres";

/// What was found on the way to one connection's server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The connection's name.
    pub(crate) connection: String,
    /// The server as it is configured.
    pub(crate) server: String,
    /// The database that was asked for.
    pub(crate) database: String,
    /// Whether agents could be served.
    pub(crate) ok: bool,
    /// In their order.
    pub(crate) steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// `resolve`, `credential`, `connect`, `tls`, `login`, `server`, `rights`, `catalogue`, `sockets` or `daemon`.
    pub(crate) step: String,
    /// How it came out.
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) seen: String,
    /// What to do about it, where that can be said.
    pub(crate) mend: String,
}

/// How a step came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and should not stay so.
    Warning,
    /// It does not work.
    Failed,
}

/// Tests a connection. `database` is asked for in place of the configured one. Needs a runtime of several threads: files
/// and names are read in between.
pub(crate) async fn test(config: &Config, connection: &config::Connection, database: Option<&str>) -> Report {
    let database = database.or(connection.database.as_deref()).unwrap_or(ANY_DATABASE);
    let mut steps = Steps::default();
    if let Some((target, mut upstream)) = steps.reach(connection, database).await {
        server::look(&mut steps, &mut upstream).await;
        steps.catalogue(&target, database).await;
    }
    steps.sockets(config, connection);
    steps.report(connection, database)
}

/// The steps so far.
#[derive(Debug, Default)]
struct Steps(Vec<Step>);

impl Steps {
    fn ok(&mut self, step: &str, seen: impl Into<String>) {
        self.push(step, Verdict::Ok, seen, "");
    }

    fn warn(&mut self, step: &str, seen: impl Into<String>, mend: impl Into<String>) {
        self.push(step, Verdict::Warning, seen, mend);
    }

    fn failed(&mut self, step: &str, seen: impl Into<String>, mend: impl Into<String>) {
        self.push(step, Verdict::Failed, seen, mend);
    }

    fn push(&mut self, step: &str, verdict: Verdict, seen: impl Into<String>, mend: impl Into<String>) {
        self.0.push(Step { step: step.to_owned(), verdict, seen: seen.into(), mend: mend.into() });
    }

    fn report(self, connection: &config::Connection, database: &str) -> Report {
        Report {
            connection: connection.name.clone(),
            server: connection.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            database: database.to_owned(),
            ok: self.0.iter().all(|step| step.verdict != Verdict::Failed),
            steps: self.0,
        }
    }

    /// Up to a session with the first of the addresses of the servers that gives one; the others are tried all the same.
    async fn reach(&mut self, connection: &config::Connection, database: &str) -> Option<(Arc<Target>, Upstream)> {
        let target = match block_in_place(|| servers::target(connection)) {
            Ok(target) => target,
            Err(error) => {
                self.failed("tls", chain(&error), "mend `ca_file` of the connection");
                return None;
            }
        };
        let mut resolved = Vec::new();
        for server in &target.servers {
            if let Some(addresses) = self.resolve(server).await {
                resolved.push((server, addresses));
            }
        }
        let (first, _) = resolved.first()?;
        self.credential(&first.settings).await?;
        let parameters = StartupParameters {
            database: database.to_owned(),
            application_name: "weir: connection test".to_owned(),
            settings: Vec::new(),
        };
        let mut reached = None;
        for (server, addresses) in resolved {
            let upstream = self.connect(connection, server, addresses, &parameters).await;
            reached = reached.or(upstream);
        }
        reached.map(|upstream| (target, upstream))
    }

    /// A session with one server.
    async fn connect(
        &mut self,
        connection: &config::Connection,
        server: &Server,
        addresses: Vec<SocketAddr>,
        parameters: &StartupParameters,
    ) -> Option<Upstream> {
        let (mut reached, mut failures) = (None, Vec::new());
        for address in addresses {
            match upstream::connect(&server.settings, address, parameters).await {
                Ok(upstream) if reached.is_none() => {
                    self.ok("connect", address.to_string());
                    certificate::look(self, connection, &server.settings, &upstream);
                    self.login(&upstream);
                    reached = Some(upstream);
                }
                Ok(_) => self.ok("connect", format!("{address} gives a session as well")),
                Err(error) => failures.push((address, error.failure)),
            }
        }
        for (address, failure) in failures {
            let verdict = if reached.is_some() { Verdict::Warning } else { Verdict::Failed };
            let step = step_of(&failure);
            if step != "connect" && reached.is_none() {
                self.ok("connect", address.to_string());
            }
            if step == "login" && reached.is_none() {
                self.ok("tls", format!("as `{}` wants it", server.settings.tls.mode()));
            }
            self.push(step, verdict, format!("{address}: {}", chain(&failure)), mend_of(&failure));
        }
        reached
    }

    async fn resolve(&mut self, server: &Server) -> Option<Vec<SocketAddr>> {
        let host = &server.settings.host;
        match tokio::net::lookup_host((&**host, server.port)).await {
            Ok(found) => {
                let mut addresses: Vec<SocketAddr> = Vec::new();
                for address in found {
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
                self.ok("resolve", format!("{host} is {}", shown.join(", ")));
                Some(addresses)
            }
            Err(error) => {
                let mend = "mend `host` of the connection, or the host's resolver (/etc/resolv.conf, /etc/hosts)";
                self.failed("resolve", format!("{host} leads to no address: {error}"), mend);
                None
            }
        }
    }

    async fn credential(&mut self, settings: &UpstreamSettings) -> Option<()> {
        let Some(source) = &settings.credential else {
            self.ok("credential", "none is configured: only a server that asks for none lets Weir in");
            return Some(());
        };
        match source.current().await {
            Ok(credential) => {
                let whose = credential.user.as_deref().map(|user| format!(" for `{user}`")).unwrap_or_default();
                let end = credential.expires.and_then(|end| jiff::Timestamp::try_from(end).ok());
                let end = end.map_or_else(|| "without an end".to_owned(), |end| format!("until {end}"));
                self.ok("credential", format!("could be had{whose}, {end}"));
                Some(())
            }
            Err(error) => {
                self.failed("credential", chain(&*error), "mend what it names, or `password` of the connection");
                None
            }
        }
    }

    fn login(&mut self, upstream: &Upstream) {
        use upstream::AuthKind;
        let mend = "use `scram-sha-256` in the server's pg_hba.conf for Weir's role";
        let who = format!("as `{}`", upstream.user);
        match upstream.authenticated {
            AuthKind::ScramPlus => {
                self.ok("login", format!("{who} by SCRAM-SHA-256-PLUS, bound to the TLS connection"))
            }
            AuthKind::Scram => self.ok("login", format!("{who} by SCRAM-SHA-256")),
            AuthKind::Md5 => self.warn("login", format!("{who} by md5, which is weak"), mend),
            AuthKind::Cleartext => {
                self.warn("login", format!("{who} by the password itself, under TLS: the server sees it"), mend);
            }
            AuthKind::Trust => {
                let seen = format!("{who}, and the server asked for nothing: anyone who reaches it gets in");
                self.warn("login", seen, mend);
            }
        }
    }

    fn sockets(&mut self, config: &Config, connection: &config::Connection) {
        if let Some(why) = block_in_place(|| sockets::open_to_agents(config, connection)) {
            let (seen, mend) = why.split_once(". ").unwrap_or((&why, ""));
            return self.failed("sockets", format!("{seen}; so it is withheld from agents"), mend);
        }
        let missing = config.agents.iter().find_map(|agent| match &agent.runs_as {
            RunsAs::User(user) if !matches!(User::from_name(user), Ok(Some(_))) => Some((&agent.name, user)),
            RunsAs::User(_) | RunsAs::Pool(_) => None,
        });
        match missing {
            Some((agent, user)) => {
                let seen = format!("what the user `{user}` of agent `{agent}` can open cannot be told");
                let mend = format!("make it, then test again: useradd --system --create-home {user}");
                self.warn("sockets", format!("{seen}: there is no such user"), mend);
            }
            None => self.ok("sockets", "no agent's user can open a Unix socket of the server"),
        }
    }

    async fn catalogue(&mut self, target: &Target, database: &str) {
        let begun = Instant::now();
        let cell = target.catalogs.cell(database);
        cell.fetch(target, database).await;
        match cell.failure() {
            None => self.ok("catalogue", format!("read in {} ms", begun.elapsed().as_millis())),
            Some(failure) => {
                let mend = "Weir's role must be able to read pg_catalog, of PostgreSQL 13 or later";
                self.failed("catalogue", &*failure, mend);
            }
        }
    }
}

/// The step that a failure ended.
const fn step_of(failure: &Failure) -> &'static str {
    match failure {
        Failure::Credential(_) | Failure::Deadline { phase: Phase::Credential, .. } => "credential",
        Failure::Connect(_) | Failure::Deadline { phase: Phase::Tcp, .. } => "connect",
        Failure::NoTls { .. }
        | Failure::TlsAnswer { .. }
        | Failure::Stuffed { .. }
        | Failure::HostName { .. }
        | Failure::Certificate { .. }
        | Failure::Handshake(_)
        | Failure::Broken { phase: Phase::TlsRequest | Phase::TlsHandshake, .. }
        | Failure::Closed { phase: Phase::TlsRequest | Phase::TlsHandshake }
        | Failure::Deadline { phase: Phase::TlsRequest | Phase::TlsHandshake, .. } => "tls",
        // All that comes behind, whatever a later version adds to it.
        _ => "login",
    }
}

fn mend_of(failure: &Failure) -> &'static str {
    match failure {
        // What the programs refuse looks like this; a packet filter's refusal too.
        Failure::Connect(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            "this host refuses it: if Weir's programs protect the address while no daemon serves, start the daemon or run \
             `weir detach`; else look at the packet filter"
        }
        Failure::Deadline { phase: Phase::Tcp, .. } => {
            "does a packet filter on the way drop it? are host and port right?"
        }
        Failure::Server { sqlstate, .. } if sqlstate == "3D000" => {
            "mend `database` of the connection, or name one with --database"
        }
        Failure::Server { sqlstate, .. } if sqlstate == "42501" => "GRANT CONNECT ON DATABASE … TO Weir's role",
        Failure::Server { sqlstate, .. } if sqlstate == "53300" => {
            "the server has no connection to spare: raise its max_connections, or the role's CONNECTION LIMIT"
        }
        other => other.help().unwrap_or_default(),
    }
}

/// An error with its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        cause = error.source();
    }
    text
}

impl Weir {
    /// Tests the connections of a configuration by the daemon's own sockets, which the programs let through; the file is
    /// read anew, so it is tested as it would be served after a restart.
    pub(super) async fn test_connections(
        &self,
        uid: u32,
        request: ConnectionTestRequest,
        asker: &mut ControlConnection,
    ) -> Result<Reply, String> {
        let path = request.config.unwrap_or_else(|| self.config.path.clone());
        let config = block_in_place(|| Config::load_for_root(&path)).map_err(|error| error.to_string())?;
        let connections = chosen(&config, &request.names)?;
        self.record_admin(Some(uid), "connection-test", format!("{} connections", connections.len()));
        for connection in connections {
            let mut report = test(&config, connection, request.database.as_deref()).await;
            if let Some(step) = self.difference(connection) {
                report.steps.push(step);
            }
            let row = serde_json::to_value(&report).map_err(|error| error.to_string())?;
            asker.send(&Reply::Row { row }).await.map_err(|error| error.to_string())?;
        }
        Ok(Reply::Done)
    }

    /// What the file says otherwise than the daemon has it.
    fn difference(&self, connection: &config::Connection) -> Option<Step> {
        let seen = match self.config.connection(&connection.name) {
            None => "the daemon does not know this connection yet",
            // Both hold references alone, never what they lead to.
            Some(served) if format!("{served:?}") != format!("{connection:?}") => {
                "the daemon serves this connection as the file was at its start"
            }
            Some(_) => return None,
        };
        Some(Step {
            step: "daemon".to_owned(),
            verdict: Verdict::Warning,
            seen: seen.to_owned(),
            mend: "restart the daemon".to_owned(),
        })
    }
}

/// The connections of these names; all where none is named.
pub(crate) fn chosen<'c>(config: &'c Config, names: &[String]) -> Result<Vec<&'c config::Connection>, String> {
    if names.is_empty() {
        return Ok(config.connections.iter().collect());
    }
    let known = || config.connections.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    let find = |name: &String| {
        let missing = || format!("no connection `{}` is declared; there are: {}", name.escape_debug(), known());
        config.connection(name).ok_or_else(missing)
    };
    names.iter().map(find).collect()
}
