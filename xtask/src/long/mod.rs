//! `cargo xtask long NAME`: what takes longer than CI may.

use anyhow::Result;

use crate::test;

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Part of the names of the tests to run, such as `kill_9`
    name: String,
}

/// Runs the tests with that name as long as they would like to run; they ask `end_to_end::rounds`.
pub(crate) fn run(options: &Options) -> Result<()> {
    test::with_servers(&[&options.name, "--profile", "long"], |command| {
        command.env("WEIR_TEST_LONG", "1");
    })
}
