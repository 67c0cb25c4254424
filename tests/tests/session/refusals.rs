//! What is refused: the agent gets PostgreSQL's own kind of error, and the server is left as such an error leaves it.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use end_to_end::{Database, Setup, Weir};

use crate::player::{self, Style, play, words};

const SCENARIOS: &str = include_str!("refused.py");
/// Reads and changes rows, but deletes none.
const WRITERS: &str = r#"
    @id("writers")
    @description("Writers read and change rows.")
    permit (
        principal in Group::"corp/writers",
        action in [Action::"read", Action::"insert", Action::"update", Action::"copyFrom", Action::"session"],
        resource
    );
    @id("orders-stay")
    @description("Orders are never deleted.")
    forbid (principal, action == Action::"delete", resource == Table::"orders/DATABASE/public/orders");
"#;
/// The same without `update`.
const READERS: &str = r#"
    @id("readers")
    @description("Writers only read.")
    permit (principal in Group::"corp/writers", action in [Action::"read", Action::"session"], resource);
"#;
const NO_POLICY: &str = "E 42501 Weir refused this statement: ";

fn declare(setup: &mut Setup, database: &Database) -> Result<()> {
    setup.policy("writers.cedar", &WRITERS.replace("DATABASE", &database.name))?;
    setup.set("limits.statement_bytes", 100_000)?;
    setup.set("daemon.refusal_hint", "ask the people of the database")?;
    setup.agent("claude", &["writers"])?;
    setup.connection("orders", database)
}

/// A daemon, and a way to play scenarios through it.
struct Stage {
    weir: Weir,
    database: Database,
}

impl Stage {
    fn set() -> Result<Self> {
        let database = Database::create()?;
        let weir = Weir::start(|setup| declare(setup, &database))?;
        Ok(Self { weir, database })
    }

    /// What the client shows; refusals without what follows their first words when that says `…`.
    fn plays(&self, scenario: &str, expected: &[&str]) -> Result<()> {
        let shown = play(&self.weir.agent("claude")?, &self.database, SCENARIOS, scenario, Style::Brief)?;
        let lines: Vec<_> = shown.lines().collect();
        let fits = |(line, expected): (&&str, &&str)| match expected.split_once('…') {
            Some((start, rest)) => line.starts_with(start) && rest.split('…').all(|part| line.contains(part)),
            None => line == expected,
        };
        let all_fit = lines.len() == expected.len() && lines.iter().zip(expected).all(fits);
        ensure!(all_fit, "scenario {scenario}: expected\n{}\nbut got\n{shown}", expected.join("\n"));
        Ok(())
    }
}

#[test]
fn a_refusal_names_policy_reason_and_hint_and_the_session_goes_on() -> Result<()> {
    let stage = Stage::set()?;
    let forbidden =
        "E 42501 Weir refused this statement: …Orders are never deleted.…orders-stay…ask the people of the database";
    let unpermitted = "E 42501 Weir refused this statement: …no policy permits…ask the people of the database";
    stage.plays(
        "statement",
        &[
            "Z I",
            forbidden,
            "Z I",
            "T",
            "D customer 1",
            "C SELECT 1",
            "Z I",
            forbidden,
            "Z I",
            unpermitted,
            "Z I",
            unpermitted,
            "Z I",
            unpermitted,
            "Z I",
            "E 42601 syntax error at or near \"SELEC\"",
            "Z I",
        ],
    )?;
    assert_eq!(stage.database.sql("SELECT count(*) FROM orders")?, "1000");
    Ok(())
}

#[test]
fn psql_s_caret_points_at_the_word_that_was_refused() -> Result<()> {
    let stage = Stage::set()?;
    let psql = end_to_end::servers()?.postgres.programs.join("psql");
    let address = stage.database.address()?;
    for (sql, from_there) in [
        ("SELECT 'größe' AS é FORM customers", "FORM customers"),
        ("SELECT ('größe'", ""),
        ("WITH x AS (SELECT 'é' FROM orders) DELETE FROM orders", "orders"),
        ("SELECT 'ü'; SELECT * FROM customers;\nDELETE FROM orders WHERE id = 1", "orders WHERE id = 1"),
    ] {
        let run = stage.weir.agent("claude")?.program([&psql])?.args(["-XAtq", "-d", &address, "-c", sql]).run()?;
        let said = run.failed()?;
        let mut lines = said.lines().skip_while(|line| !line.starts_with("LINE "));
        let (Some(line), Some(caret)) = (lines.next(), lines.next()) else { bail!("{sql}: no place in\n{said}") };
        let pointed: String = line.chars().skip(caret.chars().take_while(|&c| c == ' ').count()).collect();
        ensure!(caret.trim() == "^" && pointed == from_there, "{said}");
    }
    // EXECUTE runs another text than the one at hand: no place is better than a wrong one.
    let sql = "EXECUTE nothing";
    let said =
        stage.weir.agent("claude")?.program([&psql])?.args(["-XAtq", "-d", &address, "-c", sql]).run()?.failed()?;
    ensure!(!said.contains("LINE "), "{said}");
    Ok(())
}

