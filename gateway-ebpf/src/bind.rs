//! `bind`: the listener's port is the daemon's, while it runs and when it is dead.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use gateway_common::{Operation, PORT_LISTENER, Reason};

use crate::{
    context::{Family, destination, host_port},
    event,
    maps::PORTS,
    task,
};

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    bind(ctx.sock_addr, Family::V4)
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    bind(ctx.sock_addr, Family::V6)
}

#[inline(always)]
fn bind(call: *mut bpf_sock_addr, family: Family) -> i32 {
    let asked = destination(call, family);
    let kept = PORTS.get(host_port(asked.port)).is_none_or(|port| port & PORT_LISTENER != 0);
    if !kept || task::is_daemon() {
        return 1;
    }
    event::refused_call(call, Operation::Bind, Reason::PortKept, &asked);
    0
}
