//! How many handshakes with the listener each agent has under way: none may fill [`PENDING`] for the others.
//!
//! A count never drifts, since everything about a connection happens under the lock of its client's socket, which keeps what
//! it is counted for: it is counted before its entry stands, and not any more when it is closed, or when it hears from the
//! other end and its entry is gone. The counts' places are never freed, so a late one is taken from the right one.

use core::{arch::asm, ffi::c_void, ptr::from_ref};

use aya_ebpf::bindings::bpf_sock;
use gateway_common::{MOST_HANDSHAKES, Reason};

use crate::{
    maps::{COUNTED, EGRESS, HANDSHAKES},
    storage,
};

/// In a socket's storage; others are a place, plus one.
const NOT_COUNTED: u32 = 0;

#[inline(always)]
fn counted() -> *mut c_void {
    from_ref(&COUNTED).cast_mut().cast()
}

/// Refuses the agent's next connect while it has as many under way as it may.
#[inline(always)]
pub fn check(agent: u64) -> Result<(), Reason> {
    let (_, count) = place(agent).ok_or(Reason::NoteLost)?;
    if read(count) < MOST_HANDSHAKES { Ok(()) } else { Err(Reason::Handshakes) }
}

/// Counts a client's socket. Between the check at the connect and this one others may have come.
#[inline(always)]
pub fn begin(socket: *mut bpf_sock, agent: u64) -> Result<(), Reason> {
    end(socket);
    let (slot, count) = place(agent).ok_or(Reason::NoteLost)?;
    storage::set(counted(), socket, &mut (slot + 1)).map_err(|()| Reason::NoteLost)?;
    add(count, 1);
    if read(count) > MOST_HANDSHAKES {
        end(socket);
        return Err(Reason::Handshakes);
    }
    Ok(())
}

/// Counts a client's socket no longer.
#[inline(always)]
pub fn end(socket: *mut bpf_sock) {
    let Some(kept) = storage::get::<u32>(counted(), socket) else { return };
    let place = *kept;
    if place == NOT_COUNTED {
        return;
    }
    *kept = NOT_COUNTED;
    if let Some(count) = HANDSHAKES.get_ptr_mut(place - 1) {
        add(count, -1);
    }
}

#[inline(always)]
fn place(agent: u64) -> Option<(u32, *mut u64)> {
    // SAFETY: copied at once.
    let slot = unsafe { EGRESS.get(agent) }.copied()?.slot;
    Some((slot, HANDSHAKES.get_ptr_mut(slot)?))
}

#[inline(always)]
fn read(count: *mut u64) -> u64 {
    // SAFETY: an element of an array, which lives as long as the program; read in one access.
    unsafe { count.read_volatile() }
}

/// At once, on whatever CPU: the compiler takes this target for one of a single thread.
#[inline(always)]
fn add(count: *mut u64, value: i64) {
    // SAFETY: an element of an array, aligned to eight bytes, which lives as long as the program.
    unsafe { asm!("lock *(u64 *)({count} + 0) += {value}", count = in(reg) count, value = in(reg) value) }
}
