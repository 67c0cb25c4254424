//! The redirect, on the real kernel: what an agent reaches, what everybody else doesn't, by every way there is.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use end_to_end::kernel_support::{Answer, Field, Front, Outcome, PORT, Server, poll, protected};
use gateway_daemon::redirect::{
    Egress, Guard, Kernel, KernelEvent, Operation, Protected, Reason, RedirectError, UidRange, Verdict, detach, probe,
};
use rustix::io::Errno;

const NOBODY: u32 = 65_534;

fn connected(outcome: &Outcome) -> bool {
    outcome.answer == Some(Answer::Server)
}

#[test]
fn an_agent_is_redirected_by_every_kind_of_connect_and_sees_the_address_it_asked_for() -> Result<()> {
    let field = Field::new()?;
    let (v4, mapped, v6) = (field.v4(1), field.mapped(1), field.v6());
    let servers = [Server::start(v4)?, Server::start(v6)?];
    let (agent, id) = field.cgroup("agent")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    for way in ["tcp", "fastopen", "nonblocking", "uring", "uring-queue", "uring-poll"] {
        for (address, connection) in [(v4, 1), (mapped, 1), (v6, 6)] {
            let outcome = field.connector(&agent, &[way, &address.to_string()]).run()?;
            assert!(outcome.is_redirected(id, address), "{way} {address}: {outcome:?}");
            let Some(Answer::Accepted { connection: noted, pid, uid, .. }) = outcome.answer else { unreachable!() };
            assert_eq!((noted, pid, uid), (connection, outcome.own_pid, 0), "{way} {address}");
        }
    }
    // MPTCP's own socket isn't the one that the getpeername programs see.
    for address in [v4, mapped, v6] {
        let outcome = field.connector(&agent, &["mptcp", &address.to_string()]).run()?;
        assert!(outcome.is_noted(id.get(), address), "mptcp {address}: {outcome:?}");
    }
    assert_eq!(servers.iter().map(Server::reached).sum::<usize>(), 0);
    assert_eq!(kernel.pending_entries(), 0);
    Ok(())
}

#[test]
fn no_address_means_the_loopback_address_and_nothing_else_from_a_bound_socket() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent")?;
    let (outside, _) = field.cgroup("outside")?;
    let port = field.own_port();
    let own = SocketAddr::new(field.v4(1).ip(), port);
    let mut settings = field.settings()?;
    settings.protected =
        vec![protected(own, 1), protected(SocketAddr::from(([127, 0, 0, 1], port)), 2), protected(field.v6(), 6)];
    let servers =
        [Server::start(own)?, Server::start(SocketAddr::from(([127, 0, 0, 1], port)))?, Server::start(field.v6())?];
    let kernel = Kernel::start(&settings)?;
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    for text in [format!("0.0.0.0:{port}"), format!("[::ffff:0.0.0.0]:{port}"), format!("[::]:{port}")] {
        let address: SocketAddr = text.parse()?;
        let outcome = field.connect(&agent, address)?;
        assert!(outcome.is_noted(id.get(), address), "{text}: {outcome:?}");
        assert!(field.connect(&outside, address)?.is_refused(), "{text}");
    }
    let (no_v4, source) = (format!("0.0.0.0:{port}"), format!("{}:0", own.ip()));
    for cgroup in [&agent, &outside] {
        // Routing would fill the destination with the source.
        assert!(field.connector(cgroup, &["bound", &source, &no_v4]).run()?.is_refused());
        assert!(field.connector(cgroup, &["device", "lo", &no_v4]).run()?.is_refused());
        assert!(field.connector(cgroup, &["udp-send", &no_v4]).run()?.is_refused());
    }
    assert_eq!(servers.iter().map(Server::reached).sum::<usize>(), 0);
    Ok(())
}

