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
    step("clippy", || {
        let mut clippy = paths::cargo_command("clippy");
        clippy.args(["--workspace", "--all-targets", "--profile", build::PROFILE, "--", "-D", "warnings"]);
        process::run(&mut clippy)
    })?;
    let ebpf = paths::root().join("gateway-ebpf");
    if ebpf.is_dir() {
        step("clippy of the eBPF programs", || {
            process::run(ebpf_cargo("clippy")?.current_dir(&ebpf).args(["--release", "--", "-D", "warnings"]))
        })?;
    }
    step("licences and dependencies", deny)
}

fn format() -> Result<()> {
    process::run(paths::cargo_command("fmt").args(["--all", "--check"]))?;
    // Crates outside the workspace, for their tool chains' sake.
    for manifest in ["gateway-ebpf/Cargo.toml", "gateway-daemon/fuzz/Cargo.toml"] {
        if paths::root().join(manifest).is_file() {
            process::run(paths::cargo_command("fmt").args(["--check", "--manifest-path", manifest]))?;
        }
    }
    Ok(())
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
    let cargo_deny = || {
        let mut command = Command::new(paths::tools().join("cargo/bin/cargo-deny"));
        command.current_dir(paths::root());
        command
    };
    process::run(cargo_deny().args(["check", "bans", "licenses", "sources"]))?;
    // The advisories are in a database of their own, which isn't to be had everywhere.
    match process::output(cargo_deny().args(["fetch", "db"])) {
        Ok(_) => process::run(cargo_deny().args(["check", "advisories"])),
        Err(error) => {
            println!("advisories: NOT CHECKED, their database can't be had here: {}", reason(&error));
            Ok(())
        }
    }
}

/// The line of an error of cargo-deny that says what went wrong.
fn reason(error: &anyhow::Error) -> String {
    let text = error.to_string();
    let line = text.lines().find(|line| line.starts_with("fatal:"));
    line.or(text.lines().last()).unwrap_or_default().trim().to_owned()
}
