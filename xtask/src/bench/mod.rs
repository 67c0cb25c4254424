//! `cargo xtask bench`: what Weir costs, beside a direct connection and two proxies.
//!
//! The same loads run against each target in turn, round after round, so that the machine's noise hits all alike.
//! Single rates mean little on a shared machine; what counts is the median, over the rounds, of the ratio to the direct
//! connection of the same round.

mod disk;
mod flood;
mod loads;
mod memory;
mod report;
mod targets;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::process::{TempDir, step};
use crate::{build, setup};
use loads::{Load, Sample};
use targets::{Stage, TargetName};

/// What to measure, and for how long.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write every sample, and the goals, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure fewer loads, in three rounds of a second: a look, not a result
    #[arg(long)]
    quick: bool,
    /// How many rounds
    #[arg(long, value_name = "COUNT")]
    rounds: Option<u32>,
    /// How long each load runs against each target in each round
    #[arg(long, value_name = "COUNT")]
    seconds: Option<u32>,
    /// Measure only these; the first is what the others are compared with
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = TargetName::ALL)]
    targets: Vec<TargetName>,
    /// Measure only the loads whose names contain this; `memory` is one
    #[arg(long, value_name = "TEXT", default_value = "")]
    loads: String,
    /// Build Weir by this profile
    #[arg(long, default_value = build::PROFILE)]
    profile: String,
}

/// All samples of one load: for each target one a round.
type Samples = BTreeMap<TargetName, Vec<Sample>>;

/// Everything that was measured.
struct Measured {
    loads: Vec<(Load, Samples)>,
    memory: Vec<memory::Memory>,
    /// Microseconds.
    fdatasync: f64,
}

/// Measures and prints.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "not root: Weir's daemon loads eBPF programs");
    step("setup", setup::run)?;
    let weir = if options.targets.iter().any(|target| target.is_weir()) {
        Some(step("build weir", || build::weir(&options.profile))?)
    } else {
        None
    };
    let folder = TempDir::new("bench")?;
    let stage = step("start servers and proxies", || Stage::set(folder.path(), &options.targets, weir.as_deref()))?;
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 7 });
    let seconds = options.seconds.unwrap_or(if options.quick { 1 } else { 2 });
    let all = if options.quick { Load::quick() } else { Load::all() };
    let chosen = all.into_iter().filter(|load| load.to_string().contains(&options.loads));

    // Before the loads: what a daemon has grown by them isn't a session's.
    let memory =
        if "memory".contains(&options.loads) { step("memory", || memory::measure(&stage))? } else { Vec::new() };
    let mut fdatasync = Vec::new();
    let mut loads = Vec::new();
    for load in chosen {
        let mut samples = Samples::new();
        for _ in 0..rounds {
            fdatasync.extend(disk::fdatasync(folder.path())?);
            for target in stage.targets().into_iter().filter(|target| load.is_for(target)) {
                samples.entry(target.name).or_default().push(load.run(&stage, &target, seconds)?);
            }
        }
        report::print_load(load, &samples, options.targets.first().copied());
        loads.push((load, samples));
    }
    let measured = Measured { loads, memory, fdatasync: report::median(fdatasync) };
    let goals = report::goals(&measured);
    report::print(&measured, &goals);
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{:#}\n", report::json(&measured, &goals)))?;
        println!("every sample: {}", file.display());
    }
    Ok(())
}
