//! Types shared by kernel and user space, nothing else.
//!
//! The eBPF programs write these into maps and the daemon reads them, built by two compilers: all are `repr(C)`, of
//! fixed widths and without padding, and sizes and offsets are asserted below. Whoever changes one, or a map's kind,
//! gives [`LAYOUT`] a new name: pinned maps of another layout are never adopted.
//!
//! Addresses are four words as the kernel gives them (network byte order); IPv4 is kept in its mapped form
//! `::ffff:a.b.c.d`, so that one map serves both families.
#![no_std]

use core::mem::{align_of, offset_of, size_of};

/// Names the layout of everything in this crate: the folder below which maps and links are pinned.
pub const LAYOUT: &str = "layout-3";

/// The deepest level of a cgroup, counted from the hierarchy's root, that the programs look at. What lies deeper is
/// refused, since a loop in a program needs an end.
pub const DEEPEST_CGROUP: u32 = 16;

/// The third word of an IPv4 address in its mapped form, network byte order.
pub const MAPPED: u32 = 0xffff_u32.to_be();

/// The value in [`maps::TARGETS`] of an address that is protected without belonging to a connection: nobody but those
/// who are allowed reaches it, agents included.
pub const NO_CONNECTION: u32 = u32::MAX;

/// The maps' names, as the object and the pins have them, and their capacities.
pub mod maps {
    /// `Array<Config, 1>`.
    pub const CONFIG: &str = "CONFIG";
    /// `Array<u32, 65536>`: what a destination's port can mean ([`crate::PORT_PROTECTED`], [`crate::PORT_LISTENER`],
    /// [`crate::PORT_LISTED`]). The first look-up of every connect, and for nearly all of them the last.
    pub const PORTS: &str = "PORTS";
    /// `LpmTrie<Destination, u32>`: the protected addresses, single ones and ranges, port first. The value is the
    /// connection's index or [`crate::NO_CONNECTION`].
    pub const TARGETS: &str = "TARGETS";
    /// `HashMap<u64, u32>`: a cgroup's id to its [`crate::CgroupKind`].
    pub const CGROUPS: &str = "CGROUPS";
    /// `HashMap<u32, u32>`: the uids that may connect to protected addresses.
    pub const ALLOWED_UIDS: &str = "ALLOWED_UIDS";
    /// `LpmTrie<u32, u32>`: the agents' uids and subordinate uids (big-endian), for the guard `agents`.
    pub const AGENT_UIDS: &str = "AGENT_UIDS";
    /// `HashMap<u64, Egress>`: an agent's cgroup to what it may reach beside protected addresses. One without an entry
    /// reaches nothing.
    pub const EGRESS: &str = "EGRESS";
    /// `LpmTrie<EgressTarget, u32>`: what single agents may reach all the same; the value 1 allows, any other does not.
    pub const EGRESS_ALLOWED: &str = "EGRESS_ALLOWED";
    /// `Array<u64, CGROUPS_CAPACITY>`: how many entries of [`PENDING`] each agent's cgroup may have there, by
    /// [`crate::Egress::slot`].
    pub const HANDSHAKES: &str = "HANDSHAKES";
    /// `SkStorage<u32>`: of a client's socket that is counted in [`HANDSHAKES`], the place plus one, else 0.
    pub const COUNTED: &str = "COUNTED";
    /// `HashMap<Flow, Note>`: connections whose handshake runs.
    pub const PENDING: &str = "PENDING";
    /// `SkStorage<Note>`: the note of a socket.
    pub const NOTES: &str = "NOTES";
    /// `SkStorage<u32>`: whose doing it is that a socket's packets name hops of their own, a [`crate::RouteOf`].
    pub const ROUTES: &str = "ROUTES";
    /// `RingBuf` of [`crate::KernelEvent`]s.
    pub const EVENTS: &str = "EVENTS";
    /// `PerCpuArray<u64, 1>`: events that found the ring full.
    pub const DROPPED: &str = "DROPPED";

    /// All of them.
    pub const ALL: [&str; 15] = [
        CONFIG,
        PORTS,
        TARGETS,
        CGROUPS,
        ALLOWED_UIDS,
        AGENT_UIDS,
        EGRESS,
        EGRESS_ALLOWED,
        HANDSHAKES,
        COUNTED,
        PENDING,
        NOTES,
        ROUTES,
        EVENTS,
        DROPPED,
    ];

