//! The loads, and what is read off each run.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::flood::Flood;
use super::targets::{Stage, Target};
use crate::process;

/// How pgbench sends its statements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Query messages, a new literal each time.
    Simple,
    /// Parse, bind and execute each time.
    Extended,
    /// Parsed once.
    Prepared,
}

impl Mode {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        }
    }
}

/// How a table comes back whole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bulk {
    /// `COPY … TO STDOUT`
    Copy,
    /// `SELECT *`
    Select,
}

/// A table of the bulk loads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// A million rows of two numbers.
    Narrow,
    /// A hundred thousand rows of a kilobyte.
    Wide,
}

/// One load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// pgbench's select of one row.
    Select(Mode, u32),
    /// pgbench's transaction of seven statements.
    Tpcb(u32),
    /// One update of one row, a transaction of its own.
    Update(u32),
    /// pgbench's select of one row by a client, while another agent floods.
    Flooded,
    /// A connection for each select.
    Connect,
    /// A whole table.
    Table(Bulk, Table),
}

/// What one run gave.
pub(super) struct Sample {
    /// Transactions a second, or megabytes of values.
    pub(super) rate: f64,
    /// Microseconds of the proxy's own CPU a transaction or megabyte.
    pub(super) cpu: Option<f64>,
    /// Context switches of the proxy a transaction or megabyte.
    pub(super) switches: Option<f64>,
    /// Microseconds, where pgbench tells them.
    pub(super) p50: Option<f64>,
    /// See `p50`.
    pub(super) p99: Option<f64>,
}

impl Sample {
    pub(super) fn json(&self) -> Value {
        json!({
            "rate": self.rate, "cpu_us": self.cpu, "switches": self.switches, "p50_us": self.p50, "p99_us": self.p99,
        })
    }
}

impl Load {
    pub(super) fn all() -> Vec<Self> {
        let modes = [Mode::Simple, Mode::Extended, Mode::Prepared];
        let selects = modes.into_iter().flat_map(|mode| [1, 8, 64].map(|clients| Self::Select(mode, clients)));
        let ways = [Bulk::Copy, Bulk::Select];
        let tables = ways.into_iter().flat_map(|way| [Table::Narrow, Table::Wide].map(|table| Self::Table(way, table)));
        selects.chain([Self::Tpcb(8), Self::Update(1), Self::Connect, Self::Flooded]).chain(tables).collect()
    }

    /// Those that a goal is about.
    pub(super) fn quick() -> Vec<Self> {
        let select = |mode, clients| Self::Select(mode, clients);
        vec![
            select(Mode::Simple, 1),
            select(Mode::Simple, 8),
            select(Mode::Simple, 64),
            select(Mode::Prepared, 8),
            Self::Update(1),
            Self::Connect,
            Self::Flooded,
            Self::Table(Bulk::Copy, Table::Narrow),
            Self::Table(Bulk::Copy, Table::Wide),
        ]
    }

    /// What its rate counts.
    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::Table(..) => "MB",
            Self::Connect => "connection",
            Self::Select(..) | Self::Tpcb(_) | Self::Update(_) | Self::Flooded => "transaction",
        }
    }

    /// Whether it says something of the target: without Weir there are no agents to tell apart.
    pub(super) const fn is_for(self, target: &Target<'_>) -> bool {
        !matches!(self, Self::Flooded) || target.name.is_weir()
    }

    /// Runs it once.
    pub(super) fn run(self, stage: &Stage, target: &Target<'_>, seconds: u32) -> Result<Sample> {
        let measured = match self {
            Self::Select(mode, clients) => pgbench(stage, target, seconds, clients, &["-S", "-M", mode.as_str()]),
            Self::Tpcb(clients) => pgbench(stage, target, seconds, clients, &["-M", "simple"]),
            Self::Update(clients) => {
                let script = stage.scratch.join("update.sql");
                fs::write(&script, UPDATE)?;
                pgbench(stage, target, seconds, clients, &["-M", "simple", "-f", &script.display().to_string()])
            }
            Self::Flooded => Flood::start(stage, target).and_then(|flood| {
                let measured = pgbench(stage, target, seconds, 1, &["-S", "-M", "simple"]);
                flood.stop(stage).and(measured)
            }),
            Self::Connect => pgbench(stage, target, seconds, 2, &["-S", "-C"]),
            Self::Table(way, table) => whole_table(stage, target, way, table),
        };
        measured.with_context(|| format!("{self}, {}", target.name.as_str()))
    }
}

impl fmt::Display for Load {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clients = |clients: u32| {
            if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") }
        };
        match self {
            Self::Select(mode, count) => {
                write!(formatter, "select, {}, {}", mode.as_str(), clients(*count))
            }
            Self::Tpcb(count) => write!(formatter, "tpcb, simple, {}", clients(*count)),
            Self::Update(count) => write!(formatter, "update, simple, {}", clients(*count)),
            Self::Flooded => formatter.write_str("select, simple, 1 client, beside another agent's flood"),
            Self::Connect => formatter.write_str("connect and select"),
            Self::Table(way, table) => {
                let way = if *way == Bulk::Copy { "COPY" } else { "SELECT" };
                let table = if *table == Table::Narrow { "1,000,000 narrow rows" } else { "100,000 wide rows" };
                write!(formatter, "{way} of {table}")
            }
        }
    }
}

