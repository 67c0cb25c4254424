//! Memory: a process just started, a session that idles, one whose client doesn't read.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::loads::shell;
use super::targets::{Stage, Target, TargetName};
use crate::process::{self, wait_for};

/// How many idle sessions are opened at once.
const SESSIONS: u32 = 200;
/// How long they idle: longer than it takes to open them all and look.
const IDLE: &str = "SELECT 1;\n\\sleep 10 s\n";
const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// How many clients ask for a big result and read nothing of it for a while; what they get then.
const STALLED: u32 = 8;
const STALL_SECONDS: u32 = 4;
const BIG_RESULT_BYTES: u64 = 100_000_000;
/// How often memory is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// Private memory of a proxy, in KiB.
pub(super) struct Memory {
    pub(super) target: TargetName,
    /// Of the process, before its first session.
    pub(super) started: f64,
    /// Of each of many idle sessions.
    pub(super) idle: f64,
    /// The same with TLS towards the client; only Weir offers it here.
    pub(super) idle_tls: Option<f64>,
    /// What a session with a big result added at most.
    pub(super) big_result: f64,
}

impl Memory {
    pub(super) fn json(&self) -> Value {
        json!({
            "target": self.target.as_str(), "started_kib": self.started, "idle_kib": self.idle,
            "idle_tls_kib": self.idle_tls, "big_result_kib": self.big_result,
        })
    }
}

/// Looks at every proxy.
pub(super) fn measure(stage: &Stage) -> Result<Vec<Memory>> {
    stage.targets().iter().filter_map(|target| Some(of(stage, target, target.pid?))).collect()
}

fn of(stage: &Stage, target: &Target<'_>, pid: u32) -> Result<Memory> {
    let started = private(pid)?;
    // What the first session leaves behind (threads, pools) isn't a session's. All that comes later is counted from
    // here, since an allocator keeps what it once had: a number is too high rather than too low.
    idle(stage, target, pid, 1, "disable")?;
    let base = private(pid)?;
    let each = |with_all: f64| (with_all - base) / f64::from(SESSIONS);
    let plain = each(idle(stage, target, pid, SESSIONS, "disable")?);
    let with_tls = target.name.is_weir().then(|| idle(stage, target, pid, SESSIONS, "require"));
    let idle_tls = with_tls.transpose()?.map(each);
    let big_result = (stalled(stage, target, pid)? - base) / f64::from(STALLED);
    Ok(Memory { target: target.name, started, idle: plain, idle_tls, big_result })
}

/// KiB while that many sessions idle that have run one statement.
fn idle(stage: &Stage, target: &Target<'_>, pid: u32, sessions: u32, tls: &str) -> Result<f64> {
    let script = stage.scratch.join("idle.sql");
    fs::write(&script, IDLE)?;
    let mut pgbench = target.client(&stage.postgres.bin.join("pgbench"));
    pgbench.args(["-n", "-t", "1", "-j", "1", "-c", &sessions.to_string(), "-f"]).arg(script);
    pgbench.arg(target.address(tls));
    let mut clients = start(&mut pgbench)?;
    let ran = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle' AND query LIKE 'SELECT 1%'";
    wait_for("all sessions idle", OPEN_DEADLINE, || {
        let count: u32 = stage.postgres.sql("bench", ran)?.trim().parse()?;
        Ok((count >= sessions).then_some(()))
    })?;
    let during = private(pid)?;
    let status = clients.wait()?;
    ensure!(status.success(), "{} ended with {status}", process::shown(&pgbench));
    Ok(during)
}

/// The most KiB while clients ask for a hundred megabytes each, read nothing, and then all.
fn stalled(stage: &Stage, target: &Target<'_>, pid: u32) -> Result<f64> {
    let script = format!(
        "for client in $(seq {STALLED}); do
           '{}' -Xqc 'COPY wide TO STDOUT' '{}' | (sleep {STALL_SECONDS}; wc -c) &
         done; wait",
        stage.postgres.bin.join("psql").display(),
        target.address("disable")
    );
    let mut clients = start(&mut shell(target, &script))?;
    let end = Instant::now() + OPEN_DEADLINE;
    let mut most: f64 = 0.0;
    while clients.try_wait()?.is_none() && Instant::now() < end {
        most = most.max(private(pid)?);
        thread::sleep(LOOK);
    }
    let told = String::from_utf8(clients.wait_with_output()?.stdout)?;
    let complete = told.lines().filter(|bytes| bytes.trim().parse::<u64>().is_ok_and(|bytes| bytes > BIG_RESULT_BYTES));
    ensure!(complete.count() == usize::try_from(STALLED)?, "not every client got its big result: {told}");
    Ok(most)
}

fn start(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().with_context(|| format!("cannot start {}", process::shown(command)))
}

/// KiB that are this process's alone.
fn private(pid: u32) -> Result<f64> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    Ok(lines.filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<f64>().ok()).sum())
}
