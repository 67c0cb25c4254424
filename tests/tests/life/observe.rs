//! A connection that only observes: what the policies deny passes, loudly; what is Weir's own to refuse is refused; and from
//! what was seen come policies under which the same goes on when the connection enforces.

use std::fs;

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Setup, Weir, servers};
use serde_json::Value;

use crate::stage::{CLAUDE, Client, log, rows, text};

/// What the agent works with, beside transactions.
const WORK: &[&str] = &[
    "SELECT id, name FROM customers WHERE id < 3",
    "UPDATE customers SET name = 'observed' WHERE id = 1",
    "INSERT INTO orders (customer_id, amount) VALUES (1, 7)",
    "SET statement_timeout = '1min'",
];
/// What no policy permits when the suggested ones are in force.
const NEAR_MISSES: &[&str] = &[
    "DELETE FROM customers WHERE id = 1",
    "SELECT * FROM pg_catalog.pg_tables",
    "UPDATE orders SET amount = 0",
    "TRUNCATE customers",
    "CREATE TABLE customers2 (id int)",
    "SET statement_timeout = '1min'; SET search_path = public; DROP TABLE customers",
];
/// A table whose name would end a policy's string, and a line.
const HOSTILE: &str = "x\"\"); permit(principal, action, resource); //\u{202e}\n*/";

fn observing(setup: &mut Setup, database: &Database) -> Result<()> {
    setup.agent(CLAUDE, &["readers"])?;
    setup.set("limits.statement_bytes", 10_000)?;
    setup.connection("orders", database)?;
    let connections = setup.config.get_mut("connection").and_then(toml::Value::as_array_mut).context("none")?;
    let connection = connections.first_mut().and_then(toml::Value::as_table_mut).context("no table")?;
    connection.insert("mode".into(), "observe".into());
    Ok(())
}

/// Starts the daemon anew with the connection's mode set to `enforce`.
fn enforce(weir: &mut Weir) -> Result<()> {
    weir.stop()?;
    let file = weir.setup().folder().join("weir.toml");
    let config = fs::read_to_string(&file)?;
    ensure!(config.contains("mode = \"observe\""), "{config}");
    fs::write(&file, config.replace("mode = \"observe\"", "mode = \"enforce\""))?;
    weir.start_again(&[])
}

fn decisions<'a>(log: &'a [Value], sql: &str) -> Vec<&'a Value> {
    let of_sql = log.iter().filter(|row| text(row, "/event/request/sql") == sql);
    of_sql.filter_map(|row| row.pointer("/event/request/decision")).collect()
}

#[test]
fn from_watching_to_enforcing_with_what_was_suggested() -> Result<()> {
    let database = Database::create()?;
    let mut weir = Weir::start(|setup| observing(setup, &database))?;
    for sql in WORK {
        weir.agent(CLAUDE)?.psql(&database, sql)?.succeeded()?;
    }
    let seen = log(&weir)?;
    for sql in WORK {
        let decisions = decisions(&seen, sql);
        ensure!(!decisions.is_empty(), "{sql} is not on the record");
        for decision in decisions {
            assert_eq!(decision.get("allowed"), Some(&Value::Bool(false)), "{sql}: {decision}");
            assert_eq!(decision.pointer("/denied/observed"), Some(&Value::Bool(true)), "{sql}: {decision}");
        }
    }

    let suggested = weir.weir(["policy", "suggest"])?.succeeded()?;
    assert!(suggested.contains("let pass") && suggested.contains("Table::\"orders/"), "{suggested}");
    assert_eq!(suggested, weir.weir(["policy", "suggest"])?.succeeded()?, "the same record, the same text");
    let reads = log(&weir)?;
    let reads = reads.iter().filter(|row| text(row, "/event/admin/what") == "record-read");
    assert!(reads.filter(|row| text(row, "/event/admin/detail").contains("unpermitted")).count() >= 2);
    weir.setup().policy("suggested.cedar", &suggested)?;
    let checked = weir.program(["policy", "check"])?.args([weir.setup().folder().join("policies")]).run()?;
    assert!(checked.succeeded()?.contains("0 warnings"), "{}", checked.stdout());
    weir.weir(["policy", "reload"])?.succeeded()?;
    let before = log(&weir)?.len();
    for sql in WORK {
        weir.agent(CLAUDE)?.psql(&database, sql)?.succeeded()?;
    }
    let since = log(&weir)?.split_off(before);
    for sql in WORK {
        let decisions = decisions(&since, sql);
        ensure!(!decisions.is_empty(), "{sql} is not on the record");
        assert!(decisions.iter().all(|decision| decision.get("allowed") == Some(&Value::Bool(true))), "{decisions:?}");
    }

    enforce(&mut weir)?;
    assert!(!weir.weir(["status"])?.succeeded()?.contains("OBSERVE"));
    for sql in WORK {
        weir.agent(CLAUDE)?.psql(&database, sql)?.succeeded()?;
    }
    for sql in NEAR_MISSES {
        let told = weir.agent(CLAUDE)?.psql(&database, sql)?.failed()?;
        assert!(told.contains("Weir refused this statement"), "{sql}: {told}");
    }
    assert_eq!(database.sql("SELECT count(*) FROM customers")?, "100");
    // What is refused is proposed as well, and said to be refused.
    let again = weir.weir(["policy", "suggest", "--json"])?;
    let again = rows(&again)?;
    let delete = again.iter().find(|row| text(row, "/policy").contains("Action::\"delete\""));
    let because = delete.context("no permit for the DELETE")?.pointer("/because").context("no reason")?.to_string();
    assert!(because.contains("delete: 1 statement (0 let pass, 1 refused)"), "{because}");

    weir.stop()?;
    let store = weir.setup().folder().join("record").display().to_string();
    let offline = rows(&weir.weir(["policy", "suggest", "--json", "--store", &store])?)?;
    assert_eq!(offline, again);
    Ok(())
}

