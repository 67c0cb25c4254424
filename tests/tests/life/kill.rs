//! `kill -9` of the daemon at random moments under load: what was answered is on the record, and nothing passes meanwhile.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use end_to_end::{Agent, Database, Weir, rounds, wait_until};
use serde_json::Value;

use crate::stage::{CLAUDE, Client, PYTHON, WRITE, log, outsider_psql, reader, rows, text};

/// Two connections that read and write for all they can, each statement with a name of its own. Each answer is told once
/// it is whole. When the daemon is gone they try again for a while, and tell what became of it.
const LOAD: &str = r#"
import sys, threading, time, psycopg

address, name = sys.argv[1:]

def tell(*words):
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()

def load(worker):
    connection = psycopg.connect(address, autocommit=True)
    for number in range(1000000):
        what = f"{name}-{worker}-{number}-"
        connection.execute(f"SELECT '{what}', * FROM customers LIMIT 5").fetchall()
        tell("answer", what)
        connection.execute(f"INSERT INTO notes VALUES ('{what}insert')")
        tell("answer", what + "insert")

def work(worker):
    try:
        load(worker)
    except psycopg.Error:
        pass
    for attempt in range(5):
        began = time.monotonic()
        try:
            psycopg.connect(address).close()
            tell("connected")
        except psycopg.Error as error:
            tell("refused", f"{time.monotonic() - began:.3f}", str(error).replace("\n", " "))
        time.sleep(0.02)

