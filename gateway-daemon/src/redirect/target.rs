//! What is protected, and whose uids are guarded: checked values and their keys in the kernel's maps.

use std::{
    fmt,
    net::{AddrParseError, IpAddr, Ipv6Addr, SocketAddr},
    num::ParseIntError,
    str::FromStr,
};

use gateway_common::Destination;

/// Bits that a mapped IPv4 address has before its own.
const MAPPED_BITS: u8 = 96;

/// An address range; a single address is one of full length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text or a pair is no address range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// The part before the slash.
    #[error("`{text}` is not an address")]
    Address {
        /// What was given.
        text: String,
        /// The cause.
        #[source]
        source: AddrParseError,
    },
    /// The part behind the slash.
    #[error("`{text}` is not a prefix length")]
    Prefix {
        /// What was given.
        text: String,
        /// The cause.
        #[source]
        source: ParseIntError,
    },
    /// A prefix longer than the address.
    #[error("prefix length {prefix} is longer than {longest}, the length of {address}")]
    TooLong {
        /// What was given.
        prefix: u8,
        /// The address.
        address: IpAddr,
        /// The most that it allows.
        longest: u8,
    },
    /// Bits behind the prefix: most likely a slip.
    #[error("{address} has bits behind its prefix of {prefix}")]
    HostBits {
        /// What was given.
        address: IpAddr,
        /// See `address`.
        prefix: u8,
    },
    /// A prefix of 0 would protect the port everywhere.
    #[error("a range of all addresses is not protected; name the networks")]
    Everything,
}

impl Network {
    /// A range; mapped IPv4 addresses are taken for IPv4.
    ///
    /// # Errors
    ///
    /// When the prefix doesn't fit the address.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, NetworkError> {
        let (address, prefix) = match (address, address.to_canonical()) {
            (IpAddr::V6(_), v4 @ IpAddr::V4(_)) if prefix >= MAPPED_BITS => (v4, prefix - MAPPED_BITS),
            _ => (address, prefix),
        };
        let longest = longest(address);
        if prefix > longest {
            return Err(NetworkError::TooLong { prefix, address, longest });
        }
        if prefix == 0 {
            return Err(NetworkError::Everything);
        }
        let network = Self { address, prefix };
        if network.mapped_bits() & !mask(network.mapped_prefix()) != 0 {
            return Err(NetworkError::HostBits { address, prefix });
        }
        Ok(network)
    }

    /// A single address.
    pub fn single(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, prefix: longest(address) }
    }

    /// The first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Leading bits that all its addresses have in common.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::single(address).mapped_bits() & mask(self.mapped_prefix()) == self.mapped_bits()
    }

    fn mapped_bits(&self) -> u128 {
        mapped(self.address).to_bits()
    }

    fn mapped_prefix(&self) -> u8 {
        match self.address {
            IpAddr::V4(_) => self.prefix.saturating_add(MAPPED_BITS),
            IpAddr::V6(_) => self.prefix,
        }
    }
}

const fn longest(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// A range in mapped form, whatever its prefix.
#[derive(Debug, Clone, Copy)]
pub(super) struct MappedRange(Network);

impl MappedRange {
    /// Leading bits that count.
    pub(super) fn bits(&self) -> u8 {
        self.0.mapped_prefix()
    }

    /// Whether an address lies in it.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(address)
    }
}

/// A range that may hold all addresses of its family.
pub(super) const fn mapped_range(address: IpAddr, prefix: u8) -> MappedRange {
    MappedRange(Network { address, prefix })
}

/// An address as the programs have it.
pub(super) fn to_words(address: IpAddr) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = mapped(address).octets();
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}

/// The bits of a prefix, in a mapped address.
fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0)
}

impl FromStr for Network {
    type Err = NetworkError;

    /// `10.0.0.0/16`, `10.0.0.5`, `fd00::/8`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr =
            address.parse().map_err(|source| NetworkError::Address { text: address.to_owned(), source })?;
        match prefix {
            None => Ok(Self::single(address)),
            Some(prefix) => {
                let prefix =
                    prefix.parse().map_err(|source| NetworkError::Prefix { text: prefix.to_owned(), source })?;
                Self::new(address, prefix)
            }
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == longest(self.address) {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

/// An address or range that is protected at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Protected {
    /// The addresses. Where two contain one another the narrower one counts.
    pub network: Network,
    /// The port.
    pub port: u16,
    /// The connection's index, which comes back as [`crate::accept::Accepted::connection`]; `None` for an address that
    /// is refused to agents as well.
    pub connection: Option<u32>,
}

impl fmt::Display for Protected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.network.address, self.network.prefix) {
            (IpAddr::V6(address), 128) => write!(f, "[{address}]:{}", self.port),
            (IpAddr::V6(address), prefix) => write!(f, "[{address}/{prefix}]:{}", self.port),
            (IpAddr::V4(_), _) => write!(f, "{}:{}", self.network, self.port),
        }
    }
}

/// A key of the map of targets: how many bits count, and their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TargetKey {
    pub(super) bits: u32,
    pub(super) destination: Destination,
}

impl From<&Protected> for TargetKey {
    fn from(protected: &Protected) -> Self {
        let port = u32::BITS;
        Self {
            bits: port + u32::from(protected.network.mapped_prefix()),
            destination: to_destination(SocketAddr::new(protected.network.address, protected.port)),
        }
    }
}

