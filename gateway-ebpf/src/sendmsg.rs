//! Datagrams sent without a connect. Nothing of ours answers them, so they are judged and never rewritten.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use gateway_common::{Operation, Reason};

use crate::{
    context::{Family, destination},
    event,
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
    match target::of(call, family, &asked) {
        Target::Other | Target::Listener => return 1,
        Target::Protected(_) | Target::Ambiguous => {}
    }
    let reason = match task::standing() {
        Standing::Free => return 1,
        Standing::Agent(_) => Reason::NotTcp,
        Standing::Refused(reason) => reason,
    };
    event::refused_call(call, Operation::Send, reason, &asked);
    0
}
