//! What is allowed comes out as if Weir were not there.

use anyhow::{Context, Result, ensure};
use end_to_end::Database;

use crate::player::{Style, play, play_direct, weir, words};

const SCENARIOS: &str = include_str!("same.py");
/// How much more memory the daemon may take for an answer of any length.
const MEMORY: u64 = 24 << 20;

/// Plays each scenario straight, through Weir, and through Weir with messages in pieces.
fn the_same(scenarios: &[&str]) -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let agent = weir.agent("claude")?;
    let mut differing = Vec::new();
    for scenario in scenarios {
        let direct = play_direct(&database, SCENARIOS, scenario, Style::Bytes)?;
        ensure!(direct.lines().count() > 15, "the scenario {scenario} hardly got an answer:\n{direct}");
        let whole = play(&agent, &database, SCENARIOS, scenario, Style::Bytes)?;
        let words = words(SCENARIOS, scenario, &database, Style::Bytes)?;
        let pieces = agent.program(words)?.env("PIECE", "7").run()?.succeeded()?;
        for (how, got) in [("whole", whole), ("in pieces", pieces)] {
            differing.extend(difference(&direct, &got).map(|what| format!("{scenario}, {how}: {what}")));
        }
    }
    ensure!(differing.is_empty(), "{}", differing.join("\n\n"));
    Ok(())
}

/// The first line that differs, with the one before it.
pub(crate) fn difference(direct: &str, got: &str) -> Option<String> {
    if direct == got {
        return None;
    }
    let (direct, got): (Vec<_>, Vec<_>) = (direct.lines().collect(), got.lines().collect());
    let at = direct.iter().zip(&got).take_while(|(a, b)| a == b).count();
    let line = |lines: &[&str], at: usize| lines.get(at).copied().unwrap_or("nothing").to_owned();
    let before = at.checked_sub(1).map(|before| line(&direct, before)).unwrap_or_default();
    Some(format!("line {at}, after {before}\n  direct: {}\n  weir:   {}", line(&direct, at), line(&got, at)))
}

#[test]
fn simple_queries_transactions_and_settings_are_answered_as_by_the_server_itself() -> Result<()> {
    the_same(&["simple", "transactions", "settings"])
}

#[test]
fn extended_queries_pipelines_and_portals_are_answered_as_by_the_server_itself() -> Result<()> {
    the_same(&["extended", "pipelines", "portals"])
}

#[test]
fn statements_prepared_by_sql_and_cursors_are_answered_as_by_the_server_itself() -> Result<()> {
    the_same(&["prepared_by_sql", "cursors"])
}

#[test]
fn copies_are_answered_as_by_the_server_itself() -> Result<()> {
    the_same(&["copies", "copies_extended"])
}

#[test]
fn notifications_are_answered_as_by_the_server_itself() -> Result<()> {
    the_same(&["notifications"])
}

#[test]
fn large_answers_come_whole_while_the_daemon_s_memory_stays_flat() -> Result<()> {
    let database = Database::create()?;
    let weir = weir(&database)?;
    let agent = weir.agent("claude")?;
    // Once before it is measured: what is made once is made now.
    agent.psql(&database, "SELECT 1")?.succeeded()?;
    let before = peak_memory(weir.pid())?;
    let direct = play_direct(&database, SCENARIOS, "large", Style::Bytes)?;
    let got = play(&agent, &database, SCENARIOS, "large", Style::Bytes)?;
    if let Some(difference) = difference(&direct, &got) {
        anyhow::bail!("{difference}");
    }
    let grown = peak_memory(weir.pid())?.saturating_sub(before);
    ensure!(grown < MEMORY, "the daemon took {} MiB more", grown >> 20);
    Ok(())
}

/// The most that the process ever held, in bytes.
fn peak_memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}
