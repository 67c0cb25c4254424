//! What is measured: one PostgreSQL, reached in several ways at once.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::paths::which;
use crate::process::{self, Server, free_port, random_word};
use crate::servers::{Cgroup, Declared, Idp, Other, Person, Postgres, Purpose, User, Weir};

/// The database, its owner and the agent.
const NAME: &str = "bench";
const USER: &str = "weir-bench-agent";
/// The agent that floods.
const FLOOD: &str = "flood";
const FLOOD_USER: &str = "weir-bench-flood";
/// `pgbench -i -s`: a million accounts.
const SCALE: u32 = 10;
const START_DEADLINE: Duration = Duration::from_secs(30);

/// The bulk tables: a million rows of two numbers, a hundred thousand of a kilobyte.
const BULK_TABLES: [&str; 3] = [
    "CREATE TABLE narrow AS SELECT n AS id, n * 7 % 1000 AS value FROM generate_series(1, 1000000) n",
    "CREATE TABLE wide AS SELECT n AS id, repeat(md5(n::text), 16) AS a, repeat(md5((n + 1)::text), 16) AS b
     FROM generate_series(1, 100000) n",
    "VACUUM ANALYZE",
];

/// The agent may do what the loads do, and every statement is decided.
const POLICY: &str = r#"@id("bench")
@description("The loads of the benchmark.")
permit (
    principal in Group::"corp/bench",
    action in [Action::"read", Action::"write", Action::"transaction", Action::"set", Action::"show"],
    resource
);
"#;

/// A way to the server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum TargetName {
    /// Nothing between.
    Direct,
    /// haproxy, in TCP mode.
    Haproxy,
    /// pgbouncer, in session mode.
    Pgbouncer,
    /// Weir without a record (`--unsafe-no-record`).
    WeirOff,
    /// Weir as it is meant to be.
    Weir,
}

impl TargetName {
    pub(super) const ALL: [Self; 5] = [Self::Direct, Self::Haproxy, Self::Pgbouncer, Self::WeirOff, Self::Weir];

    pub(super) const fn is_weir(self) -> bool {
        matches!(self, Self::Weir | Self::WeirOff)
    }

    /// The name in tables and in the JSON.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::Pgbouncer => "pgbouncer",
            Self::WeirOff => "weir, no record",
            Self::Weir => "weir",
        }
    }
}

impl std::fmt::Display for TargetName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use clap::ValueEnum;
        let value = self.to_possible_value();
        formatter.write_str(value.as_ref().map_or("", clap::builder::PossibleValue::get_name))
    }
}

/// All servers of a run.
pub(super) struct Stage {
    // In the order in which they are dropped.
    weirs: Vec<(TargetName, Weir)>,
    proxies: Vec<(TargetName, u16, Server)>,
    pub(super) postgres: Postgres,
    /// A folder that the agent can write to.
    pub(super) scratch: PathBuf,
    order: Vec<TargetName>,
    _scopes: Vec<Cgroup>,
    _idp: Option<Idp>,
    _users: [User; 2],
}

impl Stage {
    /// Starts what `targets` need. `weir`: the binary, when they need it.
    pub(super) fn set(folder: &Path, targets: &[TargetName], weir: Option<&Path>) -> Result<Self> {
        let users = [User::make(USER)?, User::make(FLOOD_USER)?];
        let scratch = folder.join("scratch");
        fs::create_dir(&scratch)?;
        crate::servers::give_to(USER, &scratch)?;
        let postgres = Postgres::start(&folder.join("postgres"), Purpose::Bench)?;
        fill(&postgres)?;
        let mut proxies = Vec::new();
        for target in targets {
            match target {
                TargetName::Haproxy => proxies.push(haproxy(folder, postgres.port)?),
                TargetName::Pgbouncer => proxies.push(pgbouncer(folder, postgres.port)?),
                TargetName::Direct | TargetName::WeirOff | TargetName::Weir => {}
            }
        }
        let mut stage = Self {
            weirs: Vec::new(),
            proxies,
            postgres,
            scratch,
            order: targets.to_vec(),
            _scopes: Vec::new(),
            _idp: None,
            _users: users,
        };
        if let Some(program) = weir {
            stage.start_weirs(folder, targets, program)?;
        }
        Ok(stage)
    }

    /// Each daemon sees the sockets of a cgroup of its own, so that both serve the same address at once.
    fn start_weirs(&mut self, folder: &Path, targets: &[TargetName], program: &Path) -> Result<()> {
        let person = Person { name: NAME, password: &random_word()?, groups: &["bench"] };
        let flooder = Person { name: FLOOD, password: &random_word()?, groups: &["bench"] };
        let people = [person, flooder];
        let idp = Idp::start(folder.join("idp"), &people)?;
        let [person, flooder] = &people;
        let policies = folder.join("policies");
        fs::create_dir(&policies)?;
        fs::write(policies.join("bench.cedar"), POLICY)?;
        let ways: [(TargetName, &str, u16, &[&str]); 2] = [
            (TargetName::WeirOff, "weir-no-record", 941, &["--unsafe-no-record"]),
            (TargetName::Weir, "weir", 942, &[]),
        ];
        for (name, word, listener_port, flags) in ways {
            if !targets.contains(&name) {
                continue;
            }
            let scope = Cgroup::make(&format!("/weir-bench-{word}"))?;
            let declared = Declared {
                scope: &scope.name,
                listener_port,
                policies: &policies,
                idp: &idp,
                agent: NAME,
                user: USER,
                token: &idp.token(person)?,
                postgres: &self.postgres,
                database: NAME,
                role: NAME,
                password: "asked by nobody",
                tls: "disable",
                other: Some(Other { agent: FLOOD, user: FLOOD_USER, token: &idp.token(flooder)? }),
            };
            self.weirs.push((name, Weir::start(program, folder.join(word), &declared, flags)?));
            self._scopes.push(scope);
        }
        self._idp = Some(idp);
        Ok(())
    }

