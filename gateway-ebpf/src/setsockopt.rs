//! `setsockopt`: an agent sets no option by which its packets name hops of their own.
//!
//! The kernel asks for every option of every socket, but not for those that 32-bit programs set: what they
//! set is found at the packets.

use aya_ebpf::{bindings::bpf_sockopt, macros::cgroup_sockopt, programs::SockoptContext};
use gateway_common::{Destination, Operation, Reason, RouteOf};

use crate::{
    context::{kind, load, store},
    event, route, task,
};

const IPPROTO_IP: i32 = 0;
const IPPROTO_IPV6: i32 = 41;

const IP_OPTIONS: i32 = 4;
/// Any header, the older way.
const IPV6_2292PKTOPTIONS: i32 = 6;
const IPV6_HOPOPTS: i32 = 54;
const IPV6_RTHDRDSTOPTS: i32 = 55;
const IPV6_RTHDR: i32 = 57;
const IPV6_DSTOPTS: i32 = 59;

/// What is longer is shown in part, and refused unless a program says that it left it alone.
const SHOWN: i32 = 4096;

#[cgroup_sockopt(setsockopt)]
pub fn setsockopt(ctx: SockoptContext) -> i32 {
    let call = ctx.sockopt;
    if let Err(reason) = decide(call) {
        let nowhere = Destination { port: 0, address: [0; 4] };
        event::refused(Operation::Option, reason, &nowhere, &kind(socket(call)));
        return 0;
    }
    if load!((*call).optlen) > SHOWN {
        store!((*call).optlen, 0);
    }
    1
}

#[inline(always)]
fn decide(call: *mut bpf_sockopt) -> Result<(), Reason> {
    // Without a value it takes the option away.
    if !names_hops(load!((*call).level), load!((*call).optname)) || load!((*call).optlen) <= 0 {
        return Ok(());
    }
    match task::agent_in_reach()? {
        Some(_) => Err(Reason::SourceRoute),
        // Were it not kept, an agent that gets the socket could connect by it.
        None => route::keep(socket(call), RouteOf::Others).map_err(|()| Reason::SourceRoute),
    }
}

/// Whether an option puts headers into packets that may lead them elsewhere, or hide what does.
#[inline(always)]
fn names_hops(level: i32, option: i32) -> bool {
    match level {
        IPPROTO_IP => option == IP_OPTIONS,
        IPPROTO_IPV6 => {
            matches!(option, IPV6_2292PKTOPTIONS | IPV6_HOPOPTS | IPV6_RTHDRDSTOPTS | IPV6_RTHDR | IPV6_DSTOPTS)
        }
        _ => false,
    }
}

#[inline(always)]
fn socket(call: *mut bpf_sockopt) -> *mut aya_ebpf::bindings::bpf_sock {
    // SAFETY: the union holds nothing but this pointer.
    unsafe { (*call).__bindgen_anon_1.sk }
}
