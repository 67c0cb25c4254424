//! What agents reach beside protected addresses, on the real kernel: by mode, and by every way that there is.

use std::{net::SocketAddr, os::unix::net::UnixStream, path::Path};

use anyhow::{Context as _, Result};
use end_to_end::kernel_support::{Answer, Field, Front, Outcome, PORT, Server};
use gateway_daemon::redirect::{
    AllowedPorts, Egress, EgressAllowed, EgressMode, Kernel, KernelEvent, Operation, Reason, cgroup::CgroupId,
    packets_know_task,
};
use rustix::io::Errno;

/// Every way to name an address; those that make a connection first.
const STREAMS: [&str; 7] = ["tcp", "fastopen", "nonblocking", "uring", "uring-queue", "uring-poll", "mptcp"];
const DATAGRAMS: [&str; 4] = ["udp-send", "udp-connect", "udp-many", "udp-uring"];

const DATABASES: Egress = Egress { mode: EgressMode::Databases, agent: 0 };
const CLOSED: Egress = Egress { mode: EgressMode::Closed, agent: 1 };

fn allowed(agent: u32, address: SocketAddr) -> EgressAllowed {
    let ports = AllowedPorts::Range { first: address.port(), last: address.port() };
    EgressAllowed { ports, ..whole(agent, address) }
}

/// An address at every port.
fn whole(agent: u32, address: SocketAddr) -> EgressAllowed {
    let address = address.ip().to_canonical();
    EgressAllowed { agent, address, prefix: if address.is_ipv4() { 32 } else { 128 }, ports: AllowedPorts::Any }
}

/// Whether the kernel's programs let it through, to a server or to nobody.
fn passed(outcome: &Outcome) -> bool {
    outcome.answer == Some(Answer::Server) || outcome.errno.is_none() || outcome.failed_with(Errno::CONNREFUSED)
}

/// Whether an echo request did not leave. Of one over IPv6 that is sent without a connect the kernel says nothing.
fn unsent(outcome: &Outcome, address: SocketAddr) -> bool {
    outcome.is_refused() || (address.is_ipv6() && outcome.failed_with(Errno::TIMEDOUT))
}

/// An agent whose cgroup is enrolled.
fn enrolled(field: &Field, kernel: &Kernel, name: &str, egress: Egress) -> Result<(std::path::PathBuf, CgroupId)> {
    let (folder, id) = field.cgroup(name)?;
    kernel.enrol(id, egress)?;
    Ok((folder, id))
}

#[test]
fn databases_refuses_listed_ports_by_every_way_but_what_is_declared_or_allowed() -> Result<()> {
    let field = Field::new()?;
    let (undeclared, permitted) = (field.v4(9), field.v4(10));
    let servers = [Server::start(undeclared)?, Server::start(permitted)?, Server::start(field.v4(1))?];
    let free = SocketAddr::new(undeclared.ip(), field.own_port());
    let _free = Server::start(free)?;
    let kernel = field.start()?;
    let _front = Front::start(&kernel)?;
    let (agent, id) = enrolled(&field, &kernel, "agent", DATABASES)?;
    let (open, _) = enrolled(&field, &kernel, "open", Egress::OPEN)?;
    let (outside, _) = field.cgroup("outside")?;
    kernel.set_egress_allowed(&[allowed(0, permitted)])?;
    for way in STREAMS.iter().chain(&DATAGRAMS) {
        for address in [undeclared, field.mapped(9), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], PORT))] {
            let address = address.to_string();
            let outcome = field.connector(&agent, &[way, &address]).run()?;
            assert!(outcome.is_refused(), "{way} {address}: {outcome:?}");
            for other in [&open, &outside] {
                let outcome = field.connector(other, &[way, &address]).run()?;
                assert!(passed(&outcome), "{way} {address}: {outcome:?}");
            }
        }
        for address in [permitted, field.mapped(10), free] {
            let outcome = field.connector(&agent, &[way, &address.to_string()]).run()?;
            assert!(passed(&outcome), "{way} {address}: {outcome:?}");
        }
    }
    let declared = field.connect(&agent, field.v4(1))?;
    assert!(declared.is_redirected(id, field.v4(1)), "{declared:?}");
    assert_eq!(servers[2].reached(), 0);

    // What the list names, and what work needs.
    for (port, listed) in
        [(22, true), (2375, true), (6379, true), (27020, true), (80, false), (443, false), (8080, false)]
    {
        let outcome = field.connect(&agent, SocketAddr::new(field.v4(11).ip(), port))?;
        assert_eq!(outcome.is_refused(), listed, "{port}: {outcome:?}");
    }
    Ok(())
}

