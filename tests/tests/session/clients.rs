//! Real clients: psql and Python's, under TLS and without.

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, servers};

use crate::player::{Style, play, weir};
use crate::record::events;

const PROGRAM: &str = include_str!("clients.py");
const TLS: &str = include_str!("tls.py");

#[test]
fn python_programs_work_as_without_weir() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let words = ["/usr/bin/python3", "-c", PROGRAM, &database.address()?];
    assert_eq!(weir.agent("claude")?.run(words)?.succeeded()?, "all as expected");
    Ok(())
}

#[test]
fn psql_checks_weir_s_certificate_in_full_and_the_server_sees_tls_weir_s_role_and_the_agent_s_name() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let agent = weir.agent("claude")?;
    let psql = servers()?.postgres.programs.join("psql");
    let upstream = "SELECT ssl, usename, application_name FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                    WHERE pid = pg_backend_pid()";
    for (mode, under_tls) in [("verify-full", true), ("require", true), ("disable", false)] {
        let address = format!("{} sslmode={mode} user=whoever", database.address()?);
        let run = agent.program([&psql])?.args(["-XAtq", "-d", &address, "-c", "\\conninfo", "-c", upstream]);
        let shown = run.run()?.succeeded()?;
        assert_eq!(shown.contains("SSL connection (protocol: TLSv1.3"), under_tls, "{mode}: {shown}");
        let seen = shown.lines().last().unwrap_or_default();
        ensure!(seen.starts_with(&format!("t|{}|weir:claude:", servers()?.postgres.role)), "{mode}: {seen}");
        ensure!(seen.ends_with(" psql"), "{mode}: {seen}");
    }
    let tls: Vec<_> = events(&weir, "session_start")?.iter().map(|start| start["tls"] == true).collect();
    assert_eq!(tls, [true, true, false]);
    Ok(())
}

#[test]
fn tls_may_begin_without_a_request_but_only_for_postgresql() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let agent = weir.agent("claude")?;
    let shown = play(&agent, &database, TLS, "direct", Style::Brief)?;
    assert_eq!(shown.lines().collect::<Vec<_>>(), ["Z I", "postgresql", "T", "D 1", "C SELECT 1", "Z I"]);
    let shown = play(&agent, &database, TLS, "other_protocol", Style::Brief)?;
    ensure!(shown.ends_with("Error") && !shown.contains("Z I"), "{shown}");
    Ok(())
}

#[test]
fn weir_s_certificate_is_for_the_names_that_are_declared_and_from_its_own_authority() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let agent = weir.agent("claude")?;
    let psql = servers()?.postgres.programs.join("psql");
    // The server's own authority did not sign what the agent sees: there is no way through but Weir.
    let server_ca = &servers()?.postgres.ca_certificate;
    let copy = weir.setup().folder().join("server-ca.crt");
    std::fs::copy(server_ca, &copy)?;
    let address = format!("{} sslmode=verify-full sslrootcert={}", database.address()?, copy.display());
    let refused = agent.program([&psql])?.args(["-XAtq", "-d", &address, "-c", "SELECT 1"]).run()?.failed()?;
    ensure!(refused.contains("certificate verify failed"), "{refused}");
    let other = format!("{} sslmode=verify-full host=elsewhere.example hostaddr=127.0.0.1", database.address()?);
    let refused = agent.program([&psql])?.args(["-XAtq", "-d", &other, "-c", "SELECT 1"]).run()?.failed()?;
    ensure!(refused.contains("elsewhere.example") && refused.contains("does not match"), "{refused}");
    let names = weir.weir(["ca", "show", "--json"])?.succeeded()?;
    let names: serde_json::Value = serde_json::from_str(&names)?;
    let names = names["names"].as_array().context("no names")?.clone();
    assert_eq!(names.len(), 1, "{names:?}");
    Ok(())
}
