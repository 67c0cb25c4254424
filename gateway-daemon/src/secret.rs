//! Secrets are references: where a credential lies, never the credential itself.
//!
//! [`SecretRef`] is what the configuration holds; [`SecretRef::resolve`] fetches what it points to, and
//! [`CredentialSource`] keeps the result until shortly before it ends. A resolved password lives in a
//! [`SecretString`], which `Debug` cannot show; buffers that held it are zeroized.

use std::{
    ffi::OsString,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

mod source;

pub use source::CredentialSource;

/// The longest secret that a file, a variable or a command may hold, in bytes.
pub const MAX_SECRET: usize = 64 * 1024;

/// How long a command may take.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// Where a credential lies. In the configuration a table with exactly one key:
/// `{ file = "/path" }`, `{ env = "NAME" }`, `{ credential = "name" }` or `{ command = ["/path", "argument"] }`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretRef {
    /// A file that holds the password; one newline at its end is not part of it.
    File(PathBuf),
    /// A variable of the daemon's environment.
    Env(String),
    /// A systemd credential: the file of that name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// A program and its arguments, run without a shell and with an empty environment. It prints a JSON object
    /// with `password`, and if it likes `user` and `expiry` (RFC 3339).
    Command(Vec<String>),
}

/// What a reference points to.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The user that the password belongs to, where the source knows it.
    pub user: Option<String>,
    /// The password: not empty, without NUL.
    pub password: SecretString,
    /// When it stops being valid.
    pub expires: Option<SystemTime>,
}