#[test]
fn closed_refuses_all_by_every_way_but_what_is_declared_or_allowed() -> Result<()> {
    let field = Field::new()?;
    let port = field.own_port() + 200;
    let at = |last: u8| SocketAddr::new(field.v4(last).ip(), port);
    let six = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port));
    let servers = [Server::start(at(9))?, Server::start(six)?, Server::start(field.v4(9))?];
    let permitted = Server::start(at(10))?;
    let kernel = field.start()?;
    let _front = Front::start(&kernel)?;
    let (agent, id) = enrolled(&field, &kernel, "agent", CLOSED)?;
    let (other, _) = enrolled(&field, &kernel, "other", Egress { agent: 2, ..CLOSED })?;
    let (outside, _) = field.cgroup("outside")?;
    let (below, _) = field.cgroup("agent/below")?;
    kernel.set_egress_allowed(&[allowed(1, at(10))])?;
    let mapped = SocketAddr::new(field.mapped(9).ip(), port);
    let listener = SocketAddr::new(field.v4(9).ip(), field.listener_port());
    for way in STREAMS.iter().chain(&DATAGRAMS) {
        for address in [at(9), mapped, six, field.v4(9), listener] {
            for cgroup in [&agent, &below, &other] {
                let outcome = field.connector(cgroup, &[way, &address.to_string()]).run()?;
                assert!(outcome.is_refused(), "{way} {address}: {outcome:?}");
            }
        }
        let outcome = field.connector(&agent, &[way, &at(10).to_string()]).run()?;
        assert_eq!((passed(&outcome), outcome.is_refused()), (*way != "mptcp", *way == "mptcp"), "{way}: {outcome:?}");
        let outcome = field.connector(&other, &[way, &at(10).to_string()]).run()?;
        assert!(outcome.is_refused(), "allowed to another: {way}: {outcome:?}");
    }
    for text in [format!("0.0.0.0:{port}"), format!("[::]:{port}"), format!("[::ffff:0.0.0.0]:{port}")] {
        for way in STREAMS.iter().chain(&DATAGRAMS) {
            let outcome = field.connector(&agent, &[way, &text]).run()?;
            assert!(outcome.is_refused(), "{way} {text}: {outcome:?}");
        }
    }
    assert!(field.connect(&agent, field.v4(1))?.is_redirected(id, field.v4(1)));
    assert_eq!(field.connect(&outside, at(9))?.answer, Some(Answer::Server));
    assert_eq!(servers.iter().map(Server::reached).sum::<usize>(), 1);
    assert_eq!(permitted.reached(), STREAMS.len() - 1);
    Ok(())
}

#[test]
fn no_address_is_the_loopback_address_to_the_list_of_what_is_allowed() -> Result<()> {
    let field = Field::new()?;
    let port = field.own_port() + 200;
    let loopback = SocketAddr::from(([127, 0, 0, 1], port));
    let _server = Server::start(loopback)?;
    let kernel = field.start()?;
    let (agent, _) = enrolled(&field, &kernel, "agent", CLOSED)?;
    kernel.set_egress_allowed(&[EgressAllowed { prefix: 8, address: "127.0.0.0".parse()?, ..whole(1, loopback) }])?;
    let no_address = format!("0.0.0.0:{port}");
    assert_eq!(field.connector(&agent, &["tcp", &no_address]).run()?.answer, Some(Answer::Server));
    // Routing would take the source's address, which was not asked for.
    assert!(field.connector(&agent, &["bound", "127.0.0.1:0", &no_address]).run()?.is_refused());
    Ok(())
}

