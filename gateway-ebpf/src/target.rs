//! Is the address that was asked for protected?

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    btf_maps::lpm_trie::Key,
};
use gateway_common::{DESTINATION_BITS, Destination, MAPPED, PORT_LISTED, PORT_LISTENER, PORT_PROTECTED};

use crate::{
    context::{Family, host_port, load, socket},
    maps::{PORTS, TARGETS},
};

/// The protocol that can be redirected.
pub const IPPROTO_TCP: u32 = 6;
/// 127.0.0.1, mapped.
pub const LOOPBACK4: [u32; 4] = [0, 0, MAPPED, 0x7f00_0001_u32.to_be()];
/// ::1.
pub const LOOPBACK6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];

/// What an address is.
pub enum Target {
    /// Not protected; with whether the port is listed.
    Other { listed: bool },
    /// The listener's port, at whatever address: 127/8, 0.0.0.0, ::1, :: and every address of the host lead there.
    Listener,
    /// Protected; with the connection's index or `NO_CONNECTION`.
    Protected(u32),
    /// Leads somewhere that only routing knows, at a port that has protected addresses.
    Ambiguous,
}

/// Looks up the port, and only where that says so the address.
#[inline(always)]
pub fn of(call: *mut bpf_sock_addr, family: Family, destination: &Destination) -> Target {
    let Some(port) = PORTS.get(host_port(destination.port)) else {
        return Target::Ambiguous; // cannot happen: the array has all ports
    };
    if port & PORT_LISTENER != 0 {
        return Target::Listener;
    }
    let other = Target::Other { listed: port & PORT_LISTED != 0 };
    if port & PORT_PROTECTED == 0 {
        return other;
    }
    let Some(address) = meant(call, family, &destination.address) else {
        return Target::Ambiguous;
    };
    let key = Key::new(DESTINATION_BITS, Destination { port: destination.port, address });
    match TARGETS.get(&key) {
        Some(connection) => Target::Protected(*connection),
        None => other,
    }
}

/// The address that a call means. "No address" (0.0.0.0, ::) leads to the loopback address, but for a socket that is
/// bound to an address or a device: then routing takes that one's (`ip_route_output_key_hash_rcu` fills the
/// destination from the source), and this gives `None`. So it does for datagrams, whose source has more ways to be set.
#[inline(always)]
pub fn meant(call: *mut bpf_sock_addr, family: Family, address: &[u32; 4]) -> Option<[u32; 4]> {
    let [first, second, third, fourth] = *address;
    if first | second | fourth != 0 || !(third == 0 || third == MAPPED) {
        return Some(*address);
    }
    if load!((*call).protocol) != IPPROTO_TCP || is_bound(socket(call), family) {
        return None;
    }
    Some(if third == MAPPED { LOOPBACK4 } else { LOOPBACK6 })
}

#[inline(always)]
fn is_bound(socket: *mut bpf_sock, family: Family) -> bool {
    let source = match family {
        Family::V4 => load!((*socket).src_ip4),
        Family::V6 => {
            load!((*socket).src_ip6[0])
                | load!((*socket).src_ip6[1])
                | load!((*socket).src_ip6[2])
                | load!((*socket).src_ip6[3])
        }
    };
    source | load!((*socket).bound_dev_if) != 0
}
