//! Verbs as clients of the daemon: what they ask by, and how its answers are shown.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, bail};

use crate::{
    config::{Config, DEFAULT_PATH},
    control::{Client, Reply, Request},
};

/// Where the daemon listens. Starters may not be able to read the configuration, and a daemon serves on while it is being
/// edited: so the default place serves without it. Whoever names a configuration means that one.
pub(super) fn control_socket(path: &Path) -> Result<PathBuf> {
    match Config::load(path) {
        Ok(config) => Ok(config.control_socket()),
        Err(_) if path == Path::new(DEFAULT_PATH) => Ok(PathBuf::from("/run/weir/control.sock")),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn connect(path: &Path) -> Result<Client> {
    Ok(Client::connect(&control_socket(path)?)?)
}

/// Asks for one row.
pub(super) fn ask_row(path: &Path, request: &Request) -> Result<serde_json::Value> {
    match connect(path)?.request(request, &[])? {
        Reply::Row { row } => Ok(row),
        reply => Err(refused(reply)),
    }
}

/// Asks for a text, and shows it.
pub(super) fn print_text(path: &Path, request: &Request) -> Result<ExitCode> {
    match connect(path)?.request(request, &[])? {
        Reply::Text { text } => {
            writeln!(io::stdout().lock(), "{}", crate::show::lines(&text, usize::MAX))?;
            Ok(ExitCode::SUCCESS)
        }
        reply => Err(refused(reply)),
    }
}

/// Asks for rows, and gives each to `each`.
pub(super) fn ask_rows(
    path: &Path,
    request: &Request,
    mut each: impl FnMut(serde_json::Value) -> Result<()>,
) -> Result<()> {
    let mut client = connect(path)?;
    client.send(request, &[])?;
    while let Some(reply) = client.recv()? {
        match reply {
            Reply::Row { row } => each(row)?,
            Reply::Done => return Ok(()),
            reply => return Err(refused(reply)),
        }
    }
    bail!("the daemon closed the connection before it was done")
}

/// What a reply means that is not the expected one.
pub(super) fn refused(reply: Reply) -> anyhow::Error {
    match reply {
        Reply::Failed { message, .. } => anyhow::anyhow!("{}", crate::show::lines(&message, usize::MAX)),
        Reply::Text { .. }
        | Reply::Row { .. }
        | Reply::Done
        | Reply::Started { .. }
        | Reply::Stopped { .. }
        | Reply::Exited { .. }
        | Reply::Killed { .. } => anyhow::anyhow!("the daemon gave an answer of another verb; is it the same version?"),
    }
}

pub(super) fn print_json(row: &impl serde::Serialize) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, row)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}

/// A JSON value in a line for people.
pub(super) fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key}: {}", plain(value))).collect::<Vec<_>>().join(", ")
        }
        serde_json::Value::Array(items) if items.is_empty() => "nothing".to_owned(),
        serde_json::Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join("; "),
        other => other.to_string(),
    }
}
