//! Identity cannot be borrowed: sockets that change hands, notes that outlive their connect, ports taken over, and
//! thousands of connections at once.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixStream,
};

use anyhow::{Context as _, Result};
use end_to_end::kernel_support::{Answer, Field, Front, Outcome, Server, poll};
use gateway_daemon::redirect::{Egress, MOST_HANDSHAKES};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketType},
};

#[test]
fn a_socket_speaks_as_the_task_that_connects_it_whoever_made_it() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let server = Server::start(v4)?;
    let (agent_a, a) = field.cgroup("agent-a")?;
    let (agent_b, b) = field.cgroup("agent-b")?;
    let (outside, _) = field.cgroup("outside")?;
    let kernel = field.start()?;
    kernel.enrol(a, Egress::OPEN)?;
    kernel.enrol(b, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    let address = v4.to_string();
    let folder = agent_a.to_str().context("a path that is not UTF-8")?;

    let moved = field.connector(&outside, &["made-before", folder, &address]).run()?;
    assert!(moved.is_redirected(a, v4), "made outside, its process moved inside: {moved:?}");

    let made_here = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let inherited = field.connector(&agent_b, &["inherited", &address]).stdin(made_here).run()?;
    assert!(inherited.is_redirected(b, v4), "made by the parent: {inherited:?}");

    for verb in ["ring-made-before", "poll-ring-made-before"] {
        let moved = field.connector(&outside, &[verb, folder, &address]).run()?;
        assert!(moved.is_redirected(a, v4), "{verb}, its process moved inside: {moved:?}");
    }

    // Through SCM_RIGHTS, from each to each.
    for (maker, user, expected) in
        [(&outside, &agent_a, Some(a)), (&agent_a, &agent_b, Some(b)), (&agent_a, &outside, None)]
    {
        let (theirs, ours) = UnixStream::pair()?;
        field.connector(maker, &["give"]).stdin(theirs.into()).run()?;
        let outcome = field.connector(user, &["take", &address]).stdin(ours.into()).run()?;
        match expected {
            Some(agent) => assert!(outcome.is_redirected(agent, v4), "{outcome:?}"),
            None => assert!(outcome.is_refused(), "made inside, used outside: {outcome:?}"),
        }
    }
    assert_eq!(server.reached(), 0);
    Ok(())
}

#[test]
fn a_note_does_not_outlive_its_connect() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let (agent_a, a) = field.cgroup("agent-a")?;
    let (agent_b, b) = field.cgroup("agent-b")?;
    let (outside, _) = field.cgroup("outside")?;
    let kernel = field.start()?;
    kernel.enrol(a, Egress::OPEN)?;
    kernel.enrol(b, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    for host in ["127.0.0.1", "0.0.0.0", "127.77.0.9"] {
        for thief in [&agent_b, &outside] {
            let (theirs, ours) = UnixStream::pair()?;
            // Agent a connects, is answered, disconnects, and passes the socket on …
            let used = field.connector(&agent_a, &["give-used", &v4.to_string()]).stdin(theirs.into()).run()?;
            assert!(used.is_redirected(a, v4), "{used:?}");
            // … to who goes straight to the listener with it.
            let listener = format!("{host}:{}", field.listener_port());
            let outcome = field.connector(thief, &["take", &listener]).stdin(ours.into()).run()?;
            // 127.77.0.9 leads there as well, and nobody listens on it.
            let refused = host == "127.77.0.9" && outcome.failed_with(Errno::CONNREFUSED);
            assert!(refused || outcome.answer == Some(Answer::Straight), "{host}: {outcome:?}");
        }
    }
    Ok(())
}

#[test]
fn a_failed_connect_leaves_nothing_for_whoever_takes_its_port_over() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let (agent_a, a) = field.cgroup("agent-a")?;
    let (agent_b, b) = field.cgroup("agent-b")?;
    let kernel = field.start()?;
    kernel.enrol(a, Egress::OPEN)?;
    kernel.enrol(b, Egress::OPEN)?;
    let source = format!("127.0.0.1:{}", field.own_port());
    // Nobody listens: refused. The entry must go with the attempt.
    let failed = field.connector(&agent_a, &["from-port", &source, &v4.to_string()]).run()?;
    assert!(failed.failed_with(Errno::CONNREFUSED), "{failed:?}");
    assert_eq!(kernel.pending_entries(), 0);
    let _front = Front::start(&kernel)?;
    let listener = format!("127.0.0.1:{}", field.listener_port());
    let thief = field.connector(&agent_b, &["from-port", &source, &listener]).run()?;
    assert_eq!(thief.answer, Some(Answer::Straight), "{thief:?}");
    Ok(())
}

#[test]
fn connects_that_fail_or_never_complete_leave_no_entry() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1).to_string();
    let (agent, id) = field.cgroup("agent")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    let refused = field.connector(&agent, &["many", "500", "2", &v4]).run()?;
    assert_eq!((refused.good, refused.bad.len()), (0, 500));
    assert_eq!(kernel.pending_entries(), 0);

    // A listener that accepts nothing, with hardly a queue: most of the handshakes wait in SYN_SENT.
    let silent = silent_listener(field.listener_port())?;
    let running = field.connector(&agent, &["hang", "400", &v4]).start()?;
    assert_eq!(running.first, "hanging\n");
    assert!(kernel.pending_entries() > 100, "{} handshakes wait", kernel.pending_entries());
    running.finish()?;
    poll("the given up connects to leave no entry", || Ok(kernel.pending_entries() == 0))?;
    drop(silent);
    Ok(())
}

