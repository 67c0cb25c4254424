//! A key set in a file, for an issuer that this host does not reach, or is not to ask.

use std::{io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

use super::IssuerError;
use crate::{guarded, identity::token::KeySet};

/// Bytes of the file.
const MAX_FILE: u64 = 1024 * 1024;
/// Who else than its owner could change it.
const OTHERS_MAY_WRITE: u32 = 0o022;

/// Reads it. Whoever can write it, or lead its path elsewhere, can make tokens: it and all on the way to it must be root's or
/// the daemon's own, and writable by nobody else.
pub(super) fn keys(path: &Path) -> Result<KeySet, IssuerError> {
    let failed = |fault: String| IssuerError::File { path: path.into(), fault };
    let unreadable = |error: std::io::Error| failed(format!("it cannot be read: {error}"));
    let own = rustix::process::geteuid().as_raw();
    let file = guarded::open(path, own).map_err(|error| failed(error.to_string()))?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(failed("it is no regular file".to_owned()));
    }
    if meta.uid() != 0 && meta.uid() != own {
        return Err(failed(format!(
            "it belongs to uid {}; whoever writes it makes identities: chown root",
            meta.uid()
        )));
    }
    if meta.mode() & OTHERS_MAY_WRITE != 0 {
        return Err(failed("others than its owner may write it, and so make identities: chmod go-w".to_owned()));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE.saturating_add(1)).read_to_end(&mut text).map_err(unreadable)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_FILE) {
        return Err(failed(format!("it is longer than {MAX_FILE} bytes")));
    }
    KeySet::parse(&text).map_err(|fault| failed(fault.to_string()))
}
