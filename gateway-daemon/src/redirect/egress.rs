//! What agents may reach beside protected addresses: modes, the list of ports, and the addresses that single agents may
//! reach all the same, with their keys in the kernel's map.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
};

use gateway_common::{EGRESS_TARGET_HEAD_BITS, EgressTarget, MAPPED};

pub use gateway_common::EgressMode;

use super::{
    cgroup::CgroupId,
    target::{mapped_range, to_words},
};

/// A number in [`Egress::agent`] to which nothing is allowed.
pub const NO_AGENT: u32 = u32::MAX;

/// Bits of a mapped IPv4 address before its own.
const MAPPED_BITS: u32 = 96;

/// What an agent may reach beside protected addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Egress {
    /// How much.
    pub mode: EgressMode,
    /// The agent's number in [`EgressAllowed::agent`].
    pub agent: u32,
}

impl Egress {
    /// Everything.
    pub const OPEN: Self = Self { mode: EgressMode::Open, agent: NO_AGENT };
    /// Nothing.
    pub const NOTHING: Self = Self { mode: EgressMode::Closed, agent: NO_AGENT };
}

impl Egress {
    /// Whether a connection to an address is refused, as the programs judge it.
    pub fn refuses(&self, address: SocketAddr, allowed: &[EgressAllowed]) -> bool {
        let ip = address.ip().to_canonical();
        let whole = if ip.is_ipv4() { 32 } else { 128 };
        let is_allowed =
            || allowed.iter().any(|allowed| allowed.agent == self.agent && allowed.overlaps(ip, whole, address.port()));
        match self.mode {
            EgressMode::Open => false,
            EgressMode::Databases => listed(address.port()).is_some() && !is_allowed(),
            EgressMode::Closed => !is_allowed(),
        }
    }
}
/// What an agent may reach all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EgressAllowed {
    /// The agent's number.
    pub agent: u32,
    /// The first address. A range of IPv6 addresses never means IPv4 ones.
    pub address: IpAddr,
    /// Leading bits that all its addresses have in common.
    pub prefix: u8,
    /// At which ports.
    pub ports: AllowedPorts,
}

/// At which ports an address is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AllowedPorts {
    /// All, and what has none: echo requests.
    Any,
    /// From the first to the last.
    Range {
        /// The first.
        first: u16,
        /// The last.
        last: u16,
    },
}

impl AllowedPorts {
    /// Whether a port is among them.
    pub fn contains(self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Range { first, last } => (first..=last).contains(&port),
        }
    }
}

impl EgressAllowed {
    /// Whether it holds some address of a range at a port.
    pub fn overlaps(&self, address: IpAddr, prefix: u8, port: u16) -> bool {
        // Of two ranges that have an address in common one holds the other.
        self.ports.contains(port)
            && self.address.is_ipv4() == address.is_ipv4()
            && (mapped_range(self.address, self.prefix).contains(address)
                || mapped_range(address, prefix).contains(self.address))
    }
}

/// What is allowed and whose cgroups are enrolled when the programs are started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressSettings {
    /// What the cgroups may reach that an earlier daemon enrolled. One that isn't here reaches nothing.
    pub enrolled: Vec<(CgroupId, Egress)>,
    /// What single agents may reach all the same.
    pub allowed: Vec<EgressAllowed>,
}

/// A key of the map of what is allowed: how many bits count, and their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct AllowedKey {
    pub(super) bits: u32,
    pub(super) target: EgressTarget,
}

/// The entries of the map, each with whether it allows. Ranges of IPv6 addresses that hold the mapped ones get an entry
/// that takes those out again.
pub(super) fn entries(allowed: &[EgressAllowed]) -> HashMap<AllowedKey, bool> {
    let mut entries = HashMap::new();
    for allowed in allowed {
        let range = mapped_range(allowed.address, allowed.prefix);
        let ports = match allowed.ports {
            AllowedPorts::Any => 0..=0,
            AllowedPorts::Range { first, last } => first..=last,
        };
        for port in ports {
            let key = |bits: u32, address| AllowedKey {
                bits: EGRESS_TARGET_HEAD_BITS + bits,
                target: EgressTarget { agent: allowed.agent, port: u32::from(port.to_be()), address },
            };
            entries.insert(key(range.bits().into(), to_words(allowed.address)), true);
            if allowed.address.is_ipv6() && range.contains(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)) {
                entries.entry(key(MAPPED_BITS, [0, 0, MAPPED, 0])).or_insert(false);
            }
        }
    }
    entries
}

/// What is expected at a listed port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKind {
    /// Data, or a way to it.
    Database,
    /// Commands in containers.
    Container,
    /// What a cluster keeps for itself.
    Cluster,
    /// A way to every other port.
    Tunnel,
}

/// Ports on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedPorts {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
    /// What is expected there.
    pub kind: PortKind,
    /// What it is, for people.
    pub what: &'static str,
}

/// The list, in the order of ports: `data/ports.txt`. That every line of it can be read is a test.
pub fn listed_ports() -> &'static [ListedPorts] {
    static LIST: LazyLock<Vec<ListedPorts>> = LazyLock::new(|| lines().filter_map(parse).collect());
    &LIST
}

/// What is expected at a port, where it is listed.
pub fn listed(port: u16) -> Option<&'static ListedPorts> {
    listed_ports().iter().find(|ports| (ports.first..=ports.last).contains(&port))
}

