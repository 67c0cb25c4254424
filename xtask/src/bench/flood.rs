//! A second agent's flood: connections, pipelines, and results that nobody reads.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::targets::{Stage, Target};
use crate::process::wait_for;

/// The end-to-end test floods with the same.
const PROGRAM: &str = include_str!("../../../tests/tests/session/flood.py");
/// Connections that it makes, and how many of them are sessions before it counts as a flood: what an agent has by default.
const CONNECTIONS: u32 = 1000;
const SESSIONS: u32 = 64;
const DEADLINE: Duration = Duration::from_secs(60);

/// Goes on until it is stopped.
pub(super) struct Flood(Child);

impl Flood {
    pub(super) fn start(stage: &Stage, target: &Target<'_>) -> Result<Self> {
        let program = stage.scratch.join("flood.py");
        fs::write(&program, PROGRAM)?;
        let mut command = target.flooder().context("only Weir has an agent that floods")?;
        command.arg("/usr/bin/python3").arg(program).args(target.address_words());
        command.args([CONNECTIONS.to_string(), SESSIONS.to_string()]);
        let mut flood = Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
        let told = BufReader::new(flood.0.stdout.take().context("no output")?).lines().next();
        ensure!(told.context("the flood ended")?? == "flooding", "the flood did not begin");
        Ok(flood)
    }

    /// Stops it, and waits until nothing of it is left at the server.
    pub(super) fn stop(self, stage: &Stage) -> Result<()> {
        drop(self);
        wait_for("the flood is over", DEADLINE, || {
            let left = stage
                .postgres
                .sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'weir:flood:%'")?;
            Ok((left.trim() == "0").then_some(()))
        })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        // It may have ended before, which is not an error here.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
