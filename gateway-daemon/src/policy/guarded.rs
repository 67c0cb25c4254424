//! Whether the folder of policies is out of reach of everybody but its owner: who can write there can permit anything.

use std::{
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::fault::{Fault, FaultKind};
use crate::guarded::{Sticky, open_to_others};

/// Checks that the folder, what lies in it and what lies above it belong to `owner` (or root) and can be written by
/// nobody else. The daemon asks this with its own user before it loads; `weir policy check` doesn't need it.
///
/// # Errors
/// Everything that others could change.
pub fn check_guarded(dir: &Path, owner: u32) -> Result<(), Vec<Fault>> {
    let mut faults = Vec::new();
    match std::fs::canonicalize(dir) {
        Ok(dir) => {
            check_entries(&dir, owner, &mut faults);
            for (above, at) in dir.ancestors().enumerate() {
                let sticky = if above == 0 { Sticky::Counts } else { Sticky::Guards };
                check_one(at, std::fs::metadata(at), owner, sticky, &mut faults);
            }
        }
        Err(source) => faults.push(unreadable(dir, source)),
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn check_entries(dir: &Path, owner: u32, faults: &mut Vec<Fault>) {
    let mut paths: Vec<PathBuf> = Vec::new();
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                match entry {
                    Ok(entry) => paths.push(entry.path()),
                    Err(source) => faults.push(unreadable(dir, source)),
                }
            }
        }
        Err(source) => faults.push(unreadable(dir, source)),
    }
    paths.sort_unstable();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "cedar")) {
        // Of a link its own data: loading refuses it anyway.
        check_one(path, std::fs::symlink_metadata(path), owner, Sticky::Counts, faults);
    }
}

fn check_one(path: &Path, metadata: io::Result<Metadata>, owner: u32, sticky: Sticky, faults: &mut Vec<Fault>) {
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(source) => return faults.push(unreadable(path, source)),
    };
    // A link's mode means nothing.
    let mode = if metadata.is_symlink() { 0 } else { metadata.mode() };
    if let Some(found) = open_to_others(metadata.uid(), metadata.gid(), mode, owner, sticky) {
        faults.push(Fault::new(FaultKind::Unguarded { path: path.display().to_string(), found }, None));
    }
}

fn unreadable(path: &Path, source: io::Error) -> Fault {
    Fault::new(FaultKind::Read { path: path.display().to_string(), source }, None)
}
