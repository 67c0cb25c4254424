//! What can only be seen with all tables side by side.

use std::collections::HashMap;

use super::{
    Config, RunsAs,
    check::{Checker, Place},
    error::Fault,
};

impl Checker<'_> {
    pub(super) fn across(&mut self, config: &Config) {
        for kind in ["issuer", "agent", "connection"] {
            self.names_once(kind);
        }
        self.users_once(config);
        self.pools(config);
        self.servers_once(config);
        self.listeners_port(config);
    }

    fn names_once(&mut self, kind: &str) {
        let mut first = HashMap::new();
        for (name, line) in self.tree.names(kind) {
            if let Some(first) = first.get(&name) {
                let key = format!("{kind} \"{}\".name", name.escape_debug());
                let message = format!("stands in line {first} already; give each its own");
                self.faults.push(Fault { line, key, message });
            } else {
                first.insert(name, line);
            }
        }
    }

    fn users_once(&mut self, config: &Config) {
        let mut users = HashMap::new();
        for agent in &config.agents {
            let RunsAs::User(user) = &agent.runs_as else { continue };
            if user.is_empty() {
                continue;
            }
            if let Some(other) = users.insert(user, &agent.name).filter(|other| **other != agent.name) {
                let message = format!(
                    "is the user of agent `{}` too, so each could read and end the other's processes; make one for each",
                    other.escape_debug()
                );
                self.fault(&named("agent", &agent.name), "user", message);
            }
        }
    }

    fn servers_once(&mut self, config: &Config) {
        let mut servers = HashMap::new();
        for connection in &config.connections {
            let place = named("connection", &connection.name);
            let key = if connection.hosts.len() == 1 { "host" } else { "hosts" };
            for (nth, host) in connection.hosts.iter().enumerate() {
                let nth = (connection.hosts.len() > 1).then_some(nth);
                let server = (host.name.to_ascii_lowercase(), host.port);
                match servers.insert(server, &connection.name) {
                    None => {}
                    Some(own) if *own == connection.name => {
                        self.fault_in(&place, key, nth, format!("`{host}` stands twice; name each server once"));
                    }
                    Some(other) => {
                        let message = format!(
                            "another connection, `{}`, has the same host and port; which is meant cannot be told, so declare the server once",
                            other.escape_debug()
                        );
                        self.fault_in(&place, key, nth, message);
                    }
                }
            }
        }
    }

    fn listeners_port(&mut self, config: &Config) {
        let port = config.daemon.listener_port;
        for connection in &config.connections {
            let place = named("connection", &connection.name);
            for (nth, _) in connection.hosts.iter().enumerate().filter(|(_, host)| host.port == port && port != 0) {
                let (key, nth) = if connection.hosts.len() > 1 { ("hosts", Some(nth)) } else { ("port", None) };
                self.fault_in(&place, key, nth, LISTENERS);
            }
            for (nth, _) in connection.targets.iter().enumerate().filter(|(_, target)| target.port == port) {
                self.fault_in(&place, "targets", Some(nth), LISTENERS);
            }
        }
        let own = config.protect.iter().filter(|protect| protect.network.port == port).map(|protect| protect.network);
        for network in own {
            let place = self.tree.tables().find_map(|(table, line, keys)| {
                let address = keys.get("address")?.get_ref().as_str()?.parse();
                (table.starts_with("protect ") && address == Ok(network)).then_some(Place { line, table })
            });
            if let Some(place) = place {
                self.fault(&place, "address", LISTENERS);
            }
        }
    }
}

/// For a port that only the daemon may have.
const LISTENERS: &str =
    "is the port of Weir's own listener, which agents may not reach; set `daemon.listener_port` to another";

/// One of several tables, where its line is not at hand.
fn named(kind: &str, name: &str) -> Place {
    Place::section(&format!("{kind} \"{}\"", name.escape_debug()))
}
