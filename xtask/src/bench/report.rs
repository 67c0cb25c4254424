//! Tables, and the goals beside what was measured.

use serde_json::{Value, json};

use super::loads::{Bulk, Load, Mode, Sample, Table};
use super::targets::TargetName;
use super::{Measured, Samples};

/// A promise about Weir's cost and what came of it.
pub(super) struct Goal {
    what: String,
    bound: Bound,
    measured: Option<f64>,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn met(&self) -> Option<bool> {
        Some(match self.bound {
            Bound::AtLeast(bound) => self.measured? >= bound,
            Bound::AtMost(bound) => self.measured? <= bound,
        })
    }

    fn bound(&self) -> String {
        match self.bound {
            Bound::AtLeast(bound) => format!(">= {bound:.2}"),
            Bound::AtMost(bound) => format!("<= {bound:.2}"),
        }
    }
}

/// The middle one; of an even number, the lower of the two.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

fn median_of(samples: &[Sample], value: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    let values: Vec<_> = samples.iter().filter_map(value).collect();
    (!values.is_empty()).then(|| median(values))
}

/// Round by round, how `target`'s rate is to `base`'s.
fn ratios(samples: &Samples, target: TargetName, base: TargetName) -> Option<Vec<f64>> {
    let (target, base) = (samples.get(&target)?, samples.get(&base)?);
    Some(target.iter().zip(base).map(|(target, base)| target.rate / base.rate).collect())
}

