//! Weir's programs in the kernel. All are attached to one cgroup, the root of the hierarchy (or the configured scope),
//! and decide by the *calling task*, never by the socket: a socket changes hands, and the kernel picks programs by the
//! cgroup in which it was made.
//!
//! How the address that was asked for, and who asked, reaches the listener:
//!
//! ```text
//!   connect4/6               NOTES of the client's socket
//!      │ TCP_CONNECT_CB      (before the SYN leaves)
//!   PENDING[flow]
//!      │ PASSIVE_ESTABLISHED (the listener's side)          TCP_CLOSE of the client: the entry is removed
//!      │                                                    (each agent has so many at a time: HANDSHAKES)
//!   NOTES of the accepted socket, read by the daemon through its own descriptor
//! ```
//!
//! They do the least: note, rewrite, refuse, tell. What they cannot do (a map is full, a look-up fails) they refuse.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bind;
mod carry_note;
mod connect;
mod context;
mod egress;
mod event;
mod getpeername;
mod handshakes;
mod maps;
mod memory;
mod note;
mod packets;
mod route;
mod sendmsg;
mod setsockopt;
mod sock_create;
mod storage;
mod target;
mod task;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // No panic survives the optimiser: the verifier refuses an endless loop.
    loop {}
}

// The helpers for socket storage and the ring buffer are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
