//! `cargo xtask lint`: format, clippy for every target and for the eBPF crate, licences and dependencies.

use std::process::Command;

use anyhow::Result;

use crate::process::{self, step};
use crate::setup::{self, EbpfToolchain};
use crate::{build, paths};

/// Runs all of them; the first that fails ends it.
pub(crate) fn run() -> Result<()> {
    step("setup", setup::run)?;
    step("format", format)?;
    step("licences and dependencies", deny)?;
    step("clippy", || {
        let mut clippy = paths::cargo_command("clippy");
        clippy.args(["--workspace", "--all-targets", "--profile", build::PROFILE, "--", "-D", "warnings"]);
        process::run(&mut clippy)
    })?;
    let ebpf = paths::root().join("gateway-ebpf");
    if ebpf.is_dir() {
        step("clippy of the eBPF programs", || {
            let mut clippy = ebpf_cargo("clippy")?;
            process::run(clippy.current_dir(&ebpf).args(["--release", "--locked", "--", "-D", "warnings"]))
        })?;
    }
    Ok(())
}

fn format() -> Result<()> {
    process::run(paths::cargo_command("fmt").args(["--all", "--check"]))?;
    for manifest in outside() {
        process::run(paths::cargo_command("fmt").args(["--check", "--manifest-path", manifest]))?;
    }
    Ok(())
}

/// Crates that aren't in the workspace, since they have tool chains of their own.
fn outside() -> impl Iterator<Item = &'static str> {
    let manifests = ["gateway-ebpf/Cargo.toml", "gateway-daemon/fuzz/Cargo.toml"];
    manifests.into_iter().filter(|manifest| paths::root().join(manifest).is_file())
}

/// Cargo of the tool chain that builds the eBPF programs.
fn ebpf_cargo(verb: &str) -> Result<Command> {
    let mut command = match setup::ebpf_toolchain()? {
        EbpfToolchain::Debian => {
            let mut command = Command::new("/usr/bin/cargo");
            command.arg(verb).env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
            // `cargo clippy` looks for cargo-clippy and clippy-driver on PATH, where rustup's come first.
            let path = std::env::var_os("PATH").unwrap_or_default();
            let with_debian_first = std::iter::once("/usr/bin".into()).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(with_debian_first)?);
            command
        }
        EbpfToolchain::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo", verb]);
            command
        }
    };
    // What the cargo that runs this program set for itself.
    for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        command.env_remove(name);
    }
    Ok(command)
}

fn deny() -> Result<()> {
    let cargo_deny = |manifest: &str| {
        let mut command = Command::new(paths::tools().join("cargo/bin/cargo-deny"));
        command.current_dir(paths::root()).args(["--config", "deny.toml", "--manifest-path", manifest]);
        command
    };
    let manifests: Vec<_> = std::iter::once("Cargo.toml").chain(outside()).collect();
    for manifest in &manifests {
        process::run(cargo_deny(manifest).args(["check", "bans", "licenses", "sources"]))?;
    }
    // The advisories are in a database of their own, which isn't to be had everywhere.
    if let Err(error) = process::output(cargo_deny("Cargo.toml").args(["fetch", "db"])) {
        println!("advisories: NOT CHECKED, their database can't be had here: {}", reason(&error));
        return Ok(());
    }
    manifests.iter().try_for_each(|manifest| process::run(cargo_deny(manifest).args(["check", "advisories"])))
}

/// The line of an error of cargo-deny that says what went wrong.
fn reason(error: &anyhow::Error) -> String {
    let text = error.to_string();
    let line = text.lines().find(|line| line.starts_with("fatal:"));
    line.or(text.lines().last()).unwrap_or_default().trim().to_owned()
}
