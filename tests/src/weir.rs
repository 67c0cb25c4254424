//! A Weir of the test's own: a daemon in a scope, with policies, connections and agents that the test declares.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use toml::{Table, Value};

use crate::claim::{Port, UnixUser};
use crate::database::Database;
use crate::program::{Program, Ran, wait_until};
use crate::scope::Scope;
use crate::servers::{Servers, servers};
use crate::tokens::Person;

/// The name that the identity provider has in the configuration.
const ISSUER: &str = "corp";
const READY_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// What a test says before its daemon starts. All of it is in a folder of its own.
#[derive(Debug)]
pub struct Setup {
    /// The configuration, for what has no method here; [`Setup::set`] sets a single key.
    pub config: Table,
    scope: Scope,
    port: Port,
    agents: BTreeMap<String, Enrolled>,
    folder: TempDir,
}

#[derive(Debug)]
struct Enrolled {
    person: Person,
    user: Option<UnixUser>,
    token_file: PathBuf,
}

impl Setup {
    fn new() -> Result<Self> {
        let servers = servers()?;
        let folder = tempfile::Builder::new().prefix("weir-").tempdir_in(&servers.folder)?;
        // Agents read certificates below it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let (scope, port) = (Scope::create()?, Port::claim()?);
        let config = base_config(servers, folder.path(), &scope, &port)?;
        fs::create_dir(folder.path().join("policies"))?;
        fs::write(folder.path().join("upstream-password"), &servers.postgres.password)?;
        fs::set_permissions(folder.path().join("upstream-password"), fs::Permissions::from_mode(0o600))?;
        Ok(Self { config, scope, port, agents: BTreeMap::new(), folder })
    }

    /// Sets the key at `path`, such as `limits.message_bytes`.
    pub fn set(&mut self, path: &str, value: impl Into<Value>) -> Result<()> {
        let (tables, key) = path.rsplit_once('.').unwrap_or(("", path));
        let mut table = &mut self.config;
        for name in tables.split('.').filter(|name| !name.is_empty()) {
            let next = table.entry(name).or_insert_with(|| Table::new().into());
            table = next.as_table_mut().with_context(|| format!("{name} in {path} isn't a table"))?;
        }
        table.insert(key.to_owned(), value.into());
        Ok(())
    }

    /// Appends a table to the array `name`, such as `[[protect]]`.
    pub fn push(&mut self, name: &str, table: Table) -> Result<()> {
        let array = self.config.entry(name).or_insert_with(|| Value::Array(Vec::new()));
        array.as_array_mut().with_context(|| format!("{name} isn't an array"))?.push(table.into());
        Ok(())
    }

