//! What listens on this host's TCP ports: what of it Weir protects, and what an agent reaches around Weir.
//!
//! As root all holders are seen, else one's own. Addresses at which a listener answers are compared with the protected ones, since a
//! server on all addresses of which one is declared is open at the others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use super::{
    Finding, Level, finding,
    postgres::{self, Answer},
    reach::Reach,
};
use crate::{
    config::Config,
    daemon::{own_addresses, protected_by},
    procfs::{self, TcpSocket, TcpState},
    redirect::{PortKind, Protected, listed},
};

/// Names of processes that serve databases or containers, at whatever port; the kernel keeps 15 bytes of a name.
const SERVER_PROCESSES: [(&str, &str); 21] = [
    ("postgres", "PostgreSQL"),
    ("postmaster", "PostgreSQL"),
    ("pgbouncer", "a way to PostgreSQL"),
    ("pgcat", "a way to PostgreSQL"),
    ("pgpool", "a way to PostgreSQL"),
    ("odyssey", "a way to PostgreSQL"),
    ("mysqld", "MySQL"),
    ("mariadbd", "MariaDB"),
    ("mysqlrouter", "a way to MySQL"),
    ("mongod", "MongoDB"),
    ("mongos", "a way to MongoDB"),
    ("redis-server", "Redis"),
    ("valkey-server", "Valkey"),
    ("memcached", "memcached"),
    ("clickhouse-serv", "ClickHouse"),
    ("cockroach", "CockroachDB"),
    ("sqlservr", "SQL Server"),
    ("tnslsnr", "Oracle"),
    ("influxd", "InfluxDB"),
    ("dockerd", "Docker's API: whoever it lets in is root"),
    ("containerd", "containerd: whoever reaches it is root"),
];

/// Addresses at which a listener answers: the bits of a prefix that they have in common.
pub(super) type Way = (IpAddr, u8);

/// What the doctor says of ports; `daemon` is the daemon's process, if it serves. With `probe` what listens unprotected is
/// asked whether it is PostgreSQL.
pub(super) fn findings(config: &Config, daemon: Option<u64>, probe: bool) -> Vec<Finding> {
    let name = "ports";
    if let Some(pid) = daemon
        && is_elsewhere(pid)
    {
        let mend = format!("ask there: nsenter --net --target {pid} weir doctor");
        return vec![finding(name, Level::CannotTell, "the daemon is in another network namespace", mend)];
    }
    match (listeners(), protected_by(config)) {
        (Ok(listeners), Ok(protected)) => {
            let holders = holders(&listeners);
            let doors = doors(config, &listeners, &holders, &protected);
            let reach = Reach::new(config);
            let mut findings = judge(config, &doors, &reach);
            if probe {
                findings.extend(ask(&doors, &reach));
            }
            findings
        }
        (Err(error), _) => vec![finding(name, Level::CannotTell, error.to_string(), "see that /proc is mounted")],
        (_, Err(error)) => vec![finding(name, Level::CannotTell, error.to_string(), "mend the name's resolution")],
    }
}

/// Whether a process is known to have another network namespace than this one.
fn is_elsewhere(pid: u64) -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    namespace(&pid.to_string()).is_some_and(|its| namespace("self").is_some_and(|own| own != its))
}

/// The TCP sockets that listen, in this process's network namespace.
fn listeners() -> io::Result<Vec<TcpSocket>> {
    let mut sockets = procfs::tcp_sockets(Path::new("/proc/self/net"))?;
    sockets.retain(|socket| socket.state == TcpState::Listen);
    Ok(sockets)
}

/// The names of the processes that hold the listeners, by inode.
fn holders(listeners: &[TcpSocket]) -> HashMap<u64, String> {
    let holders = procfs::holders(&listeners.iter().map(|listener| listener.inode).collect());
    holders.into_iter().filter_map(|(inode, pid)| Some((inode, procfs::comm(pid)?))).collect()
}

/// What listens at one port under one name: where it answers, and where of that it is not protected.
#[derive(Debug, Default)]
struct Door {
    /// The connections that its protected addresses mean; `None` where it is refused to all.
    means: BTreeSet<Option<u32>>,
    open: BTreeSet<Way>,
}

/// Doors by port and holder.
type Doors<'a> = BTreeMap<(u16, Option<&'a str>), Door>;