/// Why a credential cannot be had. Never holds any part of the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be opened or read.
    #[error("secret file `{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not a regular file.
    #[error("secret file `{path}` is not a regular file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Others than the owner may read or change the file.
    #[error(
        "secret file `{path}` is open to others (owner {owner}, mode {mode:04o}): chown it to root or the daemon's user and chmod it to 0400"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The environment lacks the variable, or it is not UTF-8.
    #[error("the daemon's environment has no variable `{name}` with UTF-8 text")]
    NoVariable {
        /// Its name.
        name: String,
    },
    /// `$CREDENTIALS_DIRECTORY` is not set.
    #[error(
        "credential `{name}`: the daemon was not started by systemd with LoadCredential= (no CREDENTIALS_DIRECTORY)"
    )]
    NoCredentials {
        /// The credential's name.
        name: String,
    },
    /// The name of a credential is not the name of a file.
    #[error("credential `{name}`: a name has neither `/` nor NUL and isn't `.` or `..`")]
    CredentialName {
        /// The credential's name.
        name: String,
    },
    /// The command is empty, or its program is not an absolute path.
    #[error("secret command: the program must be an absolute path, and is `{program}`")]
    Program {
        /// What stands in its place.
        program: String,
    },
    /// The command cannot be started or read from.
    #[error("secret command `{program}` cannot be run")]
    Run {
        /// Its program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The command took too long and was killed.
    #[error("secret command `{program}` took longer than {limit:?}")]
    Slow {
        /// Its program.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// The command failed.
    #[error("secret command `{program}` failed: {status}")]
    Failed {
        /// Its program.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// What the command printed is not the expected JSON. The text itself is not repeated.
    #[error(
        "secret command `{program}` printed what isn't a JSON object with `password` (and `user`, `expiry`), line {line} column {column}"
    )]
    Output {
        /// Its program.
        program: String,
        /// Where the fault lies.
        line: usize,
        /// Where the fault lies.
        column: usize,
    },
    /// The expiry is not a time.
    #[error("secret command `{program}`: `expiry` is not an RFC 3339 time")]
    Expiry {
        /// Its program.
        program: String,
    },
    /// The credential had ended when it was fetched.
    #[error("{what} gives a credential that has expired")]
    Expired {
        /// The reference.
        what: String,
    },
    /// Longer than a secret may be.
    #[error("{what} gives more than {limit} bytes")]
    TooLong {
        /// The reference.
        what: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// Nothing, or something that no password can hold.
    #[error("{what} gives {fault}")]
    Unusable {
        /// The reference.
        what: String,
        /// What is wrong with the content.
        fault: &'static str,
    },
}

impl SecretRef {
    /// Checks what can be checked without fetching anything, so that a configuration fails when it is loaded.
    ///
    /// # Errors
    /// A command without an absolute path, or a credential whose name is no file's name.
    pub fn check(&self) -> Result<(), SecretError> {
        match self {
            Self::File(_) | Self::Env(_) => Ok(()),
            Self::Credential(name) => {
                if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
                    return Err(SecretError::CredentialName { name: name.clone() });
                }
                Ok(())
            }
            Self::Command(argv) => match argv.first() {
                Some(program) if Path::new(program).is_absolute() => Ok(()),
                other => Err(SecretError::Program { program: other.cloned().unwrap_or_default() }),
            },
        }
    }

    /// Fetches the credential.
    ///
    /// # Errors
    /// Says what could not be read, and why, without the secret.
    pub async fn resolve(&self) -> Result<Credential, SecretError> {
        self.check()?;
        match self {
            Self::File(path) => self.read(path.clone()).await,
            Self::Env(name) => {
                let text = std::env::var(name).map_err(|_| SecretError::NoVariable { name: name.clone() })?;
                self.password(Zeroizing::new(text.into_bytes()))
            }
            Self::Credential(name) => {
                self.read(credential_path(std::env::var_os("CREDENTIALS_DIRECTORY"), name)?).await
            }
            Self::Command(argv) => self.run(argv, COMMAND_DEADLINE).await,
        }
    }

    /// For people: which reference, never what it gives.
    fn describe(&self) -> String {
        match self {
            Self::File(path) => format!("secret file `{}`", path.display()),
            Self::Env(name) => format!("variable `{name}`"),
            Self::Credential(name) => format!("credential `{name}`"),
            Self::Command(argv) => {
                format!("secret command `{}`", argv.first().map_or("", String::as_str))
            }
        }
    }

    async fn read(&self, path: PathBuf) -> Result<Credential, SecretError> {
        let what = self.describe();
        let read = tokio::task::spawn_blocking(move || read_private(&path, &what)).await;
        // The only ways not to join are a panic and a runtime that ends.
        let bytes = read.unwrap_or_else(|_| {
            Err(SecretError::Unusable { what: self.describe(), fault: "nothing: reading was broken off" })
        })?;
        self.password(bytes)
    }

    /// A password from bytes, without the newline that editors and `echo` leave.
    fn password(&self, bytes: Zeroizing<Vec<u8>>) -> Result<Credential, SecretError> {
        let fault = |fault| SecretError::Unusable { what: self.describe(), fault };
        let text = std::str::from_utf8(&bytes).map_err(|_| fault("bytes that are not UTF-8"))?;
        let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
        self.usable(Credential { user: None, password: SecretString::from(text), expires: None })
    }

    fn usable(&self, credential: Credential) -> Result<Credential, SecretError> {
        let fault = |fault| SecretError::Unusable { what: self.describe(), fault };
        let password = credential.password.expose_secret();
        if password.len() > MAX_SECRET {
            return Err(SecretError::TooLong { what: self.describe(), limit: MAX_SECRET });
        }
        if password.is_empty() {
            return Err(fault("an empty password"));
        }
        if password.contains('\0') {
            return Err(fault("a password with a NUL byte"));
        }
        if credential.expires.is_some_and(|end| end <= SystemTime::now()) {
            return Err(SecretError::Expired { what: self.describe() });
        }
        Ok(credential)
    }

    async fn run(&self, argv: &[String], limit: Duration) -> Result<Credential, SecretError> {
        let program = argv.first().cloned().unwrap_or_default();
        let (status, output) = tokio::time::timeout(limit, run_command(argv))
            .await
            .map_err(|_| SecretError::Slow { program: program.clone(), limit })?
            .map_err(|source| SecretError::Run { program: program.clone(), source })?;
        if output.len() > MAX_SECRET {
            return Err(SecretError::TooLong { what: self.describe(), limit: MAX_SECRET });
        }
        if !status.success() {
            return Err(SecretError::Failed { program, status });
        }
        // serde_json's own message may quote a value: only the place is kept.
        let parsed: CommandOutput = serde_json::from_slice(&output).map_err(|fault| SecretError::Output {
            program: program.clone(),
            line: fault.line(),
            column: fault.column(),
        })?;
        let expires = parsed.expiry.map(|text| parse_expiry(&text)).transpose();
        self.usable(Credential {
            user: parsed.user,
            password: parsed.password,
            expires: expires.map_err(|()| SecretError::Expiry { program })?,
        })
    }
}

