//! Builds, tests, measures and shows Weir: `cargo xtask --help`. CI runs nothing that isn't a verb here.

mod bench;
mod build;
mod conformance;
mod demo;
mod fuzz;
mod lint;
mod long;
mod paths;
mod process;
mod servers;
mod setup;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, test, measure and show Weir
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and testing need, and say why; quick when all is there
    Setup,
    /// Build the complete `weir` for use: target/release/weir
    Build,
    /// Measure what Weir costs, beside a direct connection, haproxy and pgbouncer
    Bench(bench::Options),
    /// Run PostgreSQL's own regression suite directly and through Weir, and compare
    Conformance(conformance::Options),
    /// Show Weir at work with real programs: an agent, a database, and the ways round that are tried
    Demo,
    /// Run the tests, against real servers that are started for it; `long flood` has the one that measures
    Test(test::Options),
    /// Run what takes longer than CI may: `kernel-6.1`, or the tests whose names contain NAME, with their long counts
    Long(long::Options),
    /// Check format, lints (the eBPF crate's too), licences and dependencies
    Lint,
}

fn main() -> Result<()> {
    process::watch_signals()?;
    match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Build => build::run(),
        Verb::Bench(options) => bench::run(&options),
        Verb::Conformance(options) => conformance::run(&options),
        Verb::Demo => demo::run(),
        Verb::Test(options) => test::run(&options),
        Verb::Long(options) => long::run(&options),
        Verb::Lint => lint::run(),
    }
}