#[test]
fn that_a_connection_only_observes_is_said_everywhere() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| observing(setup, &database))?;
    assert!(weir.log().contains("THE CONNECTION ONLY OBSERVES"), "{}", weir.log());
    let status = weir.weir(["status"])?.succeeded()?;
    assert!(status.contains("CONNECTIONS ONLY OBSERVE") && status.contains("ONLY OBSERVED   orders"), "{status}");
    let doctor = weir.weir(["doctor"])?.stdout();
    let warned = doctor.lines().find(|line| line.contains("mode of orders")).context("the doctor says nothing")?;
    assert!(warned.starts_with("WARNING") && warned.contains("ONLY OBSERVES"), "{warned}");

    let words = ["explain", "--agent", CLAUDE, "--connection", "orders", "--group", "corp/readers"];
    let explained = weir.program(words)?.args(["DELETE FROM customers"]).run()?;
    assert_eq!(explained.status().code(), Some(2));
    let told = explained.stdout();
    assert!(told.contains("would be refused: no policy permits") && told.contains("IS LET PASS"), "{told}");
    let role = &servers()?.postgres.role;
    let own = weir.program(words)?.args([format!("ALTER ROLE {role} PASSWORD 'x'")]).run()?;
    assert!(!own.stdout().contains("IS LET PASS"), "{}", own.stdout());

    weir.agent(CLAUDE)?.psql(&database, "SELECT count(*) FROM customers")?.succeeded()?;
    let shown = weir.weir(["log", "--decision", "observed"])?.succeeded()?;
    let line = shown.lines().find(|line| line.contains("count(*)")).context("not in the log")?;
    assert!(line.contains("OBSERVE") && line.contains("LET PASS, though denied") && line.contains("1 rows"), "{line}");
    for decision in ["deny", "allow"] {
        let shown = weir.weir(["log", "--decision", decision])?.succeeded()?;
        assert!(!shown.contains("count(*)"), "{decision}: {shown}");
    }
    let sessions = weir.weir(["sessions"])?.succeeded()?;
    assert!(sessions.contains("LET PASS"), "{sessions}");
    let all = log(&weir)?;
    let asked = all.iter().find(|row| text(row, "/event/request/sql").contains("count(*)")).context("not recorded")?;
    let page = weir.weir(["show", text(asked, "/session/id")])?.succeeded()?;
    assert!(page.contains("OBSERVE: what the policies deny is let pass"), "{page}");
    assert!(page.contains("LET PASS, though DENIED by no policy"), "{page}");
    let start = all.iter().find(|row| text(row, "/event/admin/what") == "daemon-start").context("no start")?;
    assert!(text(start, "/event/admin/detail").contains("ONLY OBSERVING on orders"), "{start}");
    Ok(())
}

