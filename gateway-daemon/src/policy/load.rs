//! Reads a folder of policies. All or nothing: every fault is told at once, and a set with a fault is no set.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use super::{
    PolicySet,
    examine::{Draft, examine},
    fault::{Fault, FaultKind, LoadErrors},
    source::{Source, pieces},
};

/// Files in a folder.
pub(super) const MAX_FILES: usize = 4096;
/// Bytes of one file.
pub(super) const MAX_FILE_BYTES: u64 = 8 << 20;
/// Bytes of all files.
pub(super) const MAX_BYTES: u64 = 32 << 20;
/// Policies of a set.
pub(super) const MAX_POLICIES: usize = 50_000;
/// Bytes of one policy.
pub(super) const MAX_POLICY_BYTES: usize = 64 << 10;
/// Brackets inside each other in one policy: Cedar reads and drops its trees by recursion, unbounded.
pub(super) const MAX_DEPTH: usize = 16;
/// `if`s of one policy: the validator's time doubles with each inside another.
pub(super) const MAX_IFS: usize = 8;
/// Operator characters of one policy: a long `a && b && …` is a deep tree.
pub(super) const MAX_OPERATORS: usize = 512;
/// The folder beside the policies that may hold their tests, for `weir policy test`.
const TESTS: &str = "tests";
/// Stack to read policies on; what is within the limits above needs less than a quarter of it.
const STACK_BYTES: usize = 32 << 20;
/// Bytes of an `@id`.
pub(super) const MAX_ID_BYTES: usize = 128;
/// Bytes of a `@description`.
pub(super) const MAX_DESCRIPTION_BYTES: usize = 1024;

/// What the configuration knows by name, so that a policy for what isn't there can be warned of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Configured agents.
    pub agents: BTreeSet<String>,
    /// Configured issuers; the groups themselves are known to them alone.
    pub issuers: BTreeSet<String>,
    /// Declared connections.
    pub connections: BTreeSet<String>,
}

/// A set that loaded.
#[derive(Debug)]
pub struct Loaded {
    /// The set.
    pub set: PolicySet,
    /// What doesn't keep it from being in force, but should be looked at.
    pub warnings: Vec<Fault>,
}

impl PolicySet {
    /// Reads and checks all `*.cedar` files of a folder, in the order of their names. Whether others may write there is
    /// asked apart, by [`super::check_guarded`].
    ///
    /// # Errors
    /// Every fault, when there is at least one.
    pub fn load(dir: &Path, known: Option<&Known>) -> Result<Loaded, LoadErrors> {
        let mut folder = Folder::default();
        folder.read(dir);
        on_large_stack(|| build(&folder.sources, known, folder.faults, folder.warnings))
    }

    /// Checks policies that were already read.
    ///
    /// # Errors
    /// Every fault, when there is at least one.
    pub fn from_sources(sources: &[Source], known: Option<&Known>) -> Result<Loaded, LoadErrors> {
        on_large_stack(|| build(sources, known, Vec::new(), Vec::new()))
    }
}

/// Callers may have a thread's small stack.
fn on_large_stack(load: impl FnOnce() -> Result<Loaded, LoadErrors> + Send) -> Result<Loaded, LoadErrors> {
    std::thread::scope(|scope| match std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, load) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(source) => {
            Err(LoadErrors { faults: vec![Fault::new(FaultKind::Thread { source }, None)], warnings: Vec::new() })
        }
    })
}