#[test]
fn whoever_is_outside_is_refused_and_whoever_is_allowed_passes() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let server = Server::start(v4)?;
    let (agent, agent_id) = field.cgroup("agent")?;
    let (outside, _) = field.cgroup("outside")?;
    let (allowed, allowed_id) = field.cgroup("allowed")?;
    let (below_allowed, _) = field.cgroup("allowed/below")?;
    let kernel = field.start()?;
    kernel.enrol(agent_id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    for uid in [0, NOBODY] {
        for way in ["tcp", "fastopen", "nonblocking", "uring", "uring-queue", "uring-poll", "mptcp"] {
            for address in [v4, field.mapped(1), field.v6()] {
                let outcome = field.connector(&outside, &[way, &address.to_string()]).uid(uid).run()?;
                assert!(outcome.is_refused(), "uid {uid}, {way} {address}: {outcome:?}");
            }
        }
    }
    assert_eq!(server.reached(), 0);

    kernel.set_allowed(&[64_999], &[allowed_id])?;
    assert!(connected(&field.connector(&outside, &["tcp", &v4.to_string()]).uid(64_999).run()?));
    assert!(connected(&field.connect(&allowed, v4)?));
    assert!(connected(&field.connect(&below_allowed, v4)?));
    assert!(connected(&field.connect(&field.cgroups().path(&field.daemon()), v4)?));
    // An allowed uid takes no agent out.
    let inside = field.connector(&agent, &["tcp", &v4.to_string()]).uid(64_999).run()?;
    assert!(inside.is_redirected(agent_id, v4), "{inside:?}");

    kernel.set_allowed(&[], &[])?;
    assert!(field.connector(&outside, &["tcp", &v4.to_string()]).uid(64_999).run()?.is_refused());
    assert!(field.connect(&allowed, v4)?.is_refused());
    Ok(())
}

#[test]
fn the_guard_agents_refuses_their_uids_and_subordinate_uids_alone() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let _server = Server::start(v4)?;
    let (outside, _) = field.cgroup("outside")?;
    let (agent, id) = field.cgroup("agent")?;
    let mut settings = field.settings()?;
    settings.guard = Guard::Agents;
    settings.agent_uids = vec![UidRange { first: 3000, last: 3000 }, UidRange { first: 100_000, last: 165_535 }];
    let kernel = Kernel::start(&settings)?;
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    for (uid, refused) in [
        (0, false),
        (2999, false),
        (3000, true),
        (3001, false),
        (99_999, false),
        (100_000, true),
        (165_535, true),
        (165_536, false),
    ] {
        let outcome = field.connector(&outside, &["tcp", &v4.to_string()]).uid(uid).run()?;
        assert_eq!((outcome.is_refused(), connected(&outcome)), (refused, !refused), "uid {uid}: {outcome:?}");
    }
    kernel.set_agent_uids(&[])?;
    assert!(connected(&field.connector(&outside, &["tcp", &v4.to_string()]).uid(3000).run()?));
    let inside = field.connector(&agent, &["tcp", &v4.to_string()]).uid(3000).run()?;
    assert!(inside.is_redirected(id, v4), "{inside:?}");
    Ok(())
}

#[test]
fn datagrams_to_a_protected_address_are_refused_sent_or_connected() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent")?;
    let (outside, _) = field.cgroup("outside")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    for cgroup in [&agent, &outside] {
        for verb in ["udp-send", "udp-connect"] {
            for address in [field.v4(1), field.mapped(1), field.v6()] {
                let outcome = field.connector(cgroup, &[verb, &address.to_string()]).run()?;
                assert!(outcome.is_refused(), "{verb} {address}: {outcome:?}");
            }
            let free = SocketAddr::new(field.v4(1).ip(), PORT + 1);
            let outcome = field.connector(cgroup, &[verb, &free.to_string()]).run()?;
            assert_eq!(outcome.errno, None, "{verb} {free}");
        }
    }
    Ok(())
}

#[test]
fn child_cgroups_are_their_agents_down_to_16_levels_and_refused_below() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let server = Server::start(v4)?;
    let (_, id) = field.cgroup("agent")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    let mut name = "agent".to_owned();
    for level in 3..=18 {
        name.push_str("/x");
        let (folder, _) = field.cgroup(&name)?;
        let outcome = field.connect(&folder, v4)?;
        if level <= 16 {
            assert!(outcome.is_redirected(id, v4), "level {level}: {outcome:?}");
        } else {
            assert!(outcome.is_refused(), "level {level}: {outcome:?}");
        }
    }
    assert_eq!(server.reached(), 0);
    Ok(())
}

