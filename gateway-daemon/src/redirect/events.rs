//! What the kernel tells: refusals as events, and the programs' own log lines, which go to tracing.

use std::{io, net::SocketAddr};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use gateway_common::{Destination, Operation, Reason};
use tokio::io::unix::AsyncFd;

use super::{cgroup::CgroupId, sys, target::to_socket_address};

/// A refusal in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelEvent {
    /// The enrolled cgroup that the task lies in, else the task's own.
    pub cgroup: Option<CgroupId>,
    /// The address asked for; unspecified, port 0, of a socket that was refused at its making.
    pub destination: SocketAddr,
    /// What was tried.
    pub operation: Operation,
    /// Why it was refused.
    pub reason: Reason,
    /// The process; 0 where the kernel had none at hand.
    pub pid: u32,
    /// Its user, in the initial user namespace.
    pub uid: u32,
    /// The task's name: at most 15 bytes, and its own choice.
    pub comm: String,
    /// The socket's `AF_…`, `SOCK_…` and `IPPROTO_…`.
    pub socket: (u32, u32, u32),
}

impl KernelEvent {
    /// What was tried and why it was refused, for people and the record: a fixed text for each pair.
    pub const fn what(&self) -> &'static str {
        match (self.operation, self.reason) {
            (_, Reason::TooDeep) => "from a cgroup more than 16 levels deep",
            (_, Reason::NoConnection) => "connect to a protected address without a connection",
            (_, Reason::Ambiguous) => "connect to no address from a bound socket",
            (_, Reason::NoteLost) => "connect while the kernel had no room for its note",
            (_, Reason::Handshakes) => "connect while as many of the agent's were unanswered as may be",
            (_, Reason::Multipath) => "egress closed: mptcp, which opens further connections by itself",
            (_, Reason::PortKept) => "bind to the listener's port",
            (Operation::Connect, Reason::PortListed) => "egress databases: connect to a listed port",
            (_, Reason::PortListed) => "egress databases: datagram to a listed port",
            (Operation::Connect, Reason::NotAllowed) => "egress closed: connect to an address that is not allowed",
            (Operation::Packet, Reason::NotAllowed) => "egress closed: echo request to an address that is not allowed",
            (_, Reason::NotAllowed) => "egress closed: datagram to an address that is not allowed",
            (Operation::Connect, Reason::Fenced) => "connect from below weir.slice, but from no agent's slice",
            (Operation::Socket, Reason::Fenced) => "socket made below weir.slice, but in no agent's slice",
            (Operation::Option, Reason::Fenced) => "socket option set below weir.slice, but in no agent's slice",
            (_, Reason::Fenced) => "datagram from below weir.slice, but from no agent's slice",
            (Operation::Connect, Reason::SourceRoute) => "connect by a socket whose packets may be led elsewhere",
            (Operation::Option, Reason::SourceRoute) => "socket option that may lead packets elsewhere",
            (_, Reason::SourceRoute) => "packet with options that may lead it elsewhere",
            (_, Reason::SocketKind) => "socket that is neither tcp, udp nor ping",
            (Operation::Send, Reason::Outside) => "datagram from outside any agent",
            (_, Reason::Outside) => "connect from outside any agent",
            (Operation::Send, Reason::NotTcp) => "datagram to a protected address",
            (_, Reason::NotTcp) => "connect to a protected address without tcp",
        }
    }

    /// Reads one entry of the ring; `None` when it isn't one that this version writes.
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut words = Words(bytes);
        let cgroup = words.u64()?;
        let port = words.u32()?;
        let address = [words.u32()?, words.u32()?, words.u32()?, words.u32()?];
        let (operation, reason) = (Operation::from_wire(words.u32()?)?, Reason::from_wire(words.u32()?)?);
        let (pid, uid) = (words.u32()?, words.u32()?);
        let socket = (words.u32()?, words.u32()?, words.u32()?);
        let comm = words.0.split(|&byte| byte == 0).next().unwrap_or_default();
        Some(Self {
            cgroup: CgroupId::new(cgroup),
            destination: to_socket_address(&Destination { port, address }),
            operation,
            reason,
            pid,
            uid,
            comm: String::from_utf8_lossy(comm).into_owned(),
            socket,
        })
    }
}

/// The rest of an entry, in the order of `gateway_common::KernelEvent`'s fields, which asserts their offsets.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*word))
    }

    fn u64(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*word))
    }
}

/// The kernel's events, one after the other. Refusals from the time without a daemon come first.
pub struct KernelEvents {
    ring: AsyncFd<RingBuf<MapData>>,
    logs: Option<AsyncFd<EbpfLogger<ToTracing>>>,
}

impl KernelEvents {
    /// Must be called within a tokio runtime.
    pub(super) fn new(ring: RingBuf<MapData>, logs: Option<EbpfLogger<ToTracing>>) -> io::Result<Self> {
        Ok(Self { ring: sys::readable(ring)?, logs: logs.map(sys::readable).transpose()? })
    }

    /// The next event. Log lines of the programs go to tracing meanwhile. May be dropped at any point: no event is
    /// lost.
    ///
    /// # Errors
    ///
    /// When the runtime is shutting down.
    pub async fn next(&mut self) -> io::Result<KernelEvent> {
        loop {
            if let Some(event) = self.take() {
                return Ok(event);
            }
            tokio::select! {
                ready = self.ring.readable_mut() => ready?.clear_ready(),
                ready = readable(self.logs.as_mut()) => {
                    let mut ready = ready?;
                    ready.clear_ready();
                    ready.get_inner_mut().flush();
                    continue;
                }
            }
            // An entry may have come between the look above and the clearing.
        }
    }

    fn take(&mut self) -> Option<KernelEvent> {
        let ring = self.ring.get_mut();
        while let Some(entry) = ring.next() {
            match KernelEvent::read(&entry) {
                Some(event) => return Some(event),
                None => tracing::error!(bytes = entry.len(), "the kernel's programs told something unknown"),
            }
        }
        None
    }
}

async fn readable(
    logs: Option<&mut AsyncFd<EbpfLogger<ToTracing>>>,
) -> io::Result<tokio::io::unix::AsyncFdReadyMutGuard<'_, EbpfLogger<ToTracing>>> {
    match logs {
        Some(logs) => logs.readable_mut().await,
        None => std::future::pending().await,
    }
}

/// Leads what the programs log to tracing.
pub(super) struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let message = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: "weir::ebpf", "{message}"),
            log::Level::Warn => tracing::warn!(target: "weir::ebpf", "{message}"),
            log::Level::Info => tracing::info!(target: "weir::ebpf", "{message}"),
            log::Level::Debug => tracing::debug!(target: "weir::ebpf", "{message}"),
            log::Level::Trace => tracing::trace!(target: "weir::ebpf", "{message}"),
        }
    }

    fn flush(&self) {}
}
