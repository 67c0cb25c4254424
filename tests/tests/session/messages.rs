//! Whole conversations of real libraries, message by message: psycopg and tokio-postgres get the same through Weir as
//! straight from the server.
//!
//! A recorder (`recorder.py`) runs the library's program and stands between it and what it takes for the server. What it
//! leaves out of the comparison, it names: what is each way's own at start-up, and the process numbers of sessions.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Program, servers};

use crate::player::weir;
use crate::same::difference;

const RECORDER: &str = include_str!("recorder.py");
const PSYCOPG: &str = include_str!("ordinary.py");
const TABLES: &str = include_str!("messages.sql");

/// A library's programs.
enum Library {
    Psycopg,
    TokioPostgres,
}

/// Runs each part straight and through Weir, on one database: types and tables keep their OIDs.
fn the_same(library: &Library, parts: &[&str]) -> Result<()> {
    let database = Database::create()?;
    database.sql(&TABLES.replace("weir_upstream", &servers()?.postgres.role))?;
    let weir = weir(&database)?;
    let agent = weir.agent("claude")?;
    let recorder = write(&database, "recorder.py", RECORDER.as_bytes())?;
    let client = match library {
        Library::Psycopg => {
            let values = PSYCOPG.replace("weir_upstream", &servers()?.postgres.role);
            vec!["/usr/bin/python3".to_owned(), write(&database, "ordinary.py", values.as_bytes())?]
        }
        Library::TokioPostgres => {
            vec![write(&database, "ordinary", &std::fs::read(env!("CARGO_BIN_EXE_ordinary"))?)?]
        }
    };
    let mut differing = Vec::new();
    for part in parts {
        let mut words = vec!["/usr/bin/python3".to_owned(), recorder.clone()];
        words.extend(["127.0.0.1".to_owned(), servers()?.postgres.port.to_string()]);
        words.extend(client.iter().cloned().chain([(*part).to_owned()]));
        let direct = recorded(Program::new(&words).env("PGPASSWORD", &servers()?.postgres.password), &database)?;
        ensure!(direct.lines().count() > 40, "{part} hardly got an answer:\n{direct}");
        let through = recorded(agent.program(&words)?, &database)?;
        differing.extend(difference(&direct, &through).map(|what| format!("{part}: {what}")));
    }
    ensure!(differing.is_empty(), "{}", differing.join("\n\n"));
    // The second way led through Weir indeed.
    let sessions = weir.weir(["sessions", "--json"])?.succeeded()?;
    ensure!(sessions.lines().count() >= parts.len(), "too few sessions came to Weir:\n{sessions}");
    Ok(())
}

/// What the program got, and what it made of that.
fn recorded(program: Program, database: &Database) -> Result<String> {
    let program = program.env("PGDATABASE", &database.name).env("PGUSER", &servers()?.postgres.role);
    program.run()?.succeeded()
}

/// Puts a program where the agent's user can run it.
fn write(database: &Database, name: &str, bytes: &[u8]) -> Result<String> {
    let file = servers()?.folder.join(format!("{}-{name}", database.name));
    std::fs::write(&file, bytes)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
    Path::to_str(&file).map(ToOwned::to_owned).context("the folder of the tests isn't UTF-8")
}

#[test]
fn psycopg_s_types_and_parameters_come_as_from_the_server_itself() -> Result<()> {
    the_same(&Library::Psycopg, &["types", "parameters"])
}

#[test]
fn psycopg_s_statements_transactions_and_cursors_come_as_from_the_server_itself() -> Result<()> {
    the_same(&Library::Psycopg, &["statements", "transactions", "cursors"])
}

#[test]
fn psycopg_s_copies_and_pipelines_come_as_from_the_server_itself() -> Result<()> {
    the_same(&Library::Psycopg, &["copies", "pipelines", "asynchronous"])
}

#[test]
fn psycopg_s_cancels_and_notifications_come_as_from_the_server_itself() -> Result<()> {
    the_same(&Library::Psycopg, &["cancel", "notifications"])
}

#[test]
fn tokio_postgres_types_statements_and_transactions_come_as_from_the_server_itself() -> Result<()> {
    the_same(&Library::TokioPostgres, &["types", "statements", "transactions"])
}

#[test]
fn tokio_postgres_portals_copies_pipelines_and_cancels_come_as_from_the_server_itself() -> Result<()> {
    the_same(&Library::TokioPostgres, &["portals", "copies", "pipelines", "cancel"])
}