    /// Writes a file of policies; another one of that name is replaced, and a daemon reloads it when told to.
    pub fn policy(&self, file: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.folder.path().join("policies").join(file), text)?)
    }

    /// Declares an agent with somebody of the provider's behind it, and a Unix user.
    pub fn agent(&mut self, name: &str, groups: &[&str]) -> Result<()> {
        let user = UnixUser::claim()?;
        let agent = Table::from_iter([("user".into(), user.name.clone().into())]);
        self.enrol(name, groups, agent, Some(user))
    }

    /// Declares an agent whose runs have uids of `pool`, and homes of their own below [`Setup::homes`].
    pub fn pool_agent(&mut self, name: &str, groups: &[&str], pool: &str) -> Result<()> {
        self.set("daemon.homes", text(&self.homes())?)?;
        self.enrol(name, groups, Table::from_iter([("uid_pool".into(), pool.into())]), None)
    }

    /// The folder of the homes of runs with a pool's uid.
    pub fn homes(&self) -> PathBuf {
        self.folder.path().join("homes")
    }

    /// Puts the token of an agent into the configuration, as a service needs it.
    pub fn configure_token(&mut self, name: &str) -> Result<()> {
        let file = text(&self.agents.get(name).context("no such agent")?.token_file)?;
        let agents = self.config.get_mut("agent").and_then(Value::as_array_mut).context("no agents")?;
        let own = |agent: &&mut Table| agent.get("name").and_then(Value::as_str) == Some(name);
        let agent = agents.iter_mut().filter_map(Value::as_table_mut).find(own).context("no such agent")?;
        agent.insert("token_file".into(), file);
        Ok(())
    }

    fn enrol(&mut self, name: &str, groups: &[&str], mut agent: Table, user: Option<UnixUser>) -> Result<()> {
        let person = Person::enrol(name, groups)?;
        let token_file = self.folder.path().join(format!("{name}.token"));
        agent.insert("name".into(), name.into());
        agent.insert("issuer".into(), ISSUER.into());
        self.push("agent", agent)?;
        let enrolled = Enrolled { person, user, token_file };
        enrolled.write_token(&enrolled.person.token()?)?;
        self.agents.insert(name.to_owned(), enrolled);
        Ok(())
    }

    /// Declares `database` as the connection `name`, with TLS as it should be.
    pub fn connection(&mut self, name: &str, database: &Database) -> Result<()> {
        let postgres = &servers()?.postgres;
        let password = self.folder.path().join("upstream-password");
        let connection = toml::toml! {
            protocol = "postgres"
            host = "127.0.0.1"
            tls = "verify-full"
            // The shared server has sockets for tests about sockets; others don't mean them.
            unix_sockets = []
        };
        let mut connection = connection;
        connection.insert("name".into(), name.into());
        connection.insert("port".into(), i64::from(postgres.port).into());
        connection.insert("database".into(), database.name.clone().into());
        connection.insert("user".into(), postgres.role.clone().into());
        connection.insert("password".into(), Table::from_iter([("file".into(), text(&password)?)]).into());
        connection.insert("ca_file".into(), text(&postgres.ca_certificate)?);
        self.push("connection", connection)
    }

    /// The daemon's scope.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The folder of everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("weir.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("weir.log")
    }
}

impl Enrolled {
    fn write_token(&self, token: &str) -> Result<()> {
        // Renamed into place: a daemon that watches the file never reads half a token.
        let new = self.token_file.with_extension("new");
        fs::write(&new, token)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        Ok(fs::rename(new, &self.token_file)?)
    }
}

/// All that has nothing to do with what a test is about.
fn base_config(servers: &Servers, folder: &Path, scope: &Scope, port: &Port) -> Result<Table> {
    let mut daemon = Table::new();
    for (key, name) in [("state_dir", "state"), ("runtime_dir", "run"), ("policies", "policies")] {
        daemon.insert(key.into(), text(&folder.join(name))?);
    }
    daemon.insert("scope".into(), scope.name.clone().into());
    daemon.insert("cgroup".into(), format!("{}/weir", scope.name).into());
    daemon.insert("pins".into(), text(&scope.pins.join("weir"))?);
    daemon.insert("listener_port".into(), i64::from(port.number).into());
    let store = Table::from_iter([("dir".into(), text(&folder.join("record"))?)]);
    let mut issuer = toml::toml! {
        algorithms = ["RS256"]
        groups = ["/groups"]
    };
    issuer.insert("name".into(), ISSUER.into());
    issuer.insert("issuer".into(), servers.idp.issuer.clone().into());
    issuer.insert("audience".into(), servers.idp.audience.clone().into());
    Ok(Table::from_iter([
        ("daemon".into(), daemon.into()),
        ("store".into(), store.into()),
        ("issuer".into(), Value::Array(vec![issuer.into()])),
    ]))
}

fn text(path: &Path) -> Result<Value> {
    Ok(path.to_str().with_context(|| format!("{} isn't UTF-8", path.display()))?.into())
}

/// A daemon that serves until this value is dropped; when the test has failed by then, its log is shown.
#[derive(Debug)]
pub struct Weir {
    // Dropped in this order: the daemon before its scope.
    daemon: Daemon,
    setup: Setup,
}

#[derive(Debug)]
struct Daemon(Child);

impl Weir {
    /// Starts a daemon with what `declare` says, and waits until it serves.
    pub fn start(declare: impl FnOnce(&mut Setup) -> Result<()>) -> Result<Self> {
        let mut setup = Setup::new()?;
        declare(&mut setup)?;
        fs::write(setup.config_file(), setup.config.to_string())?;
        fs::set_permissions(setup.config_file(), fs::Permissions::from_mode(0o600))?;
        let daemon = start_daemon(&setup, &[])?;
        Ok(Self { daemon, setup })
    }

