//! What an agent may reach beside declared addresses, as it is written.

use std::{net::IpAddr, str::FromStr};

use super::{
    Network,
    check::{Checker, Place},
    raw,
};

/// Ports in one range: each takes an entry in the kernel.
const MOST_PORTS: u16 = 1024;

/// `egress` and `egress_allow` of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Egress {
    /// How much it may reach.
    pub mode: EgressMode,
    /// What it may reach all the same.
    pub allow: Vec<EgressAllow>,
}

/// How much an agent may reach beside declared addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EgressMode {
    /// Everything that is not protected.
    Open,
    /// As open, but for the ports on the list.
    #[default]
    Databases,
    /// What is on the agent's list, and the host's resolvers.
    Closed,
}

impl EgressMode {
    /// All, in the order of what they close.
    pub const ALL: [Self; 3] = [Self::Open, Self::Databases, Self::Closed];

    /// Its word in the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Databases => "databases",
            Self::Closed => "closed",
        }
    }
}

/// An entry of `egress_allow`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressAllow {
    /// What may be reached.
    pub target: Reach,
    /// Why.
    pub reason: String,
}

/// Addresses with ports: `10.0.0.5:443`, `10.0.0.0/8:8000-8099`, `[fd00::]/8:*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The network's address, bits behind the prefix zero.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
    /// The first and the last port; `None` for all, and for what has none.
    pub ports: Option<(u16, u16)>,
}

impl FromStr for Reach {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown = text.escape_debug();
            format!(
                "`{shown}` is no address with ports; write `10.0.0.5:443`, `10.0.0.0/8:8000-8099`, `[fd00::]/8:*`, with \
                 zeros behind the prefix"
            )
        };
        let (addresses, ports) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port != 0);
        let ports = match ports.split_once('-') {
            None if ports == "*" => None,
            None => Some(port(ports).map(|only| (only, only)).ok_or_else(wrong)?),
            Some((first, last)) => {
                let (first, last) = port(first).zip(port(last)).ok_or_else(wrong)?;
                let more = last.checked_sub(first).ok_or_else(wrong)?;
                if more >= MOST_PORTS {
                    return Err(format!("`{text}` has over {MOST_PORTS} ports; write fewer, or `*` for all"));
                }
                Some((first, last))
            }
        };
        // The addresses are those of a target.
        let network: Network = format!("{addresses}:1").parse().map_err(|_| wrong())?;
        let (address, prefix) = canonical(network.address, network.prefix).ok_or_else(wrong)?;
        Ok(Self { address, prefix, ports })
    }
}

/// Mapped IPv4 addresses are IPv4; `None` for a range that holds some, and others beside them.
fn canonical(address: IpAddr, prefix: u8) -> Option<(IpAddr, u8)> {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) if address.is_ipv6() => Some((v4, prefix.checked_sub(96)?)),
        _ => Some((address, prefix)),
    }
}

impl std::fmt::Display for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}")?,
            IpAddr::V6(address) => write!(f, "[{address}]")?,
        }
        if self.prefix != whole {
            write!(f, "/{}", self.prefix)?;
        }
        match self.ports {
            None => f.write_str(":*"),
            Some((first, last)) if first == last => write!(f, ":{first}"),
            Some((first, last)) => write!(f, ":{first}-{last}"),
        }
    }
}

impl Checker<'_> {
    pub(super) fn egress(&mut self, place: &Place, mode: Option<&str>, allow: Vec<raw::EgressAllow>) -> Egress {
        let modes = EgressMode::ALL.map(|mode| (mode.word(), mode));
        let mode = self.choice(place, "egress", mode, (EgressMode::default(), &modes), "is no mode");
        if mode == EgressMode::Open && !allow.is_empty() {
            let message = "is never used with `egress = \"open\"`, which allows all; leave one out";
            self.fault(place, "egress_allow", message);
        }
        let mut allowed = Vec::new();
        for (nth, entry) in allow.into_iter().enumerate() {
            match entry.address.parse() {
                Ok(_) if entry.reason.trim().is_empty() => {
                    let shown = entry.address.escape_debug();
                    self.fault_in(place, "egress_allow", Some(nth), format!("`{shown}` has an empty reason; say why"));
                }
                Ok(target) => allowed.push(EgressAllow { target, reason: entry.reason }),
                Err(error) => self.fault_in(place, "egress_allow", Some(nth), error),
            }
        }
        Egress { mode, allow: allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_ports_are_read_as_they_are_written() {
        for text in [
            "10.0.0.5:443",
            "10.0.0.0/8:8000-8099",
            "127.0.0.0/8:*",
            "[fd00::]/8:*",
            "[::1]:53",
            "0.0.0.0/0:443",
            "[::]/0:1",
        ] {
            assert_eq!(text.parse::<Reach>().unwrap().to_string(), text);
        }
        assert_eq!("[::ffff:10.0.0.0]/104:443".parse::<Reach>().unwrap().to_string(), "10.0.0.0/8:443");
    }

    #[test]
    fn what_is_no_address_with_ports_is_refused() {
        for text in [
            "10.0.0.5",
            "10.0.0.5:0",
            "10.0.0.5:",
            "10.0.0.5:90-80",
            "10.0.0.5:0-9",
            "10.0.0.5:1-1025",
            "10.0.0.5:1-2-3",
            "10.0.0.1/8:443",
            "fd00::/8:443",
            "db.internal:443",
            "*:443",
            "[::ffff:0.0.0.0]/95:443",
        ] {
            assert!(text.parse::<Reach>().is_err(), "{text}");
        }
        assert!("10.0.0.5:1-1024".parse::<Reach>().is_ok());
    }
}
