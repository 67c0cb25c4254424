//! Where the outputs of a test differ.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Lines in one place that differ.
#[derive(Clone)]
pub(super) struct Hunk {
    /// Where in the direct output.
    pub(super) line: usize,
    /// With `-` what the server prints, with `+` what comes through Weir; each line with its end.
    pub(super) text: String,
}

impl fmt::Display for Hunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@@ {}\n{}", self.line, self.text)
    }
}

/// All tests of both folders, with where they differ; a test that is in one of them alone is an error.
pub(super) fn differences(direct: &Path, weir: &Path) -> Result<BTreeMap<String, Vec<Hunk>>> {
    let (tests, same) = (outputs(direct)?, outputs(weir)?);
    ensure!(!tests.is_empty(), "{} holds no results: run the suite first", direct.display());
    ensure!(tests == same, "the two runs have not run the same tests");
    let mut all = BTreeMap::new();
    for test in tests {
        let file = format!("{test}.out");
        all.insert(test, hunks(&direct.join(&file), &weir.join(&file))?);
    }
    Ok(all)
}

fn outputs(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("no results in {}", folder.display()))?;
    let mut tests = Vec::new();
    for entry in entries {
        let path = entry?.path();
        tests.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    }
    tests.sort();
    Ok(tests)
}

fn hunks(direct: &Path, weir: &Path) -> Result<Vec<Hunk>> {
    let mut diff = Command::new("diff");
    let output = diff.args(["--text", "--unified=0"]).arg(direct).arg(weir).output().context("cannot start diff")?;
    // 1: they differ.
    ensure!(output.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&output.stderr));
    let mut hunks: Vec<Hunk> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(place) = line.strip_prefix("@@ -") {
            let number: String = place.chars().take_while(char::is_ascii_digit).collect();
            hunks.push(Hunk { line: number.parse()?, text: String::new() });
        } else if let Some(hunk) = hunks.last_mut() {
            hunk.text.push_str(line);
            hunk.text.push('\n');
        }
    }
    Ok(hunks)
}
