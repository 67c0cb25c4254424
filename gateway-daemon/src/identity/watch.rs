//! Token files: read with care, and watched, so that a renewed token renews its run.
//!
//! The daemon reads as root what somebody else named, so the file's owner decides whether it may: a starter cannot
//! lend out a file that is not theirs. The file is read whole at each look (it is small): no notice can be missed, a
//! rename, a rewrite in place and a network file system are all alike. A token that is refused changes nothing; the
//! run keeps its identity until that ends.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    mem::{Discriminant, discriminant},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use secrecy::SecretString;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::{
    Issuer, Registry, RegistryError, Run, RunId, Standing, TokenError,
    token::{MAX_TOKEN_LEN, sha256},
};

/// A line end behind the token.
const LINE_END_LEN: usize = 2;

/// Who named a token file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// The configuration: the file is root's or the starter's.
    Configuration,
    /// The starter, on the command line: the file is the starter's.
    Starter,
}

/// A file with a token.
#[derive(Debug, Clone)]
pub struct TokenFile {
    /// Where.
    pub path: PathBuf,
    /// Who named it.
    pub named_by: NamedBy,
    /// The uid of whoever starts, or started, the run.
    pub starter: u32,
}

/// Why a token file is not read.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be opened or read.
    #[error("token file `{}`: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its last component is a symbolic link.
    #[error("token file `{}` is a symbolic link; name the file itself", .path.display())]
    Link {
        /// The file.
        path: PathBuf,
    },
    /// A folder, a pipe, a device.
    #[error("token file `{}` is not a regular file", .path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else's.
    #[error("token file `{}` belongs to uid {owner}; {rule}", .path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it should be.
        rule: OwnerRule,
    },
    /// Others could put their token there.
    #[error("token file `{}` can be written by its group or by others (mode {mode:04o}); `chmod go-w` it", .path.display())]
    Writable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Over the limit.
    #[error("token file `{}` is longer than {limit} bytes", .path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// [`MAX_TOKEN_LEN`].
        limit: usize,
    },
    /// Not text.
    #[error("token file `{}` is not text", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

/// Whose a token file must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerRule {
    named_by: NamedBy,
    starter: u32,
}

impl OwnerRule {
    const fn allows(self, owner: u32) -> bool {
        match self.named_by {
            NamedBy::Configuration => owner == 0 || owner == self.starter,
            NamedBy::Starter => owner == self.starter,
        }
    }
}

impl fmt::Display for OwnerRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.named_by {
            NamedBy::Configuration => {
                write!(f, "it must belong to root or to uid {}, who starts the run", self.starter)
            }
            NamedBy::Starter => write!(
                f,
                "it must belong to uid {}, who names it (a file of root's is named in the configuration, as `token_file`)",
                self.starter
            ),
        }
    }
}

impl TokenFile {
    /// The token in it, without a line end behind it. Blocks while it is read.
    ///
    /// # Errors
    /// When it is not a plain file of the right owner, or not a token's size.
    pub fn read(&self) -> Result<SecretString, TokenFileError> {
        let path = || self.path.clone();
        let io = |source| TokenFileError::Io { path: path(), source };
        // Only looked at so far: opening a device is an act of its own (a watchdog starts, a tape rewinds).
        let found = look_at(&self.path).map_err(io)?;
        let metadata = found.metadata().map_err(io)?;
        if metadata.is_symlink() {
            return Err(TokenFileError::Link { path: path() });
        }
        if !metadata.is_file() {
            return Err(TokenFileError::NotAFile { path: path() });
        }
        let rule = OwnerRule { named_by: self.named_by, starter: self.starter };
        if !rule.allows(metadata.uid()) {
            return Err(TokenFileError::Owner { path: path(), owner: metadata.uid(), rule });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(TokenFileError::Writable { path: path(), mode });
        }
        let text = open(&found).and_then(read_bounded).map_err(io)?;
        let text = std::str::from_utf8(&text).map_err(|_| TokenFileError::NotText { path: path() })?;
        let token = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
        if token.len() > MAX_TOKEN_LEN {
            return Err(TokenFileError::TooLong { path: path(), limit: MAX_TOKEN_LEN });
        }
        Ok(token.into())
    }
}

/// Finds a file without opening it, nor what a link leads to.
fn look_at(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)
}