#[test]
fn where_a_connection_observes_weirs_own_refusals_bind_and_prepared_statements_are_on_the_record() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| observing(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let role = &servers()?.postgres.role;
    let long = format!("SELECT '{}'", "x".repeat(10_000));
    let own_role = format!("ALTER ROLE {role} PASSWORD 'x'");
    let own_setting = format!("ALTER ROLE {role} SET statement_timeout = 1");
    let database_path = format!("ALTER DATABASE {} SET search_path = mine, public", database.name);
    let deep = format!("SELECT {}1{}", "(".repeat(500), ")".repeat(500));
    for (sql, why) in [
        (long.as_str(), "limits.statement_bytes"),
        (own_role.as_str(), "can be changed by no policy"),
        (own_setting.as_str(), "can be changed by no policy"),
        ("ALTER ROLE CURRENT_USER SET statement_timeout = 1", "can be changed by no policy"),
        ("ALTER ROLE CURRENT_USER SET work_mem FROM CURRENT", "can be changed by no policy"),
        ("ALTER ROLE CURRENT_USER SET search_path FROM CURRENT", "no policy can permit that"),
        ("ALTER USER SESSION_USER RESET statement_timeout", "can be changed by no policy"),
        ("ALTER ROLE CURRENT_ROLE RESET ALL", "no policy can permit that"),
        (database_path.as_str(), "would read statements otherwise"),
        (deep.as_str(), "nest"),
        ("SELEC 1", "syntax error"),
        ("PREPARE a AS SELECT 1; PREPARE b AS EXECUTE a", "syntax error"),
    ] {
        let told = agent.psql(&database, sql)?.failed()?;
        assert!(told.contains(why), "{sql}: {told}");
    }
    let denied = rows(&weir.weir(["log", "--decision", "deny", "--json"])?)?;
    assert!(denied.iter().any(|row| text(row, "/event/request/sql").starts_with("ALTER ROLE")));

    let kept = "SELECT count(*) FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_roles r ON r.oid = s.setrole";
    assert_eq!(database.sql(&format!("{kept} WHERE r.rolname = '{role}' AND setdatabase = 0"))?, "0");

    // Prepared by the library after some executions: each is on the record as it was let pass.
    let mut client = Client::start(&agent, &database)?;
    client.connect()?.rows()?;
    for _ in 0..8 {
        client.sql("SELECT name FROM customers WHERE id = 5")?.rows()?;
    }
    let log = log(&weir)?;
    let prepared = decisions(&log, "SELECT name FROM customers WHERE id = 5");
    assert!(prepared.len() > 8, "a Parse, and each execution: {}", prepared.len());
    assert!(prepared.iter().all(|decision| decision.pointer("/denied/observed") == Some(&Value::Bool(true))));
    Ok(())
}

#[test]
fn what_was_denied_is_suggested_to_nobody_but_root_and_auditors() -> Result<()> {
    let database = Database::create()?;
    let auditor = end_to_end::UnixUser::claim()?;
    let weir = Weir::start(|setup| {
        setup.set("daemon.auditors", vec![auditor.name.clone()])?;
        observing(setup, &database)
    })?;
    weir.agent(CLAUDE)?.psql(&database, "SELECT name FROM customers WHERE id = 1")?.succeeded()?;
    let words = weir.program(["policy", "suggest"])?.into_command();
    let words: Vec<_> = std::iter::once(words.get_program()).chain(words.get_args()).map(ToOwned::to_owned).collect();
    // The configuration says where the daemon is; to read it is not what is tried here.
    let file = weir.setup().folder().join("weir.toml");
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let other = end_to_end::UnixUser::claim()?;
    let refused = weir.setup().scope().program_as(&other.name, "shell", &words)?.run()?.failed()?;
    ensure!(refused.contains("auditors") && !refused.contains("customers"), "{refused}");
    let told = weir.setup().scope().program_as(&auditor.name, "shell", &words)?.run()?.succeeded()?;
    ensure!(told.contains("customers"), "{told}");
    Ok(())
}

#[test]
fn a_table_with_a_hostile_name_is_suggested_as_it_is_and_nothing_more() -> Result<()> {
    let database = Database::create()?;
    let role = &servers()?.postgres.role;
    database.sql(&format!("CREATE TABLE \"{HOSTILE}\" (id int); ALTER TABLE \"{HOSTILE}\" OWNER TO {role}"))?;
    let mut weir = Weir::start(|setup| observing(setup, &database))?;
    let select = format!("SELECT id FROM \"{HOSTILE}\"");
    weir.agent(CLAUDE)?.psql(&database, &select)?.succeeded()?;
    let suggested = weir.weir(["policy", "suggest", "--by", "column", "--for", "groups"])?.succeeded()?;
    assert_eq!(suggested.matches("permit (").count(), 1, "{suggested}");
    assert!(suggested.is_ascii() || !suggested.contains('\u{202e}'), "{suggested}");
    weir.setup().policy("suggested.cedar", &suggested)?;
    let policies = weir.setup().folder().join("policies");
    weir.program(["policy", "check"])?.args([&policies]).run()?.succeeded()?;
    enforce(&mut weir)?;
    weir.agent(CLAUDE)?.psql(&database, &select)?.succeeded()?;
    for sql in ["SELECT id FROM customers", &select.replace("id", "*")] {
        weir.agent(CLAUDE)?.psql(&database, sql)?.failed()?;
    }
    Ok(())
}