#[test]
fn an_agent_makes_tcp_mptcp_udp_and_ping_sockets_and_no_others_of_the_internet_families() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent")?;
    let (outside, _) = field.cgroup("outside")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    let make = |cgroup, family: u32, kind: u32, protocol: u32| {
        field.connector(cgroup, &["socket", &family.to_string(), &kind.to_string(), &protocol.to_string()]).run()
    };
    let (stream, datagram, raw, seqpacket) = (1, 2, 3, 5);
    let (icmp, sctp, smc, mptcp) = (1, 132, 256, 262);
    for family in [2, 10] {
        for (kind, protocol) in [(stream, 0), (stream, 6), (stream, mptcp), (datagram, 0), (datagram, 17)] {
            assert_eq!(make(&agent, family, kind, protocol)?.errno, None, "{family} {kind} {protocol}");
        }
        for (kind, protocol) in [(raw, icmp), (raw, 255), (stream, sctp), (seqpacket, sctp), (stream, smc)] {
            let inside = make(&agent, family, kind, protocol)?;
            let outside = make(&outside, family, kind, protocol)?;
            // Where the kernel lacks a protocol, it says so to both.
            let lacking = outside.errno.is_some() && outside.errno == inside.errno;
            assert!(inside.is_refused() || lacking, "{family} {kind} {protocol}: {inside:?}, outside {outside:?}");
        }
        assert!(make(&agent, family, raw, 255)?.is_refused());
        assert_eq!(make(&outside, family, raw, 255)?.errno, None);
    }
    Ok(())
}

#[test]
fn a_range_is_protected_at_its_port_and_the_narrowest_one_counts() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent")?;
    let (outside, _) = field.cgroup("outside")?;
    let IpAddr::V4(base) = field.v4(0).ip() else { unreachable!() };
    let range = |last: u8, prefix: u8, connection| -> Result<Protected> {
        let [a, b, c, _] = base.octets();
        Ok(Protected { network: format!("{a}.{b}.{c}.{last}/{prefix}").parse()?, port: PORT, connection })
    };
    let mut settings = field.settings()?;
    settings.protected =
        vec![range(0, 25, Some(1))?, range(64, 26, Some(2))?, range(70, 32, Some(3))?, range(80, 28, None)?];
    let _servers = (Server::start(field.v4(200))?, Server::start(SocketAddr::new(field.v4(1).ip(), PORT + 1))?);
    let kernel = Kernel::start(&settings)?;
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    for (last, connection) in [(0, 1), (63, 1), (64, 2), (70, 3), (71, 2), (127, 2)] {
        let outcome = field.connect(&agent, field.v4(last))?;
        assert!(outcome.is_redirected(id, field.v4(last)), ".{last}: {outcome:?}");
        assert!(matches!(outcome.answer, Some(Answer::Accepted { connection: noted, .. }) if noted == connection));
        assert!(field.connect(&outside, field.v4(last))?.is_refused(), ".{last}");
    }
    // Protected without a connection: agents as well.
    assert!(field.connect(&agent, field.v4(85))?.is_refused());
    // Beside the range, and beside the port.
    assert!(connected(&field.connect(&agent, field.v4(200))?));
    assert!(connected(&field.connect(&outside, SocketAddr::new(field.v4(1).ip(), PORT + 1))?));

    kernel.set_protected(&[range(70, 32, Some(3))?])?;
    assert!(field.connect(&agent, field.v4(70))?.is_redirected(id, field.v4(70)));
    assert!(field.connect(&outside, field.v4(71))?.failed_with(Errno::CONNREFUSED));
    Ok(())
}

#[test]
fn in_another_network_namespace_an_agent_is_refused_and_cannot_take_the_port() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    let outcome = field.connector(&agent, &["tcp", &field.v4(1).to_string()]).in_network_namespace().run()?;
    assert!(outcome.failed_with(Errno::CONNREFUSED), "{outcome:?}");
    let listener = format!("127.0.0.1:{}", field.listener_port());
    let outcome = field.connector(&agent, &["bind", &listener, "0"]).in_network_namespace().run()?;
    assert!(outcome.is_refused(), "{outcome:?}");
    Ok(())
}

#[test]
fn nobody_but_the_daemon_binds_the_listeners_port_while_the_listener_is_dead() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent")?;
    let (outside, _) = field.cgroup("outside")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    drop(Front::start(&kernel)?);
    let daemon = field.cgroups().path(&field.daemon());
    let hosts = ["127.0.0.1", "0.0.0.0", "127.77.1.1", "[::1]", "[::]", "[::ffff:127.0.0.1]"];
    for host in hosts {
        for protocol in ["0", "262"] {
            let address = format!("{host}:{}", field.listener_port());
            for cgroup in [&agent, &outside] {
                let outcome = field.connector(cgroup, &["bind", &address, protocol]).run()?;
                assert!(outcome.is_refused(), "{address} {protocol}: {outcome:?}");
            }
            let outcome = field.connector(&daemon, &["bind", &address, protocol]).run()?;
            assert_eq!(outcome.errno, None, "{address} {protocol}");
        }
    }
    let outcome = field.connect(&agent, field.v4(1))?;
    assert!(outcome.failed_with(Errno::CONNREFUSED), "{outcome:?}");
    Ok(())
}

