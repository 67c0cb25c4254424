//! `weir policy` and `weir explain`.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{ask_row, plain, policy_tests, print_json, print_text, suggest};
use crate::{
    config::Config,
    control::{ExplainRequest, Request},
    daemon::known,
    policy::check,
    show::lines,
};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyVerb {
    /// Check a folder of policies without putting it in force.
    #[command(after_help = "\
Examples:
  weir policy check ./policies

Exit status: 0 when the folder would load, 1 when it has a fault.")]
    Check {
        /// The folder.
        dir: PathBuf,
    },
    /// Test policies: whether they decide statements as a file of cases says; no daemon or server is asked.
    #[command(after_help = "\
Examples:
  weir policy test policies/tests/baseline.toml
  weir policy test mine.toml --policies /etc/weir/policies

A file of tests:
  policies = \"..\"                        the folder, from the file's own
  [defaults]
  agent = \"claude\"
  connection = \"orders\"
  database = \"shop\"
  [[table]]
  name = \"public.customers\"
  columns = [\"id\", \"name\", \"email\"]
  [[case]]
  name = \"readers delete nothing\"
  groups = [\"corp/readers\"]
  had = [{ table = \"public.customers\", rows = 10001, bytes = 0 }]     within the hour
  sql = \"DELETE FROM customers\"
  expect = \"deny\"
  policy = []                             the @id that decides, or several; [] for none

Exit status: 0 when every case comes out as it says, 1 when one does not.")]
    Test {
        /// The file of tests.
        file: PathBuf,
        /// The folder of policies, in place of the one that the file names.
        #[arg(long, value_name = "DIR")]
        policies: Option<PathBuf>,
    },
    /// Print the Cedar schema that policies are checked against.
    #[command(after_help = "\
Examples:
  weir policy schema > weir.cedarschema         for an editor that knows Cedar")]
    Schema,
    /// Load the policies anew, all or nothing; open sessions go by them at their next statement.
    #[command(after_help = "\
Examples:
  weir policy check /etc/weir/policies && weir policy reload")]
    Reload,
    /// Say who may do what, by which policy, and why.
    #[command(after_help = "\
Examples:
  weir policy doc
  weir policy doc --json | jq .")]
    Doc {
        /// One line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Propose the permits that what was denied would need, from the record. Nothing comes into force.
    #[command(after_help = "\
Examples:
  weir policy suggest > suggested.cedar         to read, and to copy from
  weir policy suggest --agent claude --connection orders --since 1d
  weir policy suggest --by column --for groups
  weir policy suggest --store /var/lib/weir/record > suggested.cedar

It counts what a connection with mode = \"observe\" let pass, and what was refused. No permit is wider than what was seen, \
but for what --by says: `table` is for all columns, `schema` for all tables of a schema. It proposes nothing for `admin` and \
`unknown`, nor where a policy forbids, and says so at its end.")]
    Suggest(suggest::SuggestArgs),
}

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The agent's configured name.
    #[arg(long)]
    agent: String,
    /// Assume this group (ISSUER/GROUP); may stand several times [default: the groups of the agent's newest run].
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// The declared connection.
    #[arg(long)]
    connection: String,
    /// The database, where the connection has several.
    #[arg(long)]
    database: Option<String>,
    /// One line of JSON.
    #[arg(long)]
    json: bool,
    /// The statement.
    sql: String,
}

/// What `weir explain` exits with when the statement would be refused.
const REFUSED: u8 = 2;

pub(super) fn policy(config: &Path, verb: PolicyVerb) -> Result<ExitCode> {
    match verb {
        PolicyVerb::Check { dir } => {
            // What the configuration knows makes the check sharper; without it, policies are still checked.
            let known = Config::load(config).ok().map(|config| known(&config));
            let check = check(&dir, known.as_ref());
            writeln!(io::stdout().lock(), "{}", lines(&check.to_string(), usize::MAX))?;
            Ok(check.exit_code().into())
        }
        PolicyVerb::Test { file, policies } => policy_tests::run(&file, policies),
        PolicyVerb::Suggest(args) => suggest::suggest(config, args),
        PolicyVerb::Schema => {
            write!(io::stdout().lock(), "{}", crate::policy::SCHEMA)?;
            Ok(ExitCode::SUCCESS)
        }
        PolicyVerb::Reload => print_text(config, &Request::PolicyReload),
        PolicyVerb::Doc { json: true } => print_json(&ask_row(config, &Request::PolicyDoc { json: true })?),
        PolicyVerb::Doc { json: false } => print_text(config, &Request::PolicyDoc { json: false }),
    }
}

pub(super) fn explain(config: &Path, args: ExplainArgs) -> Result<ExitCode> {
    let ExplainArgs { agent, groups, connection, database, json, sql } = args;
    let request = Request::Explain(ExplainRequest { agent, groups, connection, database, sql });
    let row = ask_row(config, &request)?;
    if json {
        print_json(&row)?;
    } else {
        let mut out = io::stdout().lock();
        let text = row.get("text").map(plain).unwrap_or_default();
        writeln!(out, "{}", lines(text.trim_end(), usize::MAX))?;
        for reason in row.get("not_understood").and_then(Value::as_array).into_iter().flatten() {
            writeln!(out, "not understood: {}", lines(&plain(reason), 1000))?;
        }
    }
    let allowed = row.get("allowed") == Some(&Value::Bool(true));
    Ok(if allowed { ExitCode::SUCCESS } else { REFUSED.into() })
}
