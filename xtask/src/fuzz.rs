//! `cargo xtask long fuzz`: every fuzz target for a while, with libFuzzer. What CI does of it on each run is in the library's
//! own tests: the same properties with the committed seeds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::paths;
use crate::process::{self, step};

const CARGO_FUZZ: &str = "0.13.2";
/// The parser recurses as deep as a statement nests, and libFuzzer runs it on the main thread.
const STACK_BYTES: u64 = 64 << 20;
const MEMORY_MIB: u32 = 4096;
/// One input may take so long; a slow one is a finding as well.
const INPUT_SECONDS: u32 = 10;

/// Builds the targets whose names contain `filter` and runs each for `seconds`; what it finds ends the run, and the input
/// stays below `gateway-daemon/fuzz/artifacts`.
pub(crate) fn run(filter: &str, seconds: u32) -> Result<()> {
    step("cargo-fuzz", install)?;
    let targets = targets(filter)?;
    ensure!(!targets.is_empty(), "no fuzz target is called like `{filter}`");
    // C code isn't compiled for the fuzzer: the address sanitizer would watch nothing but safe Rust, at twice the price.
    step("build", || process::run(cargo_fuzz("build").args(["--sanitizer", "none"])))?;
    let unlimited = getrlimit(Resource::Stack).maximum;
    setrlimit(Resource::Stack, Rlimit { current: Some(STACK_BYTES), maximum: unlimited })?;
    for target in &targets {
        let corpus = corpus(target)?;
        step(target, || {
            let mut command = cargo_fuzz("run");
            command.args(["--sanitizer", "none", target]).arg(&corpus).arg(seeds(target)).arg("--");
            command.arg(format!("-max_total_time={seconds}")).arg(format!("-rss_limit_mb={MEMORY_MIB}"));
            command.arg(format!("-timeout={INPUT_SECONDS}")).args(["-max_len=4096", "-print_final_stats=1"]);
            process::run(&mut command)
        })?;
    }
    Ok(())
}

fn folder() -> PathBuf {
    paths::root().join("gateway-daemon/fuzz")
}

fn seeds(target: &str) -> PathBuf {
    folder().join("seeds").join(target)
}

/// Where a target keeps what it found interesting; that of `sql` begins with the statements of the test corpora.
fn corpus(target: &str) -> Result<PathBuf> {
    let corpus = folder().join("corpus").join(target);
    fs::create_dir_all(&corpus)?;
    if target == "sql" {
        for file in ["benign.jsonl", "attacks.jsonl"] {
            statements(&paths::root().join("tests/corpora/postgres").join(file), &corpus)?;
        }
    }
    Ok(corpus)
}

/// Writes each case's statement to a file of its own.
fn statements(cases: &Path, corpus: &Path) -> Result<()> {
    let cases = fs::read_to_string(cases).with_context(|| format!("cannot read {}", cases.display()))?;
    for case in cases.lines() {
        let case: serde_json::Value = serde_json::from_str(case)?;
        let text = |key| case.get(key).and_then(serde_json::Value::as_str);
        if let (Some(id), Some(sql)) = (text("id"), text("sql")) {
            fs::write(corpus.join(format!("case-{}", id.replace('/', "-"))), sql)?;
        }
    }
    Ok(())
}

fn targets(filter: &str) -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(folder().join("fuzz_targets"))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).context("a fuzz target's name is not UTF-8")?;
        if name.contains(filter) {
            targets.push(name.to_owned());
        }
    }
    targets.sort();
    Ok(targets)
}

fn installed() -> PathBuf {
    paths::tools().join("cargo-fuzz")
}

fn install() -> Result<()> {
    if installed().join("bin/cargo-fuzz").is_file() {
        return Ok(());
    }
    let mut command = paths::cargo_command("install");
    command.args(["cargo-fuzz", "--version", CARGO_FUZZ, "--locked", "--quiet", "--root"]).arg(installed());
    process::run(&mut command)
}

fn cargo_fuzz(verb: &str) -> Command {
    let mut command = Command::new(installed().join("bin/cargo-fuzz"));
    // As cargo calls it: with its own name first.
    command.current_dir(paths::root().join("gateway-daemon")).args(["fuzz", verb]);
    command
}
