//! `weir sessions`, `weir show`, `weir log`: from the daemon, or offline from a store that no daemon holds.

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{ask_rows, connect, print_json, refused};
use crate::{
    control::{Client, ClientStep, RecordRequest, Reply, Request},
    record::{DecisionFilter, LogFilter, Reader, Row, SessionFilter, SessionId, SessionSummary, Time},
    show::{LogTable, RowLimit, SessionPage, sessions as sessions_table},
    sql::Action,
};

/// Characters of a statement that `weir log` shows on one line.
const STATEMENT_CHARACTERS: usize = 400;
/// Whoever follows sees a request without its outcome when that is so long in coming.
const RUNS_LONG: Duration = Duration::from_secs(1);

/// Whose part of the record.
#[derive(Debug, Args)]
struct Whose {
    /// Only of this agent.
    #[arg(long)]
    agent: Option<String>,
    /// Only of this subject (the token's `sub`).
    #[arg(long)]
    subject: Option<String>,
    /// Only of members of this group (ISSUER/GROUP).
    #[arg(long)]
    group: Option<String>,
    /// Only on this declared connection.
    #[arg(long)]
    connection: Option<String>,
    /// From then on: a time (2026-01-31T12:00:00Z) or how long ago (15m, 2h, 7d).
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Time>,
    /// Up to then, written as for --since.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Time>,
    /// Read this store instead of asking the daemon: its folder while the daemon is down, or one window's file.
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
    /// Exact lines of JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct SessionsArgs {
    #[command(flatten)]
    whose: Whose,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The session's name, as `weir sessions` shows it.
    session: String,
    /// Rows of each result that are laid out: a number, or `all`.
    #[arg(long, default_value = "20", value_parser = row_limit)]
    rows: RowLimit,
    /// Read this store instead of asking the daemon: its folder while the daemon is down, or one window's file.
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
    /// Exact lines of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct LogArgs {
    #[command(flatten)]
    whose: Whose,
    /// Go on with what comes.
    #[arg(long, short)]
    follow: bool,
    /// Only statements that touch this relation (`name` or `schema.name`).
    #[arg(long)]
    table: Option<String>,
    /// Only statements that do this: an action (`update`) or a group of actions (`write`), as policies name them.
    #[arg(long, value_parser = action)]
    action: Option<String>,
    /// Only what was allowed, refused (`deny`), or denied and let pass (`observed`).
    #[arg(long, value_enum)]
    decision: Option<DecisionArg>,
    /// Only of this session.
    #[arg(long)]
    session: Option<SessionId>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DecisionArg {
    Allow,
    Deny,
    Observed,
}

pub(super) fn moment(text: &str) -> Result<Time, String> {
    if let Ok(time) = Time::from_str(text) {
        return Ok(time);
    }
    let ago = jiff::Span::from_str(text)
        .ok()
        .and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok())
        .and_then(|ago| std::time::Duration::try_from(ago).ok());
    let then = ago.and_then(|ago| std::time::SystemTime::now().checked_sub(ago));
    then.map(Time::from)
        .ok_or_else(|| "write a time as 2026-01-31T12:00:00Z, or how long ago as 15m, 2h, 7d".to_owned())
}

fn action(text: &str) -> Result<String, String> {
    let names = Action::ALL.iter().flat_map(|action| [action.class().name(), action.name()]);
    let mut known: Vec<&str> = Vec::new();
    names.for_each(|name| {
        if !known.contains(&name) {
            known.push(name)
        }
    });
    if known.contains(&text) { Ok(text.to_owned()) } else { Err(format!("write one of {}", known.join(", "))) }
}

fn row_limit(text: &str) -> Result<RowLimit, String> {
    if text == "all" {
        return Ok(RowLimit::All);
    }
    text.parse().map(RowLimit::First).map_err(|_| "write a number, or `all`".to_owned())
}

