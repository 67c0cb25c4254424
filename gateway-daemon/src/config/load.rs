//! What of a configuration depends on the host: that nobody else can write the file, that its users exist, that its files
//! can be read. Apart from the text's own check, since verbs that only look for the socket need none of it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::{Uid, User};

use super::{Config, ConfigError, RunsAs, error::Fault};
use crate::guarded::{Sticky, open_to_others};

/// The longest configuration that is read, in bytes.
const MOST_BYTES: u64 = 4 << 20;

/// The text of a configuration.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let whole = |line, message: String| ConfigError::Faults {
        path: path.to_owned(),
        faults: vec![Fault { line, key: String::new(), message }],
    };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MOST_BYTES {
        return Err(whole(0, format!("is longer than {MOST_BYTES} bytes; is it the right file?")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = good.iter().filter(|&&byte| byte == b'\n').count().saturating_add(1);
        whole(line, "this line is not UTF-8; save the file as UTF-8".to_owned())
    })
}

impl Config {
    /// Reads and checks `path` for who acts as root by it: nobody but root may be able to change it, its users exist, and
    /// its files can be read.
    ///
    /// # Errors
    /// Every fault of the file at once, then every fault of the host.
    pub fn load_for_root(path: &Path) -> Result<Self, ConfigError> {
        let config = Self::load(path)?;
        let mut faults = unguarded(path, 0);
        config.check_users(&mut faults);
        config.check_files(&mut faults);
        if faults.is_empty() {
            return Ok(config);
        }
        faults.sort_by_key(|fault| fault.line);
        Err(ConfigError::Faults { path: path.to_owned(), faults })
    }

    fn check_users(&self, faults: &mut Vec<Fault>) {
        let mut of_uid: HashMap<Uid, &str> = HashMap::new();
        for agent in &self.agents {
            // What a pool has is looked at where it is used: that takes a look at every uid.
            let RunsAs::User(name) = &agent.runs_as else { continue };
            let user = name.escape_debug();
            let message = match User::from_name(name) {
                Ok(Some(found)) if found.uid.is_root() => {
                    format!("`{user}` is root by another name (uid 0); make a user of its own (useradd -r)")
                }
                Ok(Some(found)) => match of_uid.insert(found.uid, &agent.name) {
                    Some(other) => format!(
                        "`{user}` has the uid {} of the user of agent `{other}`; make a user for each",
                        found.uid
                    ),
                    None => continue,
                },
                Ok(None) => format!("the user `{user}` does not exist; make it with `useradd -r {user}`"),
                Err(error) => format!("the user `{user}` cannot be looked up: {error}"),
            };
            faults.push(self.fault_of("agent", &agent.name, "user", message));
        }
    }

    fn check_files(&self, faults: &mut Vec<Fault>) {
        let issuers = self.issuers.iter().flat_map(|issuer| {
            let files = [("ca_file", &issuer.ca_file), ("jwks_file", &issuer.jwks_file)];
            files.map(|(key, file)| ("issuer", &issuer.name, key, file))
        });
        let connections =
            self.connections.iter().map(|connection| ("connection", &connection.name, "ca_file", &connection.ca_file));
        for (kind, name, key, file) in issuers.chain(connections) {
            let Some(file) = file else { continue };
            // Who is not root cannot tell what root can read.
            if let Err(error) = File::open(file)
                && (error.kind() != io::ErrorKind::PermissionDenied || rustix::process::geteuid().is_root())
            {
                let message =
                    format!("{} cannot be read: {error}; put the file there, or mend the path", file.display());
                faults.push(self.fault_of(kind, name, key, message));
            }
        }
    }

    fn fault_of(&self, kind: &str, name: &str, key: &str, message: String) -> Fault {
        let key = format!("{kind} \"{}\".{key}", name.escape_debug());
        Fault { line: self.lines.get(&key).copied().unwrap_or_default(), key, message }
    }
}

/// What lets others than `owner` and root change the file: who can, says which programs root runs.
fn unguarded(path: &Path, owner: u32) -> Vec<Fault> {
    let fault = |message: String| Fault { line: 0, key: String::new(), message };
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) => return vec![fault(format!("cannot be looked at: {error}"))],
    };
    let judge = |(above, at): (usize, &Path)| {
        let sticky = if above == 0 { Sticky::Counts } else { Sticky::Guards };
        let found = match at.metadata() {
            Ok(metadata) => open_to_others(metadata.uid(), metadata.gid(), metadata.mode(), owner, sticky)?,
            Err(error) => format!("cannot be looked at: {error}"),
        };
        let at: PathBuf = at.to_owned();
        let what = if above == 0 { "the file".to_owned() } else { format!("the folder {}", at.display()) };
        let mend = format!("chown root:root {0} && chmod go-w {0}", at.display());
        Some(fault(format!("{what} {found}, who could make root run any program: {mend}")))
    };
    real.ancestors().enumerate().filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_file_or_a_folder_above_that_others_can_write_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weir.toml");
        fs::write(&path, "").unwrap();
        let owner = folder.path().metadata().unwrap().uid();
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let told = || unguarded(&path, owner).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        chmod(&path, 0o644);
        assert_eq!(told(), "");
        chmod(&path, 0o666);
        assert!(told().starts_with("the file can be written by everybody"), "{}", told());
        assert!(told().contains("chmod go-w"), "{}", told());
        chmod(&path, 0o600);
        chmod(folder.path(), 0o777);
        assert!(told().starts_with("the folder "), "{}", told());
    }
}