fn doors<'a>(
    config: &Config,
    listeners: &[TcpSocket],
    holders: &'a HashMap<u64, String>,
    protected: &[Protected],
) -> Doors<'a> {
    let own = own_addresses();
    let mut doors = Doors::new();
    // Weir's own port is kept for the daemon by the programs.
    for listener in listeners {
        let (address, port) = listener.local;
        if port == config.daemon.listener_port {
            continue;
        }
        let holder = holders.get(&listener.inode).map(String::as_str);
        let door = doors.entry((port, holder)).or_default();
        for way in ways(address, &own) {
            match protected.iter().find(|protected| protected.port == port && covers(protected, way)) {
                Some(protected) => drop(door.means.insert(protected.connection)),
                None => drop(door.open.insert(way)),
            }
        }
    }
    doors
}

fn show_door(port: u16, holder: Option<&str>) -> String {
    format!("{port} ({})", holder.unwrap_or("whose is not told"))
}

fn judge(config: &Config, doors: &Doors<'_>, reach: &Reach) -> Vec<Finding> {
    let (mut findings, mut closed, mut kept, mut others) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (&(port, holder), door) in doors {
        let shown = show_door(port, holder);
        let whom = reach.who(port, &door.open);
        if door.open.is_empty() {
            let connections = door.means.iter().map(|number| connection_name(config, *number));
            closed.push(format!("{shown}: {}", connections.collect::<Vec<_>>().join(", ")));
        } else if whom.is_nobody() {
            kept.push(shown);
        } else if let Some(what) = server(port, holder) {
            findings.push(open_server(port, &shown, what, door, &whom.to_string()));
        } else {
            others.push(shown);
        }
    }
    if !others.is_empty() {
        let mend = "close to agents what they must not reach: `[[protect]]`";
        findings.insert(0, finding("ports open", Level::Note, others.join(", "), mend));
    }
    if !kept.is_empty() {
        findings.insert(0, finding("ports kept by egress", Level::Ok, kept.join(", "), ""));
    }
    let seen = if closed.is_empty() { "nothing on this host listens at one".to_owned() } else { closed.join("; ") };
    findings.insert(0, finding("ports protected", Level::Ok, seen, ""));
    findings
}

fn open_server(port: u16, shown: &str, what: &str, door: &Door, whom: &str) -> Finding {
    let places: Vec<String> = door.open.iter().map(|way| show_way(*way)).collect();
    let seen = format!("{shown}: {what}. Open to {whom} around Weir at {}", places.join(", "));
    finding(&format!("port {port}"), Level::Failed, seen, mend(door))
}

fn mend(door: &Door) -> &'static str {
    if door.means.is_empty() {
        "declare it as a `[[connection]]`, put it in `[[protect]]`, or stop it"
    } else {
        "add these addresses to the connection's `targets` or to `[[protect]]`, or let it listen at fewer"
    }
}

/// Names what answers as PostgreSQL does and is not protected. What is protected is not asked: the kernel would refuse it,
/// and put it on the record.
fn ask(doors: &Doors<'_>, reach: &Reach) -> Vec<Finding> {
    let asked: Vec<_> =
        doors.iter().filter_map(|(&(port, holder), door)| Some((port, holder, door, one_of(&door.open)?))).collect();
    let addresses: Vec<SocketAddr> =
        asked.iter().map(|&(port, _, _, address)| SocketAddr::new(address, port)).collect();
    let mut findings = Vec::new();
    for ((port, holder, door, _), (address, answer)) in
        asked.iter().zip(addresses.iter().zip(postgres::ask_all(&addresses)))
    {
        let letter = match answer {
            Answer::WithTls => "S: with TLS",
            Answer::WithoutTls => "N: without TLS",
            Answer::Other => continue,
        };
        let whom = reach.who(*port, &door.open);
        let open = if whom.is_nobody() {
            "Egress refuses it to every agent".to_owned()
        } else {
            format!("Open to {whom} around Weir")
        };
        let seen = format!("{}: answers as PostgreSQL does ({letter}). {open}", show_door(*port, *holder));
        let level = if whom.is_nobody() { Level::Note } else { Level::Failed };
        findings.push(finding(&format!("PostgreSQL at {address}"), level, seen, mend(door)));
    }
    let seen =
        format!("{} addresses asked, {} answer as PostgreSQL does and are not declared", asked.len(), findings.len());
    findings.insert(0, finding("probe", Level::Ok, seen, ""));
    findings
}

/// An address to ask at: best one that needs no link's name beside it.
fn one_of(ways: &BTreeSet<Way>) -> Option<IpAddr> {
    let needs_link = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let address = |&(address, prefix): &Way| if prefix == bits(address) { address } else { loopback };
    ways.iter().map(address).min_by_key(needs_link)
}

