//! A cgroup of the test's own, and a folder for the pins of what is attached to it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result};

use crate::database::unique;
use crate::program::{Program, wait_until};
use crate::servers::servers;

const REMOVE_DEADLINE: Duration = Duration::from_secs(10);

/// Where a test's Weir sees sockets, and nowhere else. All in it ends with this value, pinned programs too.
#[derive(Debug)]
pub struct Scope {
    /// Its path in the cgroup v2 hierarchy, with a slash in front.
    pub name: String,
    /// The folder of that cgroup.
    pub path: PathBuf,
    /// A folder of a bpffs.
    pub pins: PathBuf,
}

impl Scope {
    /// Makes both.
    pub fn create() -> Result<Self> {
        let servers = servers()?;
        let unique = unique("scope");
        let name = format!("{}/{unique}", servers.cgroup);
        let path = below(&servers.cgroups, &name);
        let pins = servers.bpffs.join(&unique);
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        fs::create_dir(&pins).with_context(|| format!("cannot make {}", pins.display()))?;
        Ok(Self { name, path, pins })
    }

    /// The folder of the cgroup `name` below this one, made if need be.
    pub fn cgroup(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(path)
    }

    /// A program that runs in the cgroup `name` below this one, from its first instruction on.
    pub fn program<S: AsRef<OsStr>>(&self, name: &str, words: impl IntoIterator<Item = S>) -> Result<Program> {
        let cgroup = self.cgroup(name)?;
        let enter = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        Ok(Program::new(["sh", "-c", enter]).args([cgroup]).args(words))
    }

    /// The same as the Unix user `user`.
    pub fn program_as<S: AsRef<OsStr>>(
        &self,
        user: &str,
        name: &str,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Program> {
        let setpriv = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--inh-caps=-all"];
        Ok(self.program(name, setpriv)?.args(words))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // The programs first: their links end with their pins.
        let unpinned = fs::remove_dir_all(&self.pins);
        let killed = fs::write(self.path.join("cgroup.kill"), "1");
        let removed = wait_until("the cgroup is empty", REMOVE_DEADLINE, || Ok(remove_cgroups(&self.path).ok()));
        if let Err(error) = unpinned.and(killed).map_err(Into::into).and(removed) {
            eprintln!("cannot remove {} or {}: {error:#}", self.path.display(), self.pins.display());
        }
    }
}

/// Removes a cgroup and those below it. Their files can't be removed and go with them.
fn remove_cgroups(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The folder of the cgroup `name`, which begins with a slash.
fn below(cgroups: &Path, name: &str) -> PathBuf {
    cgroups.join(name.trim_start_matches('/'))
}
