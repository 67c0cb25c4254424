//! One connect, or one datagram, through `io_uring`. The only unsafe code of the tests.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

/// Who carries a ring's work out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    /// The task that submits.
    Inline,
    /// A worker thread of the kernel's.
    Queue,
    /// A thread that watches the ring.
    Poll,
}

/// A ring.
///
/// # Errors
///
/// When the kernel has none: no test passes without one.
pub fn ring(worker: Worker) -> Result<IoUring, Errno> {
    let mut builder = IoUring::builder();
    if worker == Worker::Poll {
        builder.setup_sqpoll(1000);
    }
    builder.build(2).map_err(failed)
}

/// Connects a socket through a ring.
///
/// # Errors
///
/// The connect's error.
#[expect(unsafe_code, reason = "the ring reads the address from the caller's memory")]
pub fn uring_connect(ring: &mut IoUring, worker: Worker, socket: impl AsFd, address: SocketAddr) -> Result<(), Errno> {
    let raw = RawAddress::from(address);
    let (pointer, length) = raw.parts();
    let entry =
        opcode::Connect::new(types::Fd(socket.as_fd().as_raw_fd()), pointer, length).build().flags(match worker {
            Worker::Queue => squeue::Flags::ASYNC,
            Worker::Inline | Worker::Poll => squeue::Flags::empty(),
        });
    // SAFETY: `raw` and the socket live until the completion below, and the queue holds this one entry.
    unsafe { ring.submission().push(&entry) }.map_err(|_| Errno::BUSY)?;
    completed(ring)
}

/// Sends a datagram through a ring.
///
/// # Errors
///
/// The sending's error.
#[expect(unsafe_code, reason = "the ring reads the address and the bytes from the caller's memory")]
pub fn uring_send(ring: &mut IoUring, socket: impl AsFd, bytes: &[u8], address: SocketAddr) -> Result<(), Errno> {
    let raw = RawAddress::from(address);
    let (pointer, length) = raw.parts();
    let socket = types::Fd(socket.as_fd().as_raw_fd());
    let size = u32::try_from(bytes.len()).map_err(|_| Errno::MSGSIZE)?;
    let entry = opcode::Send::new(socket, bytes.as_ptr(), size).dest_addr(pointer).dest_addr_len(length).build();
    // SAFETY: as above, and so do the bytes.
    unsafe { ring.submission().push(&entry) }.map_err(|_| Errno::BUSY)?;
    completed(ring)
}

fn completed(ring: &mut IoUring) -> Result<(), Errno> {
    ring.submit_and_wait(1).map_err(failed)?;
    let completion = ring.completion().next().ok_or(Errno::IO)?;
    match completion.result() {
        0.. => Ok(()),
        negative => Err(Errno::from_raw_os_error(negative.saturating_neg())),
    }
}

fn failed(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

enum RawAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Self::V4(libc::sockaddr_in {
                sin_family: u16::try_from(libc::AF_INET).unwrap_or_default(),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => Self::V6(libc::sockaddr_in6 {
                sin6_family: u16::try_from(libc::AF_INET6).unwrap_or_default(),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: 0,
            }),
        }
    }
}

impl RawAddress {
    fn parts(&self) -> (*const libc::sockaddr, u32) {
        let length = |size: usize| u32::try_from(size).unwrap_or_default();
        match self {
            Self::V4(v4) => (std::ptr::from_ref(v4).cast(), length(size_of_val(v4))),
            Self::V6(v6) => (std::ptr::from_ref(v6).cast(), length(size_of_val(v6))),
        }
    }
}