/// The connection that an address and port belong to: as in the kernel, the narrowest range decides. `None` when it is no
/// connection's.
pub fn connection_of(protected: &[Protected], address: SocketAddr) -> Option<u32> {
    protected
        .iter()
        .filter(|target| target.port == address.port() && target.network.contains(address.ip()))
        .max_by_key(|target| target.network.mapped_prefix())
        .and_then(|target| target.connection)
}

/// An address and port as the programs have them.
pub(super) fn to_destination(address: SocketAddr) -> Destination {
    Destination { port: u32::from(address.port().to_be()), address: to_words(address.ip()) }
}

/// An address of the programs. IPv4 comes out of its mapped form.
pub(crate) fn to_socket_address(destination: &Destination) -> SocketAddr {
    let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = destination.address.map(u32::to_ne_bytes);
    let address = Ipv6Addr::from([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]);
    // The upper half of the word is zero.
    let [first, second, ..] = destination.port.to_le_bytes();
    let port = u16::from_be(u16::from_le_bytes([first, second]));
    SocketAddr::new(address.to_canonical(), port)
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// A range of uids, both ends in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UidRange {
    /// The first.
    pub first: u32,
    /// The last; a range whose last is below its first is empty.
    pub last: u32,
}

impl UidRange {
    /// The fewest prefixes (value, bits) that make up the range.
    pub(super) fn prefixes(self) -> Vec<(u32, u32)> {
        let mut prefixes = Vec::new();
        let mut next = u64::from(self.first);
        let last = u64::from(self.last);
        while next <= last {
            // The largest block that starts here, and the largest that still fits.
            let aligned = if next == 0 { u32::BITS } else { next.trailing_zeros().min(u32::BITS) };
            let fits = (last - next + 1).ilog2();
            let size = aligned.min(fits);
            if let Ok(value) = u32::try_from(next) {
                prefixes.push((value, u32::BITS - size));
            }
            next += 1_u64 << size;
        }
        prefixes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_as_it_is_written() {
        for text in ["10.0.0.0/16", "10.0.0.5", "fd00::/8", "::1", "0.0.0.0"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        assert_eq!("::ffff:10.0.0.5".parse::<Network>().unwrap().to_string(), "10.0.0.5");
        assert_eq!("::ffff:10.0.0.0/112".parse::<Network>().unwrap().to_string(), "10.0.0.0/16");
    }

    #[test]
    fn what_is_no_network_is_refused_with_its_reason() {
        let told = |text: &str| text.parse::<Network>().unwrap_err().to_string();
        assert_eq!(told("10.0.0.0/33"), "prefix length 33 is longer than 32, the length of 10.0.0.0");
        assert_eq!(told("10.0.0.5/16"), "10.0.0.5 has bits behind its prefix of 16");
        assert_eq!(told("db/16"), "`db` is not an address");
        assert_eq!(told("10.0.0.0/x"), "`x` is not a prefix length");
        assert_eq!(told("0.0.0.0/0"), "a range of all addresses is not protected; name the networks");
    }

    #[test]
    fn a_range_contains_its_addresses_and_no_others() {
        let network: Network = "10.1.0.0/16".parse().unwrap();
        assert!(network.contains("10.1.255.255".parse().unwrap()));
        assert!(network.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!network.contains("10.2.0.0".parse().unwrap()));
        assert!(!network.contains("fd00::1".parse().unwrap()));
    }

    #[test]
    fn the_narrowest_range_says_whose_an_address_is() {
        let protected =
            |network: &str, connection| Protected { network: network.parse().unwrap(), port: 5432, connection };
        let list = [
            protected("10.0.0.0/8", Some(0)),
            protected("10.1.0.0/16", Some(1)),
            protected("10.1.2.3", None),
            protected("fd00::/8", Some(2)),
        ];
        let whose = |address: &str| connection_of(&list, address.parse().unwrap());
        assert_eq!(whose("10.2.0.1:5432"), Some(0));
        assert_eq!(whose("10.1.0.1:5432"), Some(1));
        assert_eq!(whose("[::ffff:10.1.0.1]:5432"), Some(1));
        assert_eq!(whose("[fd00::1]:5432"), Some(2));
        for nobodys in ["10.1.2.3:5432", "10.2.0.1:5433", "192.0.2.1:5432"] {
            assert_eq!(whose(nobodys), None, "{nobodys}");
        }
    }

    #[test]
    fn an_address_survives_the_way_to_the_kernel_and_back() {
        for text in ["10.1.2.3:5432", "[fd00::1]:65535", "127.0.0.1:1"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(to_socket_address(&to_destination(address)), address);
        }
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:80".parse().unwrap();
        assert_eq!(to_socket_address(&to_destination(mapped)).to_string(), "10.1.2.3:80");
    }

    #[test]
    fn prefixes_make_up_the_range_of_uids_and_nothing_else() {
        for (first, last) in [(0, 0), (1000, 1000), (1000, 1003), (1, 6), (100_000, 165_535), (0, u32::MAX), (5, 4)] {
            let mut next = u64::from(first);
            for (value, bits) in (UidRange { first, last }).prefixes() {
                assert_eq!(u64::from(value), next, "{first}-{last}");
                next += 1 << (32 - bits);
            }
            assert_eq!(next, if first > last { first.into() } else { u64::from(last) + 1 });
        }
    }
}
