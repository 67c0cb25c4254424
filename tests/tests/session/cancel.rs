//! Cancel requests: by Weir's own keys, for the agent that was given them.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use end_to_end::{Agent, Database, Weir};

use crate::player::{Style, everything, play, words};

const SCENARIOS: &str = include_str!("cancel.py");
const CANCELLED: &str = "E 57014 canceling statement due to user request";

fn weir(database: &Database) -> Result<Weir> {
    Weir::start(|setup| {
        everything(setup, database)?;
        setup.agent("codex", &["all"])
    })
}

#[test]
fn an_agent_cancels_its_own_statement_and_goes_on() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let shown = play(&weir.agent("claude")?, &database, SCENARIOS, "own", Style::Brief)?;
    assert_eq!(
        shown.lines().collect::<Vec<_>>(),
        ["Z I", "T", CANCELLED, "Z I", "T", "D goes on", "C SELECT 1", "Z I"]
    );
    let shown = play(&weir.agent("claude")?, &database, SCENARIOS, "wrong", Style::Brief)?;
    assert_eq!(shown.lines().collect::<Vec<_>>(), ["Z I", "T", "D ", "C SELECT 1", "Z I"], "by a wrong secret");
    Ok(())
}

#[test]
fn another_agent_cancels_nothing_even_with_the_right_key() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let (claude, codex) = (weir.agent("claude")?, weir.agent("codex")?);
    assert_eq!(sleep_while_cancelled_by(&claude, &codex, "3", &database)?, ["T", "D ", "C SELECT 1", "Z I"]);
    // The same by another process of the same agent does cancel.
    assert_eq!(sleep_while_cancelled_by(&claude, &claude, "50", &database)?, ["T", CANCELLED, "Z I"]);
    Ok(())
}

/// What `sleeper` is answered while `other` cancels with the sleeper's key, again and again.
fn sleep_while_cancelled_by(
    sleeper: &Agent<'_>,
    other: &Agent<'_>,
    seconds: &str,
    database: &Database,
) -> Result<Vec<String>> {
    let (mut sleeper, mut lines) = start(sleeper, "sleep", ("SECONDS", seconds), database)?;
    let mut next = || lines.next().context("the sleeper has ended")?.map_err(anyhow::Error::from);
    ensure!(next()? == "Z I", "no session");
    let (mut other, other_lines) = start(other, "other", ("KEY", &next()?), database)?;
    let rest = lines.collect::<Result<Vec<_>, _>>()?;
    drop(other.stdin.take());
    let tries = other_lines.map_while(Result::ok).filter(|line| line == "cancelled").count();
    ensure!(tries > 0, "nothing was tried");
    ensure!(sleeper.wait()?.success() && other.wait()?.success(), "a client failed");
    Ok(rest)
}

type Lines = std::io::Lines<BufReader<std::process::ChildStdout>>;

fn start(agent: &Agent<'_>, scenario: &str, env: (&str, &str), database: &Database) -> Result<(Child, Lines)> {
    let words = words(SCENARIOS, scenario, database, Style::Brief)?;
    let mut command = agent.program(words)?.env(env.0, env.1).into_command();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    Ok((child, lines))
}
