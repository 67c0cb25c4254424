//! What `cargo xtask long kernel-6.1` needs beside the rest: QEMU, virtme-ng, and the kernel itself.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{install_packages, make_venv, missing_packages_of, venv_is_complete};
use crate::{paths, process};

const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "the machine that the kernel boots on, emulated"),
    ("busybox-static", "virtme-ng's programs of the first moments"),
    ("kmod", "virtme-ng looks for the kernel's modules with it"),
    ("binutils", "virtme-ng reads the kernel's version with it"),
    ("iproute2", "tests make network namespaces with it"),
    ("bsdutils", "script, since virtme-ng wants a terminal"),
];
const VIRTME: (&str, &[&str]) = ("virtme", &["virtme-ng==1.42"]);
/// Debian 12's kernel; it depends on the one of the day.
const KERNEL: &str = "linux-image-amd64";
const VERSION: &str = "6.1.";

/// A kernel to boot, and what boots it.
pub(crate) struct Guest {
    /// Its image; modules lie below the same folder.
    pub(crate) kernel: PathBuf,
    /// The image's version.
    pub(crate) version: String,
    /// The folder of virtme-ng's programs.
    pub(crate) tools: PathBuf,
}

impl Guest {
    /// Installs what is missing, and says so.
    pub(crate) fn set_up() -> Result<Self> {
        let packages = missing_packages_of(PACKAGES)?;
        for (name, why) in &packages {
            println!("setup: Debian package {name}: {why}");
        }
        if !packages.is_empty() {
            install_packages(&packages)?;
        }
        let (venv, pins) = VIRTME;
        if !venv_is_complete(venv, pins) {
            println!("setup: {} in target/tools/{venv}: boots a kernel on this machine's files", pins.join(", "));
            make_venv(venv, pins)?;
        }
        let tools = paths::tools().join(venv).join("bin");
        match unpacked()? {
            Some((kernel, version)) => Ok(Self { kernel, version, tools }),
            None => {
                unpack()?;
                let (kernel, version) = unpacked()?.context("the package has no kernel")?;
                Ok(Self { kernel, version, tools })
            }
        }
    }
}

fn folder() -> PathBuf {
    paths::tools().join("kernel-6.1")
}

/// The kernel that was unpacked before, and its version.
fn unpacked() -> Result<Option<(PathBuf, String)>> {
    let boot = folder().join("boot");
    if !boot.is_dir() {
        return Ok(None);
    }
    for entry in fs::read_dir(boot)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(version) = name.strip_prefix("vmlinuz-") {
            return Ok(Some((path.clone(), version.to_owned())));
        }
    }
    Ok(None)
}

/// Unpacks the package, without installing it: nothing of this machine's boot changes.
fn unpack() -> Result<()> {
    ensure!(paths::which("apt-get").is_some(), "no apt here to get Debian 12's {KERNEL} by");
    let depends = process::output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let package = package.with_context(|| format!("{KERNEL} depends on no kernel"))?;
    ensure!(package.starts_with(VERSION), "{KERNEL} is {package} here: {VERSION} is Debian 12's");
    println!("setup: Debian package linux-image-{package}, unpacked in target/tools/kernel-6.1: the kernel to test on");
    let parts = folder().with_extension("part");
    if parts.exists() {
        fs::remove_dir_all(&parts)?;
    }
    fs::create_dir_all(&parts)?;
    let mut download = Command::new("apt-get");
    // As root, which owns the folder: apt's own user could not write there, and says so.
    download.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]).arg(format!("linux-image-{package}"));
    process::output(download.current_dir(&parts))?;
    let deb = fs::read_dir(&parts)?.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some());
    let deb = deb.context("apt-get download gave no package")?;
    process::output(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&parts))?;
    fs::remove_file(deb)?;
    fs::rename(&parts, folder())?;
    Ok(())
}
