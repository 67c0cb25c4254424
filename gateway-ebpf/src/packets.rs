//! Packets on their way out: those that no call named the destination of. An agent's ping sockets send without a connect,
//! and pass every other program by; and a packet that names hops of its own goes elsewhere than its socket's address.
//!
//! Runs for every packet of the host, so nearly all leave after two bytes of their header. Packets of ping sockets leave
//! in the call that sends them: there the calling task is judged, since the socket may have been made by anybody. The
//! cgroup in which the socket was made is judged as well, for a kernel in which the task cannot be found. TCP sends again by
//! a timer, so its packets go by what is known of the connect ([`route`]).

use core::ptr::addr_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_TCP_SYN_SENT},
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_sk_fullsock, bpf_skb_ancestor_cgroup_id, bpf_skb_load_bytes,
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use gateway_common::{Destination, MAPPED, Reason, RouteOf, TaskFrom};

use crate::{
    context::{kind, load},
    egress,
    event::{self, SocketKind},
    memory::TaskCgroup,
    route, task,
};

const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_UDPLITE: u8 = 136;

/// The shortest header of IPv4; that of IPv6 is longer.
const SHORTEST_HEADER: usize = 20;

/// How the calling task is found; the daemon finds that out before it loads the program. A constant to the verifier, which
/// does not look at what cannot be reached.
#[unsafe(no_mangle)]
static TASK_FROM: u32 = 0;

#[cgroup_skb(egress)]
pub fn packets(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(header) = Header::read(skb) else { return 1 };
    let ordinary = matches!(header.protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE);
    if ordinary && !header.has_options() {
        return 1;
    }
    // SAFETY: the union holds nothing but this pointer.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return 1;
    }
    // SAFETY: the helper takes the socket of a packet, and gives null where that is none in full.
    let socket = unsafe { bpf_sk_fullsock(socket) };
    if socket.is_null() {
        return 1;
    }
    let kind = kind(socket);
    let is_stream = kind.protocol == u32::from(IPPROTO_TCP);
    let reason = if header.is_led(&ctx) {
        match route::of(socket).filter(|_| is_stream) {
            Some(RouteOf::Others) => return 1,
            Some(RouteOf::Agent) => return 0,
            None => Judged::SourceRoute,
        }
    } else if is_portless(&kind) && egress::is_any_closed() {
        Judged::Destination
    } else {
        return 1;
    };
    let Some(address) = header.destination(&ctx) else { return 0 };
    let from = task_from();
    let by_task = match from {
        Some(TaskFrom::Helper) => judge(&reason, &address, |level| {
            // SAFETY: a helper without pointers.
            unsafe { bpf_get_current_ancestor_cgroup_id(level) }
        }),
        Some(TaskFrom::Memory) => match TaskCgroup::current() {
            Some(cgroup) => judge(&reason, &address, |level| cgroup.ancestor(level)),
            None => return 0,
        },
        Some(TaskFrom::Nothing) | None => Ok(()),
    };
    // SAFETY: the helper takes the context of this program.
    let by_socket = || judge(&reason, &address, |level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) });
    let outcome = by_task.and_then(|()| by_socket());
    // Of a connect that no program knew a route of, the first packet leaves in the call. The others go by it.
    if is_stream && load!((*socket).state) == BPF_TCP_SYN_SENT {
        let whose = if outcome.is_ok() { RouteOf::Others } else { RouteOf::Agent };
        if route::keep(socket, whose).is_err() {
            return 0;
        }
    }
    let Err((agent, reason)) = outcome else { return 1 };
    event::refused_packet(agent, reason, &Destination { port: 0, address }, &kind, from == Some(TaskFrom::Helper));
    0
}

/// What of a packet is judged.
enum Judged {
    /// Whether an agent sent it, since it may lead elsewhere than to its destination.
    SourceRoute,
    /// Whether the agent that sent it may reach its destination.
    Destination,
}

/// Gives the agent and why it is refused.
#[inline(always)]
fn judge(judged: &Judged, address: &[u32; 4], id_at: impl Fn(i32) -> u64) -> Result<(), (u64, Reason)> {
    let agent = match task::agent_above(id_at) {
        Ok(None) => return Ok(()),
        Ok(Some(agent)) => agent,
        Err(reason) => return Err((0, reason)),
    };
    match judged {
        Judged::SourceRoute => Err((agent, Reason::SourceRoute)),
        Judged::Destination => egress::judge(agent, Some(*address), None, false).map_err(|reason| (agent, reason)),
    }
}

#[inline(always)]
fn task_from() -> Option<TaskFrom> {
    // SAFETY: a constant; volatile, since the daemon writes it before the programs are loaded.
    TaskFrom::from_wire(unsafe { addr_of!(TASK_FROM).read_volatile() })
}

/// Whether no `sendmsg` program sees what such a socket sends.
#[inline(always)]
fn is_portless(kind: &SocketKind) -> bool {
    kind.socket_type == SOCK_DGRAM
        && kind.protocol != u32::from(IPPROTO_UDP)
        && kind.protocol != u32::from(IPPROTO_UDPLITE)
}

/// What the first bytes of a packet say.
struct Header {
    version: u8,
    /// Words of an IPv4 header.
    words: u8,
    /// What follows the header.
    protocol: u8,
}

impl Header {
    #[inline(always)]
    fn read(skb: *mut __sk_buff) -> Option<Self> {
        let start = load!((*skb).data) as usize;
        let end = load!((*skb).data_end) as usize;
        if start + SHORTEST_HEADER > end {
            return None;
        }
        // SAFETY: within the packet, as was just seen.
        let byte = |at: usize| unsafe { ((start + at) as *const u8).read_volatile() };
        let first = byte(0);
        let version = first >> 4;
        Some(Self { version, words: first & 0xf, protocol: if version == 4 { byte(9) } else { byte(6) } })
    }

    #[inline(always)]
    fn has_options(&self) -> bool {
        self.version == 4 && self.words > 5
    }

    /// Whether the packet may name hops of its own, and so goes to the first of them. Ordinary packets have no options
    /// but the label that the kernel puts first, and nobody else may set; what stands among others is not looked for.
    #[inline(always)]
    fn is_led(&self, ctx: &SkBuffContext) -> bool {
        const LABEL: u8 = 134; // CIPSO
        if self.version != 4 {
            return self.protocol == IPPROTO_ROUTING;
        }
        self.has_options() && ctx.load::<u8>(SHORTEST_HEADER) != Ok(LABEL)
    }

    /// The address that the packet goes to, IPv4 mapped.
    #[inline(always)]
    fn destination(&self, ctx: &SkBuffContext) -> Option<[u32; 4]> {
        if self.version == 4 {
            let [address] = bytes::<1>(ctx, 16)?;
            return Some([0, 0, MAPPED, address]);
        }
        bytes::<4>(ctx, 24)
    }
}

#[inline(always)]
fn bytes<const WORDS: usize>(ctx: &SkBuffContext, at: u32) -> Option<[u32; WORDS]> {
    let mut found = [0_u32; WORDS];
    // SAFETY: as many bytes as there is room for.
    let result = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), at, (&raw mut found).cast(), WORDS as u32 * 4) };
    if result == 0 { Some(found) } else { None }
}
