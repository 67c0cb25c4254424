//! Which agents reach an address around Weir, as their egress says.

use std::{collections::BTreeSet, fmt};

use super::ports::Way;
use crate::{
    config::{Config, EgressMode},
    daemon::{egress_allowed, resolvers_now},
    redirect::{EgressAllowed, listed},
};

/// What each agent may reach.
pub(super) struct Reach {
    agents: Vec<(String, EgressMode)>,
    allowed: Vec<EgressAllowed>,
}

impl Reach {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            agents: config.agents.iter().map(|agent| (agent.name.clone(), agent.egress.mode)).collect(),
            allowed: egress_allowed(config, &resolvers_now()),
        }
    }

    /// Who reaches a port at one of these addresses or more.
    pub(super) fn who(&self, port: u16, ways: &BTreeSet<Way>) -> Whom {
        let reaches = |number: u32, mode: EgressMode| match mode {
            EgressMode::Open => true,
            EgressMode::Databases if listed(port).is_none() => true,
            EgressMode::Databases | EgressMode::Closed => self
                .allowed
                .iter()
                .filter(|allowed| allowed.agent == number)
                .any(|allowed| ways.iter().any(|&(address, prefix)| allowed.overlaps(address, prefix, port))),
        };
        let numbered = self.agents.iter().zip(0_u32..);
        let names: Vec<String> =
            numbered.filter(|((_, mode), number)| reaches(*number, *mode)).map(|((name, _), _)| name.clone()).collect();
        // Without agents, those that come are meant.
        if names.len() == self.agents.len() { Whom::All } else { Whom::Some(names) }
    }
}

/// Agents, for people.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whom {
    All,
    Some(Vec<String>),
}

impl Whom {
    pub(super) fn is_nobody(&self) -> bool {
        matches!(self, Self::Some(names) if names.is_empty())
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("agents"),
            Self::Some(names) => f.write_str(&names.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::redirect::AllowedPorts;

    #[test]
    fn who_reaches_a_port_follows_from_mode_list_and_allowance() {
        let names = ["open", "databases", "closed"];
        let allowed = |agent, address: &str, prefix, port| EgressAllowed {
            agent,
            address: address.parse().unwrap(),
            prefix,
            ports: AllowedPorts::Range { first: port, last: port },
        };
        let reach = Reach {
            agents: names.into_iter().zip(EgressMode::ALL).map(|(name, mode)| (name.to_owned(), mode)).collect(),
            allowed: vec![allowed(1, "10.0.0.5", 32, 5432), allowed(2, "127.0.0.0", 8, 8080)],
        };
        let who = |address: &str, prefix, port| {
            let way = (address.parse::<IpAddr>().unwrap(), prefix);
            reach.who(port, &BTreeSet::from([way])).to_string()
        };
        assert_eq!(who("127.0.0.0", 8, 5432), "open");
        assert_eq!(who("10.0.0.5", 32, 5432), "open, databases");
        assert_eq!(who("10.0.0.5", 32, 8080), "open, databases");
        assert_eq!(who("127.0.0.1", 32, 8080), "agents");
        assert!(
            Reach { agents: reach.agents[2..].to_vec(), allowed: Vec::new() }.who(80, &BTreeSet::new()).is_nobody()
        );
    }
}
