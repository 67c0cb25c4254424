//! Which programs are attached at the scope, ours and others'. Others see, and may change, the same addresses.

use std::{collections::HashMap, fs::File, io};

use aya::programs::loaded_programs;

use super::sys::{self, AttachType};

/// What runs where: the names are the kernel's, in lower case.
const KINDS: [(&str, AttachType); 25] = [
    ("inet_ingress", AttachType(0)),
    ("inet_egress", AttachType(1)),
    ("inet_sock_create", AttachType(2)),
    ("sock_ops", AttachType(3)),
    ("device", AttachType(6)),
    ("inet4_bind", AttachType(8)),
    ("inet6_bind", AttachType(9)),
    ("inet4_connect", AttachType(10)),
    ("inet6_connect", AttachType(11)),
    ("inet4_post_bind", AttachType(12)),
    ("inet6_post_bind", AttachType(13)),
    ("udp4_sendmsg", AttachType(14)),
    ("udp6_sendmsg", AttachType(15)),
    ("sysctl", AttachType(18)),
    ("udp4_recvmsg", AttachType(19)),
    ("udp6_recvmsg", AttachType(20)),
    ("getsockopt", AttachType(21)),
    ("setsockopt", AttachType(22)),
    ("inet4_getpeername", AttachType(29)),
    ("inet6_getpeername", AttachType(30)),
    ("inet4_getsockname", AttachType(31)),
    ("inet6_getsockname", AttachType(32)),
    ("inet_sock_release", AttachType(34)),
    ("lsm", AttachType(43)),
    ("unix_connect", AttachType(49)),
];

/// A program attached to the scope's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedProgram {
    /// The kernel's number of it.
    pub id: u32,
    /// Its name, at most 15 bytes; empty where it has none, or is gone by now.
    pub name: String,
    /// Where it runs: `inet4_connect`, `sock_ops`…
    pub attach_type: &'static str,
    /// Whether it stands in one of our links.
    pub ours: bool,
}

/// Where one of our programs is attached.
pub(super) fn attach_type(program: &str) -> Option<AttachType> {
    let kind = match program {
        "carry_note" => "sock_ops",
        "bind4" => "inet4_bind",
        "bind6" => "inet6_bind",
        "sock_create" => "inet_sock_create",
        "setsockopt" => "setsockopt",
        "packets" => "inet_egress",
        "getpeername4" => "inet4_getpeername",
        "getpeername6" => "inet6_getpeername",
        "sendmsg4" => "udp4_sendmsg",
        "sendmsg6" => "udp6_sendmsg",
        "connect4" => "inet4_connect",
        "connect6" => "inet6_connect",
        _ => return None,
    };
    KINDS.iter().find(|&&(name, _)| name == kind).map(|&(_, kind)| kind)
}

/// All programs of a cgroup, in the order of the table above and within a kind in the order in which they run.
pub(super) fn attached(scope: &File, ours: &[u32]) -> io::Result<Vec<AttachedProgram>> {
    let names: HashMap<u32, String> = loaded_programs()
        .flatten()
        .map(|program| (program.id(), String::from_utf8_lossy(program.name()).into_owned()))
        .collect();
    let mut found = Vec::new();
    for (attach_type, kind) in KINDS {
        let ids = match sys::attached_programs(scope, kind) {
            Ok(ids) => ids,
            // A kind that this kernel doesn't have.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => continue,
            Err(error) => return Err(error),
        };
        found.extend(ids.into_iter().map(|id| AttachedProgram {
            id,
            name: names.get(&id).cloned().unwrap_or_default(),
            attach_type,
            ours: ours.contains(&id),
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_a_place_of_its_own() {
        let mut places: Vec<u32> = gateway_common::PROGRAMS.iter().map(|name| attach_type(name).unwrap().0).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), gateway_common::PROGRAMS.len());
    }
}