#[test]
fn what_is_allowed_changes_while_agents_run_and_ipv6_never_means_ipv4() -> Result<()> {
    let field = Field::new()?;
    let port = field.own_port() + 200;
    let four = SocketAddr::new(field.v4(9).ip(), port);
    let six = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port));
    let _servers = [Server::start(four)?, Server::start(six)?];
    let kernel = field.start()?;
    let (agent, _) = enrolled(&field, &kernel, "agent", CLOSED)?;
    let reaches = |address| -> Result<bool> { Ok(field.connect(&agent, address)?.answer == Some(Answer::Server)) };
    let all_of = |address: SocketAddr, network: &str| -> Result<EgressAllowed> {
        Ok(EgressAllowed { address: network.parse()?, prefix: 0, ..allowed(1, address) })
    };
    let mapped = SocketAddr::new(four.ip().to_string().parse::<std::net::Ipv4Addr>()?.to_ipv6_mapped().into(), port);
    for (list, four_passes, six_passes) in [
        (vec![], false, false),
        (vec![all_of(six, "::")?], false, true),
        (vec![all_of(six, "::")?, all_of(four, "0.0.0.0")?], true, true),
        (vec![all_of(six, "::")?], false, true),
        (vec![all_of(four, "0.0.0.0")?], true, false),
        (vec![whole(1, four)], true, false),
        (vec![whole(0, four)], false, false),
        (vec![], false, false),
    ] {
        kernel.set_egress_allowed(&list)?;
        assert_eq!(
            (reaches(four)?, reaches(mapped)?, reaches(six)?),
            (four_passes, four_passes, six_passes),
            "{list:?}"
        );
    }
    let many = EgressAllowed { ports: AllowedPorts::Range { first: 1, last: u16::MAX }, ..whole(1, four) };
    let error = kernel.set_egress_allowed(&[many, allowed(2, four), allowed(3, four)]).unwrap_err();
    assert!(error.to_string().contains("65537 entries are more than the 65536"), "{error}");
    Ok(())
}

#[test]
fn an_echo_request_leaves_a_closed_agent_only_to_what_is_allowed_at_every_port() -> Result<()> {
    let field = Field::new()?;
    let kernel = field.start()?;
    let (agent, _) = enrolled(&field, &kernel, "agent", CLOSED)?;
    let (databases, _) = enrolled(&field, &kernel, "databases", DATABASES)?;
    let (outside, _) = field.cgroup("outside")?;
    let four: SocketAddr = "127.0.0.9:0".parse()?;
    let six: SocketAddr = "[::1]:0".parse()?;
    let send = |cgroup: &Path, way: &str, address: SocketAddr| {
        field.connector(cgroup, &[way, &address.to_string()]).in_network_namespace().run()
    };
    for way in ["ping", "ping-connect"] {
        for address in [four, six] {
            let outcome = send(&agent, way, address)?;
            assert!(unsent(&outcome, address), "{way} {address}: {outcome:?}");
            for other in [&databases, &outside] {
                assert_eq!(send(other, way, address)?.errno, None, "{way} {address}");
            }
        }
    }
    // The port of a ping's address means nothing.
    assert_eq!(send(&databases, "ping-connect", SocketAddr::new(four.ip(), PORT))?.errno, None);
    kernel.set_egress_allowed(&[whole(1, four), allowed(1, SocketAddr::new(six.ip(), 7))])?;
    for way in ["ping", "ping-connect"] {
        assert_eq!(send(&agent, way, four)?.errno, None, "{way}");
        assert!(unsent(&send(&agent, way, six)?, six), "allowed at a port: {way}");
    }
    Ok(())
}

