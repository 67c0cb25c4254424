//! `getpeername`: a redirected socket shows the address that was asked for.
//!
//! Only where the peer is the listener: the daemon's accepted socket carries the same note, and its peer is the agent.
//! MPTCP's own socket has no note and shows the listener.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    context::{Family, destination, set_destination, socket, wire_port},
    maps::config,
    note,
};

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    show_asked(ctx.sock_addr, Family::V4)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    show_asked(ctx.sock_addr, Family::V6)
}

/// The verifier lets these programs give nothing but 1.
#[inline(always)]
fn show_asked(call: *mut bpf_sock_addr, family: Family) -> i32 {
    let Some(config) = config() else { return 1 };
    if destination(call, family).port != wire_port(config.listener_port) {
        return 1;
    }
    if let Some(note) = note::read(socket(call)) {
        set_destination(call, family, &note.destination);
    }
    1
}
