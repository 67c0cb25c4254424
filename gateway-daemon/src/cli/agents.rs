//! `weir agent`, `weir session`, `weir ca`.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::Value;

use super::{ask_row, ask_rows, connect, plain, print_json, print_text, refused, unit};
use crate::{
    control::{Reply, Request},
    show::{Align, Table, line},
};

#[derive(Debug, Subcommand)]
pub(super) enum AgentVerb {
    /// List agents with their runs.
    #[command(after_help = "\
Examples:
  weir agent list
  weir agent list --json | jq -r .agent")]
    List {
        /// A line of JSON for each agent.
        #[arg(long)]
        json: bool,
    },
    /// Refuse an agent everything: its sessions end, none begins, until it is thawed; a restart does not thaw it.
    #[command(after_help = "\
Examples:
  weir agent freeze claude                      `weir agent thaw claude` takes it back")]
    Freeze {
        /// The agent's name.
        name: String,
    },
    /// Take a freeze back.
    #[command(after_help = "\
Examples:
  weir agent thaw claude")]
    Thaw {
        /// The agent's name.
        name: String,
    },
    /// Bring a new token for the same subject, for all runs of an agent. For root and the agent's starters.
    #[command(after_help = "\
Examples:
  weir agent refresh claude --token-file ./token")]
    Refresh {
        /// The agent's name.
        name: String,
        /// The new token.
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
    },
    /// Make a process that runs already, and all that it started, an agent's. Root only.
    #[command(after_help = "\
Examples:
  weir agent assign claude --pid 4711 --token-file ./token
  weir agent assign claude --pid \"$(pgrep -o -u agent-claude node)\"

Each process must run as the agent's user, with no_new_privs, without capabilities, outside of root's group and those of \
container runtimes, and hold nothing that reaches around Weir; else all that is wrong is told, and nothing is changed. Connections \
to protected targets that it has already are destroyed.")]
    Assign {
        /// The agent's name.
        name: String,
        /// The process.
        #[arg(long)]
        pid: u32,
        /// The agent's token, watched for a newer one [default: the agent's `token_file` in the configuration].
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Print the drop-in that makes a systemd service an agent.
    #[command(after_help = "\
Examples:
  weir agent unit claude > /etc/systemd/system/claude.service.d/weir.conf")]
    Unit {
        /// The agent's name.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SessionVerb {
    /// End an open session; what it runs is cancelled.
    #[command(after_help = "\
Examples:
  weir session kill 0000000000001234            a name that `weir sessions` shows as open")]
    Kill {
        /// The session's name, as `weir sessions` shows it.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum CaVerb {
    /// Show the host CA: certificate, fingerprint, the names that it may speak for.
    #[command(after_help = "\
Examples:
  weir ca show
  weir ca show --json | jq -r .pem")]
    Show {
        /// One line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a new host CA. Runs that are open trust the old one until they are started anew.
    #[command(after_help = "\
Examples:
  weir ca rotate")]
    Rotate,
}

pub(super) fn agent(config: &Path, verb: AgentVerb) -> Result<ExitCode> {
    match verb {
        AgentVerb::List { json } => list(config, json),
        AgentVerb::Freeze { name } => print_text(config, &Request::AgentFreeze { agent: name }),
        AgentVerb::Thaw { name } => print_text(config, &Request::AgentThaw { agent: name }),
        AgentVerb::Refresh { name, token_file } => {
            let file = open(&token_file)?;
            print_answer(config, &Request::AgentRefresh { agent: name }, &[file.as_fd()])
        }
        AgentVerb::Assign { name, pid, token_file } => {
            let file = token_file.as_deref().map(open).transpose()?;
            let token_file = token_file.map(std::path::absolute).transpose()?;
            let descriptors: Vec<_> = file.iter().map(AsFd::as_fd).collect();
            print_answer(config, &Request::AgentAssign { agent: name, pid, token_file }, &descriptors)
        }
        AgentVerb::Unit { name } => unit::unit(config, &name),
    }
}

fn open(token_file: &Path) -> Result<File> {
    File::open(token_file).with_context(|| format!("cannot open the token file `{}`", token_file.display()))
}

/// Asks with descriptors for a line, and shows it.
fn print_answer(config: &Path, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<ExitCode> {
    match connect(config)?.request(request, descriptors)? {
        Reply::Text { text } => {
            writeln!(io::stdout().lock(), "{}", line(&text, 1000))?;
            Ok(ExitCode::SUCCESS)
        }
        reply => Err(refused(reply)),
    }
}

fn list(config: &Path, json: bool) -> Result<ExitCode> {
    let mut rows = Vec::new();
    ask_rows(config, &Request::AgentList, |row| {
        if json {
            print_json(&row)?;
        } else {
            rows.push(row);
        }
        Ok(())
    })?;
    if json {
        return Ok(ExitCode::SUCCESS);
    }
    let heads = ["agent", "run", "pid", "subject", "standing", "expires"];
    let mut table = heads.iter().fold(Table::new(), |table, head| table.column(*head, Align::Left));
    let cell = |value: Option<&Value>| match value {
        None | Some(Value::Null) => String::new(),
        Some(value) => line(&plain(value), 120),
    };
    for row in &rows {
        let name = cell(row.get("agent"));
        let frozen = row.get("frozen").filter(|frozen| !frozen.is_null());
        let runs = row.get("runs").and_then(Value::as_array).cloned().unwrap_or_default();
        if runs.is_empty() {
            let standing = if frozen.is_some() { "frozen" } else { "" };
            table.row(vec![name, "no run".into(), String::new(), String::new(), standing.into(), String::new()]);
            continue;
        }
        for run in &runs {
            let mut cells = vec![name.clone()];
            cells.extend(["run", "pid", "subject", "standing", "expires"].map(|key| cell(run.get(key))));
            table.row(cells);
        }
    }
    write!(io::stdout().lock(), "{}", table.render(0))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn session(config: &Path, verb: SessionVerb) -> Result<ExitCode> {
    match verb {
        SessionVerb::Kill { id } => print_text(config, &Request::SessionKill { session: id }),
    }
}

pub(super) fn ca(config: &Path, verb: CaVerb) -> Result<ExitCode> {
    let (request, json) = match verb {
        CaVerb::Show { json } => (Request::CaShow, json),
        CaVerb::Rotate => (Request::CaRotate, false),
    };
    let row = ask_row(config, &request)?;
    if json {
        return print_json(&row);
    }
    let mut out = io::stdout().lock();
    let text = |key: &str| row.get(key).map(plain).unwrap_or_default();
    writeln!(out, "fingerprint  {}", text("fingerprint"))?;
    writeln!(out, "expires      {}", text("expires"))?;
    for name in row.get("names").and_then(Value::as_array).into_iter().flatten() {
        writeln!(out, "may speak for  {}", line(&plain(name), 300))?;
    }
    write!(out, "{}", text("pem"))?;
    Ok(ExitCode::SUCCESS)
}
