//! `cargo xtask test`: builds, starts the servers that tests share, runs nextest, stops the servers.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::process::{self, step};
use crate::servers::TestServers;
use crate::{build, paths, setup};

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only the tests whose names contain one of these
    filters: Vec<String>,
    /// Hand what follows `--` to nextest
    #[arg(last = true)]
    nextest: Vec<String>,
}

/// Runs the tests of the whole workspace.
pub(crate) fn run(options: &Options) -> Result<()> {
    let args: Vec<_> = options.filters.iter().chain(&options.nextest).map(String::as_str).collect();
    with_servers(&args, |_| ())
}

/// Runs nextest with `args` while the servers serve; `change` may add to its command.
pub(crate) fn with_servers(args: &[&str], change: impl FnOnce(&mut Command)) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "not root: end-to-end tests load eBPF programs and make cgroups");
    step("setup", setup::run)?;
    // With the tests comes the binary that they test: building it apart would build its dependencies twice, since features
    // are unified over what is built together.
    step("build", || process::run(nextest("run").args(args).arg("--no-run")))?;
    let weir = build::built(build::PROFILE)?;
    let servers = step("start servers", || TestServers::start(&weir))?;
    let mut command = nextest("run");
    command.args(args).env("WEIR_TEST_SERVERS", servers.description());
    change(&mut command);
    // Nothing is printed after this: the run ends with nextest's summary.
    process::run(&mut command)
}

/// A nextest command for the whole workspace, as tests are built.
pub(crate) fn nextest(verb: &str) -> Command {
    let mut command = Command::new(paths::tools().join("cargo/bin/cargo-nextest"));
    command.current_dir(paths::root()).args(["nextest", verb, "--workspace", "--cargo-profile", build::PROFILE]);
    command
}
