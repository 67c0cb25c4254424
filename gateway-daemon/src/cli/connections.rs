//! `weir connection`: whether Weir reaches the servers of its connections.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use super::{ask_rows, print_json};
use crate::{
    config::Config,
    control::{Client, ClientError, ConnectionTestRequest, Request},
    daemon::connection_test::{Report, Verdict, chosen, test},
    show::line,
};

#[derive(Debug, Subcommand)]
pub(super) enum ConnectionVerb {
    /// Test the way to the servers: names, TLS, login, the role's rights, the catalogue. Root only.
    #[command(after_help = "\
Examples:
  weir connection test                          every connection of the configuration
  weir connection test orders --json
  weir connection test --config ./new.toml      before it is put in force

Agents need not run, nor does the daemon. Where it does, it makes the test, since its programs let nobody else through; \
the configuration is read anew either way.

Exit status: 0 when agents can be served, with warnings or without, 1 when a step failed.")]
    Test(TestArgs),
}

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// Which connections [default: all].
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// The database to ask for [default: the connection's own; `postgres` where it has several].
    #[arg(long, value_name = "DATABASE")]
    database: Option<String>,
    /// A line of JSON for each connection.
    #[arg(long)]
    json: bool,
}

pub(super) fn connection(config: &Path, verb: ConnectionVerb) -> Result<ExitCode> {
    let ConnectionVerb::Test(TestArgs { names, database, json }) = verb;
    if !rustix::process::geteuid().is_root() {
        bail!("only root may test connections: the test logs in with their credentials");
    }
    let path = std::path::absolute(config)?;
    let loaded = Config::load_for_root(&path)?;
    let mut well = true;
    let show = |report: &Report| if json { print_json(report).map(drop) } else { print(report) };
    if daemon_runs(&loaded.control_socket())? {
        let request = ConnectionTestRequest { config: Some(path.clone()), names, database };
        ask_rows(&path, &Request::ConnectionTest(request), |row| {
            let report: Report = serde_json::from_value(row).context("the daemon gave something else than a report")?;
            well &= report.ok;
            show(&report)
        })?;
    } else {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        for connection in chosen(&loaded, &names).map_err(anyhow::Error::msg)? {
            let report = runtime.block_on(test(&loaded, connection, database.as_deref()));
            well &= report.ok;
            show(&report)?;
        }
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn daemon_runs(socket: &Path) -> Result<bool> {
    match Client::connect(socket) {
        Ok(_) => Ok(true),
        Err(ClientError::NotRunning { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A report for people.
pub(super) fn print(report: &Report) -> Result<()> {
    let mut out = io::stdout().lock();
    let verdict = if report.ok { "can be served" } else { "CANNOT BE SERVED" };
    let (name, server, database) = (&report.connection, &report.server, &report.database);
    writeln!(out, "{}  {verdict}", line(&format!("{name}: {server}, database `{database}`"), 300))?;
    for step in &report.steps {
        let word = match step.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "WARNING",
            Verdict::Failed => "FAILED",
        };
        writeln!(out, "  {word:<8} {:<11} {}", step.step, line(&step.seen, 1000))?;
        if !step.mend.is_empty() {
            writeln!(out, "  {:<8} {:<11} → {}", "", "", line(&step.mend, 1000))?;
        }
    }
    Ok(())
}