/// Prints what one load gave.
pub(super) fn print_load(load: Load, samples: &Samples, base: Option<TargetName>) {
    println!("\n{load}   (rate: {0} a second; CPU us and context switches of the proxy a {0})", load.unit());
    println!(
        "{:<16}{:>11}{:>8}{:>14}{:>10}{:>10}{:>9}{:>9}",
        "", "rate", "ratio", "(of rounds)", "CPU us", "switches", "p50 us", "p99 us"
    );
    for (target, of_target) in samples {
        let ratios = base.and_then(|base| ratios(samples, *target, base)).unwrap_or_default();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        println!(
            "{:<16}{:>11.1}{:>8.2}{:>14}{:>10}{:>10}{:>9}{:>9}",
            target.as_str(),
            median_of(of_target, |sample| Some(sample.rate)).unwrap_or(f64::NAN),
            median(ratios),
            format!("({least:.2}-{most:.2})"),
            shown(median_of(of_target, |sample| sample.cpu), 1),
            shown(median_of(of_target, |sample| sample.switches), 2),
            shown(median_of(of_target, |sample| sample.p50), 0),
            shown(median_of(of_target, |sample| sample.p99), 0),
        );
    }
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// The goals that this run can tell about.
pub(super) fn goals(measured: &Measured) -> Vec<Goal> {
    let mut goals = rate_goals(measured);
    goals.extend(latency_goals(measured));
    goals.extend(flood_goals(measured));
    goals.extend(memory_goals(measured));
    goals.retain(|goal| goal.measured.is_some());
    goals
}

fn samples(measured: &Measured, load: Load) -> Option<&Samples> {
    measured.loads.iter().find(|(of, _)| *of == load).map(|(_, samples)| samples)
}

fn rate_goals(measured: &Measured) -> Vec<Goal> {
    use TargetName::{Direct, Pgbouncer, Weir, WeirOff};
    let goal = |load: Load, target: TargetName, base: TargetName, bound: f64| Goal {
        what: format!("{load}: rate of {} / {}", target.as_str(), base.as_str()),
        bound: Bound::AtLeast(bound),
        measured: samples(measured, load).and_then(|samples| ratios(samples, target, base)).map(median),
    };
    let mut goals = vec![
        goal(Load::Select(Mode::Prepared, 8), WeirOff, Pgbouncer, 0.90),
        goal(Load::Select(Mode::Simple, 8), WeirOff, Pgbouncer, 0.85),
    ];
    for mode in [Mode::Prepared, Mode::Simple] {
        goals.push(goal(Load::Select(mode, 8), Weir, Direct, 0.35));
        goals.push(goal(Load::Select(mode, 64), Weir, Direct, 0.50));
    }
    for way in [Bulk::Copy, Bulk::Select] {
        goals.push(goal(Load::Table(way, Table::Wide), WeirOff, Direct, 0.95));
        goals.push(goal(Load::Table(way, Table::Narrow), WeirOff, Direct, 0.90));
    }
    goals
}

/// What Weir with its record adds to a lone client's time: pgbouncer's, and some fdatasyncs of the same run.
fn latency_goals(measured: &Measured) -> Vec<Goal> {
    let goal = |load: Load, syncs: f64| {
        let added = |target: TargetName| {
            let samples = samples(measured, load)?;
            let p50 = |target: TargetName| median_of(samples.get(&target)?, |sample| sample.p50);
            Some(p50(target)? - p50(TargetName::Direct)?)
        };
        Some(Goal {
            what: format!("{load}: p50 that weir adds, us (pgbouncer's and {syncs} fdatasync)"),
            bound: Bound::AtMost(added(TargetName::Pgbouncer)? + syncs * measured.fdatasync),
            measured: added(TargetName::Weir),
        })
    };
    [goal(Load::Select(Mode::Simple, 1), 1.5), goal(Load::Select(Mode::Prepared, 1), 1.5), goal(Load::Update(1), 3.0)]
        .into_iter()
        .flatten()
        .collect()
}

/// How much later the slowest answers come while another agent floods.
fn flood_goals(measured: &Measured) -> impl Iterator<Item = Goal> {
    [TargetName::Weir, TargetName::WeirOff].into_iter().map(|target| {
        let p99 = |load| median_of(samples(measured, load)?.get(&target)?, |sample| sample.p99);
        let ratio = || Some(p99(Load::Flooded)? / p99(Load::Select(Mode::Simple, 1))?);
        Goal {
            what: format!("p99 of {} beside another agent's flood / quiet", target.as_str()),
            bound: Bound::AtMost(2.0),
            measured: ratio(),
        }
    })
}

fn memory_goals(measured: &Measured) -> Vec<Goal> {
    let of = |memory: &super::memory::Memory| {
        let goal = |what: &str, bound: f64, measured: Option<f64>| Goal {
            what: format!("memory of {}: {what}, KiB", memory.target.as_str()),
            bound: Bound::AtMost(bound),
            measured,
        };
        [
            goal("just started", 40.0 * 1024.0, Some(memory.started)),
            goal("an idle session", 12.0, Some(memory.idle)),
            goal("an idle session with TLS", 64.0, memory.idle_tls),
            goal("a session with a big result", 5.0 * 1024.0, Some(memory.big_result)),
        ]
    };
    measured.memory.iter().filter(|memory| memory.target.is_weir()).flat_map(of).collect()
}

/// Prints memory and the goals.
pub(super) fn print(measured: &Measured, goals: &[Goal]) {
    println!("\nmemory, private KiB{:>18}{:>12}{:>12}{:>12}", "started", "idle", "idle TLS", "big result");
    for memory in &measured.memory {
        println!(
            "{:<19}{:>18.0}{:>12.1}{:>12}{:>12.0}",
            memory.target.as_str(),
            memory.started,
            memory.idle,
            shown(memory.idle_tls, 1),
            memory.big_result
        );
    }
    println!("\nfdatasync of 4 KiB appended, p50 of this run: {:.0} us", measured.fdatasync);
    if goals.is_empty() {
        return;
    }
    println!("\n{:<84}{:>12}{:>12}", "goal", "bound", "measured");
    for goal in goals {
        let mark = if goal.met() == Some(true) { "" } else { "  MISSED" };
        println!("{:<84}{:>12}{:>12}{mark}", goal.what, goal.bound(), shown(goal.measured, 2));
    }
}

/// Every sample, for a later comparison.
pub(super) fn json(measured: &Measured, goals: &[Goal]) -> Value {
    let loads: Vec<_> = measured
        .loads
        .iter()
        .map(|(load, samples)| {
            let samples: serde_json::Map<_, _> = samples
                .iter()
                .map(|(target, samples)| (target.as_str().to_owned(), samples.iter().map(Sample::json).collect()))
                .collect();
            json!({ "load": load.to_string(), "unit": load.unit(), "samples": samples })
        })
        .collect();
    let goals: Vec<_> = goals
        .iter()
        .map(|goal| json!({ "goal": goal.what, "bound": goal.bound(), "measured": goal.measured, "met": goal.met() }))
        .collect();
    let memory: Vec<_> = measured.memory.iter().map(super::memory::Memory::json).collect();
    json!({ "loads": loads, "memory": memory, "fdatasync_us": measured.fdatasync, "goals": goals })
}
