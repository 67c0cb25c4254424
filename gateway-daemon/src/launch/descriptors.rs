//! Which descriptors an agent may be given as 0, 1 and 2.
//!
//! A descriptor can carry more than bytes: a connected socket speaks as who connected it, an `io_uring` with a kernel
//! thread acts as who made it, a folder leads out of covered paths. So there is a list of what passes.

use std::{io, os::fd::AsFd};

use rustix::fs::{FileType, fcntl_getfl, fstat, major, minor};

/// Major number of memory devices (Linux, Documentation/admin-guide/devices.txt).
const MEMORY: u32 = 1;

/// null, zero, full, random, urandom.
const HARMLESS_MEMORY: [u32; 5] = [3, 5, 7, 8, 9];

/// What a descriptor leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file, a pipe, /dev/null or the like: nothing but bytes.
    Bytes,
    /// A terminal.
    Terminal,
    /// Anything else.
    Other,
}

/// Looks at a descriptor.
pub(super) fn kind(descriptor: impl AsFd) -> io::Result<Kind> {
    let descriptor = descriptor.as_fd();
    // One opened as a mere path can lead anywhere.
    if fcntl_getfl(descriptor)?.contains(rustix::fs::OFlags::PATH) {
        return Ok(Kind::Other);
    }
    let found = fstat(descriptor)?;
    Ok(match FileType::from_raw_mode(found.st_mode) {
        FileType::Fifo => Kind::Bytes,
        FileType::RegularFile if has_path(descriptor)? => Kind::Bytes,
        FileType::CharacterDevice if rustix::termios::isatty(descriptor) => Kind::Terminal,
        FileType::CharacterDevice
            if major(found.st_rdev) == MEMORY && HARMLESS_MEMORY.contains(&minor(found.st_rdev)) =>
        {
            Kind::Bytes
        }
        _ => Kind::Other,
    })
}

/// Whether this is a file of a file system, by its name. The kernel's objects without one (rings, pidfds, namespaces…) are
/// regular files to fstat on some kernels; their names (`anon_inode:[…]`, `pidfd:[…]`, `net:[…]`) begin with no slash.
fn has_path(descriptor: impl AsFd) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd());
    let name = std::fs::read_link(link)?;
    Ok(name.as_os_str().as_encoded_bytes().starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn only_what_carries_bytes_passes() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let (pipe, _writer) = rustix::pipe::pipe().unwrap();
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        let path = rustix::fs::open("/etc/passwd", rustix::fs::OFlags::PATH, 0.into()).unwrap();
        let pty = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
        assert_eq!(kind(&pipe).unwrap(), Kind::Bytes);
        assert_eq!(kind(tempfile::tempfile().unwrap()).unwrap(), Kind::Bytes);
        assert_eq!(kind(File::open("/dev/null").unwrap()).unwrap(), Kind::Bytes);
        assert_eq!(kind(&pty).unwrap(), Kind::Terminal);
        assert_eq!(kind(&socket).unwrap(), Kind::Other);
        assert_eq!(kind(epoll.unwrap()).unwrap(), Kind::Other);
        assert_eq!(kind(path).unwrap(), Kind::Other);
        assert_eq!(kind(File::open("/tmp").unwrap()).unwrap(), Kind::Other);
        // A namespace's descriptor is a regular file to fstat.
        assert_eq!(kind(File::open("/proc/self/ns/net").unwrap()).unwrap(), Kind::Other);
        let own = rustix::process::getpid();
        let process = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
        assert_eq!(kind(process).unwrap(), Kind::Other);
        // With a thread of the kernel's that acts as who made it.
        let ring: io_uring::IoUring = io_uring::IoUring::builder().setup_sqpoll(1000).build(2).unwrap();
        assert_eq!(kind(ring).unwrap(), Kind::Other);
    }
}