#[test]
fn no_policy_lets_the_server_read_statements_otherwise_than_weir() -> Result<()> {
    let database = Database::create()?;
    let weir = player::weir(&database)?;
    let shown = play(&weir.agent("claude")?, &database, SCENARIOS, "reading", Style::Brief)?;
    let refused = "E 42501 Weir refused this statement: `set` on standard_conforming_strings | the server would read \
                   statements otherwise than Weir does; no policy can permit that";
    let lines: Vec<_> = shown.lines().collect();
    let goes_on = ["T", "D on", "C SHOW", "Z I"];
    ensure!(lines.get(1).is_some_and(|line| line.starts_with(refused)), "{shown}");
    ensure!(lines.iter().filter(|line| line.starts_with("E 42501")).count() == 3, "{shown}");
    ensure!(lines.ends_with(&goes_on), "{shown}");
    Ok(())
}

#[test]
fn a_function_call_by_oid_is_refused_under_any_policy_and_the_session_goes_on() -> Result<()> {
    let database = Database::create()?;
    let weir = player::weir(&database)?;
    let shown = play(&weir.agent("claude")?, &database, SCENARIOS, "function_call", Style::Brief)?;
    let refused = "E 42501 Weir refused this function call: it names a function by its OID";
    let expected = [
        "Z I",
        refused,
        "Z I",
        "C BEGIN",
        "Z T",
        refused,
        "Z E",
        "C ROLLBACK",
        "Z I",
        "1",
        "E 22012 division by zero",
        "Z I",
        "T",
        "D 0",
        "C SELECT 1",
        "Z I",
    ];
    let lines: Vec<_> = shown.lines().map(|line| line.split(" | ").next().unwrap_or(line)).collect();
    assert_eq!(lines, expected);
    let log = weir.weir(["log", "--decision", "deny"])?.succeeded()?;
    assert_eq!(log.matches("/* FunctionCall").count(), 3, "{log}");
    Ok(())
}

#[test]
fn a_refusal_fails_the_transaction_on_the_server_as_well() -> Result<()> {
    let refused = format!("{NO_POLICY}…");
    let aborted = "E 25P02 current transaction is aborted, commands ignored until end of transaction block";
    Stage::set()?.plays(
        "transaction",
        &[
            "Z I",
            "C BEGIN",
            "Z T",
            "C UPDATE 1",
            "Z T",
            &refused,
            "Z E",
            aborted,
            "Z E",
            "C ROLLBACK",
            "Z I",
            "T",
            "D customer 1",
            "C SELECT 1",
            "Z I",
            "C BEGIN",
            "C SAVEPOINT",
            "Z T",
            &refused,
            "Z E",
            "C ROLLBACK",
            "T",
            "D goes on",
            "C SELECT 1",
            "C COMMIT",
            "Z I",
        ],
    )
}

#[test]
fn one_refused_statement_refuses_all_of_its_message_and_none_runs() -> Result<()> {
    let refused = format!("{NO_POLICY}…");
    let look = ["T", "D customer 1", "C SELECT 1", "Z I"];
    let expected: Vec<&str> =
        [&["Z I", &refused, "Z I"][..], &look, &[&refused, "Z I"], &look].into_iter().flatten().copied().collect();
    Stage::set()?.plays("several", &expected)
}

#[test]
fn a_refusal_in_a_pipeline_skips_to_sync_and_undoes_what_came_before() -> Result<()> {
    let refused = format!("{NO_POLICY}…");
    Stage::set()?.plays(
        "pipeline",
        &["Z I", "1", "2", "C UPDATE 1", &refused, "Z I", "1", "2", "D customer 1", "C SELECT 1", "Z I"],
    )
}

#[test]
fn names_that_do_not_exist_are_the_server_s_own_errors() -> Result<()> {
    let refused = format!("{NO_POLICY}…");
    Stage::set()?.plays(
        "names",
        &[
            "Z I",
            "E 26000 prepared statement \"nobody made it\" does not exist",
            "Z I",
            "E 26000 unnamed prepared statement does not exist",
            "Z I",
            "E 34000 portal \"no portal\" does not exist",
            "Z I",
            "E 26000 prepared statement \"nor this\" does not exist",
            "Z I",
            "E 26000 prepared statement \"nothing\" does not exist",
            "Z I",
            "C BEGIN",
            "Z T",
            "E 34000 cursor \"nowhere\" does not exist",
            "Z E",
            "C ROLLBACK",
            "Z I",
            "1",
            &refused,
            "Z I",
            &refused,
            "Z I",
            "E 26000 prepared statement \"refused\" does not exist",
            "Z I",
        ],
    )
}

