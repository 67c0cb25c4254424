//! Whose doing it is that a socket's packets name hops of their own, and so go elsewhere than to the address that it was
//! connected to. TCP sends again by a timer, where no task is meant: so it is settled at the connect, and kept.

use core::{ffi::c_void, ptr::from_ref};

use aya_ebpf::bindings::bpf_sock;
use gateway_common::{Reason, RouteOf};

use crate::{maps::ROUTES, storage, task};

#[inline(always)]
fn routes() -> *mut c_void {
    from_ref(&ROUTES).cast_mut().cast()
}

/// What is known of the socket's route; nothing of one that was set where no program saw it.
#[inline(always)]
pub fn of(socket: *mut bpf_sock) -> Option<RouteOf> {
    storage::get::<u32>(routes(), socket).and_then(|route| RouteOf::from_wire(*route))
}

/// Keeps whose doing it is.
#[inline(always)]
pub fn keep(socket: *mut bpf_sock, route: RouteOf) -> Result<(), ()> {
    storage::set(routes(), socket, &mut route.wire())
}

/// Refuses an agent's connect by a socket that has a route, whoever set it. Nearly no socket has one.
#[inline(always)]
pub fn check(socket: *mut bpf_sock) -> Result<(), Reason> {
    let Some(route) = storage::get::<u32>(routes(), socket) else { return Ok(()) };
    match task::agent_in_reach()? {
        Some(_) => Err(Reason::SourceRoute),
        None => {
            *route = RouteOf::Others.wire();
            Ok(())
        }
    }
}
