//! `cargo xtask demo`: an agent that believes it talks straight to a database, and what Weir makes of it.
//!
//! All is real: PostgreSQL, an OIDC provider, the daemon at the root of the cgroup hierarchy, psql and psycopg as an
//! unprivileged user. Every step checks what came of it; the first that differs fails the demo.

mod script;
mod story;

use std::path::Path;
use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use anyhow::{Result, ensure};

use crate::process::{TempDir, random_word, step};
use crate::servers::{Declared, Idp, Person, Postgres, Purpose, User, Weir};
use crate::{build, paths, setup};
use story::Story;

const AGENT: &str = "claude";
const USER: &str = "weir-demo-agent";
const ROLE: &str = "weir_orders";
const DATABASE: &str = "shop";
/// The Unix user and group without rights, by number: its group has several names.
const NOBODY: &str = "65534";
/// Weir's default.
const LISTENER_PORT: u16 = 943;

/// What the story is about.
struct Stage {
    weir: Weir,
    postgres: Postgres,
    password: String,
    folder: TempDir,
    _user: User,
    _idp: Idp,
}

/// Sets the stage, tells the story, takes everything away.
pub(crate) fn run() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "not root: the demo loads eBPF programs and makes a Unix user");
    step("setup", setup::run)?;
    let program = step("build weir", || build::weir(build::PROFILE))?;
    let stage = step("start PostgreSQL, the identity provider and weir daemon", || Stage::set(&program))?;
    let told = tell(&stage);
    if told.is_err() {
        eprintln!("log of the daemon:\n{}", stage.weir.log());
    }
    told
}

