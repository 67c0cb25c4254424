//! `weir policy suggest`: what the record says was denied becomes permits to read and to put in force.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{
    ask_rows, print_json,
    records::{moment, typed},
};
use crate::{
    control::{RecordRequest, Request},
    record::{DecisionFilter, LogFilter, Reader, Time},
    suggest::{Grain, Suggester, Whom},
};

#[derive(Debug, Args)]
pub(super) struct SuggestArgs {
    /// From then on: a time (2026-01-31T12:00:00Z) or how long ago (15m, 2h, 7d).
    #[arg(long, value_name = "TIME", value_parser = moment, default_value = "7d")]
    since: Time,
    /// Up to then, written as for --since.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Time>,
    /// Only what this agent was denied.
    #[arg(long)]
    agent: Option<String>,
    /// Only what was denied on this declared connection.
    #[arg(long)]
    connection: Option<String>,
    /// How narrow a permit is: the columns that were named, the table, or its schema whole.
    #[arg(long, value_enum, default_value_t = By::Table)]
    by: By,
    /// Whom a permit names: the agent, or agents in all groups that it was in.
    #[arg(long = "for", value_enum, default_value_t = For::Agent)]
    whom: For,
    /// Read this store instead of asking the daemon: its folder while the daemon is down, or one window's file.
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
    /// A line of JSON for each permit, and for each thing that is not proposed.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    Column,
    Table,
    Schema,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum For {
    Agent,
    Groups,
}

pub(super) fn suggest(config: &Path, args: SuggestArgs) -> Result<ExitCode> {
    let SuggestArgs { since, until, agent, connection, by, whom, store, json } = args;
    let grain = match by {
        By::Column => Grain::Column,
        By::Table => Grain::Table,
        By::Schema => Grain::Schema,
    };
    let whom = match whom {
        For::Agent => Whom::Agent,
        For::Groups => Whom::Groups,
    };
    let decision = Some(DecisionFilter::Unpermitted);
    let filter = LogFilter { agent, connection, decision, since: Some(since), until, ..LogFilter::default() };
    let mut suggester = Suggester::new(grain, whom);
    match store {
        Some(store) => {
            let mut log = Reader::offline(&store)?.log(filter);
            while let Some(rows) = log.page()? {
                rows.iter().for_each(|row| suggester.row(row));
            }
        }
        None => {
            let request = Request::Record(RecordRequest::Log { filter, follow: false });
            ask_rows(config, &request, |row| {
                suggester.row(&typed(row)?);
                Ok(())
            })?;
        }
    }
    let suggestions = suggester.finish();
    if json {
        suggestions.proposals.iter().try_for_each(|proposal| print_json(proposal).map(drop))?;
        suggestions.left.iter().try_for_each(|left| print_json(left).map(drop))?;
    } else {
        write!(io::stdout().lock(), "{suggestions}")?;
    }
    Ok(ExitCode::SUCCESS)
}
