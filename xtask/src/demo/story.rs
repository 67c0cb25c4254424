//! Shows commands with what they print, and holds them to what is promised.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Counts the steps.
pub(super) struct Story {
    steps: u32,
}

impl Story {
    pub(super) fn begin() -> Self {
        Self { steps: 0 }
    }

    /// A heading.
    #[expect(clippy::unused_self, reason = "a story has chapters")]
    pub(super) fn chapter(&self, title: &str) {
        println!("\n{title}\n{}", "=".repeat(title.chars().count()));
    }

    /// Runs `command`, which must succeed and print every one of `promised`. Gives what it printed.
    pub(super) fn succeeds(&mut self, what: &str, command: Command, promised: &[&str]) -> Result<String> {
        let (success, printed) = self.run(what, command)?;
        ensure!(success, "step {} failed, and must not", self.steps);
        self.check(printed, promised)
    }

    /// Runs `command`, which must fail and print every one of `promised`.
    pub(super) fn fails(&mut self, what: &str, command: Command, promised: &[&str]) -> Result<()> {
        let (success, printed) = self.run(what, command)?;
        ensure!(!success, "step {} succeeded, and must not", self.steps);
        self.check(printed, promised).map(drop)
    }

    pub(super) fn end(&self) {
        println!("\nAll {} steps came out as promised.", self.steps);
    }

    fn run(&mut self, what: &str, mut command: Command) -> Result<(bool, String)> {
        crate::process::check_signals()?;
        self.steps += 1;
        println!("\n{}. {what}\n   $ {}", self.steps, shown(&command));
        let output = command.output().with_context(|| format!("cannot start {}", shown(&command)))?;
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        for line in printed.lines() {
            println!("   | {line}");
        }
        Ok((output.status.success(), printed))
    }

    fn check(&self, printed: String, promised: &[&str]) -> Result<String> {
        for text in promised {
            ensure!(printed.contains(text), "step {} was to print `{text}`, and did not", self.steps);
        }
        Ok(printed)
    }
}

/// A command as the Unix user and group `id`.
pub(super) fn as_user(id: &str, words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", id, "--regid", id, "--clear-groups"]).args(words);
    command
}

/// As a person would type it: what a shell would split is quoted.
fn shown(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let name = program.rsplit('/').next().unwrap_or(&program).to_owned();
    let words = command.get_args().map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@".contains(c);
        if word.chars().all(plain) { word.into_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    });
    std::iter::once(name).chain(words).collect::<Vec<_>>().join(" ")
}