    /// A `weir` command with this daemon's configuration; `words` begins with the verb.
    pub fn program<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Program> {
        let mut words = words.into_iter();
        let program = Program::new([&servers()?.weir]).args(words.next());
        Ok(program.args([OsStr::new("--config"), self.setup.config_file().as_os_str()]).args(words))
    }

    /// Runs a `weir` command with this daemon's configuration.
    pub fn weir<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Ran> {
        self.program(words)?.run()
    }

    /// The agent `name`.
    pub fn agent(&self, name: &str) -> Result<Agent<'_>> {
        let (name, enrolled) =
            self.setup.agents.get_key_value(name).with_context(|| format!("no agent {name} was declared"))?;
        Ok(Agent { weir: self, name, enrolled })
    }

    /// What the daemon logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.setup.log_file()).unwrap_or_default()
    }

    /// What was declared.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The listener's port.
    pub fn port(&self) -> u16 {
        self.setup.port.number
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.daemon.0.id()
    }

    /// Kills the daemon with no chance to clean up. What is pinned stays.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.0.kill()?;
        self.daemon.0.wait()?;
        Ok(())
    }

    /// Asks the daemon to end, and waits until it has.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = wait_until("the daemon ends", STOP_DEADLINE, || Ok(self.daemon.0.try_wait()?))?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }

    /// Sends the daemon a signal, such as HUP.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Starts the daemon again after [`Weir::kill`] or [`Weir::stop`], with `flags` more, and waits until it serves.
    pub fn start_again(&mut self, flags: &[&str]) -> Result<()> {
        self.daemon = start_daemon(&self.setup, flags)?;
        Ok(())
    }
}

fn start_daemon(setup: &Setup, flags: &[&str]) -> Result<Daemon> {
    let log = File::options().create(true).append(true).open(setup.log_file())?;
    let before = usize::try_from(log.metadata()?.len())?;
    let mut command = Command::new(&servers()?.weir);
    command.arg("daemon").arg("--config").arg(setup.config_file()).args(flags);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut daemon = Daemon(command.spawn().context("cannot start weir daemon")?);
    let read = || fs::read_to_string(setup.log_file()).map(|log| log.get(before..).unwrap_or_default().to_owned());
    let ready = wait_until("the daemon serves", READY_DEADLINE, || {
        if let Some(status) = daemon.0.try_wait()? {
            bail!("the daemon ended with {status}");
        }
        Ok(read()?.lines().any(|line| line.contains("ready")).then_some(()))
    });
    ready.with_context(|| format!("log of the daemon:\n{}", read().unwrap_or_default()))?;
    Ok(daemon)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended before, which is not an error here.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the daemon:\n{}", self.log());
        }
    }
}

/// A declared agent, to run programs as.
#[derive(Debug)]
pub struct Agent<'a> {
    weir: &'a Weir,
    name: &'a str,
    enrolled: &'a Enrolled,
}

impl Agent<'_> {
    /// A program that this agent runs: `weir run --agent NAME --token-file FILE -- WORDS`.
    pub fn program<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Program> {
        let run = self.weir.program(["run", "--agent", self.name, "--token-file"])?;
        Ok(run.args([&self.enrolled.token_file]).args(["--"]).args(words))
    }

    /// Runs it to its end.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Ran> {
        self.program(words)?.run()
    }

    /// Runs `sql` by psql, connecting to what it takes for the server; rows come unaligned, without headings.
    pub fn psql(&self, database: &Database, sql: &str) -> Result<Ran> {
        let psql = servers()?.postgres.programs.join("psql");
        let words = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &database.address()?, "-c", sql];
        self.program([psql])?.args(words).run()
    }

    /// Whom the provider knows behind it.
    pub fn person(&self) -> &Person {
        &self.enrolled.person
    }

    /// The Unix user that its processes have; none's name for an agent with a pool.
    pub fn user(&self) -> &str {
        self.enrolled.user.as_ref().map_or("", |user| &user.name)
    }

    /// Its token.
    pub fn token_file(&self) -> &Path {
        &self.enrolled.token_file
    }

    /// Puts another token into its token file.
    pub fn renew(&self, token: &str) -> Result<()> {
        self.enrolled.write_token(token)
    }
}