#[test]
fn a_socket_from_outside_names_no_destination_for_a_closed_agent() -> Result<()> {
    let field = Field::new()?;
    let port = field.own_port() + 200;
    let server = Server::start(SocketAddr::new(field.v4(9).ip(), port))?;
    let kernel = field.start()?;
    let (agent, _) = enrolled(&field, &kernel, "agent", CLOSED)?;
    let (outside, _) = field.cgroup("outside")?;
    let address = SocketAddr::new(field.v4(9).ip(), port).to_string();
    let hand_over = |give: &[&str], take: &[&str], maker: &Path, user: &Path| -> Result<Outcome> {
        let (theirs, ours) = UnixStream::pair()?;
        let given = field.connector(maker, give).in_network_namespace().stdin(theirs.into()).run()?;
        assert_eq!(given.errno, None, "{give:?}");
        field.connector(user, take).stdin(ours.into()).run()
    };
    let (here, there) = (outside.as_path(), agent.as_path());
    assert!(hand_over(&["give"], &["take", &address], here, there)?.is_refused());
    for address in ["127.0.0.9:9", "[::1]:9"] {
        let outcome = hand_over(&["give-udp", address], &["take-send", address], here, there)?;
        assert!(outcome.is_refused(), "{address}: {outcome:?}");
        assert_eq!(hand_over(&["give-udp", address], &["take-send", address], here, here)?.errno, None);
    }
    for text in ["127.0.0.9:0", "[::1]:0"] {
        let address = text.parse()?;
        let outcome = hand_over(&["give-ping", text], &["take-ping", text], here, there)?;
        // Where nobody tells who sends, `weir doctor` says so.
        assert_eq!(unsent(&outcome, address), packets_know_task(), "{text}: {outcome:?}");
        assert_eq!(hand_over(&["give-ping", text], &["take-ping", text], here, here)?.errno, None, "{text}");
        // Made inside, and used by somebody else for it.
        let outcome = hand_over(&["give-ping", text], &["take-ping", text], there, here)?;
        assert!(unsent(&outcome, address), "{text}: {outcome:?}");
    }
    assert_eq!(server.reached(), 0);
    Ok(())
}

#[test]
fn mptcp_leads_a_closed_agent_nowhere_not_even_where_it_may_go_whoever_made_the_socket() -> Result<()> {
    let field = Field::new()?;
    let address = SocketAddr::new(field.v4(9).ip(), field.own_port() + 200);
    let server = Server::start(address)?;
    let kernel = field.start()?;
    let (agent, _) = enrolled(&field, &kernel, "agent", CLOSED)?;
    let (databases, _) = enrolled(&field, &kernel, "databases", DATABASES)?;
    let (outside, _) = field.cgroup("outside")?;
    kernel.set_egress_allowed(&[allowed(1, address)])?;
    let handed = |give: &str, user: &Path| -> Result<Outcome> {
        let (theirs, ours) = UnixStream::pair()?;
        let given = field.connector(&outside, &[give]).stdin(theirs.into()).run()?;
        assert_eq!(given.errno, None, "{give}");
        field.connector(user, &["take", &address.to_string()]).stdin(ours.into()).run()
    };
    assert_eq!(handed("give", &agent)?.answer, Some(Answer::Server));
    assert!(handed("give-mptcp", &agent)?.is_refused());
    assert!(field.connector(&agent, &["mptcp", &address.to_string()]).run()?.is_refused());
    for other in [&databases, &outside] {
        assert_eq!(handed("give-mptcp", other)?.answer, Some(Answer::Server));
        assert_eq!(field.connector(other, &["mptcp", &address.to_string()]).run()?.answer, Some(Answer::Server));
    }
    assert_eq!(server.reached(), 5);
    Ok(())
}

#[test]
fn below_a_fence_nothing_is_reached_but_from_an_agents_cgroup() -> Result<()> {
    let field = Field::new()?;
    let address = SocketAddr::new(field.v4(9).ip(), field.own_port() + 200);
    let server = Server::start(address)?;
    let kernel = field.start()?;
    let (slice, fence) = field.cgroup("weir.slice")?;
    let (anew, _) = field.cgroup("weir.slice/anew")?;
    kernel.set_fence(fence)?;
    let (open, _) = enrolled(&field, &kernel, "weir.slice/open", Egress::OPEN)?;
    let (outside, _) = field.cgroup("outside")?;
    for way in STREAMS.iter().chain(&DATAGRAMS) {
        for cgroup in [&slice, &anew] {
            let outcome = field.connector(cgroup, &[way, &address.to_string()]).run()?;
            assert!(outcome.is_refused(), "{way}: {outcome:?}");
        }
        for cgroup in [&open, &outside] {
            let outcome = field.connector(cgroup, &[way, &address.to_string()]).run()?;
            assert!(passed(&outcome), "{way}: {outcome:?}");
        }
    }
    for ping in ["127.0.0.9:0", "[::1]:0"] {
        let send = |cgroup: &Path| field.connector(cgroup, &["ping", ping]).in_network_namespace().run();
        assert!(unsent(&send(&anew)?, ping.parse()?), "{ping}");
        assert_eq!(send(&open)?.errno, None, "{ping}");
    }
    let raw = |cgroup: &Path| field.connector(cgroup, &["socket", "2", "3", "255"]).run();
    assert!(raw(&anew)?.is_refused());
    assert_eq!(raw(&outside)?.errno, None);
    assert_eq!(server.reached(), STREAMS.len() * 2);
    // An agent that goes leaves the fence as it was.
    let (_, closed) = enrolled(&field, &kernel, "closed", CLOSED)?;
    kernel.unenrol(closed)?;
    assert!(field.connect(&anew, address)?.is_refused());
    Ok(())
}