    /// The targets, in the order that was asked for.
    pub(super) fn targets(&self) -> Vec<Target<'_>> {
        self.order.iter().map(|name| self.target(*name)).collect()
    }

    fn target(&self, name: TargetName) -> Target<'_> {
        let proxy = self.proxies.iter().find(|proxy| proxy.0 == name);
        let weir = self.weirs.iter().find(|weir| weir.0 == name).map(|weir| &weir.1);
        let pid = proxy.map(|proxy| proxy.2.pid()).or_else(|| weir.map(Weir::pid));
        Target { name, port: proxy.map_or(self.postgres.port, |proxy| proxy.1), pid, weir }
    }
}

/// One of them, ready to be loaded.
pub(super) struct Target<'a> {
    pub(super) name: TargetName,
    port: u16,
    /// The process between client and server.
    pub(super) pid: Option<u32>,
    weir: Option<&'a Weir>,
}

impl Target<'_> {
    /// A client program; through Weir, it is the agent's.
    pub(super) fn client(&self, program: &Path) -> Command {
        let Some(weir) = self.weir else { return Command::new(program) };
        let mut command = weir.run_as(NAME);
        command.arg(program);
        command
    }

    /// A client program of the agent that floods; Weir alone has one.
    pub(super) fn flooder(&self) -> Option<Command> {
        self.weir.map(|weir| weir.run_as(FLOOD))
    }

    /// Where the client is told to connect to, in words apart: host, port, database, user.
    pub(super) fn address_words(&self) -> [String; 4] {
        ["127.0.0.1".to_owned(), self.port.to_string(), NAME.to_owned(), NAME.to_owned()]
    }

    /// Where the client is told to connect to. `tls`: libpq's mode.
    pub(super) fn address(&self, tls: &str) -> String {
        format!("host=127.0.0.1 port={} dbname={NAME} user={NAME} sslmode={tls}", self.port)
    }
}

fn fill(postgres: &Postgres) -> Result<()> {
    postgres.sql("postgres", &format!("CREATE ROLE {NAME} LOGIN"))?;
    postgres.sql("postgres", &format!("CREATE DATABASE {NAME} OWNER {NAME}"))?;
    let direct = format!("host=127.0.0.1 port={} user={NAME}", postgres.port);
    let mut pgbench = Command::new(postgres.bin.join("pgbench"));
    process::output(pgbench.args(["-i", "-q", "-s", &SCALE.to_string(), &format!("{direct} dbname={NAME}")]))?;
    for statement in BULK_TABLES {
        postgres.sql(NAME, statement)?;
    }
    for table in ["narrow", "wide"] {
        postgres.sql(NAME, &format!("ALTER TABLE {table} OWNER TO {NAME}"))?;
    }
    Ok(())
}

fn haproxy(folder: &Path, server: u16) -> Result<(TargetName, u16, Server)> {
    let (port, config) = (free_port()?, folder.join("haproxy.cfg"));
    let text = format!(
        "global\n maxconn 2000\ndefaults\n mode tcp\n timeout connect 10s\n timeout client 1h\n timeout server 1h\n\
         listen postgres\n bind 127.0.0.1:{port}\n server postgres 127.0.0.1:{server}\n"
    );
    fs::write(&config, text)?;
    let args = ["-db", "-f", &config.display().to_string()];
    start(TargetName::Haproxy, "haproxy", &args, None, folder, port)
}

fn pgbouncer(folder: &Path, server: u16) -> Result<(TargetName, u16, Server)> {
    let (port, config, users) = (free_port()?, folder.join("pgbouncer.ini"), folder.join("pgbouncer.users"));
    let text = format!(
        "[databases]\n{NAME} = host=127.0.0.1 port={server} dbname={NAME}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = session\n\
         default_pool_size = 250\nmax_client_conn = 2000\nignore_startup_parameters = extra_float_digits\n\
         log_connections = 0\nlog_disconnections = 0\n",
        users.display()
    );
    fs::write(&config, text)?;
    fs::write(&users, format!("\"{NAME}\" \"\"\n"))?;
    // It refuses to run as root.
    let args = [&*config.display().to_string()];
    start(TargetName::Pgbouncer, "pgbouncer", &args, Some("postgres"), folder, port)
}

fn start(
    name: TargetName,
    program: &str,
    args: &[&str],
    user: Option<&str>,
    folder: &Path,
    port: u16,
) -> Result<(TargetName, u16, Server)> {
    let path = which(program).with_context(|| format!("{program} isn't installed: run `cargo xtask setup`"))?;
    let mut server = Server::start(&path, args, user, folder.join(format!("{program}.log")), Signal::INT)?;
    server.wait_until(START_DEADLINE, |_| TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    Ok((name, port, server))
}
