//! `socket`: an agent makes TCP, MPTCP, UDP and ping sockets, and no other of the internet families. SCTP and SMC would
//! pass the connect programs by; raw sockets build packets of their own. MPTCP is not for agents whose egress is closed.
//!
//! The kernel runs this for AF_INET and AF_INET6 alone. The launcher's seccomp filter refuses the other families.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};
use gateway_common::{Destination, Operation, Reason};

use crate::{context::kind, egress, event, task};

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_ICMP: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_ICMPV6: u32 = 58;
const IPPROTO_MPTCP: u32 = 262;

#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    let kind = kind(ctx.sock);
    // First what every program makes all day, so that it costs three loads.
    match (kind.socket_type, kind.protocol) {
        (SOCK_STREAM, IPPROTO_TCP) => return 1,
        (SOCK_STREAM, IPPROTO_MPTCP) if !egress::is_any_closed() => return 1,
        (SOCK_DGRAM, IPPROTO_UDP | IPPROTO_ICMP | IPPROTO_ICMPV6) => return 1,
        _ => {}
    }
    let reason = match task::agent_in_reach() {
        Ok(None) => return 1,
        Ok(Some(agent)) if kind.protocol == IPPROTO_MPTCP => match egress::check_multipath(agent) {
            Ok(()) => return 1,
            Err(reason) => reason,
        },
        Ok(Some(_)) => Reason::SocketKind,
        Err(reason) => reason,
    };
    event::refused(Operation::Socket, reason, &Destination { port: 0, address: [0; 4] }, &kind);
    0
}