    /// Entries of [`TARGETS`].
    pub const TARGETS_CAPACITY: usize = 65_536;
    /// Entries of [`CGROUPS`], of [`EGRESS`], and of [`HANDSHAKES`].
    pub const CGROUPS_CAPACITY: usize = 16_384;
    /// Entries of [`ALLOWED_UIDS`].
    pub const ALLOWED_UIDS_CAPACITY: usize = 1_024;
    /// Entries of [`AGENT_UIDS`]; a range of uids takes several.
    pub const AGENT_UIDS_CAPACITY: usize = 65_536;
    /// Entries of [`EGRESS_ALLOWED`]; a range of ports takes one for each port.
    pub const EGRESS_ALLOWED_CAPACITY: usize = 65_536;
    /// Entries of [`PENDING`]: one for each handshake that runs. More than a hundred agents that each have as many as they
    /// may do not fill it.
    pub const PENDING_CAPACITY: usize = 262_144;
    /// Bytes of [`EVENTS`].
    pub const EVENTS_BYTES: usize = 256 * 1024;
}

/// Handshakes with the listener that one agent's cgroup may have under way; its next connect is refused.
pub const MOST_HANDSHAKES: u64 = 2_048;

/// The programs' names, in the order in which they are attached: what carries notes and keeps the port stands before
/// what writes the first note.
pub const PROGRAMS: [&str; 12] = [
    "carry_note",
    "bind4",
    "bind6",
    "sock_create",
    "setsockopt",
    "packets",
    "getpeername4",
    "getpeername6",
    "sendmsg4",
    "sendmsg6",
    "connect4",
    "connect6",
];

/// A bit in [`maps::PORTS`]: some protected address has this port.
pub const PORT_PROTECTED: u32 = 1;
/// A bit in [`maps::PORTS`]: the listener's port.
pub const PORT_LISTENER: u32 = 2;
/// A bit in [`maps::PORTS`]: databases, containers, clusters or tunnels are expected at this port.
pub const PORT_LISTED: u32 = 4;

/// The name of the programs' constant that says how programs on packets find the calling task: a [`TaskFrom`].
pub const TASK_FROM: &str = "TASK_FROM";
/// The name of the programs' constant that is a [`TaskLayout`].
pub const TASK_LAYOUT: &str = "TASK_LAYOUT";

/// The name of the programs' constant that is not 0 on a kernel with MPTCP.
pub const HAS_MPTCP: &str = "HAS_MPTCP";

/// Where the kernel's structures have what leads from a task to its cgroups: offsets in bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskLayout {
    /// `task_struct.cgroups`.
    pub sets: u32,
    /// `css_set.dfl_cgrp`.
    pub cgroup: u32,
    /// `cgroup.level`.
    pub level: u32,
    /// `cgroup.ancestors`, from the root on.
    pub ancestors: u32,
    /// `cgroup.kn`.
    pub node: u32,
    /// `kernfs_node.id`.
    pub id: u32,
}

/// An address and port. The port comes first, so that it is the head of the key in [`maps::TARGETS`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The port in network byte order, in the lower half of the word as `bpf_sock_addr.user_port` has it.
    pub port: u32,
    /// The address, IPv4 mapped.
    pub address: [u32; 4],
}

/// Bits of [`Destination`] that a look-up for one single address compares.
pub const DESTINATION_BITS: u32 = 32 + 128;

/// What an agent may reach beside protected addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Egress {
    /// An [`EgressMode`]. Whatever isn't a known one is taken for [`EgressMode::Closed`].
    pub mode: u32,
    /// The agent's number in [`maps::EGRESS_ALLOWED`].
    pub agent: u32,
    /// The cgroup's own place in [`maps::HANDSHAKES`].
    pub slot: u32,
}

/// The key of [`maps::EGRESS_ALLOWED`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EgressTarget {
    /// See [`Egress::agent`].
    pub agent: u32,
    /// The port as in [`Destination::port`]; 0 for every port, and for what has none.
    pub port: u32,
    /// The address, IPv4 mapped.
    pub address: [u32; 4],
}

/// Bits of [`EgressTarget`] before the address.
pub const EGRESS_TARGET_HEAD_BITS: u32 = 64;

