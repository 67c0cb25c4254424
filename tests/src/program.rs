//! Programs that tests run, and what came of them.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(10);

/// A command to be run to its end.
#[derive(Debug)]
pub struct Program {
    command: Command,
    input: Vec<u8>,
}

impl Program {
    /// `words`: the program and its arguments.
    pub fn new<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Self {
        let mut words = words.into_iter();
        let program = words.next();
        let mut command = Command::new(program.as_ref().map_or(OsStr::new(""), AsRef::as_ref));
        command.args(words);
        Self { command, input: Vec::new() }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.command.args(words);
        self
    }

    /// Adds to the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// What it reads on its standard input; nothing if this isn't called.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// The command itself, for what must go on while the test does something else.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to its end. Only a program that can't be started is an error here.
    pub fn run(mut self) -> Result<Ran> {
        let shown = format!("{:?}", self.command);
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        let stdin = child.stdin.take();
        let input = std::mem::take(&mut self.input);
        let writer = thread::spawn(move || {
            // A program that ends without reading all of it has its own way to say so.
            stdin.map(|mut stdin| stdin.write_all(&input))
        });
        let output = child.wait_with_output()?;
        drop(writer.join());
        Ok(Ran { shown, output })
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Ran {
    shown: String,
    output: Output,
}

impl Ran {
    /// How it ended.
    pub fn status(&self) -> ExitStatus {
        self.output.status
    }

    /// Its standard output; what isn't UTF-8 is replaced.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// Its standard output, every byte.
    pub fn stdout_bytes(&self) -> &[u8] {
        &self.output.stdout
    }

    /// Its standard error; what isn't UTF-8 is replaced.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Its standard output without the last line's end, if it succeeded.
    pub fn succeeded(&self) -> Result<String> {
        ensure!(self.status().success(), "{} ended with {}\n{}", self.shown, self.status(), self.told());
        Ok(self.stdout().trim_end_matches('\n').to_owned())
    }

    /// Its standard error, if it failed.
    pub fn failed(&self) -> Result<String> {
        ensure!(!self.status().success(), "{} succeeded\n{}", self.shown, self.told());
        Ok(self.stderr())
    }

    fn told(&self) -> String {
        format!("stdout:\n{}\nstderr:\n{}", self.stdout(), self.stderr())
    }
}

/// Polls until `done` gives something; fails after `deadline`, naming `what` was waited for.
pub fn wait_until<T>(what: &str, deadline: Duration, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        ensure!(Instant::now() < end, "{what}: not within {} s", deadline.as_secs_f32());
        thread::sleep(POLL);
    }
}
