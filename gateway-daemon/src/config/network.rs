//! Targets as they are written: addresses with one port.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// Addresses with one port: `10.0.0.0/16:5432`, `[fd00::]/8:5432`, `127.0.0.1:5432`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    /// The network's address, bits behind the prefix zero.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
    /// The port.
    pub port: u16,
}

impl Network {
    /// One address.
    pub const fn single(address: SocketAddr) -> Self {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address: address.ip(), prefix, port: address.port() }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown = text.escape_debug();
            format!("`{shown}` is no target; write `10.0.0.1:5432`, `10.0.0.0/16:5432` or `[fd00::]/8:5432`")
        };
        let (network, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().ok().filter(|&port| port != 0).ok_or_else(wrong)?;
        let (address, prefix) = match network.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| wrong())?)),
            None => (network, None),
        };
        let address: IpAddr = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => IpAddr::V6(v6.parse().map_err(|_| wrong())?),
            None => IpAddr::V4(address.parse().map_err(|_| wrong())?),
        };
        let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        if prefix > bits {
            return Err(wrong());
        }
        let masked = mask(address, prefix);
        if masked != address {
            let masked = if masked.is_ipv4() { masked.to_string() } else { format!("[{masked}]") };
            return Err(format!(
                "`{text}` has bits behind its prefix; write `{masked}/{prefix}:{port}` for that network, or `{}` for that address",
                SocketAddr::new(address, port)
            ));
        }
        Ok(Self { address, prefix, port })
    }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}
