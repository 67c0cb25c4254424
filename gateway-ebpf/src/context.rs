//! Reading and writing the fields of a program's context.
//!
//! The verifier wants each field touched by one access of its own size at a constant offset: volatile, so that the
//! optimiser may not merge neighbours into a wider one.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use gateway_common::{Destination, MAPPED};

use crate::event::SocketKind;

/// Loads one field of a context.
macro_rules! load {
    ($field:expr) => {
        // SAFETY: a field of the context that the kernel passed, which lives as long as the program runs.
        unsafe { core::ptr::read_volatile(core::ptr::addr_of!($field)) }
    };
}

/// Stores one field of a context.
macro_rules! store {
    ($field:expr, $value:expr) => {
        // SAFETY: a field of the context that the kernel passed and lets this kind of program write.
        unsafe { core::ptr::write_volatile(core::ptr::addr_of_mut!($field), $value) }
    };
}

pub(crate) use {load, store};

/// Which of the two kinds of `sock_addr` programs runs: the IPv4 and the IPv6 fields exclude each other.
#[derive(Clone, Copy)]
pub enum Family {
    V4,
    V6,
}

/// The address that the call named.
#[inline(always)]
pub fn destination(call: *mut bpf_sock_addr, family: Family) -> Destination {
    let address = match family {
        Family::V4 => [0, 0, MAPPED, load!((*call).user_ip4)],
        Family::V6 => [
            load!((*call).user_ip6[0]),
            load!((*call).user_ip6[1]),
            load!((*call).user_ip6[2]),
            load!((*call).user_ip6[3]),
        ],
    };
    Destination { port: load!((*call).user_port) & 0xffff, address }
}

/// Puts another address in its place.
#[inline(always)]
pub fn set_destination(call: *mut bpf_sock_addr, family: Family, new: &Destination) {
    let [first, second, third, fourth] = new.address;
    match family {
        Family::V4 => store!((*call).user_ip4, fourth),
        Family::V6 => {
            store!((*call).user_ip6[0], first);
            store!((*call).user_ip6[1], second);
            store!((*call).user_ip6[2], third);
            store!((*call).user_ip6[3], fourth);
        }
    }
    store!((*call).user_port, new.port);
}

/// The socket of the call.
#[inline(always)]
pub fn socket(call: *mut bpf_sock_addr) -> *mut bpf_sock {
    // SAFETY: the union holds nothing but this pointer, behind padding for 32-bit machines.
    unsafe { (*call).__bindgen_anon_1.sk }
}

/// What kind of socket it is.
#[inline(always)]
pub fn kind(socket: *mut bpf_sock) -> SocketKind {
    SocketKind {
        family: load!((*socket).family),
        socket_type: load!((*socket).type_),
        protocol: load!((*socket).protocol),
    }
}

/// A port as `user_port` has it, in host byte order.
#[inline(always)]
pub fn host_port(port: u32) -> u32 {
    u32::from(u16::from_be(port as u16))
}

/// A port in host byte order, as `user_port` has it.
#[inline(always)]
pub fn wire_port(port: u32) -> u32 {
    u32::from((port as u16).to_be())
}
