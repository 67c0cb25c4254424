//! What agents may reach beside declared addresses: from the configuration and the host's resolvers to what the kernel is
//! told.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use crate::{
    config::{self, Config},
    identity::Registry,
    redirect::{
        AllowedPorts, Egress, EgressAllowed, EgressMode, EgressSettings, Kernel, NO_AGENT, cgroup::CgroupId,
        packets_know_task,
    },
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where a resolver listens.
const DNS: AllowedPorts = AllowedPorts::Range { first: 53, last: 53 };
/// Resolvers that are taken from the file: libraries ask the first three.
const MOST_RESOLVERS: usize = 16;
/// How often the file is read again.
const REFRESH: Duration = Duration::from_secs(2);

/// The egress of the agent of that name; one that the configuration does not have any more reaches nothing.
pub(super) fn of_agent(config: &Config, name: &str) -> Egress {
    let found = config.agents.iter().zip(0_u32..).find(|(agent, _)| agent.name == name);
    found.map_or(Egress::NOTHING, |(agent, number)| Egress { mode: mode(agent.egress.mode), agent: number })
}

const fn mode(mode: config::EgressMode) -> EgressMode {
    match mode {
        config::EgressMode::Open => EgressMode::Open,
        config::EgressMode::Databases => EgressMode::Databases,
        config::EgressMode::Closed => EgressMode::Closed,
    }
}

/// What the kernel is told when its programs are started: the runs of an earlier daemon get what is configured now.
pub(super) fn settings(config: &Config, registry: &Registry) -> EgressSettings {
    let runs = registry.list();
    let enrolled = runs.iter().filter_map(|run| {
        let cgroup = CgroupId::new(run.cgroup.0)?;
        Some((cgroup, of_agent(config, &run.agent)))
    });
    EgressSettings { enrolled: enrolled.collect(), allowed: allowed(config, &resolvers_now()) }
}

/// What single agents may reach all the same: their lists, and for those that are closed the resolvers.
pub(crate) fn allowed(config: &Config, resolvers: &BTreeSet<IpAddr>) -> Vec<EgressAllowed> {
    let mut allowed = Vec::new();
    for (agent, number) in config.agents.iter().zip(0..NO_AGENT) {
        allowed.extend(agent.egress.allow.iter().map(|entry| EgressAllowed {
            agent: number,
            address: entry.target.address,
            prefix: entry.target.prefix,
            ports: entry.target.ports.map_or(AllowedPorts::Any, |(first, last)| AllowedPorts::Range { first, last }),
        }));
        if agent.egress.mode == config::EgressMode::Closed {
            let whole = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
            allowed.extend(resolvers.iter().map(|&address| EgressAllowed {
                agent: number,
                address,
                prefix: whole(address),
                ports: DNS,
            }));
        }
    }
    allowed
}

/// The host's resolvers, as the file names them now.
pub(crate) fn resolvers_now() -> BTreeSet<IpAddr> {
    match fs::read_to_string(RESOLV_CONF) {
        Ok(text) => resolvers(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => resolvers(""),
        Err(error) => {
            tracing::warn!(%error, path = RESOLV_CONF, "the resolvers cannot be read; agents whose egress is closed reach none");
            BTreeSet::new()
        }
    }
}

/// The resolvers that a resolv.conf(5) names; without any, a library asks the one on this host.
fn resolvers(text: &str) -> BTreeSet<IpAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|&word| word == "nameserver").and(words.next())?;
        // A link-local address may name its link.
        let (address, _) = address.split_once('%').unwrap_or((address, ""));
        Some(address.parse::<IpAddr>().ok()?.to_canonical())
    });
    let found: BTreeSet<IpAddr> = named.take(MOST_RESOLVERS).collect();
    if found.is_empty() { BTreeSet::from([Ipv4Addr::LOCALHOST.into()]) } else { found }
}

/// Keeps the resolvers that closed agents reach up to date, for as long as the daemon runs.
pub(super) async fn keep_resolvers(config: Arc<Config>, kernel: Arc<Kernel>) {
    if !is_any_closed(&config) {
        return;
    }
    // Once more than was asked for at the start: the file may have changed since.
    let mut in_force = None;
    loop {
        let Ok(now) = tokio::task::spawn_blocking(resolvers_now).await else { return };
        if in_force.as_ref() != Some(&now) {
            match kernel.set_egress_allowed(&allowed(&config, &now)) {
                Ok(()) => {
                    tracing::info!(path = RESOLV_CONF, resolvers = now.len(), "closed agents reach these resolvers");
                    in_force = Some(now);
                }
                Err(error) => {
                    tracing::error!(%error, "the resolvers of closed agents cannot be set; the last ones stay")
                }
            }
        }
        tokio::time::sleep(REFRESH).await;
    }
}

fn is_any_closed(config: &Config) -> bool {
    config.agents.iter().any(|agent| agent.egress.mode == config::EgressMode::Closed)
}

/// What this kernel cannot do for the agents whose egress is closed.
pub(crate) fn unseen_of_closed(config: &Config) -> Option<&'static str> {
    (is_any_closed(config) && !packets_know_task()).then_some(
        "this kernel does not say who sends an echo request: the cgroup in which the ping \
                    socket was made is judged, so a closed agent could use one that somebody else hands to it",
    )
}

/// Says at the start what is configured and cannot be what it seems.
pub(super) fn warn(config: &Config) {
    if let Some(unseen) = unseen_of_closed(config) {
        tracing::warn!("egress closed: {unseen}");
    }
    if !Path::new(RESOLV_CONF).exists() && is_any_closed(config) {
        tracing::warn!(path = RESOLV_CONF, "is not there: closed agents reach a resolver at 127.0.0.1 alone");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Vec<String> {
        resolvers(text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn resolvers_are_those_that_a_library_would_ask() {
        let text = "# nameserver 192.0.2.9\n;nameserver 192.0.2.8\nsearch nameserver\nnameserver 192.0.2.1 # first\n\
                    nameserver\tfd00::1\nnameserver fe80::1%eth0\nnameservers 192.0.2.7\nnameserver db\n";
        assert_eq!(named(text), ["192.0.2.1", "fd00::1", "fe80::1"]);
        assert_eq!(named("search internal\n"), ["127.0.0.1"]);
    }

    #[test]
    fn resolvers_are_allowed_to_closed_agents_alone() {
        let text = r#"
[[issuer]]
name = "corp"
issuer = "https://idp.example"
audience = "weir"
algorithms = ["RS256"]

[[agent]]
name = "claude"
user = "agent-claude"
issuer = "corp"
egress_allow = [{ address = "10.0.0.5:6379", reason = "cache" }]

[[agent]]
name = "codex"
user = "agent-codex"
issuer = "corp"
egress = "closed"
"#;
        let config = Config::parse(Path::new("weir.toml"), text).unwrap();
        let found = allowed(&config, &resolvers("nameserver 192.0.2.1"));
        let shown: Vec<_> =
            found.iter().map(|allowed| (allowed.agent, allowed.address.to_string(), allowed.ports)).collect();
        let only = |port| AllowedPorts::Range { first: port, last: port };
        assert_eq!(shown, [(0, "10.0.0.5".to_owned(), only(6379)), (1, "192.0.2.1".to_owned(), only(53))]);
        assert_eq!(of_agent(&config, "codex"), Egress { mode: EgressMode::Closed, agent: 1 });
        assert_eq!(of_agent(&config, "gone"), Egress::NOTHING);
    }
}
