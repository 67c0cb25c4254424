//! Plays scenarios with a client of bare messages: as an agent, and straight to the server.

use anyhow::{Context, Result};
use end_to_end::{Agent, Database, Program, Setup, Weir, servers};

const CLIENT: &str = include_str!("client.py");

/// How the client shows what it gets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style {
    /// Every byte.
    Bytes,
    /// What people look for.
    Brief,
}

/// Permits everything to the group `corp/all`: what it does must be as if Weir were not there.
const EVERYTHING: &str = r#"
    @id("everything")
    @description("For comparisons: all that a session can do.")
    permit (principal in Group::"corp/all", action, resource);
"#;

/// Declares the agent `claude`, who may do everything, and `database` as the connection `orders`.
pub(crate) fn everything(setup: &mut Setup, database: &Database) -> Result<()> {
    setup.policy("everything.cedar", EVERYTHING)?;
    setup.agent("claude", &["all"])?;
    setup.connection("orders", database)
}

/// A Weir with no more than that.
pub(crate) fn weir(database: &Database) -> Result<Weir> {
    Weir::start(|setup| everything(setup, database))
}

/// The client's words: the program, the scenario and where to connect.
pub(crate) fn words(scenarios: &str, scenario: &str, database: &Database, style: Style) -> Result<Vec<String>> {
    let postgres = &servers()?.postgres;
    let style = match style {
        Style::Bytes => "bytes",
        Style::Brief => "brief",
    };
    let program = servers()?.folder.join(format!("{}-{scenario}.py", database.name));
    std::fs::write(&program, format!("{CLIENT}\n{scenarios}\nrun()"))?;
    let program = program.to_str().context("the folder of the tests isn't UTF-8")?;
    let port = postgres.port.to_string();
    let words = ["/usr/bin/python3", program, scenario, "127.0.0.1", &port, &database.name, &postgres.role, style];
    Ok(words.map(ToOwned::to_owned).to_vec())
}

/// Plays `scenario` as `agent`, and gives what the client shows.
pub(crate) fn play(
    agent: &Agent<'_>,
    database: &Database,
    scenarios: &str,
    scenario: &str,
    style: Style,
) -> Result<String> {
    let ran = agent.run(words(scenarios, scenario, database, style)?)?;
    ran.succeeded().with_context(|| format!("scenario {scenario}, having shown:\n{}", ran.stdout()))
}

/// Plays `scenario` straight to the server: nothing outside of the daemon's scope is caught.
pub(crate) fn play_direct(database: &Database, scenarios: &str, scenario: &str, style: Style) -> Result<String> {
    let program = Program::new(words(scenarios, scenario, database, style)?);
    program.env("PGPASSWORD", &servers()?.postgres.password).run()?.succeeded()
}
