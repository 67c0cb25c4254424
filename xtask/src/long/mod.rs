//! `cargo xtask long NAME`: what takes longer than CI may.

mod kernel;

use anyhow::Result;

use crate::test;

/// What to run.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask long kernel-6.1                        run the tests of the redirect and of `weir run` on Debian 12's kernel, in QEMU
  cargo xtask long no_answer_is_without_its_record   kill the daemon 200 times under load, not 20 times")]
pub(crate) struct Options {
    /// `kernel-6.1`, or part of the names of the tests to run with their long counts
    name: String,
}

/// Runs that are more than tests with other counts.
const NAMED: [(&str, fn() -> Result<()>); 1] = [("kernel-6.1", kernel::run)];

/// Runs what has that name; else the tests that do, as long as they would like to run: they ask `end_to_end::rounds`.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some((_, named)) = NAMED.iter().find(|(name, _)| *name == options.name) {
        return named();
    }
    test::with_servers(&[&options.name, "--profile", "long"], |command| {
        command.env("WEIR_TEST_LONG", "1");
    })
}
