//! Control groups, version 2: where the hierarchy is mounted, ids and paths, making, entering, killing and removing.
//!
//! A cgroup is named as /proc/PID/cgroup names it, from the hierarchy's root on: `/weir/agents/claude/1`.

use std::{
    fmt, fs, io,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Component, Path, PathBuf},
};

/// Folders that a search through the hierarchy looks at.
const MOST_CGROUPS: usize = 100_000;

/// A cgroup's id: the number of its folder's inode, which the kernel gives to no other cgroup later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupId(u64);

impl CgroupId {
    /// `None` for 0, which is no cgroup.
    pub const fn new(id: u64) -> Option<Self> {
        if id == 0 { None } else { Some(Self(id)) }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for CgroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no version 2 hierarchy.
    #[error("no cgroup v2 hierarchy is mounted; mount one: `mount -t cgroup2 none /sys/fs/cgroup`")]
    NotMounted,
    /// A file or folder of the hierarchy.
    #[error("cgroup `{}` cannot be {attempt}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a participle.
        attempt: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The version 2 hierarchy.
#[derive(Debug, Clone)]
pub struct CgroupRoot {
    mount: PathBuf,
}

impl CgroupRoot {
    /// Finds where the hierarchy is mounted.
    ///
    /// # Errors
    ///
    /// When it isn't mounted, or /proc cannot be read.
    pub fn find() -> Result<Self, CgroupError> {
        const MOUNTS: &str = "/proc/self/mountinfo";
        let table = fs::read_to_string(MOUNTS).map_err(failed(Path::new(MOUNTS), "read"))?;
        mount_point(&table).map(|mount| Self { mount }).ok_or(CgroupError::NotMounted)
    }

    /// Where the hierarchy is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// A cgroup's folder. Whatever isn't a plain name in `cgroup` is left out, so that the folder lies below the mount.
    pub fn path(&self, cgroup: &str) -> PathBuf {
        let names = Path::new(cgroup).components().filter(|part| matches!(part, Component::Normal(_)));
        self.mount.join(names.collect::<PathBuf>())
    }

    /// A cgroup's id.
    ///
    /// # Errors
    ///
    /// When it isn't there.
    pub fn id(&self, cgroup: &str) -> Result<CgroupId, CgroupError> {
        id_of(&self.path(cgroup))
    }

    /// Makes a cgroup and those above it, where they aren't there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn create(&self, cgroup: &str) -> Result<CgroupId, CgroupError> {
        let path = self.path(cgroup);
        fs::create_dir_all(&path).map_err(failed(&path, "made"))?;
        id_of(&path)
    }

    /// Removes a cgroup and those below it. One that isn't there is no error.
    ///
    /// # Errors
    ///
    /// When a process is still in one of them.
    pub fn remove(&self, cgroup: &str) -> Result<(), CgroupError> {
        remove_tree(&self.path(cgroup))
    }

    /// Moves the calling process, all its threads, into a cgroup.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn enter(&self, cgroup: &str) -> Result<(), CgroupError> {
        write(&self.path(cgroup).join("cgroup.procs"), "0", "entered")
    }

    /// Moves a process, all its threads, into a cgroup.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or the process is gone.
    pub fn move_process(&self, cgroup: &str, pid: u32) -> Result<(), CgroupError> {
        write(&self.path(cgroup).join("cgroup.procs"), &pid.to_string(), "entered")
    }

    /// Kills every process in a cgroup and below it, at once and without a way to escape (`cgroup.kill`, Linux 5.14).
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn kill(&self, cgroup: &str) -> Result<(), CgroupError> {
        write(&self.path(cgroup).join("cgroup.kill"), "1", "killed")
    }

    /// Whether a process lives in a cgroup or below it.
    ///
    /// # Errors
    ///
    /// When the cgroup isn't there.
    pub fn is_populated(&self, cgroup: &str) -> Result<bool, CgroupError> {
        let path = self.path(cgroup).join("cgroup.events");
        let events = fs::read_to_string(&path).map_err(failed(&path, "read"))?;
        Ok(events.lines().any(|line| line == "populated 1"))
    }

