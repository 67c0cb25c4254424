//! What is pinned: it enforces without a daemon, is adopted by the next one without a gap, and goes with `detach`.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use end_to_end::kernel_support::{Answer, Field, Front, Server, poll, protected};
use gateway_daemon::redirect::{Egress, Kernel, detach, is_pinned};
use rustix::io::Errno;

/// A daemon in a process of its own.
struct Redirector(Child);

impl Redirector {
    fn start(field: &Field, agents: &[&Path]) -> Result<Self> {
        let settings = field.settings()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_redirector"));
        command.arg(&settings.scope).arg(&settings.pins).arg(settings.listener_port.to_string());
        command.arg(field.cgroups().path(&field.daemon()));
        for address in [field.v4(1), field.v6()] {
            command.args(["protect", &address.to_string()]);
        }
        for agent in agents {
            command.arg("enrol").arg(agent);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut first = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut first)?;
        ensure!(first == "ready\n", "the redirector did not start: {first}");
        Ok(Self(child))
    }

    fn kill(mut self) -> Result<()> {
        self.0.kill()?; // SIGKILL
        self.0.wait()?;
        Ok(())
    }
}

#[test]
fn after_the_daemon_is_killed_agents_are_refused_and_the_next_one_serves_them() -> Result<()> {
    let field = Field::new()?;
    let (v4, v6) = (field.v4(1), field.v6());
    let servers = [Server::start(v4)?, Server::start(v6)?];
    let (agent, id) = field.cgroup("agent")?;
    let (outside, _) = field.cgroup("outside")?;
    let redirector = Redirector::start(&field, &[&agent])?;
    assert!(field.connect(&agent, v4)?.is_redirected(id, v4));
    redirector.kill()?;
    for address in [v4, v6] {
        assert!(field.connect(&agent, address)?.failed_with(Errno::CONNREFUSED));
        assert!(field.connect(&outside, address)?.is_refused());
    }
    let port = format!("127.0.0.1:{}", field.listener_port());
    assert!(field.connector(&agent, &["bind", &port, "0"]).run()?.is_refused());

    let kernel = field.start()?;
    assert_eq!(kernel.enrolled()?, [id], "the enrolment is adopted");
    let _front = Front::start(&kernel)?;
    assert!(field.connect(&agent, v4)?.is_redirected(id, v4));
    assert_eq!(servers.iter().map(Server::reached).sum::<usize>(), 0);
    Ok(())
}

/// Starts over the pins, each of which updates twelve links.
const RESTARTS: usize = 10;

#[test]
fn starts_over_the_pins_while_an_agent_connects_let_nothing_pass() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let server = Server::start(v4)?;
    let (agent, id) = field.cgroup("agent")?;
    let (outside, _) = field.cgroup("outside")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    let before = programs(&kernel)?;
    let done = AtomicBool::new(false);
    let address = v4.to_string();
    std::thread::scope(|scope| -> Result<()> {
        let restarts = scope.spawn(|| {
            let result = (0..RESTARTS).try_for_each(|_| field.start().map(drop));
            done.store(true, Ordering::SeqCst);
            result
        });
        while !done.load(Ordering::SeqCst) {
            let connector = field.connector(&outside, &["many", "200", "1", &address]);
            let refused = scope.spawn(move || connector.run());
            let inside = field.connector(&agent, &["many", "400", "2", &address]).run()?;
            let refused = refused.join().unwrap_or_else(|_| bail!("panicked"))?;
            assert_eq!((inside.good, inside.bad.first()), (400, None));
            assert_eq!((refused.good, refused.bad.len()), (0, 200));
            assert!(refused.bad.iter().all(|told| told.contains("not permitted")), "{:?}", refused.bad.first());
        }
        restarts.join().unwrap_or_else(|_| bail!("panicked"))
    })?;
    assert_eq!(server.reached(), 0);
    assert_eq!(kernel.pending_entries(), 0);
    let after = programs(&kernel)?;
    assert_eq!(before.len(), after.len(), "replaced, not added to");
    assert!(before.iter().all(|id| !after.contains(id)), "{before:?} {after:?}");
    Ok(())
}

fn programs(kernel: &Kernel) -> Result<Vec<u32>> {
    Ok(kernel.programs_at_scope()?.into_iter().filter(|program| program.ours).map(|program| program.id).collect())
}

#[test]
fn the_kill_of_a_daemon_under_load_lets_nothing_pass() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let server = Server::start(v4)?;
    let (agent, id) = field.cgroup("agent")?;
    let address = v4.to_string();
    for _ in 0..5 {
        let redirector = Redirector::start(&field, &[&agent])?;
        let load = field.connector(&agent, &["many", "1000", "4", &address]);
        let worker = std::thread::spawn(move || load.run());
        poll("the load to run", || Ok(field.connect(&agent, v4)?.is_redirected(id, v4)))?;
        redirector.kill()?;
        let outcome = worker.join().unwrap_or_else(|_| bail!("panicked"))?;
        assert!(outcome.bad.iter().all(|told| !told.contains("Server")), "{:?}", outcome.bad.first());
    }
    assert_eq!(server.reached(), 0);
    let kernel = field.start()?;
    poll("no entry to be left", || Ok(kernel.pending_entries() == 0))?;
    Ok(())
}

