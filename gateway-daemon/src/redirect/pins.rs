//! What outlives the daemon: links and maps pinned on a bpffs, in a folder named by their layout.
//!
//! ```text
//!   /sys/fs/bpf/weir/            the pins' folder
//!     layout-1/                  gateway_common::LAYOUT
//!       link_connect4 …          one a program
//!       map_TARGETS …            one a map
//! ```
//!
//! A link is replaced in place (the kernel swaps its program at once), so there is no moment without one.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use aya::maps::{HashMap, Map, MapData};
use gateway_common::{CgroupKind, LAYOUT, PROGRAMS, maps};
use rustix::{
    fs::{FlockOperation, flock, statfs},
    mount::{MountFlags, mount},
};

use super::{
    RedirectError,
    cgroup::CgroupId,
    survey::attach_type,
    sys::{self, AttachType},
};

const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const LINK: &str = "link_";
const MAP: &str = "map_";
/// A link that is being made, and takes its name when it stands.
const NEW: &str = "new_";

/// The pins' folder, locked: two daemons that start at once take turns.
pub(super) struct Pins {
    folder: PathBuf,
    _lock: File,
}

impl Pins {
    /// Finds or makes the folder, and mounts a bpffs at its parent where none is.
    pub(super) fn open(folder: &Path) -> Result<Self, RedirectError> {
        let parent = folder.parent().ok_or_else(|| failed(folder, "made")(io::ErrorKind::InvalidInput.into()))?;
        if !is_bpffs(existing(folder)).map_err(failed(folder, "examined"))? {
            fs::create_dir_all(parent).map_err(failed(parent, "made"))?;
            // A mount would hide what lies there.
            if fs::read_dir(parent).map_err(failed(parent, "read"))?.next().is_some() {
                return Err(RedirectError::NoBpffs { path: folder.to_owned() });
            }
            mount("bpf", parent, "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"mode=700")
                .map_err(|error| failed(parent, "mounted as a bpffs")(error.into()))?;
        }
        let layout = folder.join(LAYOUT);
        DirBuilder::new().recursive(true).mode(0o700).create(&layout).map_err(failed(&layout, "made"))?;
        let lock = File::open(folder).map_err(failed(folder, "opened"))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(folder, "locked")(error.into()))?;
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        map_pin(&self.folder, name)
    }

    /// Puts a program in its place at the scope: into the link that stands there, or into a new one.
    pub(super) fn install(&self, name: &str, program: BorrowedFd<'_>, scope: &File) -> Result<(), RedirectError> {
        let kind = attach_type(name).ok_or_else(|| RedirectError::Object { missing: name.to_owned() })?;
        let pin = self.link(name);
        if self.replaces(&pin, kind, program, scope)? {
            return Ok(());
        }
        let attached = |source| RedirectError::Attach { program: name.to_owned(), source };
        let link = sys::attach(program, scope, kind).map_err(attached)?;
        // A rename, so that an old link (of another scope, or of a cgroup that is gone) goes when the new one stands.
        let new = self.folder.join(LAYOUT).join(format!("{NEW}{name}"));
        remove(&new)?;
        sys::pin(&link, &new).map_err(failed(&new, "pinned"))?;
        fs::rename(&new, &pin).map_err(failed(&pin, "pinned"))
    }

    /// Replaces the program of a pinned link, when that one is still attached to the scope.
    fn replaces(
        &self,
        pin: &Path,
        kind: AttachType,
        program: BorrowedFd<'_>,
        scope: &File,
    ) -> Result<bool, RedirectError> {
        let link = match sys::open_pin(pin) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(pin, "opened")(error)),
        };
        let info = sys::link_info(&link).map_err(failed(pin, "examined"))?;
        let scope = scope.metadata().map_err(failed(pin, "compared with the scope"))?.ino();
        if info.cgroup != scope || info.kind != kind {
            return Ok(false);
        }
        sys::replace_program(&link, program).map_err(failed(pin, "updated")).map(|()| true)
    }

    /// What the programs of other layouts know of cgroups: whoever is an agent's there lives on under the new programs, and
    /// would be free to go where it may not. The form of that map has been the same in all layouts.
    pub(super) fn cgroups_of_others(&self) -> Result<Vec<(CgroupId, CgroupKind)>, RedirectError> {
        let failed = |source| RedirectError::Map { map: maps::CGROUPS, source };
        let mut found = Vec::new();
        for layout in
            layouts(&self.folder)?.iter().filter(|layout| layout.file_name().is_none_or(|name| name != LAYOUT))
        {
            let pin = layout.join(format!("{MAP}{}", maps::CGROUPS));
            if !pin.exists() {
                continue;
            }
            let map = MapData::from_pin(&pin).and_then(Map::from_map_data).map_err(failed)?;
            for entry in HashMap::<_, u64, u32>::try_from(map).map_err(failed)?.iter() {
                let (id, kind) = entry.map_err(failed)?;
                found.extend(CgroupId::new(id).zip(CgroupKind::from_wire(kind)));
            }
        }
        Ok(found)
    }

    /// Removes what other layouts left, now that this one stands. Gives what it took.
    pub(super) fn retire_others(&self) -> Result<Vec<String>, RedirectError> {
        let mut taken = Vec::new();
        for layout in layouts(&self.folder)? {
            if layout.file_name().is_none_or(|name| name != LAYOUT) {
                take_layout(&layout, &mut taken)?;
            }
        }
        Ok(taken)
    }

    fn link(&self, name: &str) -> PathBuf {
        self.folder.join(LAYOUT).join(format!("{LINK}{name}"))
    }
}

