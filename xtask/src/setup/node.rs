//! Identity providers of npm's, below target/tools/node, exactly as the lock file beside this one has them.

use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::paths::{self, which};
use crate::process;

/// Debian's packages, where node and npm are not there by other ways.
pub(super) const PACKAGES: &[(&str, &str)] =
    &[("nodejs", "runs identity providers of the tests"), ("npm", "installs identity providers of the tests")];

const MANIFEST: &str = include_str!("node/package.json");
const LOCK: &str = include_str!("node/package-lock.json");

/// Whether the programs themselves are missing.
pub(super) fn program_is_missing() -> bool {
    which("node").is_none() || which("npm").is_none()
}

/// Whether what the lock file names must be installed.
pub(super) fn is_missing() -> bool {
    // Written last: what it names is all there.
    !fs::read_to_string(paths::tools().join("node/installed-lock.json")).is_ok_and(|installed| installed == LOCK)
}

/// Installs it. No package's own script is run.
pub(super) fn install() -> Result<()> {
    let folder = paths::tools().join("node");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("package.json"), MANIFEST)?;
    fs::write(folder.join("package-lock.json"), LOCK)?;
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(&folder);
    process::output(&mut npm)?;
    Ok(fs::write(folder.join("installed-lock.json"), LOCK)?)
}