/// What is known to serve at a port, or under a name.
fn server(port: u16, holder: Option<&str>) -> Option<&'static str> {
    let by_name = SERVER_PROCESSES.iter().find(|(name, _)| holder == Some(*name)).map(|(_, what)| *what);
    // A way to other ports is no server of data.
    by_name.or_else(|| listed(port).filter(|ports| ports.kind != PortKind::Tunnel).map(|ports| ports.what))
}

fn connection_name(config: &Config, number: Option<u32>) -> &str {
    let connection = number.and_then(|number| config.connections.get(usize::try_from(number).ok()?));
    connection.map_or("refused to all", |connection| connection.name.as_str())
}

/// Where a listener answers. One on `::` counts as answering IPv4 as well: the tables do not tell.
fn ways(address: IpAddr, own: &[IpAddr]) -> Vec<Way> {
    if !address.is_unspecified() {
        return vec![(address, bits(address))];
    }
    let loopback = (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8);
    own.iter()
        .copied()
        .filter(|own| own.is_ipv4() || address.is_ipv6())
        .filter(|own| !(own.is_ipv4() && own.is_loopback()))
        .map(|own| (own, bits(own)))
        .chain([loopback])
        .collect()
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn covers(protected: &Protected, (address, prefix): Way) -> bool {
    protected.network.contains(address) && protected.network.prefix() <= prefix
}

fn show_way((address, prefix): Way) -> String {
    if prefix == bits(address) { address.to_string() } else { format!("{address}/{prefix}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_here_is_found_with_its_holder() {
        let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let own: Vec<_> = listeners().unwrap().into_iter().filter(|listener| listener.local.1 == port).collect();
        assert_eq!(own.iter().map(|listener| listener.local.0).collect::<Vec<_>>(), [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(holders(&own).into_values().collect::<Vec<_>>(), [name.trim_end()]);
    }

    #[test]
    fn a_listener_on_all_addresses_answers_at_each_and_on_the_whole_loopback_network() {
        let own: Vec<IpAddr> =
            ["127.0.0.1", "10.0.0.5", "::1", "fe80::1"].iter().map(|own| own.parse().unwrap()).collect();
        let shown = |address: &str| ways(address.parse().unwrap(), &own).into_iter().map(show_way).collect::<Vec<_>>();
        assert_eq!(shown("0.0.0.0"), ["10.0.0.5", "127.0.0.0/8"]);
        assert_eq!(shown("::"), ["10.0.0.5", "::1", "fe80::1", "127.0.0.0/8"]);
        assert_eq!(shown("127.0.0.2"), ["127.0.0.2"]);
    }

    #[test]
    fn an_address_is_covered_by_a_range_that_holds_all_of_it() {
        let protected = |network: &str| Protected { network: network.parse().unwrap(), port: 5432, connection: None };
        let whole = (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8);
        let one = (IpAddr::V4(Ipv4Addr::LOCALHOST), 32);
        assert!(covers(&protected("127.0.0.0/8"), whole) && covers(&protected("127.0.0.0/8"), one));
        assert!(covers(&protected("127.0.0.1"), one) && !covers(&protected("127.0.0.1"), whole));
        assert!(!covers(&protected("10.0.0.0/8"), one));
    }

    #[test]
    fn a_listener_is_asked_at_an_address_that_needs_no_link() {
        let way = |text: &str, prefix| (text.parse::<IpAddr>().unwrap(), prefix);
        let asked = |ways: &[Way]| one_of(&ways.iter().copied().collect()).map(|address| address.to_string());
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&[way("fe80::1", 128), way("fd00::1", 128)]).as_deref(), Some("fd00::1"));
        assert_eq!(asked(&[way("127.0.0.0", 8)]).as_deref(), Some("127.0.0.1"));
    }

    #[test]
    fn servers_are_known_by_name_before_port() {
        assert_eq!(server(15_000, Some("mysqld")), Some("MySQL"));
        assert_eq!(server(5432, Some("mariadbd")), Some("MariaDB"));
        assert!(server(5432, Some("socat")).is_some_and(|what| what.starts_with("PostgreSQL")));
        assert!(server(5432, None).is_some_and(|what| what.starts_with("PostgreSQL")));
        assert_eq!(server(22, Some("sshd")), None);
        assert!(SERVER_PROCESSES.iter().all(|(name, _)| name.len() <= 15), "longer names are cut by the kernel");
    }
}