threads = [threading.Thread(target=work, args=(worker,)) for worker in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
tell("done")
"#;

/// Time for a first answer.
const STARTED: Duration = Duration::from_secs(30);
/// Time for the agents to notice that nobody answers.
const NOTICED: Duration = Duration::from_secs(20);
/// A refusal comes at once: the kernel's, not a timer's.
const AT_ONCE: f64 = 1.0;

/// The load of one round.
struct Load {
    process: Child,
    told: std::path::PathBuf,
}

impl Load {
    fn start(agent: &Agent<'_>, weir: &Weir, database: &Database, name: &str) -> Result<Self> {
        let told = weir.setup().folder().join(format!("{name}.told"));
        let mut command = agent.program([PYTHON, "-c", LOAD, &database.address()?, name])?.into_command();
        let errors = File::create(told.with_extension("errors"))?;
        let process = command.stdin(Stdio::null()).stdout(File::create(&told)?).stderr(errors).spawn()?;
        Ok(Self { process, told })
    }

    /// What it told, in whole lines.
    fn told(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.told)?;
        let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
        Ok(whole.lines().map(ToOwned::to_owned).collect())
    }

    fn is_done(&self) -> Result<bool> {
        Ok(self.told()?.last().is_some_and(|line| line == "done"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[test]
fn no_answer_is_without_its_record_and_nothing_passes_when_the_daemon_is_killed() -> Result<()> {
    let database = Database::create()?;
    database.sql("CREATE TABLE notes (what text); ALTER TABLE notes OWNER TO weir_upstream")?;
    let mut weir = Weir::start(|setup| {
        setup.policy("write.cedar", WRITE)?;
        reader(setup, &database)
    })?;
    let mut random = Random::new();
    eprintln!("random seed {}", random.0);
    let mut answered: Vec<String> = Vec::new();
    for round in 0..rounds(20, 200) {
        let load = Load::start(&weir.agent(CLAUDE)?, &weir, &database, &format!("round{round}"))?;
        wait_until("a first answer", STARTED, || Ok((load.told()?.len() > 1).then_some(())))?;
        thread::sleep(Duration::from_micros(random.below(150_000)));
        weir.kill()?;
        nothing_reaches_the_server(&weir, &database, &load).with_context(|| format!("round {round}"))?;
        answered.extend(load.told()?.iter().filter_map(|line| line.strip_prefix("answer ").map(ToOwned::to_owned)));
        weir.start_again(&[])?;
    }
    ensure!(answered.len() > 100, "{} answers are no load", answered.len());
    every_answer_is_on_the_record(&weir, &answered)?;
    inserts_answered_are_in_the_table(&database, &answered)
}

/// With the daemon dead: the agents' connects and one of an outsider are refused at once, and the server has no session.
fn nothing_reaches_the_server(weir: &Weir, database: &Database, load: &Load) -> Result<()> {
    let before = Instant::now();
    let outsider = outsider_psql(weir, None, "outside", &database.address()?)?.run()?.failed()?;
    ensure!(outsider.contains("Operation not permitted"), "{outsider}");
    ensure!(before.elapsed().as_secs_f64() < AT_ONCE * 3.0, "the outsider waited {:?}", before.elapsed());
    wait_until("the agents try again", NOTICED, || Ok(load.is_done()?.then_some(())))?;
    for line in load.told()? {
        ensure!(line != "connected", "an agent connected while the daemon was dead");
        let Some(refused) = line.strip_prefix("refused ") else { continue };
        let seconds: f64 = refused.split(' ').next().unwrap_or_default().parse()?;
        // The listener may outlive its sessions by a moment, while the kernel takes the daemon apart.
        let words = ["Connection refused", "closed the connection", "reset by peer"];
        ensure!(words.iter().any(|word| refused.contains(word)), "{line}");
        ensure!(seconds < AT_ONCE, "{line}");
    }
    ensure!(load.told()?.iter().any(|line| line.contains("Connection refused")), "nobody found the daemon gone");
    // What the dead daemon had open ends; there is nothing else.
    let sessions = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'weir_upstream' AND datname = '{}'",
        database.name
    );
    wait_until("the server is alone", NOTICED, || Ok((database.sql(&sessions)? == "0").then_some(())))
}

fn every_answer_is_on_the_record(weir: &Weir, answered: &[String]) -> Result<()> {
    let log = log(weir)?;
    let place = |event: &Value| Some((text(event, "/session").to_owned(), event.pointer("/request")?.as_u64()?));
    let mut requests = HashMap::new();
    let mut ended = HashSet::new();
    for row in &log {
        ensure!(row.get("unreadable").is_none(), "unreadable: {row}");
        if let Some(request) = row.pointer("/event/request") {
            let what = text(request, "/sql").split('\'').nth(1).unwrap_or_default().to_owned();
            requests.insert(what, place(request).context("a request without a place")?);
        }
        if let Some(outcome) = row.pointer("/event/outcome") {
            ensure!(outcome.pointer("/error").is_none_or(Value::is_null), "{outcome}");
            ended.insert(place(outcome).context("an outcome without a place")?);
        }
    }
    for what in answered {
        let place = requests.get(what).with_context(|| format!("`{what}` was answered, and was not asked for"))?;
        ensure!(ended.contains(place), "`{what}` was answered, and has no outcome on the record");
    }
    // With its rows: the name stands in the statement, and in what was answered.
    let what = answered.iter().find(|what| !what.ends_with("insert")).context("no answer")?;
    let (session, _) = requests.get(what).context("no session")?;
    let shown = weir.weir(["show", session])?.succeeded()?;
    ensure!(shown.matches(what.as_str()).count() > 1, "the rows of `{what}` are not shown:\n{shown}");
    Ok(())
}

fn inserts_answered_are_in_the_table(database: &Database, answered: &[String]) -> Result<()> {
    let there: HashSet<String> = database.sql("SELECT what FROM notes")?.lines().map(ToOwned::to_owned).collect();
    for what in answered.iter().filter(|what| what.ends_with("insert")) {
        ensure!(there.contains(what), "`{what}` was answered and is not in the table");
    }
    Ok(())
}

#[test]
fn the_record_reads_the_same_from_its_files_after_a_kill() -> Result<()> {
    let database = Database::create()?;
    let mut weir = Weir::start(|setup| reader(setup, &database))?;
    weir.agent(CLAUDE)?.psql(&database, "SELECT 'before the kill'")?.succeeded()?;
    weir.kill()?;
    let store = weir.setup().folder().join("record").display().to_string();
    let offline = rows(&weir.weir(["log", "--store", &store, "--json"])?)?;
    let asked = offline.iter().find(|row| text(row, "/event/request/sql").contains("before the kill"));
    let session = text(asked.context("the request is not on the record")?, "/session/id");
    let shown = weir.weir(["show", session, "--store", &store])?.succeeded()?;
    assert!(shown.contains("before the kill"), "{shown}");
    let sessions = rows(&weir.weir(["sessions", "--store", &store, "--json"])?)?;
    assert_eq!(sessions.len(), 1);
    weir.start_again(&[])?;
    let online = log(&weir)?;
    assert_eq!(online.get(..offline.len()), Some(offline.as_slice()));
    // An online store is the daemon's alone.
    let locked = weir.weir(["log", "--store", &store])?.failed()?;
    assert!(locked.contains("in use"), "{locked}");
    Ok(())
}

#[test]
fn an_agent_that_outlives_the_daemon_is_nobody_until_it_has_a_new_token() -> Result<()> {
    let database = Database::create()?;
    let mut weir = Weir::start(|setup| reader(setup, &database))?;
    let token = weir.setup().folder().join(format!("{CLAUDE}.token")).display().to_string();
    let mut client = Client::start(&weir.agent(CLAUDE)?, &database)?;
    client.connect()?.rows()?;
    // Without its token file: the next daemon would find a good token there.
    let elsewhere = format!("{token}.elsewhere");
    fs::rename(&token, &elsewhere)?;
    weir.kill()?;
    client.sql("SELECT 1")?.refused()?;
    let refused = client.connect()?;
    assert!(refused.refused()?.contains("Connection refused"), "{refused:?}");
    weir.start_again(&[])?;
    let refused = client.connect()?;
    let why = refused.refused()?;
    assert!(why.contains("weir agent refresh"), "{why}");
    weir.weir(["agent", "refresh", CLAUDE, "--token-file", &elsewhere])?.succeeded()?;
    client.connect()?.rows()?;
    assert_eq!(client.sql("SELECT count(*) FROM customers")?.rows()?, [[Value::from(100)]]);
    let log = log(&weir)?;
    assert!(log.iter().any(|row| text(row, "/event/admin/what") == "token-refresh"));
    Ok(())
}

#[test]
fn a_run_of_an_earlier_daemon_keeps_its_user_until_its_last_process_is_gone() -> Result<()> {
    let database = Database::create()?;
    let mut weir = Weir::start(|setup| {
        reader(setup, &database)?;
        setup.agent("codex", &["readers"])
    })?;
    // The same Unix user under another subject: the agent accepts any.
    let token = weir.setup().folder().join("codex.token").display().to_string();
    let words = ["run", "--agent", CLAUDE, "--token-file", &token, "--", "true"];
    let mut client = Client::start(&weir.agent(CLAUDE)?, &database)?;
    client.connect()?.rows()?;
    let own = weir.setup().folder().join(format!("{CLAUDE}.token"));
    let elsewhere = own.with_extension("elsewhere");
    fs::rename(&own, &elsewhere)?;
    weir.kill()?;
    weir.start_again(&[])?;
    client.connect()?.refused()?;
    // With its token file it is itself again.
    fs::rename(&elsewhere, &own)?;
    wait_until("it is identified anew", NOTICED, || Ok(client.connect()?.rows().ok().map(drop)))?;
    let refused = weir.weir(words)?.failed()?;
    assert!(refused.contains("another subject"), "{refused}");
    drop(client);
    wait_until("the user is free", NOTICED, || Ok(weir.weir(words)?.status().success().then_some(())))?;

    // One that ended while there was no daemon is forgotten at the start.
    let mut client = Client::start(&weir.agent(CLAUDE)?, &database)?;
    client.connect()?.rows()?;
    weir.kill()?;
    drop(client);
    let agents = weir.setup().scope().path.join("weir/agents").join(CLAUDE);
    wait_until("its processes are gone", NOTICED, || {
        let populated = |path: std::path::PathBuf| fs::read_to_string(path.join("cgroup.events"));
        let runs: Vec<_> =
            fs::read_dir(&agents)?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        let alive = runs.into_iter().filter_map(|run| populated(run).ok()).any(|events| events.contains("populated 1"));
        Ok((!alive).then_some(()))
    })?;
    weir.start_again(&[])?;
    weir.weir(words)?.succeeded()?;
    Ok(())
}

/// Numbers from the clock; the first is printed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self(u64::from(now.subsec_nanos()) | 1 << 40)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
