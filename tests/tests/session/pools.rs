//! What pools and frameworks say beside their users' statements: the texts that they send, under the policies that readers
//! get to begin with.

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Setup, Weir};

const BASELINE: &str = include_str!("../../../policies/00-baseline.cedar");
/// Each is one message.
const SAID: &[&str] = &[
    // asyncpg, when a connection goes back to its pool.
    "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;",
    // Npgsql, the same: plain, and for one with statements that stay prepared.
    "DISCARD ALL",
    "SET SESSION AUTHORIZATION DEFAULT;RESET ALL;CLOSE ALL;UNLISTEN *;SELECT pg_advisory_unlock_all();DISCARD SEQUENCES;\
     DISCARD TEMP",
    // SQLAlchemy, at the first connection and before one is given out.
    "select pg_catalog.version()",
    "select current_schema()",
    "show standard_conforming_strings",
    "SHOW transaction isolation level",
    "BEGIN; SELECT 1; ROLLBACK",
    // Django.
    "SELECT set_config('TimeZone', 'UTC', false)",
    "SELECT 1",
    // psycopg's and others' ways back.
    "RESET ROLE",
    "SET ROLE NONE",
    "RESET SESSION AUTHORIZATION",
    "SELECT set_config('role', 'none', false)",
];
/// What readers have no permit for.
const REFUSED: &[&str] = &[
    "SELECT pg_advisory_lock(1)",
    "LISTEN orders",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "SELECT set_config('role', 'pg_monitor', false)",
];

fn pools_work(declare: impl FnOnce(&mut Setup) -> Result<()>) -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| {
        setup.policy("baseline.cedar", BASELINE)?;
        setup.agent("claude", &["readers"])?;
        setup.connection("orders", &database)?;
        declare(setup)
    })?;
    let agent = weir.agent("claude")?;
    let mut wrong = Vec::new();
    for said in SAID {
        let ran = agent.psql(&database, said)?;
        wrong.extend((!ran.status().success()).then(|| format!("{said}: {}", ran.stderr())));
    }
    for said in REFUSED {
        let ran = agent.psql(&database, said)?;
        wrong.extend((!ran.stderr().contains("Weir refused this statement")).then(|| format!("{said} passed")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn readers_may_say_what_pools_and_frameworks_say() -> Result<()> {
    pools_work(|_| Ok(()))
}

#[test]
fn they_may_where_the_server_is_told_whose_a_session_is() -> Result<()> {
    pools_work(|setup| {
        let connection =
            setup.config.get_mut("connection").and_then(|list| list.get_mut(0)).context("no connection")?;
        connection.as_table_mut().context("no table")?.insert("identity_parameters".into(), true.into());
        Ok(())
    })
}
