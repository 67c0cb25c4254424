//! The files, all at once: each is written under another name beside its place, and gets its own when all are there. The
//! configuration comes last, since the others count by it alone.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use secrecy::{ExposeSecret, SecretString};
use tokio::signal::unix::{SignalKind, signal};

use super::answers::Answers;

/// The policies' file.
pub(super) const POLICY_FILE: &str = "00-baseline.cedar";

/// What is to be written.
pub(super) struct Staged<'a> {
    files: Vec<Planned<'a>>,
}

struct Planned<'a> {
    path: PathBuf,
    mode: u32,
    content: Content<'a>,
}

enum Content<'a> {
    Text(&'a str),
    Secret(&'a SecretString),
}

/// What became of a file.
pub(super) enum Written {
    New(PathBuf),
    Kept(PathBuf),
}

impl<'a> Staged<'a> {
    /// The configuration goes to `path`, the rest where it says.
    pub(super) fn new(answers: &'a Answers, path: &Path, configuration: &'a str, policies: &'a str) -> Self {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut files = Vec::new();
        if let Some(password) = &answers.password {
            files.push(Planned {
                path: answers.password_file.clone(),
                mode: 0o400,
                content: Content::Secret(password),
            });
        }
        let policy = dir.join("policies").join(POLICY_FILE);
        files.push(Planned { path: policy, mode: 0o644, content: Content::Text(policies) });
        files.push(Planned { path: path.to_owned(), mode: 0o644, content: Content::Text(configuration) });
        Self { files }
    }

    /// Writes them. A signal waits until that is done.
    pub(super) fn write(self, runtime: &tokio::runtime::Runtime) -> Result<Vec<Written>> {
        let _guard = runtime.enter();
        let _held = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        let mut ready: Vec<Ready> = Vec::new();
        let mut written = Vec::new();
        for planned in self.files {
            match Ready::make(&planned).with_context(|| format!("{} cannot be written", planned.path.display()))? {
                Some(one) => ready.push(one),
                None => written.push(Written::Kept(planned.path)),
            }
        }
        let mut placed: Vec<PathBuf> = Vec::new();
        for one in &ready {
            // A link never replaces what is there.
            if let Err(error) = fs::hard_link(&one.temporary, &one.path) {
                for path in &placed {
                    let _ = fs::remove_file(path);
                }
                bail!("{} cannot be written, so nothing was: {error}", one.path.display());
            }
            placed.push(one.path.clone());
        }
        written.extend(placed.into_iter().map(Written::New));
        Ok(written)
    }
}

/// A file that is whole on the disk, under another name, which goes with this value.
struct Ready {
    temporary: PathBuf,
    path: PathBuf,
}

impl Ready {
    /// `None` where the file is there already.
    fn make(planned: &Planned<'_>) -> io::Result<Option<Self>> {
        if planned.path.symlink_metadata().is_ok() {
            return Ok(None);
        }
        let (Some(folder), Some(name)) = (planned.path.parent(), planned.path.file_name()) else {
            return Err(io::ErrorKind::InvalidFilename.into());
        };
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        let temporary = folder.join(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(planned.mode).open(&temporary)?;
        let ready = Self { temporary, path: planned.path.clone() };
        // Whatever the umask and the folder say.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(planned.mode))?;
        fchown(&file, Some(0), Some(0))?;
        match &planned.content {
            Content::Text(text) => file.write_all(text.as_bytes())?,
            Content::Secret(secret) => file.write_all(secret.expose_secret().as_bytes())?,
        }
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        Ok(Some(ready))
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        // Its other name stays, if it got one.
        let _ = fs::remove_file(&self.temporary);
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New(path) => write!(f, "wrote    {}", path.display()),
            Self::Kept(path) => write!(f, "exists   {}, and was left as it is", path.display()),
        }
    }
}
