//! Policies change all or nothing, under sessions that are open.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Weir, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::stage::{CLAUDE, Client, READ, WRITE, log, reader, rows, text};

const INSERT: &str = "INSERT INTO customers VALUES (1001, 'n', 'e', 'c')";
const RELOADED: Duration = Duration::from_secs(10);

#[test]
fn an_open_session_goes_by_new_policies_at_its_next_statement() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let mut client = Client::start(&agent, &database)?;
    client.connect()?.rows()?;
    let refused = client.sql(INSERT)?;
    assert_eq!(refused.sqlstate.as_deref(), Some("42501"));
    assert!(refused.hint.is_some_and(|hint| !hint.is_empty()));

    weir.setup().policy("write.cedar", WRITE)?;
    let told = weir.weir(["policy", "reload"])?.succeeded()?;
    assert!(told.contains("readers-write"), "{told}");
    client.sql(INSERT)?.rows()?;

    std::fs::remove_file(weir.setup().folder().join("policies/write.cedar"))?;
    weir.signal(Signal::HUP)?;
    wait_until("SIGHUP takes the permit away", RELOADED, || {
        let told = client.sql("DELETE FROM customers WHERE id = 1001")?;
        Ok((told.sqlstate.as_deref() == Some("42501")).then_some(()))
    })?;
    let log = log(&weir)?;
    let reloads = log.iter().filter(|row| text(row, "/event/admin/what") == "policy-reload").count();
    assert_eq!(reloads, 2);
    Ok(())
}

#[test]
fn a_broken_policy_leaves_all_as_it_was_and_says_where() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let mut client = Client::start(&agent, &database)?;
    client.connect()?.rows()?;
    let before = text(&status(&weir)?, "/policy_set").to_owned();

    // One good file beside one that is broken: neither counts.
    weir.setup().policy("write.cedar", WRITE)?;
    weir.setup().policy("broken.cedar", "\n@id(\"x\")\n@description(\"y\")\npermit (principal, action, resorce);\n")?;
    let told = weir.weir(["policy", "reload"])?.failed()?;
    assert!(told.contains("broken.cedar:4"), "{told}");
    weir.signal(Signal::HUP)?;
    wait_until("SIGHUP is refused, too", RELOADED, || Ok(weir.log().contains("broken.cedar:4").then_some(())))?;
    assert_eq!(text(&status(&weir)?, "/policy_set"), before);
    client.sql("SELECT count(*) FROM customers")?.rows()?;
    assert_eq!(client.sql(INSERT)?.sqlstate.as_deref(), Some("42501"));
    let log = log(&weir)?;
    let refused = log.iter().find(|row| text(row, "/event/admin/what") == "policy-reload-refused");
    assert!(text(refused.context("not on the record")?, "/event/admin/detail").contains("broken.cedar:4"));
    Ok(())
}

#[test]
fn a_daemon_does_not_start_with_a_broken_policy() -> Result<()> {
    let database = Database::create()?;
    let started = Weir::start(|setup| {
        reader(setup, &database)?;
        setup.policy("held.cedar", &READ.replace("@id(\"readers-", "@approval(\"humans\")\n@id(\"held-"))
    });
    let Err(error) = started else { anyhow::bail!("it started with an annotation that it doesn't know") };
    let told = format!("{error:#}");
    assert!(told.contains("held.cedar:") && told.contains("approval"), "{told}");
    Ok(())
}

#[test]
fn policies_are_checked_documented_and_explained() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let policies = weir.setup().folder().join("policies");

    let checked = weir.program(["policy", "check"])?.args([&policies]).run()?.succeeded()?;
    assert!(!checked.is_empty());
    let doc = weir.weir(["policy", "doc"])?.succeeded()?;
    for promised in ["corp/readers", "readers-read", "Readers may read."] {
        assert!(doc.contains(promised), "{promised} is not in:\n{doc}");
    }
    let agent = weir.agent(CLAUDE)?;
    let _run = Client::start(&agent, &database)?;
    wait_until("the run is enrolled", RELOADED, || {
        Ok(weir.weir(["agent", "list"])?.succeeded()?.contains("the run is identified").then_some(()))
    })?;
    let explain = |sql: &str| {
        let words = ["explain", "--agent", CLAUDE, "--connection", "orders"];
        weir.program(words)?.args(["--group", "corp/readers", sql]).run()
    };
    let allowed = explain("SELECT name FROM customers")?;
    let told = allowed.succeeded()?;
    assert!(told.contains("readers-read") && told.contains("read.cedar:"), "{told}");
    let refused = explain("DELETE FROM customers")?;
    assert_eq!(refused.status().code(), Some(2), "{}", refused.stderr());
    assert!(refused.stdout().contains("delete") && refused.stdout().contains("refused"), "{}", refused.stdout());
    // Nothing of it was run.
    assert_eq!(database.sql("SELECT count(*) FROM customers")?, "100");

    weir.setup().policy("bad.cedar", "permit (principal, action, resource);\n")?;
    let faults = weir.program(["policy", "check"])?.args([&policies]).run()?;
    assert_eq!(faults.status().code(), Some(1));
    assert!(faults.stdout().contains("bad.cedar:1") && faults.stdout().contains("@id"), "{}", faults.stdout());
    Ok(())
}

fn status(weir: &Weir) -> Result<Value> {
    let mut rows = rows(&weir.weir(["status", "--json"])?)?;
    ensure!(rows.len() == 1, "one row is a status, not {}", rows.len());
    rows.pop().context("no row")
}