/// Where a map of this layout is pinned.
pub(super) fn map_pin(folder: &Path, name: &str) -> PathBuf {
    folder.join(LAYOUT).join(format!("{MAP}{name}"))
}

/// The ids of the programs in the pinned links.
pub(super) fn pinned_programs(folder: &Path) -> Vec<u32> {
    let links = PROGRAMS.iter().map(|name| folder.join(LAYOUT).join(format!("{LINK}{name}")));
    links.filter_map(|pin| sys::link_info(sys::open_pin(&pin).ok()?.as_fd()).ok()).map(|info| info.program).collect()
}

/// Takes everything away that is pinned in a folder, of every layout: from then on nothing is redirected or refused.
/// Needs no daemon. Gives what it took, a line each; nothing pinned gives nothing.
///
/// # Errors
///
/// When a pin cannot be removed.
pub fn detach(folder: &Path) -> Result<Vec<String>, RedirectError> {
    let mut taken = Vec::new();
    for layout in layouts(folder)? {
        take_layout(&layout, &mut taken)?;
    }
    match fs::remove_dir(folder) {
        Ok(()) => taken.push(format!("folder {}", folder.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(folder, "removed")(error)),
    }
    Ok(taken)
}

/// Whether a link is pinned in a folder, by whatever version.
pub fn is_pinned(folder: &Path) -> bool {
    let pins = layouts(folder).unwrap_or_default().into_iter().flat_map(fs::read_dir).flatten().flatten();
    pins.map(|pin| pin.file_name()).any(|name| name.to_string_lossy().starts_with(LINK))
}

fn layouts(folder: &Path) -> Result<Vec<PathBuf>, RedirectError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(folder, "read")(error)),
    };
    let mut layouts: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    layouts.sort();
    Ok(layouts)
}

/// Removes the pins of one layout. What writes notes goes first, and what carries them last.
fn take_layout(layout: &Path, taken: &mut Vec<String>) -> Result<(), RedirectError> {
    let entries = fs::read_dir(layout).map_err(failed(layout, "read"))?;
    let mut pins: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    pins.sort_by_key(|pin| {
        let name = pin.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let place = name.strip_prefix(LINK).and_then(|name| PROGRAMS.iter().position(|&program| program == name));
        // Programs in the reverse of their order, then what this version doesn't know, then the maps.
        (name.starts_with(MAP), place.is_none(), std::cmp::Reverse(place))
    });
    for pin in pins {
        let told = match sys::open_pin(&pin).and_then(|link| sys::link_info(&link)) {
            Ok(info) if info.cgroup == 0 => format!("{} (its cgroup was gone)", pin.display()),
            Ok(info) => format!("{} (program {} at cgroup {})", pin.display(), info.program, info.cgroup),
            Err(_) => pin.display().to_string(),
        };
        fs::remove_file(&pin).map_err(failed(&pin, "removed"))?;
        taken.push(told);
    }
    fs::remove_dir(layout).map_err(failed(layout, "removed"))
}

/// The path, or the nearest folder above it that is there.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Whether a path lies on a bpffs.
pub(super) fn is_bpffs(path: &Path) -> io::Result<bool> {
    let kind = statfs(path)?.f_type;
    Ok(u64::try_from(kind).is_ok_and(|kind| kind == BPF_FS_MAGIC))
}

fn remove(path: &Path) -> Result<(), RedirectError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "removed")(error)),
        _ => Ok(()),
    }
}

fn failed(path: &Path, attempt: &'static str) -> impl FnOnce(io::Error) -> RedirectError {
    let path = path.to_owned();
    move |source| RedirectError::Pin { path, attempt, source }
}
