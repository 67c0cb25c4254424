//! `cargo xtask long NAME`: what takes longer than CI may.

use anyhow::Result;

use crate::{fuzz, test};

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// `fuzz`, or part of the names of the tests to run, such as `kill_9`
    name: String,
    /// Of `fuzz`: only the targets whose names contain this
    #[arg(long, default_value = "")]
    target: String,
    /// Of `fuzz`: how long each target runs
    #[arg(long, default_value_t = 180)]
    seconds: u32,
}

/// Runs the fuzz targets, or the tests with that name as long as they would like to run; they ask `end_to_end::rounds`.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.name == "fuzz" {
        return fuzz::run(&options.target, options.seconds);
    }
    test::with_servers(&[&options.name, "--profile", "long"], |command| {
        command.env("WEIR_TEST_LONG", "1");
    })
}