#[test]
fn a_connection_straight_to_the_listener_comes_without_a_note() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent")?;
    let (outside, _) = field.cgroup("outside")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    for host in ["127.0.0.1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]"] {
        let address = format!("{host}:{}", field.listener_port());
        for cgroup in [&agent, &outside] {
            let outcome = field.connector(cgroup, &["tcp", &address]).run()?;
            assert_eq!(outcome.answer, Some(Answer::Straight), "{address}: {outcome:?}");
        }
    }
    Ok(())
}

#[test]
fn a_refusal_is_told_with_who_and_where_and_why() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent")?;
    let (outside, outside_id) = field.cgroup("outside")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut events = {
        let _entered = runtime.enter();
        kernel.events()?
    };
    let mut next = || -> Result<KernelEvent> {
        Ok(runtime
            .block_on(async { tokio::time::timeout(end_to_end::kernel_support::PATIENCE, events.next()).await })??)
    };

    let outcome = field.connector(&outside, &["tcp", &field.v4(1).to_string()]).uid(NOBODY).run()?;
    let event = next()?;
    assert_eq!(
        (event.operation, event.reason, event.cgroup, event.destination, event.uid, event.pid, event.comm.as_str()),
        (Operation::Connect, Reason::Outside, Some(outside_id), field.v4(1), NOBODY, outcome.own_pid, "connector")
    );

    let (below, _) = field.cgroup("agent/below")?;
    field.connector(&below, &["udp-send", &field.v6().to_string()]).run()?;
    let event = next()?;
    assert_eq!(
        (event.operation, event.reason, event.cgroup, event.destination),
        (Operation::Send, Reason::NotTcp, Some(id), field.v6())
    );

    let listener: SocketAddr = format!("127.0.0.1:{}", field.listener_port()).parse()?;
    field.connector(&agent, &["bind", &listener.to_string(), "0"]).run()?;
    let event = next()?;
    assert_eq!((event.operation, event.reason, event.destination), (Operation::Bind, Reason::PortKept, listener));

    field.connector(&agent, &["socket", "2", "3", "255"]).run()?;
    let event = next()?;
    assert_eq!((event.operation, event.reason, event.socket), (Operation::Socket, Reason::SocketKind, (2, 3, 255)));

    assert!(kernel.events().is_err(), "a second reader would take the first one's events");
    assert_eq!(kernel.dropped_events()?, 0);
    Ok(())
}

#[test]
fn refusals_that_find_the_ring_full_are_counted_and_refused_all_the_same() -> Result<()> {
    let field = Field::new()?;
    let (outside, _) = field.cgroup("outside")?;
    let kernel = field.start()?;
    let address = field.v4(1).to_string();
    // 256 KiB hold 3,276 entries of 80 bytes.
    let outcome = field.connector(&outside, &["many", "4000", "2", &address]).run()?;
    assert_eq!((outcome.good, outcome.bad.len()), (0, 4000));
    assert!(outcome.bad.iter().all(|told| told.contains("Operation not permitted")), "{:?}", outcome.bad.first());
    let dropped = kernel.dropped_events()?;
    assert!((600..=1000).contains(&dropped), "{dropped}");
    Ok(())
}

#[test]
fn at_the_root_a_socket_is_caught_wherever_it_was_made() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let server = Server::start(v4)?;
    let (agent, id) = field.cgroup("agent")?;
    let kernel = Kernel::start(&Field::at_root(field.settings()?)?)?;
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    let root = field.cgroups().mount().to_owned();
    let agent_folder = agent.to_str().context("a path that is not UTF-8")?;
    let moved = field.connector(&root, &["made-before", agent_folder, &v4.to_string()]).run()?;
    assert!(moved.is_redirected(id, v4), "{moved:?}");
    assert!(field.connect(&root, v4)?.is_refused());
    assert_eq!(server.reached(), 0);
    let ours = kernel.programs_at_scope()?.into_iter().filter(|program| program.ours).count();
    assert_eq!(ours, OUR_PROGRAMS);
    Ok(())
}