    /// The cgroup that a process is in; `None` when the process is gone.
    pub fn of_process(&self, pid: u32) -> Option<String> {
        own_entry(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
    }

    /// The cgroup that the calling process is in.
    pub fn of_self(&self) -> Option<String> {
        own_entry(&fs::read_to_string("/proc/self/cgroup").ok()?)
    }

    /// The cgroup of an id, found by a walk through the hierarchy; `None` when it is gone for certain.
    ///
    /// # Errors
    ///
    /// When a folder cannot be read, or the hierarchy has more than a hundred thousand cgroups: it may be there then.
    pub fn path_of(&self, id: CgroupId) -> Result<Option<String>, CgroupError> {
        if id_of(&self.mount)? == id {
            return Ok(Some("/".to_owned()));
        }
        let mut left = MOST_CGROUPS;
        let mut folders = vec![self.mount.clone()];
        while let Some(folder) = folders.pop() {
            for entry in subfolders(&folder)? {
                let path = entry.path();
                let unknown = |why: &'static str| failed(&path, "told from others")(io::Error::other(why));
                left = left.checked_sub(1).ok_or_else(|| unknown("the hierarchy has too many cgroups"))?;
                if entry.ino() == id.get() {
                    let below = path.strip_prefix(&self.mount).ok().and_then(Path::to_str);
                    let below = below.ok_or_else(|| unknown("its name is not text"))?;
                    return Ok(Some(format!("/{below}")));
                }
                folders.push(path);
            }
        }
        Ok(None)
    }

    /// Removes a cgroup in which nothing lives; whether it is gone now, or was before.
    pub fn remove_if_empty(&self, cgroup: &str) -> bool {
        let empty = match self.is_populated(cgroup) {
            Ok(populated) => !populated,
            Err(_) => matches!(self.path(cgroup).try_exists(), Ok(false)),
        };
        empty && self.remove(cgroup).is_ok()
    }
}

/// The id of the cgroup whose folder this is.
///
/// # Errors
///
/// When the folder isn't there.
pub fn id_of(folder: &Path) -> Result<CgroupId, CgroupError> {
    let metadata = fs::metadata(folder).map_err(failed(folder, "found"))?;
    CgroupId::new(metadata.ino()).ok_or_else(|| CgroupError::Io {
        path: folder.to_owned(),
        attempt: "found",
        source: io::Error::new(io::ErrorKind::InvalidData, "its inode is 0"),
    })
}

/// The folders in a cgroup's folder; none when it is gone, as a cgroup may while a walk runs.
fn subfolders(folder: &Path) -> Result<Vec<fs::DirEntry>, CgroupError> {
    let mut found = Vec::new();
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(found),
        Err(error) => return Err(failed(folder, "read")(error)),
    };
    for entry in entries {
        match entry.and_then(|entry| Ok((entry.file_type()?.is_dir(), entry))) {
            Ok((true, entry)) => found.push(entry),
            Ok((false, _)) => {}
            Err(error) if gone(&error) => {}
            Err(error) => return Err(failed(folder, "read")(error)),
        }
    }
    Ok(found)
}

/// The mount point of the version 2 hierarchy in a table like /proc/self/mountinfo (proc(5)): best one that shows the
/// hierarchy from its root on.
fn mount_point(table: &str) -> Option<PathBuf> {
    let mounts = table.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let root = fields.next()?;
        let point = fields.next()?;
        Some((root != "/", PathBuf::from(unescape(point))))
    });
    mounts.min_by_key(|&(partial, _)| partial).map(|(_, point)| point)
}

/// mountinfo writes space, tab, line feed and backslash as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

/// The version 2 entry of a /proc/PID/cgroup.
fn own_entry(table: &str) -> Option<String> {
    table.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

fn remove_tree(folder: &Path) -> Result<(), CgroupError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(folder, "read")(error)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(failed(folder, "removed")),
    }
}

fn write(path: &Path, text: &str, attempt: &'static str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(failed(path, attempt))
}

fn failed(path: &Path, attempt: &'static str) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { path, attempt, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_2_mount_is_found_beside_version_1() {
        let table = "\
            24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            25 24 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            26 24 0:24 /sub /mnt/part rw - cgroup2 cgroup2 rw\n\
            27 24 0:24 / /sys/fs/cgroup/with\\040space rw shared:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(table), Some(PathBuf::from("/sys/fs/cgroup/with space")));
        assert_eq!(mount_point("25 24 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
    }

    #[test]
    fn a_cgroups_folder_lies_below_the_mount() {
        let root = CgroupRoot { mount: PathBuf::from("/cg") };
        assert_eq!(root.path("/weir/../../etc/./a"), PathBuf::from("/cg/weir/etc/a"));
        assert_eq!(root.path("/"), PathBuf::from("/cg"));
    }

    #[test]
    fn a_process_entry_is_the_one_of_version_2() {
        assert_eq!(own_entry("3:cpu:/x\n0::/weir/a\n"), Some("/weir/a".to_owned()));
        assert_eq!(own_entry("3:cpu:/x\n"), None);
    }
}