fn build(
    sources: &[Source],
    known: Option<&Known>,
    mut faults: Vec<Fault>,
    mut warnings: Vec<Fault>,
) -> Result<Loaded, LoadErrors> {
    let mut drafts = Vec::new();
    for source in sources {
        for range in pieces(source.text()) {
            match Draft::parse(source, range) {
                Ok(draft) => drafts.push(draft),
                Err(found) => faults.extend(found),
            }
        }
    }
    if drafts.len() > MAX_POLICIES {
        let limit = u64::try_from(MAX_POLICIES).unwrap_or(u64::MAX);
        faults.push(Fault::new(FaultKind::Limit { what: "the folder".into(), limit, unit: "policies" }, None));
        return Err(LoadErrors { faults, warnings });
    }
    let examined = examine(drafts, known);
    faults.extend(examined.faults);
    warnings.extend(examined.warnings);
    faults.sort_by_key(Fault::order);
    warnings.sort_by_key(Fault::order);
    if !faults.is_empty() {
        return Err(LoadErrors { faults, warnings });
    }
    if examined.rules.is_empty() {
        warnings.push(Fault::new(FaultKind::Empty, None));
    }
    Ok(Loaded { set: PolicySet::of(examined.rules), warnings })
}

#[derive(Default)]
struct Folder {
    sources: Vec<Source>,
    faults: Vec<Fault>,
    warnings: Vec<Fault>,
    bytes: u64,
}

impl Folder {
    fn read(&mut self, dir: &Path) {
        let names = match self.names(dir) {
            Ok(names) => names,
            Err(source) => return self.fault(FaultKind::Read { path: dir.display().to_string(), source }),
        };
        if names.len() > MAX_FILES {
            let limit = u64::try_from(MAX_FILES).unwrap_or(u64::MAX);
            return self.fault(FaultKind::Limit { what: dir.display().to_string(), limit, unit: "files" });
        }
        for (name, path) in names {
            match read_file(&path, &name) {
                Ok(text) => {
                    self.bytes = self.bytes.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
                    self.sources.push(Source::new(&name, &text));
                }
                Err(kind) => self.fault(kind),
            }
            if self.bytes > MAX_BYTES {
                return self.fault(FaultKind::Limit {
                    what: dir.display().to_string(),
                    limit: MAX_BYTES,
                    unit: "bytes",
                });
            }
        }
    }

    /// The policy files by name, sorted. What only looks like one is warned of.
    fn names(&mut self, dir: &Path) -> io::Result<BTreeMap<String, std::path::PathBuf>> {
        let mut names = BTreeMap::new();
        let mut ignored = BTreeSet::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_policy = name.ends_with(".cedar") && !name.starts_with('.');
            if is_policy {
                names.insert(name, entry.path());
            } else if name.contains(".cedar") || (entry.file_type()?.is_dir() && name != TESTS) {
                ignored.insert(name);
            }
        }
        let warning = |path| Fault::new(FaultKind::Ignored { path }, None);
        self.warnings.extend(ignored.into_iter().map(warning));
        Ok(names)
    }

    fn fault(&mut self, kind: FaultKind) {
        self.faults.push(Fault::new(kind, None));
    }
}

fn read_file(path: &Path, name: &str) -> Result<String, FaultKind> {
    let failed = |source| FaultKind::Read { path: name.to_owned(), source };
    let file = open(path, name)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() {
        let found = if kind.is_dir() { "a folder" } else { "a pipe, a socket or a device" };
        return Err(FaultKind::Odd { path: name.to_owned(), found });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(FaultKind::Limit { what: name.to_owned(), limit: MAX_FILE_BYTES, unit: "bytes" });
    }
    String::from_utf8(bytes).map_err(|_| FaultKind::NotUtf8 { path: name.to_owned() })
}

/// Opens without following a link and without waiting for the other end of a pipe.
fn open(path: &Path, name: &str) -> Result<File, FaultKind> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(file),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            Err(FaultKind::Odd { path: name.to_owned(), found: "a symbolic link" })
        }
        // What a socket and some devices say.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            Err(FaultKind::Odd { path: name.to_owned(), found: "a pipe, a socket or a device" })
        }
        Err(source) => Err(FaultKind::Read { path: name.to_owned(), source }),
    }
}

/// The text of a policy in its source.
pub(super) fn text_of(source: &Source, range: std::ops::Range<usize>) -> Arc<str> {
    source.text().get(range).unwrap_or_default().into()
}
