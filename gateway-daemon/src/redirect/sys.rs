//! bpf(2) where aya has no way: links reopened from their pins, link updates, and queries of a cgroup's programs. The
//! only unsafe code of this step.
//!
//! Layouts: `union bpf_attr` and `struct bpf_link_info` in Linux's `include/uapi/linux/bpf.h`. The kernel takes a
//! shorter `bpf_attr` than its own for one whose rest is zero.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper for these commands")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use tokio::io::{Interest, unix::AsyncFd};

const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

/// Programs that one cgroup can have of one attach type (the kernel's `BPF_CGROUP_MAX_PROGS`).
const MOST_PROGRAMS: usize = 64;

/// An attach type, as `enum bpf_attach_type` numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AttachType(pub(super) u32);

/// Pins an object.
pub(super) fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = c_path(path)?;
    let mut attr =
        Attr { pathname: address(path.as_ptr()), bpf_fd: number(object.as_fd().as_raw_fd())?, file_flags: 0 };
    // SAFETY: the attribute is the head of what this command reads; the path outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = c_path(path)?;
    let mut attr = Attr { pathname: address(path.as_ptr()), bpf_fd: 0, file_flags: 0 };
    // SAFETY: as in `pin`.
    let fd = unsafe { bpf(OBJ_GET, &mut attr) }?;
    Ok(owned(fd))
}

/// Attaches a program to a cgroup. A link needs no flag to stand beside others.
pub(super) fn attach(program: impl AsFd, cgroup: impl AsFd, kind: AttachType) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attr = Attr {
        prog_fd: number(program.as_fd().as_raw_fd())?,
        target_fd: number(cgroup.as_fd().as_raw_fd())?,
        attach_type: kind.0,
        flags: 0,
    };
    // SAFETY: the attribute is the head of what this command reads, and holds no pointer.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr) }?;
    Ok(owned(fd))
}

/// Puts another program in a link's place, at once: every call meets either the old one or the new one.
pub(super) fn replace_program(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attr = Attr {
        link_fd: number(link.as_fd().as_raw_fd())?,
        new_prog_fd: number(program.as_fd().as_raw_fd())?,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: as in `attach`.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// What the kernel says of a cgroup link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkInfo {
    pub(super) program: u32,
    /// 0 when the cgroup is gone, and the link does nothing any more.
    pub(super) cgroup: u64,
    pub(super) kind: AttachType,
}

/// Describes a cgroup link.
pub(super) fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        link_type: u32,
        id: u32,
        prog_id: u32,
        padding: u32,
        cgroup_id: u64,
        attach_type: u32,
        rest: [u32; 15],
    }
    const CGROUP_LINK: u32 = 3;
    let mut info = Info::default();
    let mut attr = Attr {
        bpf_fd: number(link.as_fd().as_raw_fd())?,
        info_len: u32::try_from(size_of::<Info>()).map_err(io::Error::other)?,
        info: address(&raw mut info),
    };
    // SAFETY: the kernel writes `info_len` bytes at most, and `info` outlives the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    if info.link_type != CGROUP_LINK {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a cgroup link"));
    }
    Ok(LinkInfo { program: info.prog_id, cgroup: info.cgroup_id, kind: AttachType(info.attach_type) })
}

/// The ids of the programs attached to a cgroup itself, in the order in which they run.
pub(super) fn attached_programs(cgroup: impl AsFd, kind: AttachType) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Attr {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        padding: u32,
        prog_attach_flags: u64,
    }
    let mut ids = [0_u32; MOST_PROGRAMS];
    let mut attr = Attr {
        target_fd: number(cgroup.as_fd().as_raw_fd())?,
        attach_type: kind.0,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: address(ids.as_mut_ptr()),
        prog_cnt: u32::try_from(MOST_PROGRAMS).map_err(io::Error::other)?,
        padding: 0,
        prog_attach_flags: 0,
    };
    // SAFETY: the kernel writes `prog_cnt` ids at most, and `ids` has room for them and outlives the call.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    let count = usize::try_from(attr.prog_cnt).map_err(io::Error::other)?;
    Ok(ids.into_iter().take(count).collect())
}

/// Watches the descriptor of a ring buffer. Must be called within a tokio runtime.
pub(super) fn readable<T: AsFd + AsRawFd>(ring: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: aya's ring buffers own their descriptor as long as they live, and it is always the same one.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)
}

/// The system call.
///
/// # Safety
///
/// `attr` must be the head of the `bpf_attr` of `command`, and what it points to must outlive the call and be as large
/// as it says.
unsafe fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<RawFd> {
    // SAFETY: the caller's promise; the size is the type's own.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { RawFd::try_from(result).map_err(io::Error::other) }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: a descriptor that the kernel has just made, and that nobody else knows.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn number(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(io::Error::other)
}

/// A pointer as `bpf_attr` has it.
#[expect(clippy::as_conversions, reason = "bpf_attr holds pointers as 64-bit numbers")]
fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}
