//! A process that does one thing from a cgroup.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context as _, Result};

use super::Outcome;

fn program() -> PathBuf {
    // Cargo puts binaries beside the folder in which a test's own executable lies.
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().map(|folder| folder.join("connector")).find(|path| path.is_file()).unwrap_or_default()
}

const PREPARE: &str = "ip link set lo up && echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range && exec \"$@\"";

/// See [`super::Field::connector`].
pub struct Connector {
    command: Command,
}

impl Connector {
    pub(super) fn new(cgroup: &Path, verb: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.arg("--enter").arg(cgroup).args(verb).stdin(Stdio::null());
        Self { command }
    }

    /// As this user, after entering the cgroup.
    pub fn uid(mut self, uid: u32) -> Self {
        self.command.arg("--uid").arg(uid.to_string());
        self
    }

    /// With this as its standard input.
    pub fn stdin(mut self, stdin: OwnedFd) -> Self {
        self.command.stdin(stdin);
        self
    }

    /// In a network namespace of its own, with its loopback device up, where everybody may make ping sockets.
    pub fn in_network_namespace(self) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", PREPARE, "sh"]);
        command.arg(self.command.get_program()).args(self.command.get_args()).stdin(Stdio::null());
        Self { command }
    }

    /// Runs it to its end.
    ///
    /// # Errors
    ///
    /// When it doesn't run, or says something unknown.
    pub fn run(mut self) -> Result<Outcome> {
        let output = self.command.output().with_context(|| format!("{:?}", self.command))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().last().unwrap_or_default();
        serde_json::from_str(line)
            .with_context(|| format!("{:?}: {text}{}", self.command, String::from_utf8_lossy(&output.stderr)))
    }

    /// Starts it, and waits for its first line.
    ///
    /// # Errors
    ///
    /// When it doesn't start.
    pub fn start(mut self) -> Result<Running> {
        let mut child = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("no output")?);
        let mut first = String::new();
        stdout.read_line(&mut first)?;
        let stdin = child.stdin.take();
        Ok(Running { child, stdin, stdout, first })
    }
}

/// A connector that waits until its standard input ends.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<std::process::ChildStdout>,
    /// Its first line.
    pub first: String,
}

impl Running {
    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends its input and waits for its outcome.
    ///
    /// # Errors
    ///
    /// When it says something unknown.
    pub fn finish(mut self) -> Result<Outcome> {
        drop(self.stdin.take());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest)?;
        self.child.wait()?;
        serde_json::from_str(rest.lines().last().unwrap_or_default()).context(rest)
    }

    /// Kills it.
    ///
    /// # Errors
    ///
    /// When it cannot be killed.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}