#[tokio::test]
async fn each_refusal_is_told_with_its_mode_and_destination() -> Result<()> {
    let field = Field::new()?;
    let kernel = field.start()?;
    let mut events = kernel.events()?;
    let mut next = async || -> Result<KernelEvent> {
        Ok(tokio::time::timeout(std::time::Duration::from_secs(10), events.next()).await.context("no event")??)
    };
    let (databases, databases_id) = enrolled(&field, &kernel, "databases", DATABASES)?;
    let (closed, closed_id) = enrolled(&field, &kernel, "closed", CLOSED)?;
    for (cgroup, id, way, destination, operation, reason) in [
        (&databases, databases_id, "tcp", field.v4(9), Operation::Connect, Reason::PortListed),
        (&databases, databases_id, "udp-send", field.v4(9), Operation::Send, Reason::PortListed),
        (&closed, closed_id, "tcp", "[::1]:80".parse()?, Operation::Connect, Reason::NotAllowed),
        (&closed, closed_id, "udp-send", "127.0.0.1:9".parse()?, Operation::Send, Reason::NotAllowed),
    ] {
        let outcome = field.connector(cgroup, &[way, &destination.to_string()]).run()?;
        let event = next().await?;
        assert_eq!(
            (event.operation, event.reason, event.cgroup, event.destination, event.pid),
            (operation, reason, Some(id), destination, outcome.own_pid),
            "{way} {destination}"
        );
        assert!(event.what().starts_with("egress "), "{}", event.what());
    }
    let outcome = field.connector(&closed, &["ping", "127.0.0.9:0"]).in_network_namespace().run()?;
    assert!(outcome.is_refused(), "{outcome:?}");
    let event = next().await?;
    assert_eq!((event.operation, event.reason, event.cgroup), (Operation::Packet, Reason::NotAllowed, Some(closed_id)));
    assert_eq!(event.destination, "127.0.0.9:0".parse()?);
    // Programs on packets may ask for these from Linux 6.16 on.
    if event.pid != 0 {
        assert_eq!((event.pid, event.comm.as_str()), (outcome.own_pid, "connector"));
    }
    Ok(())
}

#[test]
fn the_next_daemon_says_anew_what_agents_that_live_on_reach() -> Result<()> {
    let field = Field::new()?;
    let port = field.own_port() + 200;
    let (first, second) = (SocketAddr::new(field.v4(9).ip(), port), SocketAddr::new(field.v4(10).ip(), port));
    let _servers = [Server::start(first)?, Server::start(second)?];
    let (agent, id) = field.cgroup("agent")?;
    let reaches = |address| -> Result<bool> { Ok(field.connect(&agent, address)?.answer == Some(Answer::Server)) };
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    drop(kernel);
    assert!(reaches(first)?, "a dead daemon's agent reaches what it did");
    let start = |egress: Option<Egress>, list: &[EgressAllowed]| -> Result<Kernel> {
        let mut settings = field.settings()?;
        settings.egress.enrolled = egress.map(|egress| (id, egress)).into_iter().collect();
        settings.egress.allowed = list.to_vec();
        Ok(Kernel::start(&settings)?)
    };
    drop(start(Some(CLOSED), &[allowed(1, first)])?);
    assert!(reaches(first)? && !reaches(second)?);
    drop(start(Some(CLOSED), &[allowed(1, second)])?);
    assert!(!reaches(first)? && reaches(second)?);
    drop(start(Some(DATABASES), &[])?);
    assert!(reaches(first)? && reaches(second)? && field.connect(&agent, field.v4(9))?.is_refused());
    // One of which the next daemon knows nothing.
    let kernel = start(None, &[allowed(0, first), allowed(1, first)])?;
    assert!(!reaches(first)?);
    // Its cgroup is nobody's then, and the others go on as they were.
    kernel.unenrol(id)?;
    assert!(reaches(first)?);
    Ok(())
}
