//! The names for which the host's CA may speak.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use rustls::pki_types::DnsName;

/// A name or address for which a server certificate is issued.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerNameEntry {
    /// A host name, in lower case, without wildcard or final dot.
    Dns(Box<str>),
    /// An address.
    Ip(IpAddr),
}

/// Not a name of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Neither host name nor address.
    #[error("`{text}` is neither a host name nor an address")]
    Name {
        /// What was given.
        text: String,
    },
    /// A prefix longer than its address, or shorter than a network that a CA should speak for.
    #[error("{address}/{prefix}: the prefix is not in {shortest}..={longest}")]
    Prefix {
        /// The network's address.
        address: IpAddr,
        /// Its prefix.
        prefix: u8,
        /// The shortest allowed.
        shortest: u8,
        /// The longest possible.
        longest: u8,
    },
}

/// Shorter prefixes would let the CA speak for large parts of the Internet.
const SHORTEST_V4: u8 = 8;
const SHORTEST_V6: u8 = 16;

impl FromStr for ServerNameEntry {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match DnsName::try_from(lower.as_str()) {
            Ok(_) => Ok(Self::Dns(lower.into())),
            Err(_) => Err(NameError::Name { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for ServerNameEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// Every name and network that the configuration declares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeclaredNames {
    hosts: BTreeSet<Box<str>>,
    networks: BTreeSet<(IpAddr, u8)>,
}

impl DeclaredNames {
    /// None yet.
    pub const fn new() -> Self {
        Self { hosts: BTreeSet::new(), networks: BTreeSet::new() }
    }

    /// Adds one host name or address.
    pub fn add(&mut self, name: ServerNameEntry) {
        match name {
            ServerNameEntry::Dns(host) => {
                self.hosts.insert(host);
            }
            ServerNameEntry::Ip(address) => {
                self.networks.insert((address, longest(address)));
            }
        }
    }

    /// Adds a range of addresses.
    ///
    /// # Errors
    /// A prefix that is impossible, or wider than a CA should speak for.
    pub fn add_network(&mut self, address: IpAddr, prefix: u8) -> Result<(), NameError> {
        let longest = longest(address);
        let shortest = if address.is_ipv4() { SHORTEST_V4 } else { SHORTEST_V6 };
        if !(shortest..=longest).contains(&prefix) {
            return Err(NameError::Prefix { address, prefix, shortest, longest });
        }
        self.networks.insert((network(address, prefix), prefix));
        Ok(())
    }

    /// Whether a certificate for `name` is within what is declared. A host name only as declared, although the
    /// constraint of a CA certificate admits those below it too.
    pub fn contain(&self, name: &ServerNameEntry) -> bool {
        match name {
            ServerNameEntry::Dns(host) => self.hosts.contains(host),
            ServerNameEntry::Ip(address) => self
                .networks
                .iter()
                .any(|(base, prefix)| base.is_ipv4() == address.is_ipv4() && network(*address, *prefix) == *base),
        }
    }

    /// For people, sorted: hosts, then networks.
    pub fn list(&self) -> Vec<String> {
        let networks = self.networks.iter().map(|(address, prefix)| {
            if *prefix == longest(*address) { address.to_string() } else { format!("{address}/{prefix}") }
        });
        self.hosts.iter().map(|host| host.to_string()).chain(networks).collect()
    }

    /// Permits what is declared and excludes every other name of a server. A kind of name without a permitted
    /// subtree would be free (RFC 5280 chapter 4.2.1.10), so it is excluded whole.
    pub(super) fn constraints(&self) -> NameConstraints {
        let hosts = self.hosts.iter().map(|host| GeneralSubtree::DnsName(host.to_string()));
        let networks = self
            .networks
            .iter()
            .map(|(address, prefix)| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*address, *prefix)));
        let mut excluded_subtrees = Vec::new();
        if self.hosts.is_empty() {
            excluded_subtrees.push(GeneralSubtree::DnsName(String::new()));
        }
        if !self.networks.iter().any(|(address, _)| address.is_ipv4()) {
            excluded_subtrees.push(GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])));
        }
        if !self.networks.iter().any(|(address, _)| address.is_ipv6()) {
            excluded_subtrees.push(GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])));
        }
        NameConstraints { permitted_subtrees: hosts.chain(networks).collect(), excluded_subtrees }
    }
}

const fn longest(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with all bits behind the prefix zero.
fn network(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(u32::BITS.saturating_sub(prefix)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(u128::BITS.saturating_sub(prefix)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}
