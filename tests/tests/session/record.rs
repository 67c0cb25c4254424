//! What the record says of a session.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Weir, wait_until};
use serde_json::{Value, json};

use crate::player::{Style, play};

const SCENARIOS: &str = include_str!("record.py");
/// All but deletes, `admin` too.
const POLICY: &str = r#"
    @id("keepers")
    @description("Keepers do everything.")
    permit (principal in Group::"corp/keepers", action, resource);
    @id("nothing-is-deleted")
    @description("Nothing is deleted.")
    forbid (principal, action == Action::"delete", resource);
"#;
const SECRET: &str = "hunter2-and-more";

/// All events of one kind, oldest first.
pub(crate) fn events(weir: &Weir, kind: &str) -> Result<Vec<Value>> {
    let log = weir.weir(["log", "--json"])?.succeeded()?;
    let rows = log.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    Ok(rows.into_iter().filter_map(|mut row| row.get_mut("event")?.get_mut(kind).map(Value::take)).collect())
}

#[test]
fn the_record_has_statements_parameters_decisions_answers_and_never_a_secret() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| {
        setup.policy("keepers.cedar", POLICY)?;
        setup.agent("claude", &["keepers"])?;
        setup.connection("orders", &database)
    })?;
    let agent = weir.agent("claude")?;
    play(&agent, &database, SCENARIOS, "everything", Style::Brief)?;

    let starts = events(&weir, "session_start")?;
    let start = starts.first().context("no session")?;
    assert_eq!((&start["agent"], &start["connection"]), (&json!("claude"), &json!("orders")));
    assert_eq!((&start["subject"], &start["groups"]), (&json!(agent.person().subject), &json!(["corp/keepers"])));
    ensure!(start["executable"].as_str().is_some_and(|path| path.contains("python3")), "{start}");

    let requests = events(&weir, "request")?;
    let outcomes = events(&weir, "outcome")?;
    let asked = |sql: &str, kind: &str| -> Result<(&Value, &Value)> {
        let found =
            |request: &&Value| request["kind"] == kind && request["sql"].as_str().is_some_and(|s| s.contains(sql));
        let request = requests.iter().find(found).with_context(|| format!("{kind} {sql} isn't on the record"))?;
        let outcome = outcomes.iter().find(|outcome| outcome["request"] == request["request"]);
        Ok((request, outcome.with_context(|| format!("{sql} has no outcome"))?))
    };

    let (request, outcome) = asked("SELECT id, name FROM customers", "simple")?;
    assert_eq!(request["accesses"], json!(["select public.customers (id, name)"]));
    assert_eq!(
        (&request["decision"]["allowed"], &request["decision"]["policies"]),
        (&json!(true), &json!(["keepers"]))
    );
    assert_eq!(
        (&outcome["tags"], &outcome["rows"], &outcome["error"]),
        (&json!(["SELECT 3"]), &json!(3), &Value::Null)
    );

    let (request, outcome) = asked("SELECT name FROM customers WHERE id = $1", "execute")?;
    assert_eq!(request["parameters"], json!([{ "text": "42" }, null]));
    assert_eq!((&outcome["tags"], &outcome["rows"]), (&json!(["SELECT 1"]), &json!(1)));

    let (request, outcome) = asked("DELETE FROM orders", "simple")?;
    assert_eq!(request["decision"]["policies"], json!(["nothing-is-deleted"]));
    assert_eq!(request["decision"]["allowed"], json!(false));
    assert_eq!((&outcome["error"][0], &outcome["tags"]), (&json!("42501"), &json!([])));

    let (_, outcome) = asked("SELECT 1/0", "simple")?;
    assert_eq!((&outcome["error"], &outcome["tags"]), (&json!(["22012", "division by zero"]), &json!(["SELECT 1"])));

    let (_, outcome) = asked("COPY customers FROM STDIN", "simple")?;
    assert_eq!(outcome["tags"], json!(["COPY 1"]));

    let end = events(&weir, "session_end")?;
    // The DELETE, the password of Weir's own role, and a text that cannot be read.
    assert_eq!((&end[0]["reason"], &end[0]["refused"]), (&json!("closed by the agent"), &json!(3)));

    // In full: the answers' and the COPY's own bytes.
    let session = start["session"].as_str().context("no session")?;
    let shown = weir.weir(["show", session, "--json"])?.succeeded()?;
    ensure!(shown.contains("customer 42") && shown.contains("copied in"), "{shown}");
    let page = weir.weir(["show", session])?.succeeded()?;
    ensure!(page.contains("customer 42") && page.contains("nothing-is-deleted"), "{page}");
    let refused = weir.weir(["log", "--decision", "deny"])?.succeeded()?;
    ensure!(refused.contains("DELETE FROM orders") && !refused.contains("SELECT id"), "{refused}");

    // Passwords are nowhere, whether their statement ran, failed, was prepared or could not be read.
    ensure!(shown.matches("<secret ").count() >= 4, "each secret is there as a digest:\n{shown}");
    for (place, text) in [("show --json", &shown), ("show", &page), ("the daemon's log", &weir.log())] {
        ensure!(!text.contains(SECRET), "the secret is in {place}");
    }
    let files = weir.setup().folder().join("record");
    for file in std::fs::read_dir(files)? {
        let bytes = std::fs::read(file?.path())?;
        let found = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
        ensure!(!found, "the secret is in the store");
    }
    Ok(())
}