/// Who asked for what: written at connect, read at accept.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// The enrolled cgroup (not the task's own, which may lie deeper); 0 means that the note was cleared.
    pub cgroup: u64,
    /// The address that was asked for.
    pub destination: Destination,
    /// The connection's index.
    pub connection: u32,
    /// The process.
    pub pid: u32,
    /// Its user, in the initial user namespace.
    pub uid: u32,
}

/// A TCP connection as its client sees it: the key of [`maps::PENDING`].
///
/// The socket's family is no part of it: a client with an IPv6 socket and a mapped address meets an IPv4 socket.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The network namespace's cookie.
    pub netns: u64,
    /// The client's address.
    pub from: [u32; 4],
    /// The listener's address.
    pub to: [u32; 4],
    /// The client's port, host byte order.
    pub from_port: u32,
    /// The listener's port, host byte order.
    pub to_port: u32,
}

/// What the programs need to know, written before they are attached.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The listener's port, host byte order.
    pub listener_port: u32,
    /// A [`Guard`]. Whatever isn't a known one is taken for [`Guard::Host`].
    pub guard: u32,
    /// Not 0 while some agent's egress is closed, or there is a fence: then every connect of the host asks whose it is.
    pub closed: u32,
}

/// A refusal, as the programs tell it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelEvent {
    /// The enrolled cgroup that the task lies in, else the task's own.
    pub cgroup: u64,
    /// The address asked for; of a socket that was refused at its making, zero.
    pub destination: Destination,
    /// An [`Operation`].
    pub operation: u32,
    /// A [`Reason`].
    pub reason: u32,
    /// The process; 0 where no task is at hand.
    pub pid: u32,
    /// Its user, in the initial user namespace.
    pub uid: u32,
    /// The socket's family, `AF_…`.
    pub family: u32,
    /// The socket's type, `SOCK_…`.
    pub socket_type: u32,
    /// The socket's protocol, `IPPROTO_…`.
    pub protocol: u32,
    /// The task's name: its own choice.
    pub comm: [u8; 16],
}