#[test]
fn detach_takes_everything_away_and_says_what() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let _server = Server::start(v4)?;
    let (agent, id) = field.cgroup("agent")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    drop(kernel);
    assert!(field.connect(&agent, v4)?.failed_with(Errno::CONNREFUSED), "dropping takes nothing away");
    let taken = detach(&field.pins())?;
    for part in ["link_connect4", "link_sock_create", "map_TARGETS", "folder"] {
        assert!(taken.iter().any(|line| line.contains(part)), "{part}: {taken:?}");
    }
    assert!(!is_pinned(&field.pins()));
    // The kernel lets go of a link a moment after its last pin is gone.
    end_to_end::wait_until("the road is open", std::time::Duration::from_secs(10), || {
        Ok((field.connect(&agent, v4)?.answer == Some(Answer::Server)).then_some(()))
    })?;
    assert_eq!(detach(&field.pins())?, Vec::<String>::new());
    Ok(())
}

#[test]
fn another_versions_links_go_only_when_the_new_ones_stand_and_its_agents_stay_agents() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let server = Server::start(v4)?;
    let (agent, id) = field.cgroup("agent")?;
    let free = std::net::SocketAddr::new(field.v4(9).ip(), field.own_port() + 200);
    let _free = Server::start(free)?;
    let (slice, fence) = field.cgroup("weir.slice")?;
    let (outside, _) = field.cgroup("outside")?;
    let kernel = field.start()?;
    kernel.enrol(id, Egress::OPEN)?;
    kernel.set_fence(fence)?;
    assert_eq!(field.connect(&agent, free)?.answer, Some(Answer::Server));
    drop(kernel);
    // As a version with another layout would have left them: its maps aren't touched.
    let old = field.pins().join("layout-0");
    fs::rename(field.pins().join(gateway_daemon::redirect::LAYOUT), &old)?;
    let kernel = field.start()?;
    assert!(!old.exists());
    assert!(kernel.retired().iter().any(|line| line.contains("layout-0/link_connect4")), "{:?}", kernel.retired());
    // Agents stay agents, and what they reach is said anew: it was not, so it is nothing. So does the fence.
    assert_eq!(kernel.enrolled()?, [id]);
    assert!(field.connect(&agent, v4)?.failed_with(Errno::CONNREFUSED));
    assert!(field.connect(&agent, free)?.is_refused());
    assert!(field.connect(&slice, free)?.is_refused());
    assert_eq!(field.connect(&outside, free)?.answer, Some(Answer::Server));
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    assert!(field.connect(&agent, v4)?.is_redirected(id, v4));
    assert_eq!(server.reached(), 0);
    assert_eq!(programs(&kernel)?.len(), kernel.programs_at_scope()?.len(), "nothing else is left at the scope");
    Ok(())
}

#[test]
fn a_new_scope_is_covered_before_the_old_one_is_left() -> Result<()> {
    let field = Field::new()?;
    let v4 = field.v4(1);
    let _server = Server::start(v4)?;
    let (inner, _) = field.cgroup("inner")?;
    let (below, _) = field.cgroup("inner/below")?;
    let (beside, _) = field.cgroup("beside")?;
    let mut settings = field.settings()?;
    settings.scope = inner;
    drop(Kernel::start(&settings)?);
    assert!(field.connect(&below, v4)?.is_refused());
    assert_eq!(field.connect(&beside, v4)?.answer, Some(Answer::Server), "outside the scope nothing is caught");
    drop(field.start()?);
    assert!(field.connect(&below, v4)?.is_refused());
    assert!(field.connect(&beside, v4)?.is_refused());
    Ok(())
}

#[test]
fn what_was_protected_stays_until_the_daemon_says_otherwise() -> Result<()> {
    let field = Field::new()?;
    let (outside, _) = field.cgroup("outside")?;
    drop(field.start()?);
    let mut settings = field.settings()?;
    settings.protected = vec![protected(field.v4(3), 3)];
    let kernel = Kernel::start(&settings)?;
    for last in [1, 2, 3] {
        assert!(field.connect(&outside, field.v4(last))?.is_refused(), ".{last}");
    }
    kernel.set_protected(&settings.protected)?;
    assert!(field.connect(&outside, field.v4(1))?.failed_with(Errno::CONNREFUSED));
    assert!(field.connect(&outside, field.v4(3))?.is_refused());
    Ok(())
}

#[test]
fn another_listener_port_takes_the_place_of_the_one_before() -> Result<()> {
    let field = Field::new()?;
    let (agent, id) = field.cgroup("agent")?;
    drop(field.start()?);
    let old = format!("127.0.0.1:{}", field.listener_port());
    assert!(field.connector(&agent, &["bind", &old, "0"]).run()?.is_refused());
    let mut settings = field.settings()?;
    settings.listener_port += 200;
    let kernel = Kernel::start(&settings)?;
    kernel.enrol(id, Egress::OPEN)?;
    let _front = Front::start(&kernel)?;
    assert_eq!(field.connector(&agent, &["bind", &old, "0"]).run()?.errno, None);
    assert!(field.connect(&agent, field.v4(1))?.is_redirected(id, field.v4(1)));
    // A protected port can't be the listener's, nor the other way round.
    settings.listener_port = field.v4(1).port();
    assert!(Kernel::start(&settings).is_err());
    Ok(())
}