fn lines() -> impl Iterator<Item = &'static str> {
    include_str!("data/ports.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn parse(line: &'static str) -> Option<ListedPorts> {
    let (ports, rest) = line.split_once(' ')?;
    let (kind, what) = rest.split_once(' ')?;
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let kind = match kind {
        "database" => PortKind::Database,
        "container" => PortKind::Container,
        "cluster" => PortKind::Cluster,
        "tunnel" => PortKind::Tunnel,
        _ => return None,
    };
    Some(ListedPorts { first: first.parse().ok()?, last: last.parse().ok()?, kind, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_list_is_read_in_order_and_has_a_reason() {
        assert_eq!(lines().count(), listed_ports().len());
        let mut before = 0;
        for ports in listed_ports() {
            assert!(before < ports.first && ports.first <= ports.last, "{ports:?}");
            assert!(ports.what.len() > 2 && ports.what.trim() == ports.what, "{ports:?}");
            before = ports.last;
        }
    }

    #[test]
    fn databases_containers_clusters_and_tunnels_are_listed_and_ordinary_work_is_not() {
        let ranges = [
            22..=22,
            1433..=1433,
            1521..=1521,
            2375..=2379,
            3306..=3306,
            33060..=33060,
            5432..=5439,
            6379..=6380,
            6432..=6432,
            6443..=6443,
            8123..=8123,
            8443..=8443,
            9000..=9000,
            9042..=9042,
            9200..=9200,
            10250..=10250,
            27017..=27020,
            50051..=50051,
        ];
        for port in ranges.into_iter().flatten() {
            assert!(listed(port).is_some(), "{port}");
        }
        for port in [0, 53, 80, 443, 853, 3000, 3001, 3128, 4000, 4200, 5000, 5173, 8000, 8001, 8080, 8081, 8888, 9229]
        {
            assert_eq!(listed(port), None, "{port}");
        }
        // Nor is what the kernel gives a socket that asked for no port, but for what servers took from there.
        assert_eq!((32_768..=u16::MAX).filter(|&port| listed(port).is_some()).count(), 12);
    }

    fn allowed(network: &str, ports: AllowedPorts) -> EgressAllowed {
        let (address, prefix) = network.split_once('/').unwrap();
        EgressAllowed { agent: 3, address: address.parse().unwrap(), prefix: prefix.parse().unwrap(), ports }
    }

    #[test]
    fn each_port_of_a_range_has_an_entry_and_any_port_has_one() {
        let entries = entries(&[
            allowed("10.0.0.0/8", AllowedPorts::Range { first: 8000, last: 8002 }),
            allowed("127.0.0.0/8", AllowedPorts::Any),
        ]);
        let mut ports: Vec<u16> =
            entries.keys().map(|key| u16::from_be(u16::try_from(key.target.port).unwrap())).collect();
        ports.sort_unstable();
        assert_eq!(ports, [0, 8000, 8001, 8002]);
        assert!(entries.iter().all(|(key, &allows)| allows && key.bits == 64 + 96 + 8 && key.target.agent == 3));
    }

    #[test]
    fn a_range_of_ipv6_addresses_never_allows_ipv4_ones() {
        let port = AllowedPorts::Range { first: 443, last: 443 };
        let taken_out = |list: &[EgressAllowed]| {
            let mut found: Vec<_> = entries(list).into_iter().map(|(key, allows)| (key.bits, allows)).collect();
            found.sort_unstable();
            found
        };
        assert_eq!(taken_out(&[allowed("::/0", port)]), [(64, true), (160, false)]);
        assert_eq!(taken_out(&[allowed("fd00::/8", port)]), [(72, true)]);
        for both in
            [[allowed("::/0", port), allowed("0.0.0.0/0", port)], [allowed("0.0.0.0/0", port), allowed("::/0", port)]]
        {
            assert_eq!(taken_out(&both), [(64, true), (160, true)]);
        }
        let overlaps = |list: &str, port| {
            allowed(list, AllowedPorts::Range { first: 443, last: 443 }).overlaps("10.0.0.0".parse().unwrap(), 8, port)
        };
        assert!(overlaps("0.0.0.0/0", 443) && overlaps("10.1.2.3/32", 443));
        assert!(!overlaps("::/0", 443) && !overlaps("11.0.0.0/8", 443) && !overlaps("0.0.0.0/0", 444));
    }

    #[test]
    fn an_address_is_refused_by_mode_list_and_what_is_allowed() {
        let list = [
            allowed("10.0.0.0/8", AllowedPorts::Range { first: 5432, last: 5433 }),
            allowed("fd00::/8", AllowedPorts::Any),
            EgressAllowed { agent: 4, ..allowed("0.0.0.0/0", AllowedPorts::Any) },
        ];
        let refuses = |mode, address: &str| Egress { mode, agent: 3 }.refuses(address.parse().unwrap(), &list);
        for (address, databases, closed) in [
            ("10.1.2.3:5432", false, false),
            ("[::ffff:10.1.2.3]:5432", false, false),
            ("10.1.2.3:6379", true, true),
            ("11.1.2.3:5432", true, true),
            ("11.1.2.3:443", false, true),
            ("[fd00::1]:6379", false, false),
            ("[fe80::1]:80", false, true),
        ] {
            assert!(!refuses(EgressMode::Open, address), "{address}");
            assert_eq!(refuses(EgressMode::Databases, address), databases, "{address}");
            assert_eq!(refuses(EgressMode::Closed, address), closed, "{address}");
        }
        assert!(Egress::NOTHING.refuses("10.1.2.3:5432".parse().unwrap(), &list));
    }
}
