//! Versions of the protocol: Weir speaks 3.0 and 3.2 with agents, whatever the server speaks with Weir.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Weir};

use crate::player::{Style, play, weir};

const SCENARIOS: &str = include_str!("versions.py");
const LIBPQ_18: &str = include_str!("libpq18.py");

#[test]
fn each_version_that_an_agent_may_ask_for_gets_its_answer() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let shown = play(&weir.agent("claude")?, &database, SCENARIOS, "answers", Style::Brief)?;
    let answers: Vec<_> = shown.lines().filter(|line| line.starts_with("3.")).collect();
    assert_eq!(
        answers,
        [
            "3.0: None, 4 bytes",
            "3.1: 3.0, 4 bytes",
            "3.2: None, 32 bytes",
            "3.3: 3.2, 32 bytes",
            "3.9999: 3.2, 32 bytes",
            "3.0 and more: 3.0 _pq_.one _pq_.test_protocol_negotiation, 4 bytes",
            "3.2 and more: 3.2 _pq_.one _pq_.test_protocol_negotiation, 32 bytes",
            "3.9999 and more: 3.2 _pq_.one _pq_.test_protocol_negotiation, 32 bytes",
        ]
    );
    assert_eq!(shown.lines().filter(|line| *line == "D 1").count(), 5, "each is served: {shown}");
    Ok(())
}

#[test]
fn a_long_key_cancels_as_a_whole_alone() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let shown = play(&weir.agent("claude")?, &database, SCENARIOS, "keys", Style::Brief)?;
    let cancelled = "E 57014 canceling statement due to user request";
    assert_eq!(
        shown.lines().collect::<Vec<_>>(),
        ["Z I", "T", cancelled, "Z I", "T", "D goes on", "C SELECT 1", "Z I"]
    );
    Ok(())
}

/// The packages of the Python environment with libpq 18, where the agent's user can read them.
fn packages(weir: &Weir) -> Result<PathBuf> {
    let libraries = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/postgres18/lib");
    let python = std::fs::read_dir(libraries).context("run `cargo xtask setup`")?.next().context("no Python")??;
    let folder = weir.setup().folder().join("packages");
    std::fs::create_dir(&folder)?;
    for name in ["psycopg", "psycopg_binary", "psycopg_binary.libs", "typing_extensions.py"] {
        let package = python.path().join("site-packages").join(name);
        ensure!(Command::new("cp").arg("-r").arg(&package).arg(&folder).status()?.success(), "{}", package.display());
    }
    Ok(folder)
}

#[test]
fn the_client_library_of_postgresql_18_negotiates_and_cancels() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let words = ["/usr/bin/python3", "-c", LIBPQ_18, &database.address()?];
    let ran = weir.agent("claude")?.program(words)?.env("PYTHONPATH", packages(&weir)?).run()?;
    assert_eq!(ran.succeeded()?, "all as expected");
    Ok(())
}
