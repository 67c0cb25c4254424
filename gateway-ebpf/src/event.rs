//! Refusals, told to user space.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_current_cgroup_id, bpf_get_current_comm},
};
use gateway_common::{Destination, KernelEvent, Note, Operation, Reason};

use crate::{
    context::load,
    maps::{DROPPED, EVENTS},
    task,
};

/// Tells of a refused call on an address.
#[inline(always)]
pub fn refused_call(call: *mut bpf_sock_addr, operation: Operation, reason: Reason, destination: &Destination) {
    let kind = SocketKind {
        family: load!((*call).family),
        socket_type: load!((*call).type_),
        protocol: load!((*call).protocol),
    };
    refused(operation, reason, destination, &kind);
}

/// What kind of socket it was.
pub struct SocketKind {
    pub family: u32,
    pub socket_type: u32,
    pub protocol: u32,
}

/// Tells of a refusal of the calling task.
#[inline(always)]
pub fn refused(operation: Operation, reason: Reason, destination: &Destination, kind: &SocketKind) {
    send(KernelEvent {
        // SAFETY: a helper without pointers.
        cgroup: task::agent().unwrap_or_else(|| unsafe { bpf_get_current_cgroup_id() }),
        destination: *destination,
        operation: operation.wire(),
        reason: reason.wire(),
        pid: task::pid(),
        uid: task::uid(),
        family: kind.family,
        socket_type: kind.socket_type,
        protocol: kind.protocol,
        comm: bpf_get_current_comm().unwrap_or_default(),
    });
}

/// Tells of a packet that was refused. Only where `with_task` says so may the calling task be asked for.
#[inline(always)]
pub fn refused_packet(agent: u64, reason: Reason, destination: &Destination, kind: &SocketKind, with_task: bool) {
    let (pid, uid, comm) = if with_task {
        (task::pid(), task::uid(), bpf_get_current_comm().unwrap_or_default())
    } else {
        (0, 0, [0; 16])
    };
    send(KernelEvent {
        cgroup: agent,
        destination: *destination,
        operation: Operation::Packet.wire(),
        reason: reason.wire(),
        pid,
        uid,
        family: kind.family,
        socket_type: kind.socket_type,
        protocol: kind.protocol,
        comm,
    });
}

/// Tells of a note that the listener will not find. No task is at hand: the note says whose it was.
#[inline(always)]
pub fn not_carried(note: &Note, reason: Reason) {
    send(KernelEvent {
        cgroup: note.cgroup,
        destination: note.destination,
        operation: Operation::Carry.wire(),
        reason: reason.wire(),
        pid: note.pid,
        uid: note.uid,
        family: 0,
        socket_type: 0,
        protocol: 0,
        comm: [0; 16],
    });
}

#[inline(always)]
fn send(event: KernelEvent) {
    match EVENTS.reserve(0) {
        Some(mut place) => {
            place.write(event);
            place.submit(0);
        }
        None => {
            // This CPU's own counter; programs of one CPU don't interrupt one another here, and a lost count of lost
            // events would harm nobody.
            if let Some(count) = DROPPED.get_ptr_mut(0) {
                // SAFETY: the element of a per-CPU array, valid while the program runs.
                unsafe { *count += 1 };
            }
        }
    }
}