/// systemd's folder of credentials (systemd.exec(5), "LoadCredential=").
fn credential_path(folder: Option<OsString>, name: &str) -> Result<PathBuf, SecretError> {
    let folder = folder.ok_or_else(|| SecretError::NoCredentials { name: name.to_owned() })?;
    Ok(Path::new(&folder).join(name))
}

/// What a command prints.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandOutput {
    user: Option<String>,
    #[serde(deserialize_with = "secret")]
    password: SecretString,
    expiry: Option<String>,
}

/// Zeroized also when what follows it is refused.
fn secret<'de, D: Deserializer<'de>>(source: D) -> Result<SecretString, D::Error> {
    String::deserialize(source).map(SecretString::from)
}

fn parse_expiry(text: &str) -> Result<SystemTime, ()> {
    let time: jiff::Timestamp = text.parse().map_err(|_| ())?;
    time.try_into().map_err(|_| ())
}

/// Runs a command to its end, reading one byte more than is allowed at most.
async fn run_command(argv: &[String]) -> std::io::Result<(std::process::ExitStatus, Zeroizing<Vec<u8>>)> {
    let (program, arguments) = argv.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null()) // it may hold the secret, so nobody reads it
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw));
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut output = Zeroizing::new(Vec::with_capacity(MAX_SECRET.saturating_add(1)));
    let limit = u64::try_from(output.capacity()).unwrap_or(u64::MAX);
    if let Some(stdout) = child.stdout.take() {
        stdout.take(limit).read_to_end(&mut output).await?;
    }
    if output.len() > MAX_SECRET {
        group.kill();
    }
    let status = child.wait().await?;
    group.0 = None; // the number is free for others from here on
    Ok((status, output))
}

/// The command's process group: killed whole when the wait for it is given up.
struct Group(Option<rustix::process::Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(leader) = self.0.take() {
            // It may have ended by itself.
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads a file that holds a secret. Symbolic links are followed (Kubernetes mounts secrets through them); what is
/// judged is the file that was opened.
pub(crate) fn read_private(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let failed = |source| SecretError::Read { path: path.to_owned(), source };
    // A pipe in the file's place must not make the daemon wait.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let file = std::fs::File::from(file);
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(SecretError::NotAFile { path: path.to_owned() });
    }
    if !is_private(meta.uid(), meta.gid(), meta.mode()) {
        return Err(SecretError::Open { path: path.to_owned(), owner: meta.uid(), mode: meta.mode() & 0o7777 });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET.saturating_add(1)));
    let limit = u64::try_from(bytes.capacity()).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_SECRET {
        return Err(SecretError::TooLong { what: what.to_owned(), limit: MAX_SECRET });
    }
    Ok(bytes)
}

/// Owned by root or the daemon, nothing for others, and at most reading for root's group (systemd and Kubernetes
/// make such files: mode 0440).
fn is_private(owner: u32, group: u32, mode: u32) -> bool {
    let ours = owner == 0 || owner == rustix::process::geteuid().as_raw();
    let others = mode & 0o007 == 0;
    let group_bits = mode & 0o070;
    ours && others && (group_bits == 0 || (group_bits == 0o040 && group == 0))
}

#[cfg(test)]
mod tests;
