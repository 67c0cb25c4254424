//! `weir daemon` with one agent and one connection, for the demo and for measurements.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use super::idp::AUDIENCE;
use super::{Bpffs, Cgroup, Idp, Postgres};
use crate::process::Server;

const START_DEADLINE: Duration = Duration::from_secs(60);

/// What is declared in its configuration.
pub(crate) struct Declared<'a> {
    /// The cgroup to attach at: `/` for the whole host.
    pub(crate) scope: &'a str,
    /// Below 1024.
    pub(crate) listener_port: u16,
    pub(crate) policies: &'a Path,
    /// The issuer is called `corp`: policies name groups as `corp/readers`.
    pub(crate) idp: &'a Idp,
    pub(crate) agent: &'a str,
    /// The Unix user of the agent.
    pub(crate) user: &'a str,
    /// What the agent shows for itself.
    pub(crate) token: &'a str,
    /// The connection is called `orders`.
    pub(crate) postgres: &'a Postgres,
    pub(crate) database: &'a str,
    /// The role that Weir logs in as, with its password.
    pub(crate) role: &'a str,
    pub(crate) password: &'a str,
    /// libpq's mode of TLS towards the server.
    pub(crate) tls: &'a str,
    /// An agent beside that one.
    pub(crate) other: Option<Other<'a>>,
}

/// A second agent, with the limits that a host has whose operator sets none.
pub(crate) struct Other<'a> {
    pub(crate) agent: &'a str,
    pub(crate) user: &'a str,
    pub(crate) token: &'a str,
}

/// A daemon that serves until this value is dropped; what it pinned goes with it.
pub(crate) struct Weir {
    program: PathBuf,
    folder: PathBuf,
    // In the order in which they are dropped.
    server: Server,
    _bpffs: Bpffs,
    _cgroup: Cgroup,
}

impl Weir {
    /// Writes its configuration into `folder`, which it makes, and starts it with `flags`.
    pub(crate) fn start(program: &Path, folder: PathBuf, declared: &Declared<'_>, flags: &[&str]) -> Result<Self> {
        fs::create_dir(&folder)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let below = if declared.scope == "/" { "" } else { declared.scope };
        let cgroup = Cgroup::make(&format!("{below}/{name}"))?;
        let bpffs = Bpffs::mount(folder.join("bpf"))?;
        let other = declared.other.as_ref().map(|other| (other.agent, other.token));
        let own = [("upstream-password", declared.password), (declared.agent, declared.token)];
        for (file, secret) in own.into_iter().chain(other) {
            let file = if file == "upstream-password" { file.to_owned() } else { format!("{file}.token") };
            fs::write(folder.join(&file), secret)?;
            fs::set_permissions(folder.join(&file), fs::Permissions::from_mode(0o600))?;
        }
        let config = folder.join("weir.toml");
        fs::write(&config, configuration(&folder, &cgroup.name, declared))?;
        let config = config.display().to_string();
        let mut args = vec!["daemon", "--config", &config];
        args.extend(flags);
        let mut server = Server::start(program, &args, None, folder.join("weir.log"), Signal::TERM)?;
        server.wait_until(START_DEADLINE, |server| server.log().lines().any(|line| line.contains("ready")))?;
        Ok(Self { program: program.to_path_buf(), folder, server, _bpffs: bpffs, _cgroup: cgroup })
    }

    /// A `weir` command with this daemon's configuration.
    pub(crate) fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let (first, rest) = verb.split_at(verb.len().min(1));
        command.args(first).arg("--config").arg(self.config()).args(rest);
        command
    }

    /// `weir run` of the agent `agent`: the program and its arguments are to be added.
    pub(crate) fn run_as(&self, agent: &str) -> Command {
        let mut command = self.command(&["run", "--agent", agent, "--token-file"]);
        command.arg(self.folder.join(format!("{agent}.token"))).arg("--");
        command
    }

    /// Its configuration's file.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("weir.toml")
    }

    /// The folder of everything: the record is in `record`.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// What the daemon logged so far.
    pub(crate) fn log(&self) -> String {
        self.server.log()
    }
}

fn configuration(folder: &Path, cgroup: &str, declared: &Declared<'_>) -> String {
    format!(
        r#"[daemon]
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
scope = "{scope}"
cgroup = "{cgroup}"
pins = "{folder}/bpf/weir"
listener_port = {listener_port}
policies = "{policies}"

[store]
dir = "{folder}/record"

[[issuer]]
name = "corp"
issuer = "{issuer}"
audience = "{AUDIENCE}"
algorithms = ["RS256"]
groups = ["/groups"]

[[agent]]
name = "{agent}"
user = "{user}"
issuer = "corp"

[agent.limits]
connections = 100000
connects_per_second = 1000000
statements_per_second = 10000000
rows_per_hour = 1000000000000
bytes_per_hour = 1000000000000000
record_bytes_per_hour = 1000000000000000
store_share = 100

{other}
[[connection]]
name = "orders"
protocol = "postgres"
host = "127.0.0.1"
port = {port}
database = "{database}"
user = "{role}"
password = {{ file = "{folder}/upstream-password" }}
tls = "{tls}"
ca_file = "{ca}"
unix_sockets = ["{sockets}/.s.PGSQL.{port}"]
"#,
        other = declared.other.as_ref().map_or_else(String::new, |other| {
            format!("[[agent]]\nname = \"{}\"\nuser = \"{}\"\nissuer = \"corp\"\n", other.agent, other.user)
        }),
        folder = folder.display(),
        scope = declared.scope,
        listener_port = declared.listener_port,
        policies = declared.policies.display(),
        issuer = declared.idp.issuer,
        agent = declared.agent,
        user = declared.user,
        port = declared.postgres.port,
        database = declared.database,
        role = declared.role,
        tls = declared.tls,
        ca = declared.postgres.ca_certificate().display(),
        sockets = declared.postgres.private_sockets().display(),
    )
}
