//! What the kernel tells of a user namespace (`ioctl_nsfs(2)`), for which neither std nor rustix has a call.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// linux/nsfs.h
const NS_GET_PARENT: libc::Ioctl = 0xb702;
const NS_GET_OWNER_UID: libc::Ioctl = 0xb704;

/// The user namespace above one; refused when that is not at or below the caller's.
#[expect(unsafe_code, reason = "ioctl")]
pub(super) fn parent(namespace: &File) -> io::Result<File> {
    // SAFETY: takes no argument, and gives a descriptor or an error.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Who made a user namespace, as the caller's namespace has the uid.
#[expect(unsafe_code, reason = "ioctl")]
pub(super) fn owner(namespace: &File) -> io::Result<u32> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the call writes a uid_t, which lives for it.
    if unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID, &raw mut uid) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(uid)
}
