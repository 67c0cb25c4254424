//! Takes paths out of an agent's sight: database sockets, the folders of container runtimes.
//!
//! A folder is covered by an empty file system that cannot be written, a file by /dev/null, to which a connect is
//! refused. This is done in a mount namespace of the agent's own; one that it derives with a user namespace inherits
//! the covers locked together with what they cover (`mount_namespaces(7)`, "restrictions"). It is a signpost, not the
//! wall: a server that makes its socket anew in another namespace removes the cover of a single file with it.
//! The wall is that the agent's user may not open the socket.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open},
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
pub(super) fn cover(path: &Path) -> io::Result<()> {
    // Opened once, so that what is looked at is what is covered; links are followed to what they mean.
    let found: OwnedFd = match open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let target = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    if FileType::from_raw_mode(fstat(&found)?.st_mode) == FileType::Directory {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("weir", &target, "tmpfs", flags, c"mode=555,size=4k,nr_inodes=1")?;
    } else {
        mount_bind("/dev/null", &target)?;
    }
    Ok(())
}