#[test]
fn an_agent_that_leaves_its_handshakes_hanging_is_refused_and_keeps_no_other_out() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let (agent_a, a) = field.cgroup("agent-a")?;
    let (below, _) = field.cgroup("agent-a/below")?;
    let (agent_b, b) = field.cgroup("agent-b")?;
    let kernel = field.start()?;
    kernel.enrol(a, Egress::OPEN)?;
    kernel.enrol(b, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    // So many that a process holds less than a thousand descriptors.
    let (most, each) = (usize::try_from(MOST_HANDSHAKES)?, 512);
    let hang = || field.connector(&agent_a, &["hang-deaf", &each.to_string(), &v4.to_string()]).start();
    let mut hanging = (0..most / each).map(|_| hang()).collect::<Result<Vec<_>>>()?;
    assert!(hanging.iter().all(|running| running.first == "hanging\n"));
    assert_eq!((kernel.pending_entries(), kernel.counted_handshakes()?), (most, MOST_HANDSHAKES));
    for cgroup in [&agent_a, &below] {
        for way in ["tcp", "fastopen", "nonblocking", "mptcp"] {
            let outcome = field.connector(cgroup, &[way, &v4.to_string()]).run()?;
            assert!(outcome.is_refused(), "{way}: {outcome:?}");
        }
    }
    let outcome = field.connect(&agent_b, v4)?;
    assert!(outcome.is_redirected(b, v4), "{outcome:?}");
    // One place that is free again is enough.
    hanging.pop().context("none hangs")?.finish()?;
    assert!(field.connect(&agent_a, v4)?.is_redirected(a, v4));
    for running in hanging {
        running.finish()?;
    }
    poll("nothing to be counted", || Ok(kernel.counted_handshakes()? == 0 && kernel.pending_entries() == 0))
}

#[test]
fn a_connection_is_not_counted_any_more_once_the_other_end_was_heard() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1).to_string();
    let (agent, id) = field.cgroup("agent")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    let listener = TcpListener::bind(("127.0.0.1", field.listener_port()))?;
    let mute = field.connector(&agent, &["stay", "", &v4]).start()?;
    let _mute_here = listener.accept()?;
    assert_eq!((kernel.pending_entries(), kernel.counted_handshakes()?), (0, 1), "nothing was heard since");
    let stays = field.connector(&agent, &["stay", "x", &v4]).start()?;
    let (mut here, _) = listener.accept()?;
    here.read_exact(&mut [0])?;
    poll("the one alone to be counted that was not answered", || Ok(kernel.counted_handshakes()? == 1))?;
    stays.finish()?;
    mute.finish()?;
    poll("nothing to be counted", || Ok(kernel.counted_handshakes()? == 0))
}

#[test]
fn the_next_agent_in_a_cgroups_place_does_not_answer_for_the_one_before() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let (agent_a, a) = field.cgroup("agent-a")?;
    let (agent_b, b) = field.cgroup("agent-b")?;
    let kernel = field.start()?;
    kernel.enrol(a, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    let hanging = field.connector(&agent_a, &["hang-deaf", "10", &v4.to_string()]).start()?;
    kernel.unenrol(a)?;
    kernel.enrol(b, Egress::OPEN)?;
    let staying = field.connector(&agent_b, &["hang-deaf", "3", &v4.to_string()]).start()?;
    assert_eq!(kernel.counted_handshakes()?, 13);
    hanging.finish()?;
    poll("those of the one before to go", || Ok(kernel.counted_handshakes()? == 3))?;
    assert!(field.connect(&agent_b, v4)?.is_redirected(b, v4));
    staying.finish()?;
    poll("nothing to be counted", || Ok(kernel.counted_handshakes()? == 0))
}

fn silent_listener(port: u16) -> Result<std::os::fd::OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], port)))?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

#[test]
fn thousands_of_connections_of_two_agents_never_mix() -> Result<()> {
    let field = Field::new()?;
    let addresses = [field.v4(1), field.v4(2), field.mapped(1), field.v6()];
    let servers = [Server::start(field.v4(1))?, Server::start(field.v4(2))?, Server::start(field.v6())?];
    let agents = [field.cgroup("agent-a")?, field.cgroup("agent-b")?];
    let kernel = field.start()?;
    for (_, id) in &agents {
        kernel.enrol(*id, Egress::OPEN)?;
    }
    let _front = Front::start(&kernel)?;
    let texts = addresses.map(|address| address.to_string());
    let outcomes: Vec<Result<Outcome>> = std::thread::scope(|scope| {
        let workers: Vec<_> = agents
            .iter()
            .map(|(folder, _)| {
                let mut verb = vec!["many", "3000", "6"];
                verb.extend(texts.iter().map(String::as_str));
                let connector = field.connector(folder, &verb);
                scope.spawn(move || connector.run())
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("panicked"))).collect()
    });
    for outcome in outcomes {
        let outcome = outcome?;
        assert_eq!((outcome.good, &outcome.bad[..outcome.bad.len().min(3)]), (3000, &[][..]));
    }
    assert_eq!(servers.iter().map(Server::reached).sum::<usize>(), 0);
    assert_eq!((kernel.pending_entries(), kernel.counted_handshakes()?), (0, 0));
    Ok(())
}