pub(super) fn sessions(config: &Path, args: SessionsArgs) -> Result<ExitCode> {
    let Whose { agent, subject, group, connection, since, until, store, json } = args.whose;
    let filter = SessionFilter { agent, subject, group, connection, since, until };
    let mut summaries: Vec<SessionSummary> = Vec::new();
    let mut each = |summary: SessionSummary| -> Result<()> {
        if json {
            print_json(&summary)?;
        } else {
            summaries.push(summary);
        }
        Ok(())
    };
    match store {
        Some(store) => {
            let mut pages = Reader::offline(&store)?.sessions(filter);
            while let Some(page) = pages.page()? {
                page.into_iter().try_for_each(&mut each)?;
            }
        }
        None => ask_rows(config, &Request::Record(RecordRequest::Sessions { filter }), |row| each(typed(row)?))?,
    }
    if !json {
        write!(io::stdout().lock(), "{}", sessions_table(&summaries))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn show(config: &Path, args: ShowArgs) -> Result<ExitCode> {
    let ShowArgs { session, rows, store, json } = args;
    let id: SessionId = session.parse()?;
    let mut page = SessionPage::new(io::BufWriter::new(io::stdout().lock()), rows);
    let mut seen = false;
    let mut each = |row: Row| -> Result<()> {
        seen = true;
        if json { json_line(&row) } else { Ok(page.row(&row)?) }
    };
    match store {
        Some(store) => {
            let mut log = Reader::offline(&store)?.session(id);
            while let Some(rows) = log.page()? {
                rows.into_iter().try_for_each(&mut each)?;
            }
        }
        None => ask_rows(config, &Request::Record(RecordRequest::Show { session }), |row| each(typed(row)?))?,
    }
    page.finish()?;
    if !seen {
        bail!("there is no session {id} on the record");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn log(config: &Path, args: LogArgs) -> Result<ExitCode> {
    let Whose { agent, subject, group, connection, since, until, store, json } = args.whose;
    let decision = args.decision.map(|decision| match decision {
        DecisionArg::Allow => DecisionFilter::Allow,
        DecisionArg::Deny => DecisionFilter::Deny,
        DecisionArg::Observed => DecisionFilter::Observed,
    });
    let LogArgs { table, action, session, follow, .. } = args;
    let filter =
        LogFilter { agent, subject, group, connection, table, action, decision, since, until, session, from: None };
    // Whoever watches sees each line at once; a pipe is filled in larger pieces.
    let out: Box<dyn Write> = if follow || io::stdout().is_terminal() {
        Box::new(io::stdout())
    } else {
        Box::new(io::BufWriter::new(io::stdout()))
    };
    let mut lines = LogTable::new(out, STATEMENT_CHARACTERS);
    let request = |filter| Request::Record(RecordRequest::Log { filter, follow });
    if follow && store.is_some() {
        bail!("a store read offline does not grow; leave out --follow");
    }
    if follow && !json {
        follow_rows(config, &request(filter), &mut lines)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut each = |row: Row| -> Result<()> { if json { json_line(&row) } else { Ok(lines.row(&row)?) } };
    match store {
        Some(store) => {
            let mut log = Reader::offline(&store)?.log(filter);
            while let Some(rows) = log.page()? {
                rows.into_iter().try_for_each(&mut each)?;
            }
        }
        None => ask_rows(config, &request(filter), |row| each(typed(row)?))?,
    }
    if !json {
        lines.finish()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows rows as they come, and a request that runs long before its outcome does.
fn follow_rows<W: Write>(config: &Path, request: &Request, lines: &mut LogTable<W>) -> Result<()> {
    let mut client = connect(config)?;
    client.send(request, &[])?;
    let mut look = Instant::now() + RUNS_LONG;
    loop {
        if look <= Instant::now() {
            lines.show_running(RUNS_LONG)?;
            look = Instant::now() + RUNS_LONG;
        }
        if !is_readable(&client, look.saturating_duration_since(Instant::now()))? {
            continue;
        }
        match client.step()? {
            ClientStep::More => {}
            ClientStep::Closed => bail!("the daemon closed the connection"),
            ClientStep::Reply(Reply::Row { row }) => lines.row(&typed(row)?)?,
            ClientStep::Reply(Reply::Done) => return Ok(lines.finish()?),
            ClientStep::Reply(reply) => return Err(refused(reply)),
        }
    }
}

/// Waits until the daemon has sent something, for so long at most.
fn is_readable(client: &Client, within: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(client, PollFlags::IN)];
    match poll(&mut fds, Some(&Timespec::try_from(within)?)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn json_line(row: &Row) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, row)?;
    Ok(writeln!(out)?)
}

pub(super) fn typed<T: serde::de::DeserializeOwned>(row: serde_json::Value) -> Result<T> {
    serde_json::from_value(row).context("the daemon sent a row of another version")
}