const UPDATE: &str = "\\set aid random(1, 1000000)
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;
";

fn pgbench(stage: &Stage, target: &Target<'_>, seconds: u32, clients: u32, how: &[&str]) -> Result<Sample> {
    let mut command = target.client(&stage.postgres.bin.join("pgbench"));
    let prefix = stage.scratch.join("latency");
    command.args(["-n", "-j", "1", "-T", &seconds.to_string(), "-c", &clients.to_string()]).args(how);
    command.arg("-l").arg("--log-prefix").arg(&prefix).arg(target.address("disable"));
    let (told, cost) = measured(target, || process::output(command.current_dir(&stage.scratch)))?;
    let latencies = take_latencies(&stage.scratch)?;
    let transactions = number_after(&told, "actually processed: ")?;
    Ok(Sample {
        rate: number_after(&told, "tps = ")?,
        cpu: cost.map(|cost| cost.cpu.as_secs_f64() * 1e6 / transactions),
        switches: cost.map(|cost| cost.switches / transactions),
        p50: percentile(&latencies, 500),
        p99: percentile(&latencies, 990),
    })
}

/// The transactions' times in microseconds, sorted; their files are removed.
fn take_latencies(folder: &Path) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("latency")) {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        // client, transaction, microseconds, …
        times.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()));
        fs::remove_file(path)?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The value below which so many thousandths of the `sorted` ones lie.
fn percentile(sorted: &[f64], thousandths: usize) -> Option<f64> {
    sorted.get(sorted.len().checked_sub(1)? * thousandths / 1000).copied()
}

fn whole_table(stage: &Stage, target: &Target<'_>, way: Bulk, table: Table) -> Result<Sample> {
    let (name, megabytes) = match table {
        Table::Narrow => ("narrow", 10.79),
        Table::Wide => ("wide", 103.19),
    };
    let sql = match way {
        Bulk::Copy => format!("COPY {name} TO STDOUT"),
        Bulk::Select => format!("SELECT * FROM {name}"),
    };
    let mut psql = target.client(&stage.postgres.bin.join("psql"));
    // psql's own clock: starting the program isn't part of it.
    psql.args(["-XAtq", "-o", "/dev/null", "-c", "\\timing on", "-c", &sql, &target.address("disable")]);
    let (told, cost) = measured(target, || process::output(psql.env("LC_ALL", "C")))?;
    let milliseconds = number_after(&told, "Time: ")?;
    Ok(Sample {
        rate: megabytes / (milliseconds / 1000.0),
        cpu: cost.map(|cost| cost.cpu.as_secs_f64() * 1e6 / megabytes),
        switches: cost.map(|cost| cost.switches / megabytes),
        p50: None,
        p99: None,
    })
}

/// The number that follows `words` in `text`.
fn number_after(text: &str, words: &str) -> Result<f64> {
    let rest = text.split_once(words).with_context(|| format!("no `{words}` in: {text}"))?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest.get(..end).unwrap_or_default().parse().with_context(|| format!("no number after `{words}` in: {text}"))
}

/// What a process cost between two looks.
#[derive(Clone, Copy)]
struct Cost {
    cpu: Duration,
    switches: f64,
}

/// Does `work` and tells what the target's process spent on it.
fn measured<T>(target: &Target<'_>, work: impl FnOnce() -> Result<T>) -> Result<(T, Option<Cost>)> {
    let Some(pid) = target.pid else { return Ok((work()?, None)) };
    let before = spent(pid)?;
    let value = work()?;
    let after = spent(pid)?;
    let cost = Cost { cpu: after.cpu.saturating_sub(before.cpu), switches: after.switches - before.switches };
    Ok((value, Some(cost)))
}

/// The threads that live now: nanoseconds on a CPU (schedstat), and switches of context.
fn spent(pid: u32) -> Result<Cost> {
    let mut total = Cost { cpu: Duration::ZERO, switches: 0.0 };
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.path();
        // A thread may end between the listing and the look.
        let Ok(schedstat) = fs::read_to_string(thread.join("schedstat")) else { continue };
        let nanoseconds = schedstat.split(' ').next().and_then(|first| first.parse().ok());
        total.cpu += Duration::from_nanos(nanoseconds.context("no number in schedstat")?);
        let status = fs::read_to_string(thread.join("status")).unwrap_or_default();
        let counts = status.lines().filter(|line| line.contains("ctxt_switches:"));
        total.switches += counts.filter_map(|line| line.split('\t').nth(1)?.parse::<f64>().ok()).sum::<f64>();
    }
    Ok(total)
}

/// A shell command as the target's client.
pub(super) fn shell(target: &Target<'_>, script: &str) -> Command {
    let mut command = target.client(Path::new("/bin/sh"));
    command.args(["-c", script]);
    command
}
