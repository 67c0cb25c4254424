//! `cargo xtask long kernel-6.1`: the tests that meet the kernel, on the oldest one that Weir supports.
//!
//! Debian 12's generic kernel boots in QEMU by virtme-ng, with this machine's files as its root; a machine that is a
//! guest itself has no KVM to lend, so everything is emulated, and slow. The kernel is unpacked below target/tools: this
//! machine's own boot is not touched. nextest runs in the guest what was built out here.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, step};
use crate::setup::kernel::Guest;
use crate::{paths, setup, test};

/// What needs the kernel and no servers: the programs with all that is tried against them, and the launcher with its
/// namespaces, filters and terminals. The package's own tests beside the code of both as well.
const TESTS: &str = "binary(redirect) + binary(redirect_egress) + binary(redirect_identity) + binary(redirect_pins) \
                     + binary(redirect_routes) + binary(launch) \
                     + (package(gateway-daemon) & kind(lib) & test(/^(redirect|launch|accept)::/))";
/// The binaries of those tests, and the programs that they start from beside themselves.
const BINARIES: [&str; 7] = [
    "gateway-daemon",
    "gateway-daemon::launch",
    "end-to-end::redirect",
    "end-to-end::redirect_egress",
    "end-to-end::redirect_identity",
    "end-to-end::redirect_pins",
    "end-to-end::redirect_routes",
];
const PROGRAMS: [&str; 3] = ["weir", "connector", "redirector"];

/// Emulated on a busy machine, the tests take a quarter of an hour.
const DEADLINE: Duration = Duration::from_secs(40 * 60);

/// Boots the kernel, runs the tests there, and fails unless they pass.
pub(super) fn run() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "not root: the tests load eBPF programs and make cgroups");
    step("setup", setup::run)?;
    let guest = step("setup of the guest", Guest::set_up)?;
    let folder = paths::target()?.join("kernel-6.1");
    step("build", || lay_out(&folder))?;
    step("tests in the guest", || in_guest(&guest, &folder))
}

/// Builds the tests, and puts into `folder` what describes them to nextest, and the script for the guest.
fn lay_out(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let list = ["--list-type", "binaries-only", "--message-format", "json"];
    let binaries = process::output(test::nextest("list").args(list))?;
    let metadata = process::output(paths::cargo_command("metadata").args(["--format-version=1", "--all-features"]))?;
    fs::write(folder.join("binaries.json"), &binaries)?;
    fs::write(folder.join("metadata.json"), metadata)?;
    fs::write(folder.join("run"), script(folder, &binaries)?)?;
    Ok(())
}

/// What the guest does. It has the programs in memory, since reading them through the emulator takes long each time;
/// tests know `weir` by its path, so that one is laid over the other. A bar of progress would keep the console busy.
fn script(folder: &Path, binaries: &str) -> Result<String> {
    let binaries: serde_json::Value = serde_json::from_str(binaries)?;
    let target = paths::target()?;
    let mut files = Vec::new();
    for id in BINARIES {
        let path = binaries.pointer(&format!("/rust-binaries/{id}/binary-path")).and_then(|path| path.as_str());
        files.push(path.with_context(|| format!("no test binary {id}"))?.to_owned());
    }
    let profile = target.join(crate::build::PROFILE);
    let programs = PROGRAMS.map(|name| profile.join(name).display().to_string()).join(" ");
    let weir = profile.join("weir").display().to_string();
    let copy = format!("/run/weir-target/{}", crate::build::PROFILE);
    let nextest = paths::tools().join("cargo/bin/cargo-nextest").display().to_string();
    let (root, folder) = (paths::root().display(), folder.display());
    Ok(format!(
        "mkdir -p {copy}/deps
cp {programs} {copy}
cp {binaries} {copy}/deps
cp {nextest} /run/cargo-nextest
mount --bind {copy}/weir {weir}
cd {root}
/run/cargo-nextest nextest run --profile kernel --show-progress none --binaries-metadata {folder}/binaries.json --cargo-metadata {folder}/metadata.json \\
  --workspace-remap {root} --target-dir-remap /run/weir-target -E '{TESTS}'
echo $? > {folder}/status
",
        binaries = files.join(" "),
    ))
}

/// Boots, and waits for the end. The guest's console is shown (by `--verbose`), kernel and all; how the tests ended is in
/// a file, which the guest writes.
fn in_guest(guest: &Guest, folder: &Path) -> Result<()> {
    let begin = Instant::now();
    let command = format!(
        "vng --verbose --disable-kvm --rw --run {} --user root --memory 3G --cpus 2 --exec 'sh {}'",
        guest.kernel.display(),
        folder.join("run").display()
    );
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", guest.tools.display());
    let deadline = DEADLINE.as_secs().to_string();
    // It wants a terminal, which script makes; timeout's `--foreground` leaves Ctrl-C to reach it.
    let mut script = Command::new("timeout");
    script.args(["--foreground", "--kill-after=10", &deadline, "script", "-qec", &command, "/dev/null"]);
    let status = process::status(script.env("PATH", path))?;
    process::check_signals()?;
    println!("the guest ran for {} s", begin.elapsed().as_secs());
    match fs::read_to_string(folder.join("status")).as_deref().map(str::trim) {
        Ok("0") => Ok(()),
        Ok(code) => bail!("the tests on {} failed: nextest ended with {code}", guest.version),
        Err(_) => bail!("the guest did not get to the end of the tests: {status}"),
    }
}
