//! Datagrams sent without a connect. Nothing of ours answers them, so they are judged and never rewritten.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use gateway_common::{Destination, Operation, Reason};

use crate::{
    context::{Family, destination},
    egress, event,
    target::{self, Target},
    task::{self, Standing},
};

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send(ctx.sock_addr, Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send(ctx.sock_addr, Family::V6)
}

#[inline(always)]
fn send(call: *mut bpf_sock_addr, family: Family) -> i32 {
    let asked = destination(call, family);
    match decide(call, family, &asked) {
        Ok(()) => 1,
        Err(reason) => {
            event::refused_call(call, Operation::Send, reason, &asked);
            0
        }
    }
}

#[inline(always)]
fn decide(call: *mut bpf_sock_addr, family: Family, asked: &Destination) -> Result<(), Reason> {
    match target::of(call, family, asked) {
        Target::Other { listed } => return egress::check(call, family, asked, listed),
        Target::Listener => return egress::check(call, family, asked, false),
        Target::Protected(_) | Target::Ambiguous => {}
    }
    match task::standing() {
        Standing::Free => Ok(()),
        Standing::Agent(_) => Err(Reason::NotTcp),
        Standing::Refused(reason) => Err(reason),
    }
}
