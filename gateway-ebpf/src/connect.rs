//! `connect`: an agent's to a protected address is led to the listener, everybody else's is refused. All others pass,
//! but for what an agent's [`egress`] keeps from it.
//!
//! TCP Fast Open's `sendmsg`, MPTCP's first subflow and `io_uring` all come through here.

use aya_ebpf::{bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext};
use gateway_common::{Destination, MAPPED, NO_CONNECTION, Note, Operation, Reason};

use crate::{
    context::{Family, destination, load, set_destination, socket, wire_port},
    egress, event, handshakes,
    maps::config,
    note, route,
    target::{self, IPPROTO_TCP, LOOPBACK4, LOOPBACK6, Target},
    task::{self, Standing},
};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect(ctx.sock_addr, Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect(ctx.sock_addr, Family::V6)
}

#[inline(always)]
fn connect(call: *mut bpf_sock_addr, family: Family) -> i32 {
    let asked = destination(call, family);
    match decide(call, family, &asked) {
        Ok(None) => 1,
        Ok(Some(listener)) => {
            set_destination(call, family, &listener);
            1
        }
        Err(reason) => {
            event::refused_call(call, Operation::Connect, reason, &asked);
            0
        }
    }
}

/// `Some`: go there instead; the note is written.
#[inline(always)]
fn decide(call: *mut bpf_sock_addr, family: Family, asked: &Destination) -> Result<Option<Destination>, Reason> {
    route::check(socket(call))?;
    let connection = match target::of(call, family, asked) {
        Target::Other { listed } => return egress::check(call, family, asked, listed).map(|()| None),
        Target::Listener => {
            // Straight to the listener: what an earlier connect of this socket noted must not speak for whoever holds
            // it now.
            note::clear(socket(call));
            // At another host's address the port is one like any other.
            return egress::check(call, family, asked, false).map(|()| None);
        }
        Target::Ambiguous => {
            return match task::standing() {
                Standing::Free => Ok(None),
                Standing::Agent(_) => Err(Reason::Ambiguous),
                Standing::Refused(reason) => Err(reason),
            };
        }
        Target::Protected(connection) => connection,
    };
    let cgroup = match task::standing() {
        Standing::Free => return Ok(None),
        Standing::Refused(reason) => return Err(reason),
        Standing::Agent(cgroup) => cgroup,
    };
    if connection == NO_CONNECTION {
        return Err(Reason::NoConnection);
    }
    // MPTCP's subflow comes here as TCP.
    if load!((*call).protocol) != IPPROTO_TCP {
        return Err(Reason::NotTcp);
    }
    handshakes::check(cgroup)?;
    let port = config().ok_or(Reason::NoteLost)?.listener_port;
    let mut note = Note { cgroup, destination: *asked, connection, pid: task::pid(), uid: task::uid() };
    note::write(socket(call), &mut note).map_err(|()| Reason::NoteLost)?;
    // A mapped address stays one: the socket speaks IPv4 on the wire.
    let mapped = asked.address[2] == MAPPED && asked.address[0] | asked.address[1] == 0;
    Ok(Some(Destination { port: wire_port(port), address: if mapped { LOOPBACK4 } else { LOOPBACK6 } }))
}
