//! What one session changes, and what others see of it: nobody reads with an old schema, and nobody waits for who goes on
//! changing it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use end_to_end::{Agent, Database, Weir, servers, wait_until};

use crate::player::{Style, everything, play, words};
use crate::record::events;

const SCENARIOS: &str = r#"
import time

def churn():
    """Statements that call and change without end, in one message; their answers come one by one."""
    c = Client()
    c.style = "none"
    rows = "SELECT repeat('x', 9000), pg_sleep(0.01)"
    text = "; ".join(["BEGIN", rows, "CREATE TABLE churned (i int)", "COMMIT", rows, "DROP TABLE churned"] * 200)
    show("churning")
    while True:
        c.send(query(text))
        while c.take()[0] != b"Z":
            pass

def works():
    """The longest of some statements, in milliseconds."""
    c = Client()
    c.style = "none"
    longest = 0
    for number in range(20):
        begun = time.perf_counter()
        c.send(query(f"SELECT name FROM customers WHERE id = {number}"))
        while c.take()[0] != b"Z":
            pass
        longest = max(longest, time.perf_counter() - begun)
    show(round(longest * 1000))
"#;
/// A statement of an agent's beside another that changes things.
const LONGEST_MILLISECONDS: u64 = 1_000;

fn two_agents(database: &Database) -> Result<Weir> {
    Weir::start(|setup| {
        everything(setup, database)?;
        setup.agent("codex", &["all"])
    })
}

#[test]
fn who_goes_on_changing_the_schema_keeps_nobody_waiting() -> Result<()> {
    let database = Database::create()?;
    let weir = two_agents(&database)?;
    let churner = words(SCENARIOS, "churn", &database, Style::Brief)?;
    let mut churning = weir.agent("codex")?.program(churner)?.into_command().stdout(Stdio::piped()).spawn()?;
    let mut told = BufReader::new(churning.stdout.take().context("no output")?).lines();
    let begun = told.by_ref().take(2).last().context("it ended")??;
    let shown = play(&weir.agent("claude")?, &database, SCENARIOS, "works", Style::Brief);
    let goes_on = churning.try_wait()?.is_none();
    churning.kill()?;
    churning.wait()?;
    ensure!(begun == "churning" && goes_on, "it told `{begun}`");
    let longest: u64 = shown?.lines().last().context("nothing shown")?.parse()?;
    ensure!(longest < LONGEST_MILLISECONDS, "a statement took {longest} ms");
    Ok(())
}

#[test]
fn what_an_agent_was_told_is_done_the_next_statement_of_another_is_read_with() -> Result<()> {
    let database = Database::create()?;
    let weir = two_agents(&database)?;
    let (claude, codex) = (weir.agent("claude")?, weir.agent("codex")?);
    let role = &servers()?.postgres.role;
    let reads = |agent: &Agent<'_>| -> Result<String> {
        agent.psql(&database, "SELECT count(*) FROM customers")?.succeeded()?;
        let requests = events(&weir, "request")?;
        let last = requests.iter().rfind(|request| request["sql"] == "SELECT count(*) FROM customers");
        Ok(last.context("not on the record")?["accesses"].to_string())
    };
    ensure!(reads(&codex)?.contains("select public.customers"), "{}", reads(&codex)?);
    // The role's own schema stands before public in its path.
    claude.psql(&database, &format!("CREATE SCHEMA {role} CREATE TABLE customers (id int)"))?.succeeded()?;
    ensure!(reads(&codex)?.contains(&format!("select {role}.customers")), "{}", reads(&codex)?);
    // The same in a body that Weir does not see into: the caller's own next statement, and others' within a second.
    let body = format!("CREATE FUNCTION hidden() RETURNS void LANGUAGE sql AS 'DROP TABLE {role}.customers'");
    claude.psql(&database, &body)?.succeeded()?;
    let both = "SELECT hidden(); SELECT count(*) FROM customers";
    claude.psql(&database, both)?.succeeded()?;
    wait_until("others read with it", std::time::Duration::from_secs(5), || {
        Ok(reads(&codex)?.contains("select public.customers").then_some(()))
    })
}

#[test]
fn settings_of_the_role_do_not_keep_weir_from_the_catalogue() -> Result<()> {
    let database = Database::create()?;
    let (role, name) = (&servers()?.postgres.role, &database.name);
    for setting in
        ["statement_timeout = '8ms'", "search_path = 'pg_temp'", "row_security = off", "lock_timeout = '1ms'"]
    {
        database.sql(&format!("ALTER ROLE {role} IN DATABASE {name} SET {setting}"))?;
    }
    let weir = two_agents(&database)?;
    let shown = weir.agent("claude")?.psql(&database, "SELECT count(*) FROM public.customers")?.succeeded()?;
    assert_eq!(shown, "100");
    Ok(())
}
