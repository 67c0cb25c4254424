//! `cargo xtask build`, and the build that tests, demo and bench share.

use std::path::PathBuf;

use anyhow::Result;

use crate::{paths, process, setup};

/// The profile of tests, demo, bench and lints: `Cargo.toml` says what it is.
pub(crate) const PROFILE: &str = "ci";

/// Builds what a user installs.
pub(crate) fn run() -> Result<()> {
    setup::run()?;
    let weir = weir("release")?;
    println!("built {}", weir.display());
    Ok(())
}

/// Builds the complete `weir` by `profile` and gives its path.
pub(crate) fn weir(profile: &str) -> Result<PathBuf> {
    let mut command = paths::cargo_command("build");
    process::run(command.args(["--package", "gateway-daemon", "--bin", "weir", "--profile", profile]))?;
    built(profile)
}

/// Where a build by `profile` puts `weir`.
pub(crate) fn built(profile: &str) -> Result<PathBuf> {
    Ok(paths::target()?.join(profile).join("weir"))
}
