//! Takes paths out of an agent's sight: database sockets, the folders of container runtimes.
//!
//! A folder is covered by an empty file system that cannot be written, a file by /dev/null, to which a connect is
//! refused. This is done in a mount namespace of the agent's own; one that it derives with a user namespace inherits
//! the covers locked together with what they cover (`mount_namespaces(7)`, "restrictions"). It is a signpost, not the
//! wall: a server that makes its socket anew in another namespace removes the cover of a single file with it.
//! The wall is that the agent's user may not open the socket.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2, readlinkat},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
};

/// Leaves the host's mounts: from here on neither side sees what the other mounts.
pub(super) fn own_mounts() -> io::Result<()> {
    super::sys::unshare_mounts()?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// Covers one path, after [`own_mounts`]; one that is not there needs no cover.
///
/// In a folder that everybody can write to anybody decides what a path means, and when. What is a link there that root did not
/// make, or goes while it is looked at, is passed over: it must not keep a run from starting, and covering what somebody's link
/// means would let them choose what the agent does not see.
pub(super) fn cover(path: &Path) -> io::Result<()> {
    // Opened once, so that what is looked at is what is covered; links are followed to what they mean.
    let opened = match shared(path) {
        Some(shared) => open_shared(&shared, path),
        None => open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map(Some),
    };
    let found = match opened {
        Ok(Some(found)) => found,
        Ok(None) | Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let target = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let covered = if FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Directory {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("weir", &target, "tmpfs", flags, c"mode=555,size=4k,nr_inodes=1")
    } else {
        mount_bind("/dev/null", &target)
    };
    match covered {
        // Removed meanwhile.
        Err(Errno::NOENT) => Ok(()),
        covered => Ok(covered?),
    }
}

/// The first folder on a path that everybody can write to.
fn shared(path: &Path) -> Option<PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    above.into_iter().find(|folder| folder.metadata().is_ok_and(|found| found.mode() & 0o002 != 0)).map(Path::to_owned)
}

/// Opens what a path below such a folder means without a link, or by root's own as its last part. `None` is what somebody else
/// has made of it.
fn open_shared(folder: &Path, path: &Path) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let Ok(rest) = path.strip_prefix(folder) else { return Ok(None) };
    let folder = open(folder, flags | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let found = match openat2(&folder, rest, flags | OFlags::NOFOLLOW, Mode::empty(), resolve) {
        Err(Errno::LOOP | Errno::XDEV) => return Ok(None),
        found => found?,
    };
    let metadata = fstat(&found)?;
    if FileType::from_raw_mode(metadata.st_mode) != FileType::Symlink {
        return Ok(Some(found));
    }
    if metadata.st_uid != 0 {
        return Ok(None);
    }
    // Read from the link that was looked at: another could be in its place by now.
    let target = readlinkat(&found, "", Vec::new())?;
    match openat(&folder, target.as_c_str(), flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::ACCESS) => Ok(None),
        opened => opened.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, lchown, symlink},
    };

    use super::*;

    #[test]
    fn in_a_folder_of_everybodys_a_link_counts_when_it_is_roots() {
        let folder = tempfile::tempdir().unwrap();
        // Shown by its name without the folders of everybody's above it.
        let shared_folder = folder.path().join("shared");
        fs::create_dir(&shared_folder).unwrap();
        fs::set_permissions(&shared_folder, fs::Permissions::from_mode(0o1777)).unwrap();
        let path = |name: &str| shared_folder.join(name);
        let kept = folder.path().join("kept");
        fs::write(&kept, "").unwrap();
        fs::write(path("plain"), "").unwrap();
        symlink(&kept, path("roots")).unwrap();
        symlink(&kept, path("theirs")).unwrap();
        symlink(path("loop"), path("loop")).unwrap();
        symlink(&shared_folder, path("folder")).unwrap();
        for name in ["theirs", "folder"] {
            lchown(path(name), Some(54_321), None).unwrap();
        }
        let opened = |name: &str| open_shared(&shared_folder, &path(name));
        assert!(opened("plain").unwrap().is_some());
        assert_eq!(fstat(opened("roots").unwrap().unwrap()).unwrap().st_ino, kept.metadata().unwrap().ino());
        for name in ["theirs", "loop", "folder", "folder/plain"] {
            assert!(opened(name).unwrap().is_none(), "{name}");
        }
        assert!(matches!(opened("missing"), Err(Errno::NOENT)));
        assert_eq!(shared(Path::new("/proc/self/status")), None);
        assert!(shared(&path("plain")).is_some());
    }
}