/// What the object has, counted here on purpose: a program that is forgotten at the scope is a hole.
const OUR_PROGRAMS: usize = 12;

#[test]
fn an_agent_that_is_unenrolled_is_outside_from_then_on() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    assert_eq!(kernel.enrolled()?, [id]);
    assert!(field.connect(&agent, field.v4(1))?.is_redirected(id, field.v4(1)));
    kernel.unenrol(id)?;
    assert_eq!(kernel.enrolled()?, []);
    assert!(field.connect(&agent, field.v4(1))?.is_refused());
    Ok(())
}

#[test]
fn a_cgroup_that_is_killed_is_empty_and_can_be_removed() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent/run")?;
    let running = field.connector(&agent, &["hang", "0", &field.v4(9).to_string()]).start()?;
    let root = field.cgroups();
    let cgroup = root.of_process(running.pid()).context("no cgroup")?;
    assert_eq!(root.id(&cgroup)?, id);
    assert_eq!(root.path_of(id)?.as_deref(), Some(cgroup.as_str()));
    assert!(root.is_populated(&cgroup)?);
    root.kill(&cgroup)?;
    poll("the cgroup to be empty", || Ok(!root.is_populated(&cgroup)?))?;
    running.kill()?;
    root.remove(&cgroup)?;
    assert_eq!(root.path_of(id)?, None);
    Ok(())
}

#[test]
fn a_port_that_every_user_may_bind_is_no_listeners() -> Result<()> {
    let field = Field::new()?;
    let mut settings = field.settings()?;
    settings.listener_port = 20_000 + field.listener_port();
    let kernel = Kernel::start(&settings)?;
    let Err(error) = Front::start(&kernel) else { panic!("bound") };
    assert!(error.to_string().contains("is not privileged"), "{error}");
    Ok(())
}

#[test]
fn programs_of_others_at_the_scope_are_told_from_ours() -> Result<()> {
    let field = Field::new()?;
    let kernel = field.start()?;
    assert!(kernel.programs_at_scope()?.iter().all(|program| program.ours));
    let mut settings = field.settings()?;
    settings.pins.set_file_name("another");
    settings.listener_port += 200;
    let _other = Kernel::start(&settings)?;
    let programs = kernel.programs_at_scope()?;
    let names = |ours| {
        let mut names: Vec<_> =
            programs.iter().filter(|program| program.ours == ours).map(|program| program.name.as_str()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!((names(true).len(), names(true)), (OUR_PROGRAMS, names(false)));
    assert!(names(false).contains(&"connect4") && names(false).contains(&"sock_create"));
    detach(&settings.pins)?;
    Ok(())
}

#[test]
fn this_machine_has_all_that_the_redirect_needs() -> Result<()> {
    let field = Field::new()?;
    for check in probe(&field.pins(), field.listener_port()) {
        assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
    }
    let checks = probe(&field.pins(), 65_535);
    let failed: Vec<_> = checks.iter().filter(|check| check.verdict != Verdict::Ok).map(|check| check.name).collect();
    assert_eq!(failed, ["listener's port"]);
    Ok(())
}

#[test]
fn settings_that_contradict_themselves_are_refused_and_change_nothing() -> Result<()> {
    let field = Field::new()?;
    let (_, agent) = field.cgroup("agent")?;
    let (outside, _) = field.cgroup("outside")?;
    let v4 = field.v4(1);
    let kernel = field.start()?;
    kernel.enrol(agent, Egress::OPEN)?;
    let told = |result: Result<(), RedirectError>| result.map_err(|error| error.to_string()).unwrap_err();
    assert_eq!(
        told(kernel.set_protected(&[protected(v4, 1), protected(v4, 2)])),
        format!("{v4} belongs to two connections")
    );
    let listener = SocketAddr::new(v4.ip(), field.listener_port());
    assert!(told(kernel.set_protected(&[protected(listener, 1)])).contains("is the listener's"));
    assert!(told(kernel.set_protected(&[protected(v4, u32::MAX)])).contains("is not the index"));
    assert!(told(kernel.set_allowed(&[], &[agent])).contains("registered as Agent"));
    assert!(told(kernel.set_daemon_cgroup(agent)).contains("registered as Agent"));
    assert!(told(kernel.enrol(field.settings()?.daemon_cgroup, Egress::OPEN)).contains("registered as Daemon"));
    assert_eq!(kernel.enrolled()?, [agent]);
    assert!(field.connect(&outside, field.v6())?.is_refused());
    Ok(())
}