impl Stage {
    fn set(program: &Path) -> Result<Self> {
        let folder = TempDir::new("demo")?;
        let user = User::make(USER)?;
        let person = Person { name: AGENT, password: &random_word()?, groups: &["readers"] };
        let idp = Idp::start(folder.path().join("idp"), std::slice::from_ref(&person))?;
        let postgres = Postgres::start(&folder.path().join("postgres"), Purpose::Demo)?;
        let password = random_word()?;
        postgres.sql("postgres", &format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{password}'"))?;
        postgres.sql("postgres", &format!("CREATE DATABASE {DATABASE} OWNER {ROLE}"))?;
        postgres.sql(DATABASE, script::TABLES)?;
        fs::write(folder.path().join("report.py"), script::REPORT)?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let declared = Declared {
            scope: "/",
            listener_port: LISTENER_PORT,
            policies: &paths::root().join("policies"),
            idp: &idp,
            agent: AGENT,
            user: USER,
            token: &idp.token(&person)?,
            postgres: &postgres,
            database: DATABASE,
            role: ROLE,
            password: &password,
            tls: "verify-full",
            other: None,
        };
        let weir = Weir::start(program, folder.path().join("weir"), &declared, &[])?;
        Ok(Self { weir, postgres, password, folder, _user: user, _idp: idp })
    }

    /// What the agent was told to connect to: the server itself.
    fn server(&self) -> String {
        format!("host=127.0.0.1 port={} dbname={DATABASE}", self.postgres.port)
    }
}

fn tell(stage: &Stage) -> Result<()> {
    let mut story = Story::begin();
    work(stage, &mut story)?;
    ways_round(stage, &mut story)?;
    record(stage, &mut story)?;
    death(stage, &mut story)?;
    story.end();
    Ok(())
}

/// A daemon that dies leaves its agents with a refused connection, not an open road.
fn death(stage: &Stage, story: &mut Story) -> Result<()> {
    story.chapter("Without the daemon");
    let pid = stage.weir.pid();
    let mut kill = Command::new("sh");
    kill.args(["-c", &format!("kill -9 {pid}; until grep -q '^State:.Z' /proc/{pid}/status; do :; done; echo dead")]);
    story.succeeds("The daemon is killed.", kill, &["dead"])?;
    let stolen = format!("{} user={ROLE} password={}", stage.server(), stage.password);
    story.fails(
        "The programs stay in the kernel: the road is as closed as before.",
        story::as_user(NOBODY, &["psql", "-X", "-d", &stolen, "-c", "SELECT 1"]),
        &["Operation not permitted"],
    )?;
    story.succeeds("Root takes them out.", stage.weir.command(&["detach"]), &["connect4"])?;
    Ok(())
}

/// What the agent is there for, and what it may not.
fn work(stage: &Stage, story: &mut Story) -> Result<()> {
    let agent = |sql: &str| {
        let mut command = stage.weir.run_as(AGENT);
        command.args(["psql", "-X", "-v", "VERBOSITY=verbose", "-d", &stage.server(), "-c", sql]);
        command
    };
    story.chapter("An agent at work");
    story.succeeds(
        "psql believes it talks to the server. Its group, corp/readers, may read; no password is asked.",
        agent("SELECT name, amount FROM orders ORDER BY amount DESC LIMIT 3"),
        &["Grace", "(3 rows)"],
    )?;
    let mut script = stage.weir.run_as(AGENT);
    script.arg("/usr/bin/python3").arg(stage.folder.path().join("report.py")).arg(stage.server());
    let address = format!("127.0.0.1:{}", stage.postgres.port);
    story.succeeds("A Python script with psycopg, nothing in it about Weir.", script, &[&address, "total 60.00"])?;
    story.fails(
        "No policy permits a change: the refusal is PostgreSQL's own kind, and says why and how to ask.",
        agent("DELETE FROM orders"),
        &["42501", "HINT"],
    )?;
    story.fails(
        "Several statements in one message are decided whole: not even the first runs.",
        agent("INSERT INTO orders VALUES (4, 'Eve', 1); SELECT 1"),
        &["42501"],
    )?;
    let rows = stage.postgres.sql(DATABASE, "SELECT count(*) FROM orders")?;
    ensure!(rows.trim() == "3", "the table has {rows} rows: a refused statement ran");
    Ok(())
}

/// What an agent that wants round Weir would try.
fn ways_round(stage: &Stage, story: &mut Story) -> Result<()> {
    story.chapter("Ways round");
    // Even with the password: the kernel refuses the connect itself.
    let stolen = format!("{} user={ROLE} password={}", stage.server(), stage.password);
    story.fails(
        "Another user of the host, outside of any agent, with a stolen password.",
        story::as_user(NOBODY, &["psql", "-X", "-d", &stolen, "-c", "SELECT 1"]),
        &["Operation not permitted"],
    )?;
    let sockets = stage.postgres.private_sockets().display().to_string();
    let port = stage.postgres.port.to_string();
    let agent = |words: &[&str]| {
        let mut command = stage.weir.run_as(AGENT);
        command.args(words);
        command
    };
    story.fails(
        "The agent, by the server's Unix socket.",
        agent(&["psql", "-X", "-h", &sockets, "-p", &port, "-d", DATABASE, "-c", "SELECT 1"]),
        &["connection to server on socket"],
    )?;
    let listener = format!("host=127.0.0.1 port={LISTENER_PORT} dbname={DATABASE} connect_timeout=10");
    story.fails(
        "The agent, straight to Weir's own port: a connection that was not redirected belongs to nobody.",
        agent(&["psql", "-X", "-d", &listener, "-c", "SELECT 1"]),
        &["connection to server at"],
    )?;
    let python = |program: &str| agent(&["/usr/bin/python3", "-c", program]);
    story.fails("The agent, by a VSOCK socket.", python(script::VSOCK), &["Error"])?;
    story.fails(
        "The agent, to a Redis that nobody declared: ports of databases are closed to it (egress = \"databases\").",
        agent(&["psql", "-X", "-h", "127.0.0.1", "-p", "6379", "-d", DATABASE, "-c", "SELECT 1"]),
        &["Operation not permitted"],
    )?;
    story.fails("The agent, by UDP.", python(&script::udp(stage.postgres.port)), &["PermissionError"])?;
    story.fails(
        "The agent, for the password itself.",
        agent(&["cat", &stage.weir.folder().join("upstream-password").display().to_string()]),
        &["Permission denied"],
    )
}

/// What is left of all this for those who look later.
fn record(stage: &Stage, story: &mut Story) -> Result<()> {
    story.chapter("On the record");
    story.succeeds("Who connected.", stage.weir.command(&["sessions"]), &[AGENT])?;
    let log = story.succeeds(
        "What was asked, decided and refused, the ways round too.",
        stage.weir.command(&["log"]),
        &["SELECT name, amount", "DELETE FROM orders"],
    )?;
    ensure!(log.contains("nobody") || log.contains("psql"), "the refused connect of another user isn't in the log");
    let sessions = crate::process::output(&mut stage.weir.command(&["sessions", "--json"]))?;
    let session = script::first_session(&sessions)?;
    story.succeeds(
        "One session in full, with what was answered.",
        stage.weir.command(&["show", &session]),
        &["Grace"],
    )?;
    Ok(())
}