#[test]
fn a_read_that_runs_long_is_on_the_record_before_its_first_row() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| {
        setup.policy("keepers.cedar", POLICY)?;
        setup.agent("claude", &["keepers"])?;
        setup.connection("orders", &database)
    })?;
    let mut follower = weir.program(["log", "--follow"])?.into_command().stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(follower.stdout.take().context("no stdout")?).lines();
    let address = database.address()?;
    let psql = ["psql", "-XAtq", "-d", &address, "-c", "SELECT pg_sleep(60)"];
    let mut child = weir.agent("claude")?.program(psql)?.into_command().stderr(Stdio::null()).spawn()?;
    let session = wait_until("the statement on the record", Duration::from_secs(20), || {
        let requests = events(&weir, "request")?;
        let request = requests.iter().find(|request| request["sql"] == "SELECT pg_sleep(60)");
        Ok(request.and_then(|request| Some(request["session"].as_str()?.to_owned())))
    })?;
    ensure!(child.try_wait()?.is_none(), "it ended too soon");
    assert_eq!(events(&weir, "outcome")?.len(), 0);

    // Who follows sees it run, and then what came of it.
    let mut next = |what: &str| -> Result<String> {
        let found = lines.find(|line| line.as_ref().map_or(true, |line| line.contains(what)));
        Ok(found.with_context(|| format!("no line with `{what}`"))??)
    };
    let line = next("SELECT pg_sleep(60)")?;
    ensure!(line.contains("allow") && line.ends_with("no outcome yet"), "{line}");
    weir.weir(["session", "kill", &session])?.succeeded()?;
    ensure!(!child.wait()?.success(), "it was killed");
    let line = next("done")?;
    ensure!(line.contains(&format!("of session {session}:  error")), "{line}");
    follower.kill()?;
    follower.wait()?;
    Ok(())
}

#[test]
fn a_session_whose_server_is_not_reached_says_so_on_the_record() -> Result<()> {
    let database = Database::create()?;
    // Nobody listens there once this is gone.
    let port = TcpListener::bind(("127.0.0.2", 0))?.local_addr()?.port();
    let weir = Weir::start(|setup| {
        setup.agent("claude", &["keepers"])?;
        let mut gone = toml::toml! {
            name = "gone"
            protocol = "postgres"
            host = "127.0.0.2"
            user = "app"
            tls = "disable"
            unix_sockets = []
        };
        gone.insert("port".into(), i64::from(port).into());
        setup.push("connection", gone)?;
        setup.connection("orders", &database)
    })?;
    let address = format!("host=127.0.0.2 port={port} user=app dbname=app sslmode=disable");
    let said = weir.agent("claude")?.run(["psql", "-XAtq", "-d", &address, "-c", "SELECT 1"])?.failed()?;
    let why = format!("Weir cannot reach the server: connection `gone`, server 127.0.0.2:{port}: cannot connect");
    ensure!(said.contains(&why), "{said}");
    let end = events(&weir, "session_end")?;
    let reason = end.first().and_then(|end| end["reason"].as_str()).context("no end")?;
    ensure!(reason.starts_with(&why), "{reason}");
    Ok(())
}
