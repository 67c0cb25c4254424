//! From declared connections to protected addresses: names are resolved, again and again; an address that drops out of a
//! name stays protected for the connection's linger time; a server on this host is protected at each of its addresses.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use crate::{
    config::Config,
    redirect::{Kernel, Network, Protected},
};

/// How often names are resolved again.
pub(super) const REFRESH: Duration = Duration::from_secs(30);

/// What is known of the names of all connections.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// By connection: when each address, with its server's port, was last seen behind one of the names.
    seen: HashMap<usize, HashMap<(IpAddr, u16), Instant>>,
    /// Names that could not be resolved at the last try.
    pub(super) failed: Vec<String>,
}

impl Resolved {
    /// Resolves every name, and forgets what has lingered long enough.
    pub(super) async fn refresh(&mut self, config: &Config) {
        self.failed.clear();
        for (index, connection) in config.connections.iter().enumerate() {
            let seen = self.seen.entry(index).or_default();
            let now = Instant::now();
            let mut all_resolved = true;
            for host in &connection.hosts {
                match tokio::net::lookup_host((host.name.as_str(), host.port)).await {
                    Ok(addresses) => {
                        seen.extend(addresses.map(|address| ((address.ip().to_canonical(), host.port), now)));
                    }
                    // What was protected stays so: a resolver that fails must not open a road.
                    Err(error) => {
                        all_resolved = false;
                        self.failed.push(format!("connection `{}`: {}: {error}", connection.name, host.name));
                    }
                }
            }
            if all_resolved {
                seen.retain(|_, last| now.duration_since(*last) <= connection.linger);
            }
        }
    }

    /// All that is to be protected.
    pub(super) fn protected(&self, config: &Config) -> Vec<Protected> {
        let own = own_addresses();
        let mut table = Table::default();
        for (index, connection) in config.connections.iter().enumerate() {
            let number = u32::try_from(index).ok();
            for network in &connection.targets {
                table.add(network.address, network.prefix, network.port, number, Rank::Declared);
            }
            for &(address, port) in self.seen.get(&index).into_iter().flat_map(HashMap::keys) {
                table.add(address, bits(address), port, number, Rank::Declared);
                if address.is_loopback() || own.contains(&address) {
                    table.add_local(&own, port, number);
                }
            }
        }
        for protect in &config.protect {
            let network = protect.network;
            table.add(network.address, network.prefix, network.port, None, Rank::Declared);
        }
        table.protected()
    }
}

/// What a daemon with this configuration would protect, as names resolve now; for who only wants to know.
pub(crate) fn protected_by(config: &Config) -> io::Result<Vec<Protected>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut resolved = Resolved::default();
    runtime.block_on(resolved.refresh(config));
    match resolved.failed.as_slice() {
        [] => Ok(resolved.protected(config)),
        failed => Err(io::Error::other(failed.join("; "))),
    }
}

/// How sure it is that an address means a connection: what is declared counts over what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Derived,
    Declared,
}

/// What each network at each port means.
#[derive(Debug, Default)]
struct Table(BTreeMap<(IpAddr, u8, u16), (Rank, Option<u32>)>);

impl Table {
    fn add(&mut self, address: IpAddr, prefix: u8, port: u16, connection: Option<u32>, rank: Rank) {
        let entry = self.0.entry((address, prefix, port)).or_insert((rank, connection));
        match entry.0.cmp(&rank) {
            std::cmp::Ordering::Less => *entry = (rank, connection),
            // Two connections that follow from the same address: which is meant cannot be told, so neither.
            std::cmp::Ordering::Equal if entry.1 != connection => entry.1 = None,
            std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => {}
        }
    }

    /// A server on this host may listen on all its addresses: each of them leads to it, and so does no address at all.
    fn add_local(&mut self, own: &[IpAddr], port: u16, number: Option<u32>) {
        self.add(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8, port, number, Rank::Derived);
        let unspecified = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        for &address in unspecified.iter().chain([&IpAddr::V6(Ipv6Addr::LOCALHOST)]).chain(own) {
            self.add(address, bits(address), port, number, Rank::Derived);
        }
    }

    fn protected(self) -> Vec<Protected> {
        let mut protected = Vec::with_capacity(self.0.len());
        for ((address, prefix, port), (_, connection)) in self.0 {
            match Network::new(address, prefix) {
                Ok(network) => protected.push(Protected { network, port, connection }),
                // The configuration's check refuses such networks.
                Err(error) => tracing::error!(%error, "a network cannot be protected"),
            }
        }
        protected
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The addresses of this host's interfaces.
pub(crate) fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        tracing::error!("the addresses of this host cannot be listed");
        return Vec::new();
    };
    let mut addresses: Vec<IpAddr> = interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
            (None, Some(v6)) => Some(IpAddr::V6(v6.ip())),
            (None, None) => None,
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Keeps what is protected up to date, for as long as the daemon runs; `in_force` is what the kernel has.
pub(super) async fn keep_fresh(
    config: Arc<Config>,
    kernel: Arc<Kernel>,
    in_force: Arc<ArcSwap<Vec<Protected>>>,
    mut resolved: Resolved,
) {
    loop {
        tokio::time::sleep(REFRESH).await;
        let failed_before = resolved.failed.clone();
        resolved.refresh(&config).await;
        for failure in resolved.failed.iter().filter(|failure| !failed_before.contains(failure)) {
            tracing::warn!("a name cannot be resolved, its last addresses stay protected: {failure}");
        }
        let now = resolved.protected(&config);
        if now == **in_force.load() {
            continue;
        }
        match kernel.set_protected(&now) {
            Ok(()) => {
                tracing::info!(addresses = now.len(), "the protected addresses changed");
                in_force.store(Arc::new(now));
            }
            Err(error) => tracing::error!(%error, "the protected addresses cannot be set; the last ones stay"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_declared_counts_over_what_follows_and_doubt_means_refused() {
        let address: IpAddr = Ipv4Addr::LOCALHOST.into();
        let mut table = Table::default();
        table.add(address, 8, 5432, Some(0), Rank::Derived);
        table.add(address, 8, 5432, Some(1), Rank::Derived);
        table.add(address, 32, 5432, Some(0), Rank::Derived);
        table.add(address, 32, 5432, Some(1), Rank::Declared);
        let means: Vec<_> = table.0.values().map(|(_, connection)| *connection).collect();
        assert_eq!(means, [None, Some(1)]);
    }
}
