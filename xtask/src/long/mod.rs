//! `cargo xtask long NAME`: what takes longer than CI may.

mod kernel;

use anyhow::Result;

use crate::{fuzz, test};

/// What to run.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask long kernel-6.1                        run what needs the kernel on Debian 12's, in QEMU
  cargo xtask long fuzz --seconds 600                give each fuzz target ten minutes
  cargo xtask long flood                             one agent's flood beside another's work; wants the machine for itself
  cargo xtask long no_answer_is_without_its_record   kill the daemon 200 times under load, not 20 times")]
pub(crate) struct Options {
    /// `kernel-6.1`, `fuzz`, or part of the names of the tests to run with their long counts
    name: String,
    /// Of `fuzz`: only the targets whose names contain this
    #[arg(long, default_value = "")]
    target: String,
    /// Of `fuzz`: how long each target runs
    #[arg(long, default_value_t = 180)]
    seconds: u32,
}

/// Runs what has that name, or the tests that do.
pub(crate) fn run(options: &Options) -> Result<()> {
    match options.name.as_str() {
        "kernel-6.1" => kernel::run(),
        "fuzz" => fuzz::run(&options.target, options.seconds),
        part => tests(part),
    }
}

/// Runs tests as long as they would like to run: they ask `end_to_end::rounds`.
fn tests(part: &str) -> Result<()> {
    test::with_servers(&[part, "--profile", "long"], |command| {
        command.env("WEIR_TEST_LONG", "1");
    })
}
