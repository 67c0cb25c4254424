//! Builds the eBPF programs from source and leaves the object in `OUT_DIR`, where `redirect` embeds it.
//!
//! They need a tool chain of their own: a compiler that may build `core` for the BPF target, the source of `core`, and
//! `bpf-linker`. Two ways are common, and whichever is there is taken: a rustup nightly with `rust-src`, or the
//! distribution's compiler with the source beside it (Debian: `rustc-web`, `cargo-web`, `rust-web-src`).

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// Variables that speak of the outer build and would lead the inner one astray. What cargo needs for the network and
/// for registries stays.
const FOREIGN: [&str; 9] =
    ["RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_", "TARGET", "HOST", "OUT_DIR", "PROFILE", "CARGO"];
const KEPT: [&str; 6] =
    ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            for line in reason.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let repository = PathBuf::from(variable("CARGO_MANIFEST_DIR")?)
        .parent()
        .ok_or("the manifest has no folder above it")?
        .to_owned();
    let out = PathBuf::from(variable("OUT_DIR")?);
    let source = repository.join("gateway-ebpf");
    for watched in [
        "gateway-ebpf/src",
        "gateway-ebpf/Cargo.toml",
        "gateway-ebpf/Cargo.lock",
        "gateway-common/src",
        "gateway-common/Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", repository.join(watched).display());
    }
    println!("cargo::rerun-if-env-changed=PATH");

    let endian = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let path = search_path()?;
    let tool_chain = ToolChain::find(&path)?;
    let target_dir = out.join("ebpf");
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", variable("CARGO_CFG_TARGET_ARCH")?),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    let mut command = tool_chain.cargo(&path);
    command
        .current_dir(&source)
        .args(["build", "--release", "--locked", "--quiet", "-Z", "build-std=core", "--target", endian])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let output = command.output().map_err(|error| format!("{tool_chain} does not start: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "the eBPF programs do not build with {tool_chain} ({})\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let object = target_dir.join(endian).join("release").join("gateway-ebpf");
    std::fs::copy(&object, out.join("gateway-ebpf.o"))
        .map_err(|error| format!("{} cannot be copied: {error}", object.display()))?;
    Ok(())
}

/// A compiler that can build `core`, and its cargo.
struct ToolChain {
    cargo: Vec<String>,
    rustc: Vec<String>,
    /// Stable compilers build `core` only when told to take unstable options.
    bootstrap: bool,
}

impl fmt::Display for ToolChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.cargo.join(" "))
    }
}

impl ToolChain {
    fn find(path: &str) -> Result<Self, String> {
        let linker = find_program(path, "bpf-linker");
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let rustup = Self {
            cargo: words(&["rustup", "run", "nightly", "cargo"]),
            rustc: words(&["rustup", "run", "nightly", "rustc"]),
            bootstrap: false,
        };
        let distribution =
            Self { cargo: words(&["/usr/bin/cargo"]), rustc: words(&["/usr/bin/rustc"]), bootstrap: true };
        let found = [rustup, distribution].into_iter().find(|chain| chain.has_core(path));
        match (found, linker) {
            (Some(chain), Some(_)) => Ok(chain),
            (found, linker) => {
                let mut missing = Vec::new();
                if found.is_none() {
                    missing.push(
                        "a compiler with the source of `core` (rustup: `rustup toolchain install nightly --component \
                         rust-src`; Debian: packages rustc-web, cargo-web, rust-web-src)",
                    );
                }
                if linker.is_none() {
                    missing.push("bpf-linker (in PATH or in cargo's bin folder)");
                }
                Err(format!(
                    "the eBPF programs cannot be built, since this is missing:\n  {}\n`cargo xtask setup` installs it",
                    missing.join("\n  ")
                ))
            }
        }
    }

    /// Whether the compiler runs and has the source of `core` below its sysroot.
    fn has_core(&self, path: &str) -> bool {
        let Some((program, arguments)) = self.rustc.split_first() else { return false };
        let output = inner(program, path).args(arguments).args(["--print", "sysroot"]).output();
        let Ok(output) = output else { return false };
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success() && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
    }

    fn cargo(&self, path: &str) -> Command {
        let (program, arguments) = self.cargo.split_first().map_or(("cargo", &[][..]), |(p, a)| (p.as_str(), a));
        let mut command = inner(program, path);
        command.args(arguments);
        if self.bootstrap {
            command.env("RUSTC_BOOTSTRAP", "1");
            if let Some(rustc) = self.rustc.first() {
                command.env("RUSTC", rustc);
            }
        }
        command
    }
}

/// A command that knows nothing of the outer build.
fn inner(program: &str, path: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        // RUSTUP_HOME says where the tool chains are.
        if starts(&FOREIGN) && !starts(&KEPT) && name != "RUSTUP_HOME" {
            command.env_remove(name);
        }
    }
    command.env("PATH", path);
    command
}

/// PATH, with cargo's bin folder at its end: that is where `cargo install` puts bpf-linker.
fn search_path() -> Result<String, String> {
    let mut folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    folders.extend(cargo_home.map(|home| home.join("bin")));
    env::join_paths(folders)
        .map_err(|error| error.to_string())?
        .into_string()
        .map_err(|_| "PATH is not UTF-8".to_owned())
}

fn find_program(path: &str, name: &str) -> Option<PathBuf> {
    env::split_paths(path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
