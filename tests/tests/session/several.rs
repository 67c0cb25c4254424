//! A connection with several servers, as an agent sees it.

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Weir, servers};

use crate::player::everything;

/// A Weir whose connection has the servers `hosts`, all at the shared server's port.
fn weir(database: &Database, hosts: &[&str], wish: &str) -> Result<Weir> {
    Weir::start(|setup| {
        everything(setup, database)?;
        let connection = setup.config.get_mut("connection").and_then(|list| list.get_mut(0));
        let connection = connection.and_then(|first| first.as_table_mut()).context("no connection")?;
        connection.remove("host");
        connection.insert("hosts".into(), hosts.to_vec().into());
        connection.insert("target_session_attrs".into(), wish.into());
        Ok(())
    })
}

#[test]
fn every_server_of_a_connection_leads_to_weir_which_takes_the_one_that_is_there() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database, &["127.0.0.2", "127.0.0.1"], "read-write")?;
    let (agent, port) = (weir.agent("claude")?, servers()?.postgres.port);
    let psql = servers()?.postgres.programs.join("psql");
    for host in ["127.0.0.1", "127.0.0.2"] {
        let address = format!("host={host} port={port} dbname={} sslmode=verify-full", database.name);
        let name = "SELECT application_name ~ '^weir:claude:' FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        let shown = agent.program([&psql])?.args(["-XAtq", "-d", &address, "-c", name]).run()?.succeeded()?;
        assert_eq!(shown, "t", "{host}");
    }
    Ok(())
}

#[test]
fn when_no_server_will_do_the_error_has_the_fault_of_each() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database, &["127.0.0.2", "127.0.0.1"], "standby")?;
    let (refused, port) = (weir.agent("claude")?.psql(&database, "SELECT 1")?.failed()?, servers()?.postgres.port);
    for part in [
        &*format!("Weir cannot reach the server: connection `orders`, server 127.0.0.2:{port}: cannot connect; "),
        &*format!("server `127.0.0.1` (port {port}): target_session_attrs is `standby`, and it is no standby"),
        "HINT:  is `target_session_attrs` of the connection right",
    ] {
        ensure!(refused.contains(part), "no `{part}` in {refused}");
    }
    Ok(())
}
