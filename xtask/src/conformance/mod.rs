//! `cargo xtask conformance`: PostgreSQL's own regression suite gives through Weir what it gives directly.
//!
//! What the server itself prints is the expectation, not what the suite ships: that depends on the locale and on versions
//! of libraries. Each difference is on a list, with its reason (`conformance/` in the repository); what differs and isn't
//! listed fails, and so does what is listed and no longer differs.

mod compare;
mod listed;
mod runs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use crate::process::step;
use crate::setup::regress::Suite;
use crate::{build, paths, setup};
use compare::Hunk;
use listed::{Listed, ListedHunk};

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Send only these tests through Weir, and compare them alone
    tests: Vec<String>,
    /// Compare the results of the last run again, and run nothing
    #[arg(long)]
    compare: bool,
    /// Write what differs to conformance/differences; reasons stay, and are to be given to what is new (`# ?`)
    #[arg(long)]
    write: bool,
    /// Put this `weir` to the test, and build none
    #[arg(long, value_name = "FILE")]
    weir: Option<PathBuf>,
}

/// Runs the suite twice, and compares.
pub(crate) fn run(options: &Options) -> Result<()> {
    let results = paths::target()?.join("conformance");
    if !options.compare {
        ensure!(
            rustix::process::geteuid().is_root(),
            "not root: Weir loads eBPF programs, and servers run as other users"
        );
        step("setup", setup::run)?;
        let suite = step("setup of the suite", Suite::set_up)?;
        let program = match &options.weir {
            Some(file) => std::path::absolute(file)?,
            None => step("build weir", || build::weir(build::PROFILE))?,
        };
        println!("PostgreSQL {}", suite.version);
        runs::both(&suite, &program, &options.tests, &results)?;
    }
    compare(&results, options)
}

fn compare(results: &Path, options: &Options) -> Result<()> {
    let mut differences = compare::differences(&results.join("direct"), &results.join("weir"))?;
    let mut listed = Listed::read()?;
    let mut faults = listed.faults();
    if !options.tests.is_empty() {
        differences.retain(|test, _| options.tests.contains(test));
        listed.retain(&options.tests);
    }
    faults.extend(unlisted(&differences, &listed));
    let tests = differences.len();
    let differing: BTreeMap<_, _> = differences
        .into_iter()
        .filter(|(_, hunks)| !hunks.is_empty())
        .map(|(test, hunks)| (test.clone(), listed::with_reasons(hunks, listed.of(&test))))
        .collect();
    tell(tests, &differing);
    if options.write {
        ensure!(options.tests.is_empty(), "the list is of all tests");
        return listed::write(&differing);
    }
    match faults.len() {
        0 => Ok(()),
        count => bail!("{count} differences are not as listed in conformance/:\n\n{}", faults.join("\n")),
    }
}

/// What differs and is not listed, and what is listed and does not differ.
fn unlisted(differences: &BTreeMap<String, Vec<Hunk>>, listed: &Listed) -> Vec<String> {
    let mut faults = Vec::new();
    let all: BTreeSet<_> = differences.keys().map(String::as_str).chain(listed.tests()).collect();
    for test in all {
        let mut known: Vec<_> = listed.of(test).iter().map(|listed| &listed.hunk).collect();
        for hunk in differences.get(test).into_iter().flatten() {
            match known.iter().position(|known| known.text == hunk.text) {
                Some(at) => drop(known.remove(at)),
                None => faults.push(format!("{test}: not listed\n{hunk}")),
            }
        }
        faults.extend(known.into_iter().map(|gone| format!("{test}: listed, and no longer so\n{gone}")));
    }
    faults
}

/// The numbers: tests, and what differs by reason.
fn tell(tests: usize, differing: &BTreeMap<String, Vec<ListedHunk>>) {
    println!("{tests} tests: {} the same, {} differ somewhere", tests - differing.len(), differing.len());
    let mut reasons: BTreeMap<&str, (BTreeSet<&str>, usize)> = BTreeMap::new();
    for (test, hunks) in differing {
        for ListedHunk { reason, .. } in hunks {
            let (tests, places) = reasons.entry(reason).or_default();
            tests.insert(test);
            *places += 1;
        }
    }
    for (reason, (tests, places)) in reasons {
        println!("  {reason}: {places} places in {} tests", tests.len());
    }
}
