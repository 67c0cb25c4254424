//! Where things are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// What `setup` installs beside the system's packages.
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// A command of that cargo, in the workspace's folder.
pub(crate) fn cargo_command(verb: &str) -> Command {
    let mut command = Command::new(cargo());
    command.arg(verb).current_dir(root());
    command
}

/// Cargo's target folder, wherever the user's configuration puts it.
pub(crate) fn target() -> Result<PathBuf> {
    let metadata = process::output(cargo_command("metadata").args(["--no-deps", "--format-version=1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let target = metadata.get("target_directory").and_then(|value| value.as_str());
    Ok(target.context("cargo metadata names no target_directory")?.into())
}

/// `program` as the shell would find it, or as cargo installs it.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(|| Path::new(&home).join(".cargo"), PathBuf::from);
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain([cargo_home.join("bin")])
        .chain(sbin)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
