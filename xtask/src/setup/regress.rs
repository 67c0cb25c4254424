//! What `cargo xtask conformance` needs beside the rest: PostgreSQL's regression suite, of the version that is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{install_packages, missing_packages_of};
use crate::servers::postgres_bin;
use crate::{paths, process};

const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "compiles the functions in C that the suite calls"),
    ("libc6-dev", "headers for them"),
    ("libpq-dev", "headers for them"),
    ("bzip2", "unpacks PostgreSQL's source"),
];
/// The folders of the source that are unpacked.
const SUITE: &str = "src/test/regress";
const TRIGGERS: &str = "contrib/spi";
/// What the suite loads into the server, by their places in the source.
const LIBRARIES: [&str; 3] = ["src/test/regress/regress", "contrib/spi/autoinc", "contrib/spi/refint"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The suite, ready to run.
pub(crate) struct Suite {
    /// The program that runs it.
    pub(crate) pg_regress: PathBuf,
    /// Where `sql`, `expected` and the schedule are.
    pub(crate) input: PathBuf,
    /// Where its libraries are.
    pub(crate) libraries: PathBuf,
    /// PostgreSQL's version, as Debian counts.
    pub(crate) version: String,
}

impl Suite {
    /// Installs what is missing, and says so.
    pub(crate) fn set_up() -> Result<Self> {
        ensure!(paths::which("apt-get").is_some(), "no apt here to get the source of Debian's PostgreSQL by");
        let packages = missing_packages_of(PACKAGES)?;
        for (name, why) in &packages {
            println!("setup: Debian package {name}: {why}");
        }
        if !packages.is_empty() {
            install_packages(&packages)?;
        }
        let bin = postgres_bin()?;
        let lib = bin.parent().context("PostgreSQL's programs are in no folder")?.join("lib");
        let pg_regress = lib.join("pgxs/src/test/regress/pg_regress");
        ensure!(pg_regress.is_file(), "{} isn't there: Debian's postgresql-client has it", pg_regress.display());
        let major = bin.parent().and_then(Path::file_name).context("PostgreSQL isn't in Debian's place")?;
        let server = format!("postgresql-{}", major.to_string_lossy());
        let query = ["-W", "-f=${source:Version}", &server];
        let version = process::output(Command::new("dpkg-query").args(query))?;
        let folder = paths::tools().join(format!("{server}-{version}"));
        if !folder.is_dir() {
            make(&folder, &server, &version)?;
        }
        Ok(Self { pg_regress, input: folder.join(SUITE), libraries: folder.join("lib"), version })
    }
}

/// Fetches the source and makes the libraries, in a folder that is renamed once it is whole.
fn make(folder: &Path, server: &str, version: &str) -> Result<()> {
    println!("setup: source of {server} {version} in {}: the regression suite", folder.display());
    let parts = folder.with_extension("part");
    if parts.exists() {
        fs::remove_dir_all(&parts)?;
    }
    fs::create_dir_all(&parts)?;
    let tarball = fetch_source(&parts, server, version)?;
    let mut tar = Command::new("tar");
    tar.current_dir(&parts).arg("--extract").arg("--file").arg(&tarball);
    tar.args(["--strip-components=1", "--wildcards", &format!("*/{SUITE}"), &format!("*/{TRIGGERS}")]);
    process::output(&mut tar)?;
    fs::remove_file(tarball)?;
    let headers = fetch_headers(&parts, server, version)?;
    fs::create_dir(parts.join("lib"))?;
    for library in LIBRARIES {
        let name = library.rsplit('/').next().unwrap_or(library);
        let mut gcc = Command::new("gcc");
        gcc.current_dir(&parts).args(["-O2", "-fPIC", "-shared", "-I"]).arg(&headers);
        gcc.args(["-I/usr/include/postgresql/internal", "-o", &format!("lib/{name}.so"), &format!("{library}.c")]);
        process::output(&mut gcc)?;
    }
    fs::rename(&parts, folder)?;
    Ok(())
}

/// The upstream tarball, by the machine's own mirrors: their source indices are fetched apart, so that what apt knows
/// of this machine stays as it is.
fn fetch_source(parts: &Path, server: &str, version: &str) -> Result<PathBuf> {
    let apt = parts.join("apt");
    fs::create_dir_all(apt.join("lists/partial"))?;
    let format = format!("deb-src [signed-by={KEYRING}] $(REPO_URI) $(RELEASE) $(COMPONENT)");
    let targets = ["indextargets", "--format", &format, "Created-By: Packages", "Origin: Debian"];
    fs::write(apt.join("sources.list"), process::output(Command::new("apt-get").args(targets))?)?;
    let run = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        // As root, which owns the folder: apt's own user could not write there.
        command.current_dir(parts).args(["-qq", "-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::sourceparts=-"]);
        for (key, name) in
            [("Dir::Etc::sourcelist", "sources.list"), ("Dir::State::lists", "lists"), ("Dir::Cache", "")]
        {
            command.arg("-o").arg(format!("{key}={}", apt.join(name).display()));
        }
        process::output(command.args(words))
    };
    run(&["update"])?;
    let source = format!("{server}={version}");
    run(&["source", "--download-only", "--only-source", "--tar-only", &source])
        .with_context(|| format!("the mirrors don't have {source}: upgrade {server} to the version that they have"))?;
    fs::remove_dir_all(apt)?;
    let files = fs::read_dir(parts)?.flatten().map(|entry| entry.path());
    let mut tarballs = files.filter(|path| path.to_string_lossy().contains(".orig.tar."));
    tarballs.next().context("apt-get source gave no tarball")
}

/// The server's headers, unpacked and not installed: the package wants a whole LLVM beside them.
fn fetch_headers(parts: &Path, server: &str, version: &str) -> Result<PathBuf> {
    let package = server.replace("postgresql-", "postgresql-server-dev-");
    let mut download = Command::new("apt-get");
    download.args(["-qq", "-o", "APT::Sandbox::User=root", "download", &format!("{package}={version}")]);
    process::output(download.current_dir(parts))?;
    let mut files = fs::read_dir(parts)?.flatten().map(|entry| entry.path());
    let deb = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let deb = deb.context("apt-get download gave no package")?;
    process::output(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(parts.join("headers")))?;
    fs::remove_file(deb)?;
    Ok(parts.join("headers/usr/include").join(server.replace('-', "/")).join("server"))
}
