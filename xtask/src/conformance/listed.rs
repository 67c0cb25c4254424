//! The differences that are known: `conformance/README.md` has the reasons, `conformance/differences` a file for each test
//! that differs.
//!
//! ```text
//! # reason
//! @@ 12
//! -what the server prints
//! +what comes through Weir
//! ```
//!
//! A reason stands for all hunks up to the next one. The number is the line of the direct output; it is for people, and
//! not compared: a new minor version of PostgreSQL may move lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use super::compare::Hunk;
use crate::paths;

/// What stands for the reason of a hunk that nobody gave one yet.
const NO_REASON: &str = "?";

/// All that is listed.
pub(super) struct Listed {
    reasons: BTreeSet<String>,
    /// By test, in order.
    tests: BTreeMap<String, Vec<ListedHunk>>,
}

/// A difference with its reason.
#[derive(Clone)]
pub(super) struct ListedHunk {
    pub(super) reason: String,
    pub(super) hunk: Hunk,
}

fn folder() -> PathBuf {
    paths::root().join("conformance")
}

impl Listed {
    /// Reads all, and refuses what is not in order.
    pub(super) fn read() -> Result<Self> {
        let page = fs::read_to_string(folder().join("README.md")).context("cannot read conformance/README.md")?;
        let headings = page.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'));
        let reasons: BTreeSet<_> = headings.map(str::to_owned).collect();
        let mut tests = BTreeMap::new();
        for entry in fs::read_dir(folder().join("differences"))? {
            let path = entry?.path();
            let test = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let hunks = parse(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
            tests.insert(test, hunks);
        }
        Ok(Self { reasons, tests })
    }

    /// What is listed of a test.
    pub(super) fn of(&self, test: &str) -> &[ListedHunk] {
        self.tests.get(test).map_or(&[], Vec::as_slice)
    }

    /// Tests that something is listed of.
    pub(super) fn tests(&self) -> impl Iterator<Item = &str> {
        self.tests.keys().map(String::as_str)
    }

    /// Leaves only these tests on it.
    pub(super) fn retain(&mut self, tests: &[String]) {
        self.tests.retain(|test, _| tests.contains(test));
    }

    /// What is wrong with the list itself: a hunk without a reason, a reason without a hunk.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut used = BTreeSet::new();
        for (test, hunks) in &self.tests {
            for ListedHunk { reason, hunk } in hunks {
                used.insert(reason.clone());
                if !self.reasons.contains(reason) {
                    faults.push(format!("{test}: `{reason}` is no reason of conformance/README.md\n{hunk}"));
                }
            }
        }
        let unused = self.reasons.difference(&used);
        faults.extend(unused.map(|reason| format!("conformance/README.md: nothing differs for the reason `{reason}`")));
        faults
    }
}

/// Writes what differs now, with the reasons that were listed before; where there was none, a person must give it.
pub(super) fn write(differing: &BTreeMap<String, Vec<ListedHunk>>) -> Result<()> {
    let folder = folder().join("differences");
    fs::remove_dir_all(&folder)?;
    fs::create_dir(&folder)?;
    for (test, hunks) in differing {
        fs::write(folder.join(format!("{test}.diff")), shown(hunks))?;
    }
    Ok(())
}

fn shown(hunks: &[ListedHunk]) -> String {
    let mut text = String::new();
    let mut last = None;
    for ListedHunk { reason, hunk } in hunks {
        if last != Some(reason) {
            text.push_str(&format!("# {reason}\n"));
            last = Some(reason);
        }
        text.push_str(&hunk.to_string());
    }
    text
}

/// What differs, each hunk with the reason that `listed` has for it.
pub(super) fn with_reasons(hunks: Vec<Hunk>, listed: &[ListedHunk]) -> Vec<ListedHunk> {
    let mut left: Vec<&ListedHunk> = listed.iter().collect();
    let reason_of = |hunk: &Hunk, left: &mut Vec<&ListedHunk>| {
        let at = left.iter().position(|known| known.hunk.text == hunk.text)?;
        Some(left.remove(at).reason.clone())
    };
    let with = hunks
        .into_iter()
        .map(|hunk| ListedHunk { reason: reason_of(&hunk, &mut left).unwrap_or_else(|| NO_REASON.to_owned()), hunk });
    with.collect()
}

fn parse(text: &str) -> Result<Vec<ListedHunk>> {
    let mut hunks: Vec<ListedHunk> = Vec::new();
    let mut reason = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("# ") {
            reason = Some(name.to_owned());
        } else if let Some(number) = line.strip_prefix("@@ ") {
            let reason = reason.clone().context("a hunk stands before any reason")?;
            let hunk = Hunk { line: number.parse().with_context(|| format!("no line: {line}"))?, text: String::new() };
            hunks.push(ListedHunk { reason, hunk });
        } else if line.starts_with(['-', '+']) {
            let Some(ListedHunk { hunk, .. }) = hunks.last_mut() else {
                bail!("a line stands before any hunk: {line}")
            };
            hunk.text.push_str(line);
            hunk.text.push('\n');
        } else {
            ensure!(line.is_empty(), "neither a reason nor a line of a hunk: {line}");
        }
    }
    Ok(hunks)
}