/// Declares an enum that crosses the border as a `u32`, with the way back.
macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant = $value,)+ }

        impl $name {
            /// The number that crosses the border.
            #[inline(always)]
            pub const fn wire(self) -> u32 {
                match self { $(Self::$variant => $value,)+ }
            }

            /// The way back; `None` for a number that means nothing here.
            #[inline(always)]
            pub const fn from_wire(number: u32) -> Option<Self> {
                match number { $($value => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

wire_enum! {
    /// Who is refused when a protected address is asked for from outside every agent's cgroup.
    Guard {
        /// Everybody who isn't allowed.
        Host = 0,
        /// The agents' uids and their subordinate uids alone.
        Agents = 1,
    }
}

wire_enum! {
    /// What an agent may reach beside protected addresses.
    EgressMode {
        /// Everything.
        Open = 1,
        /// Everything but listed ports that aren't allowed to it.
        Databases = 2,
        /// What is allowed to it.
        Closed = 3,
    }
}

wire_enum! {
    /// How programs on packets find the calling task.
    TaskFrom {
        /// Not at all.
        Nothing = 0,
        /// They may ask for it, as others may (Linux 6.16).
        Helper = 1,
        /// By the kernel's own structures.
        Memory = 2,
    }
}

wire_enum! {
    /// Whose doing it is that a socket's packets name hops of their own.
    RouteOf {
        /// No agent's.
        Others = 1,
        /// An agent's.
        Agent = 2,
    }
}

wire_enum! {
    /// What a cgroup in [`maps::CGROUPS`] is. An agent's wins over the others, wherever it lies.
    CgroupKind {
        /// An enrolled agent's: redirected.
        Agent = 1,
        /// The daemon's: it connects upstream and has the listener's port.
        Daemon = 2,
        /// Allowed by configuration.
        Allowed = 3,
        /// Below it nobody reaches anything but who lies in an agent's.
        Fence = 4,
    }
}

wire_enum! {
    /// What was tried.
    Operation {
        /// `connect`, or a `sendmsg` with `MSG_FASTOPEN`.
        Connect = 1,
        /// A datagram without a connect.
        Send = 2,
        /// `bind`.
        Bind = 3,
        /// `socket`.
        Socket = 4,
        /// The hand-over of a note to the listener.
        Carry = 5,
        /// A packet that left a socket.
        Packet = 6,
        /// `setsockopt`.
        Option = 7,
    }
}

wire_enum! {
    /// Why it was refused.
    Reason {
        /// The task is in no agent's cgroup, and neither allowed nor the daemon.
        Outside = 1,
        /// The task's cgroup lies deeper than [`DEEPEST_CGROUP`].
        TooDeep = 2,
        /// An agent's socket isn't TCP, and nothing else can be redirected.
        NotTcp = 3,
        /// The address is protected and belongs to no connection.
        NoConnection = 4,
        /// A socket with a source address or device of its own asked for "no address" (0.0.0.0 or ::) at a protected
        /// port: where that leads is settled by routing, after the programs.
        Ambiguous = 5,
        /// The kernel had no room for the note.
        NoteLost = 6,
        /// The port is the listener's.
        PortKept = 7,
        /// An agent may not make a socket of this kind.
        SocketKind = 8,
        /// The agent's egress is `databases`, and the port is listed.
        PortListed = 9,
        /// The agent's egress is `closed`, and the address isn't allowed to it.
        NotAllowed = 10,
        /// The packet or socket has IP options or a routing header, by which packets may go elsewhere than was asked for.
        SourceRoute = 11,
        /// The task lies below a fence and in no agent's cgroup, and reaches nothing.
        Fenced = 12,
        /// The agent has [`MOST_HANDSHAKES`] with the listener under way.
        Handshakes = 13,
        /// The agent's egress is `closed`, and MPTCP opens further connections by itself.
        Multipath = 14,
    }
}

// Two compilers build these; nothing may move between them.
const _: () = {
    assert!(size_of::<Destination>() == 20 && align_of::<Destination>() == 4);
    assert!(offset_of!(Destination, port) == 0 && offset_of!(Destination, address) == 4);

    assert!(size_of::<Note>() == 40 && align_of::<Note>() == 8);
    assert!(offset_of!(Note, destination) == 8 && offset_of!(Note, connection) == 28);
    assert!(offset_of!(Note, pid) == 32 && offset_of!(Note, uid) == 36);

    assert!(size_of::<Flow>() == 48 && align_of::<Flow>() == 8);
    assert!(offset_of!(Flow, from) == 8 && offset_of!(Flow, to) == 24);
    assert!(offset_of!(Flow, from_port) == 40 && offset_of!(Flow, to_port) == 44);

    assert!(size_of::<Config>() == 12 && offset_of!(Config, guard) == 4 && offset_of!(Config, closed) == 8);

    assert!(size_of::<Egress>() == 12 && offset_of!(Egress, agent) == 4 && offset_of!(Egress, slot) == 8);
    assert!(size_of::<EgressTarget>() == 24 && align_of::<EgressTarget>() == 4);
    assert!(offset_of!(EgressTarget, port) == 4 && offset_of!(EgressTarget, address) == 8);

    assert!(size_of::<TaskLayout>() == 24 && align_of::<TaskLayout>() == 4);

    assert!(size_of::<KernelEvent>() == 72 && align_of::<KernelEvent>() == 8);
    assert!(offset_of!(KernelEvent, destination) == 8 && offset_of!(KernelEvent, operation) == 28);
    assert!(offset_of!(KernelEvent, reason) == 32 && offset_of!(KernelEvent, pid) == 36);
    assert!(offset_of!(KernelEvent, uid) == 40 && offset_of!(KernelEvent, family) == 44);
    assert!(offset_of!(KernelEvent, socket_type) == 48 && offset_of!(KernelEvent, protocol) == 52);
    assert!(offset_of!(KernelEvent, comm) == 56);
};

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's Pod is an unsafe trait")]
mod pod {
    use super::{Config, Destination, Egress, EgressTarget, Flow, Note, TaskLayout};

    // SAFETY: repr(C) integers without padding (asserted above); every bit pattern is a value.
    unsafe impl aya::Pod for Destination {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Note {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Egress {}
    // SAFETY: as above.
    unsafe impl aya::Pod for EgressTarget {}
    // SAFETY: as above.
    unsafe impl aya::Pod for TaskLayout {}
}
