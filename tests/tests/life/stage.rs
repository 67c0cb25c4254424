//! What the tests share: policies, a client that speaks when told to, and the record as rows.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use end_to_end::{Agent, Database, Program, Ran, Setup, Weir, servers};
use serde::Deserialize;
use serde_json::Value;

pub(crate) const PYTHON: &str = "/usr/bin/python3";
/// The agent that most tests have.
pub(crate) const CLAUDE: &str = "claude";

/// Members of corp/readers may read.
pub(crate) const READ: &str = r#"
@id("readers-read")
@description("Readers may read.")
permit (principal in Group::"corp/readers", action in Action::"read", resource);

@id("readers-session")
@description("Readers may open transactions and use settings.")
permit (principal in Group::"corp/readers", action in Action::"session", resource);
"#;

/// They may also change rows.
pub(crate) const WRITE: &str = r#"
@id("readers-write")
@description("Readers may write, too.")
permit (principal in Group::"corp/readers", action in Action::"write", resource);
"#;

/// One agent that reads one database, called `orders`.
pub(crate) fn reader(setup: &mut Setup, database: &Database) -> Result<()> {
    setup.policy("read.cedar", READ)?;
    setup.agent(CLAUDE, &["readers"])?;
    setup.connection("orders", database)
}

/// Its client: each line of its input is `connect`, `close` or `sql STATEMENT`, and is answered by a line of JSON.
const CLIENT: &str = r"
import json, sys, psycopg

connection = None
for line in sys.stdin:
    verb, _, rest = line.rstrip('\n').partition(' ')
    told = {}
    try:
        if verb == 'connect':
            connection = psycopg.connect(sys.argv[1], autocommit=True)
        elif verb == 'close':
            connection.close()
        else:
            cursor = connection.execute(rest)
            told['rows'] = cursor.fetchall() if cursor.description else []
    except psycopg.Error as error:
        told = {'error': str(error), 'sqlstate': error.sqlstate, 'hint': error.diag.message_hint}
    print(json.dumps(told, default=str), flush=True)
";

/// A client that an agent runs, for as long as this value lives.
pub(crate) struct Client {
    process: Child,
    asks: ChildStdin,
    tells: BufReader<ChildStdout>,
}

/// What a client says of one command.
#[derive(Debug, Deserialize)]
pub(crate) struct Told {
    #[serde(default)]
    pub(crate) rows: Vec<Vec<Value>>,
    pub(crate) error: Option<String>,
    pub(crate) sqlstate: Option<String>,
    pub(crate) hint: Option<String>,
}

impl Client {
    pub(crate) fn start(agent: &Agent<'_>, database: &Database) -> Result<Self> {
        Self::of(agent.program([PYTHON, "-c", CLIENT, &database.address()?])?)
    }

    /// What `words` of a [`confined`] or other program are to run it, with the role's own credential: it gets through where
    /// nobody polices it.
    pub(crate) fn words(database: &Database) -> Result<Vec<String>> {
        let postgres = &servers()?.postgres;
        let address = format!("{} user={} password={}", database.address()?, postgres.role, postgres.password);
        Ok([PYTHON, "-c", CLIENT, &address].map(str::to_owned).to_vec())
    }

    /// As whatever program runs it.
    pub(crate) fn of(program: Program) -> Result<Self> {
        let mut command = program.into_command();
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let asks = process.stdin.take().context("no pipe to the client")?;
        let tells = BufReader::new(process.stdout.take().context("no pipe from the client")?);
        Ok(Self { process, asks, tells })
    }

    fn ask(&mut self, line: &str) -> Result<Told> {
        writeln!(self.asks, "{line}")?;
        let mut told = String::new();
        self.tells.read_line(&mut told)?;
        serde_json::from_str(&told).with_context(|| format!("the client said `{told}`"))
    }

    /// Its process: what ran it has become it, unless that was `weir run`.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn connect(&mut self) -> Result<Told> {
        self.ask("connect")
    }

    pub(crate) fn close(&mut self) -> Result<Told> {
        self.ask("close")
    }

    pub(crate) fn sql(&mut self, sql: &str) -> Result<Told> {
        self.ask(&format!("sql {sql}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // `weir run` goes, and its run with it; without a daemon the scope ends the processes.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Told {
    /// The rows, when there was no error.
    pub(crate) fn rows(self) -> Result<Vec<Vec<Value>>> {
        ensure!(self.error.is_none(), "refused: {self:?}");
        Ok(self.rows)
    }

    /// The error, which must have come.
    pub(crate) fn refused(&self) -> Result<&str> {
        self.error.as_deref().with_context(|| format!("not refused: {self:?}"))
    }
}

/// The words that run others as `user`, without a privilege or a way to one.
pub(crate) fn confined(user: &str) -> [&str; 8] {
    let bounds = ["--clear-groups", "--no-new-privs", "--bounding-set=-all"];
    ["setpriv", "--reuid", user, "--regid", user, bounds[0], bounds[1], bounds[2]]
}

/// A server of the test's own that speaks nothing and counts who reaches it. Weir itself reaches out only for a client
/// that starts a session, so among clients that only connect, one that is counted got round.
pub(crate) struct Canary {
    pub(crate) address: SocketAddr,
    reached: Arc<AtomicUsize>,
}

impl Canary {
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (address, reached) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&reached);
        // Lives as long as the test's process.
        thread::spawn(move || {
            while listener.accept().is_ok() {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self { address, reached })
    }

    /// Declares it as a connection.
    pub(crate) fn declare(&self, setup: &mut Setup, name: &str) -> Result<()> {
        let mut connection = toml::toml! {
            protocol = "postgres"
            host = "127.0.0.1"
            tls = "disable"
            user = "nobody"
            unix_sockets = []
        };
        connection.insert("name".into(), name.into());
        connection.insert("port".into(), i64::from(self.address.port()).into());
        setup.push("connection", connection)
    }

    pub(crate) fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }
}

/// The lines of a verb that was given `--json`.
pub(crate) fn rows(ran: &Ran) -> Result<Vec<Value>> {
    let told = ran.succeeded()?;
    told.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// The whole log.
pub(crate) fn log(weir: &Weir) -> Result<Vec<Value>> {
    rows(&weir.weir(["log", "--json"])?)
}

/// What the rows say of refused connects: uid, destination and reason.
pub(crate) fn refusals(log: &[Value]) -> Vec<&Value> {
    log.iter().filter_map(|row| row.pointer("/event/refused")).collect()
}

/// A field's text.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// psql as the Unix user `user` (or root) in the cgroup `cgroup` of the scope: no agent of Weir's.
pub(crate) fn outsider_psql(weir: &Weir, user: Option<&str>, cgroup: &str, address: &str) -> Result<Program> {
    let postgres = &servers()?.postgres;
    let psql = postgres.programs.join("psql").display().to_string();
    let address = format!("{address} user={} password={}", postgres.role, postgres.password);
    let words = [psql.as_str(), "-XAtq", "-d", &address, "-c", "SELECT 1"];
    match user {
        Some(user) => weir.setup().scope().program_as(user, cgroup, words),
        None => weir.setup().scope().program(cgroup, words),
    }
}