#[test]
fn a_prepared_statement_is_decided_anew_after_the_policies_changed() -> Result<()> {
    let stage = Stage::set()?;
    let words = words(SCENARIOS, "after_reload", &stage.database, Style::Brief)?;
    let mut command = stage.weir.agent("claude")?.program(words)?.into_command();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let mut next = || -> Result<String> { Ok(lines.next().context("the client has ended")??) };
    while next()? != "prepared" {}
    stage.weir.setup().policy("writers.cedar", READERS)?;
    stage.weir.weir(["policy", "reload"])?.succeeded()?;
    writeln!(stdin, "go on")?;
    for _ in 0..2 {
        let refusal = next()?;
        ensure!(refusal.starts_with(NO_POLICY) && refusal.contains("update"), "{refusal}");
        assert_eq!(next()?, "Z I");
    }
    assert_eq!([next()?, next()?, next()?, next()?], ["T", "D customer 1", "C SELECT 1", "Z I"]);
    assert!(child.wait()?.success());
    Ok(())
}

#[test]
fn what_the_protocol_has_no_place_for_is_refused_by_name() -> Result<()> {
    let stage = Stage::set()?;
    for (scenario, error) in [
        ("unknown_type", "E 08P01 …a message of type `y` is not forwarded"),
        ("trailing_bytes", "E 08P01 …a message of type `Q`"),
        ("oversized", "E 54000 …over the limit of …limits.message_bytes"),
        ("too_short", "E 08P01 …claims 3 bytes"),
    ] {
        stage.plays(scenario, &["Z I", error, "closed"])?;
    }
    stage.plays("query_in_copy", &["Z I", "G", "E 08P01 …`Q`…COPY data", "closed"])?;
    let long = "E 54000 …over the limit of 100000 (limits.statement_bytes)";
    stage.plays("long_statement", &["Z I", long, "Z I", "T", "D 1", "C SELECT 1", "Z I"])?;
    assert_eq!(stage.database.sql("SELECT count(*) FROM customers")?, "100");
    Ok(())
}

#[test]
fn a_start_up_that_is_refused_says_why() -> Result<()> {
    let stage = Stage::set()?;
    for (scenario, error) in [
        ("replication", "E 08P01 …replication connections are not forwarded"),
        ("encoding", "E 08P01 …client_encoding `SJIS` is not spoken here"),
        ("start_option", "E 42501 …`session_replication_role`"),
        ("other_database", "E 42501 …connection `orders` has the database"),
    ] {
        stage.plays(scenario, &[error, "closed"])?;
    }
    stage.plays("old_protocol", &["E 08P01 …protocol 2.0 is not spoken here", "closed"])?;
    stage.plays("stuffed", &["E 08P01 …bytes followed a request for encryption", "closed"])
}

#[test]
fn each_limit_is_enforced_and_named() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| {
        declare(setup, &database)?;
        setup.set("limits.agent.connections", 2)?;
        setup.set("limits.idle", "2s")?;
        setup.set("limits.startup", "2s")?;
        setup.set("limits.prepared_statements", 3)?;
        setup.set("limits.statement_nesting", 8)?;
        setup.set("limits.statement_tokens", 64)?;
        setup.set("limits.pipeline", 16)
    })?;
    let stage = Stage { weir, database };
    let full = "E 53300 …2 sessions open, its limit `connections`; free again when";
    stage.plays("connections", &["Z I", "Z I", full, "closed", "T", "D the first goes on", "C SELECT 1", "Z I"])?;
    stage.plays("idle", &["Z I", "E 57P05 …limits.idle", "closed"])?;
    stage.plays("silent", &["closed"])?;
    let names = "E 54000 …limits.prepared_statements";
    stage.plays(
        "many_names",
        &["Z I", "1", "1", "1", names, "Z I", "2", "D 1", "C SELECT 1", "Z I", "C DEALLOCATE ALL", "Z I", "1", "Z I"],
    )?;
    let (deep, wide) = ("E 54000 …limits.statement_nesting", "E 54000 …limits.statement_tokens");
    stage.plays("deep_and_wide", &["Z I", deep, "Z I", wide, "Z I", "T", "D 1", "C SELECT 1", "Z I"])?;
    // A pipeline over its limit is only read more slowly.
    let shown = play(&stage.weir.agent("claude")?, &stage.database, SCENARIOS, "long_pipeline", Style::Brief)?;
    assert_eq!(shown.lines().filter(|line| *line == "C SELECT 1").count(), 200, "{shown}");
    Ok(())
}