/// Opens what was found: that very file, whatever has its name by now.
fn open(found: &File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// At most one byte more than a token and its line end. The buffer never grows, which would leave a copy behind.
fn read_bounded(file: File) -> io::Result<Zeroizing<Vec<u8>>> {
    const LIMIT: usize = MAX_TOKEN_LEN + LINE_END_LEN + 1;
    let mut text = Zeroizing::new(vec![0; LIMIT]);
    let mut file = file;
    let mut len = 0;
    while let Some(room) = text.get_mut(len..).filter(|room| !room.is_empty()) {
        match file.read(room) {
            Ok(0) => break,
            Ok(read) => len = len.saturating_add(read),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    text.truncate(len);
    Ok(text)
}

/// What became of a token file. For the record and the log; none of it shows a token.
#[derive(Debug)]
pub enum News {
    /// A new token was verified, and is in force.
    Renewed {
        /// The run.
        run: RunId,
        /// When the new one ends.
        expires: SystemTime,
    },
    /// A new token was refused; the old identity stays.
    Refused {
        /// The run.
        run: RunId,
        /// Why.
        error: TokenError,
    },
    /// A new token was verified, but is not for this run; the old identity stays.
    NotApplied {
        /// The run.
        run: RunId,
        /// Why.
        error: RegistryError,
    },
    /// The file cannot be read; the old identity stays.
    Unreadable {
        /// The run.
        run: RunId,
        /// Why.
        error: TokenFileError,
    },
}

/// A run's token file, and what it takes to make use of it.
pub struct Watch {
    /// The run.
    pub run: Arc<Run>,
    /// The file.
    pub file: TokenFile,
    /// Who verifies.
    pub issuer: Arc<Issuer>,
    /// Where the run is registered.
    pub registry: Arc<Registry>,
    /// How often to look.
    pub interval: Duration,
    /// Who is told. When nobody listens any more the watch goes on.
    pub news: mpsc::Sender<News>,
}

/// A fault that was told once, so that it isn't told again at each look.
#[derive(PartialEq, Eq)]
enum Told {
    Refused([u8; 32], Discriminant<TokenError>),
    NotApplied([u8; 32], Discriminant<RegistryError>),
    Unreadable(Discriminant<TokenFileError>),
}

impl Watch {
    /// Looks at the file until the run ends. What is refused is tried again at each look, for it may hold later (its
    /// `nbf` comes, the issuer is back).
    pub async fn until_the_end(self) {
        let mut standing = self.run.subscribe();
        let mut in_force = self.run.standing_now().token_sha256();
        let mut told = None;
        while self.run.standing_now() != Standing::Ended {
            if let Some((news, fault)) = self.look(&mut in_force).await {
                if fault.is_none() || fault != told {
                    // A full queue loses the news, never the renewal.
                    let _ = self.news.try_send(news);
                }
                told = fault;
            }
            let _ = tokio::time::timeout(self.interval, standing.wait_for(|now| *now == Standing::Ended)).await;
        }
    }

    /// One look. `None` when the file has what is in force.
    async fn look(&self, in_force: &mut Option<[u8; 32]>) -> Option<(News, Option<Told>)> {
        let run = self.run.id;
        let file = self.file.clone();
        // A reading that panics is an unreadable file.
        let read = tokio::task::spawn_blocking(move || file.read()).await.unwrap_or_else(|error| {
            Err(TokenFileError::Io { path: self.file.path.clone(), source: io::Error::other(error) })
        });
        let token = match read {
            Ok(token) => token,
            Err(error) => {
                let fault = Told::Unreadable(discriminant(&error));
                return Some((News::Unreadable { run, error }, Some(fault)));
            }
        };
        let digest = sha256(&token);
        if *in_force == Some(digest) {
            return None;
        }
        let verified = self.issuer.verify(&token, self.registry.now()).await;
        drop(token);
        // For another subject than the run's the registry refuses it, whatever the agent's configuration says.
        let identity = match verified.and_then(|verified| verified.into_identity(Arc::clone(&self.run.agent), None)) {
            Ok(identity) => identity,
            Err(error) => {
                let fault = Told::Refused(digest, discriminant(&error));
                return Some((News::Refused { run, error }, Some(fault)));
            }
        };
        let expires = identity.expires;
        match self.registry.refresh(run, identity) {
            Ok(()) => {
                *in_force = Some(digest);
                Some((News::Renewed { run, expires }, None))
            }
            Err(error) => {
                let fault = Told::NotApplied(digest, discriminant(&error));
                Some((News::NotApplied { run, error }, Some(fault)))
            }
        }
    }
}
