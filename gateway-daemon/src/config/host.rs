//! Servers of a connection as they are written: `db.internal:5432`, `10.0.0.5`, `[fd00::5]:5432`.

use std::{fmt, net::IpAddr};

/// One server of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    /// Its name or address.
    pub name: String,
    /// Its port.
    pub port: u16,
}

impl Host {
    /// An entry of `hosts`; without a port it has the `default` one.
    ///
    /// # Errors
    /// What is wrong with it, and the mend.
    pub(super) fn parse(text: &str, default: u16) -> Result<Self, String> {
        let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((v6, "")) => (v6, None),
            Some((v6, rest)) => (v6, Some(rest.strip_prefix(':').unwrap_or_default())),
            None => match text.split_once(':') {
                Some((_, rest)) if rest.contains(':') => (text, None), // IPv6 without a port
                Some((name, port)) => (name, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            None => Some(default),
            Some(port) => port.parse().ok().filter(|&port| port != 0),
        };
        match port {
            Some(port) if is_name(name) => Ok(Self { name: name.to_owned(), port }),
            _ => Err(format!(
                "`{}` is no server; write `db.internal:5432`, `10.0.0.5` or `[fd00::5]:5432`; Unix sockets go to `unix_sockets`",
                text.escape_debug()
            )),
        }
    }
}

/// Whether it may be a host name or an address. Brackets and lists are other people's syntax.
pub(super) fn is_name(name: &str) -> bool {
    let is_odd = |c: char| matches!(c, '/' | '[' | ']' | ',' | ':') || c.is_whitespace() || c.is_control();
    !name.is_empty() && (!name.contains(is_odd) || name.parse::<IpAddr>().is_ok())
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_written_with_or_without_a_port() {
        for (text, name, port) in [
            ("db.internal:6000", "db.internal", 6000),
            ("db.internal", "db.internal", 5433),
            ("10.0.0.5:1", "10.0.0.5", 1),
            ("[fd00::5]:6000", "fd00::5", 6000),
            ("[fd00::5]", "fd00::5", 5433),
            ("fd00::5", "fd00::5", 5433),
        ] {
            assert_eq!(Host::parse(text, 5433), Ok(Host { name: name.to_owned(), port }), "{text}");
        }
        for text in ["", ":5432", "db:", "db:0", "db:65536", "db:x", "/run/postgresql", "[::1]x", "[::1", "a b", "a,b"]
        {
            assert!(Host::parse(text, 5433).is_err(), "{text}");
        }
    }
}
