//! `weir agent assign`: a tree that runs already becomes an agent, or every reason is told why it cannot.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::kernel_support::{Worker, ring};
use end_to_end::{Agent, Database, Program, Ran, Weir, wait_until};
use serde_json::Value;

use crate::stage::{CLAUDE, Client, confined, log, reader, rows, text};

const SOON: Duration = Duration::from_secs(20);

fn assign(weir: &Weir, agent: &Agent<'_>, pid: u32) -> Result<Ran> {
    let token = agent.token_file().display().to_string();
    weir.weir(["agent", "assign", CLAUDE, "--pid", &pid.to_string(), "--token-file", &token])
}

/// A client as the agent's user, confined, that was started in the scope by somebody else than Weir.
fn stranger(weir: &Weir, agent: &Agent<'_>, database: &Database) -> Result<Client> {
    let words = confined(agent.user()).map(str::to_owned).into_iter().chain(Client::words(database)?);
    Client::of(weir.setup().scope().program("elsewhere", words)?)
}

fn cgroup_of(pid: u32) -> Result<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(table.lines().find_map(|line| line.strip_prefix("0::")).context("no v2 cgroup")?.to_owned())
}

#[test]
fn a_tree_that_runs_already_becomes_an_agent() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let mut client = stranger(&weir, &agent, &database)?;
    client.connect()?.refused()?;

    let told = assign(&weir, &agent, client.pid())?.succeeded()?;
    assert!(told.contains("1 processes") && told.contains("0 connections"), "{told}");
    client.connect()?.rows()?;
    client.sql("SELECT 'as an agent'")?.rows()?;
    let log = log(&weir)?;
    let asked = log.iter().find(|row| text(row, "/event/request/sql").contains("as an agent")).context("no record")?;
    assert_eq!(text(asked, "/session/agent"), CLAUDE);
    let dumped = fs::read_to_string(format!("/proc/{}/coredump_filter", client.pid()))?;
    assert_eq!(dumped.trim(), "00000000");

    // It is a run as any other: listed, taken once, and over with its last process.
    let agents = rows(&weir.weir(["agent", "list", "--json"])?)?;
    let pid = agents.first().and_then(|agent| agent.pointer("/runs/0/pid")).and_then(Value::as_u64);
    assert_eq!(pid, Some(client.pid().into()));
    let again = assign(&weir, &agent, client.pid())?.failed()?;
    assert!(again.contains("a run's already"), "{again}");
    drop(client);
    wait_until("the run ends", SOON, || {
        let agents = rows(&weir.weir(["agent", "list", "--json"])?)?;
        let runs = agents.first().and_then(|agent| agent.pointer("/runs")).and_then(Value::as_array);
        Ok(runs.is_some_and(Vec::is_empty).then_some(()))
    })
}

#[test]
fn a_connection_that_a_tree_has_already_is_destroyed() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    // Outside of the scope nobody polices it: as a connection that was there before the daemon.
    let words = confined(agent.user()).map(str::to_owned).into_iter().chain(Client::words(&database)?);
    let mut client = Client::of(Program::new(words))?;
    client.connect()?.rows()?;
    client.sql("SELECT 'past Weir'")?.rows()?;

    let told = assign(&weir, &agent, client.pid())?.succeeded()?;
    assert!(told.contains("1 connections"), "{told}");
    client.sql("SELECT 'past Weir again'")?.refused()?;
    client.connect()?.rows()?;
    client.sql("SELECT 'through Weir'")?.rows()?;
    let log = log(&weir)?;
    let asked: Vec<&str> =
        log.iter().map(|row| text(row, "/event/request/sql")).filter(|sql| !sql.is_empty()).collect();
    assert!(asked.iter().any(|sql| sql.contains("through Weir")), "{asked:?}");
    assert!(!asked.iter().any(|sql| sql.contains("past Weir")), "{asked:?}");
    Ok(())
}

/// Makes children and grandchildren all the time, of which some lose their parent.
const FORKS: &str = r#"
import os, sys, time
for _ in range(3):
    if os.fork() == 0:
        while True:
            if os.fork() == 0:
                if os.fork() == 0:
                    time.sleep(0.3)
                os._exit(0)
            time.sleep(0.005)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]: pass
            except ChildProcessError: pass
print('forking', flush=True)
sys.stdin.read()
"#;

#[test]
fn no_process_of_a_tree_that_forks_is_left_behind() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let words = confined(agent.user()).into_iter().chain(["/usr/bin/python3", "-c", FORKS]);
    let mut command = weir.setup().scope().program("elsewhere", words)?.into_command();
    let mut forking = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = [0; 7];
    std::io::Read::read_exact(forking.stdout.as_mut().context("no pipe")?, &mut line)?;
    let told = assign(&weir, &agent, forking.id())?;
    let elsewhere = fs::read_to_string(weir.setup().scope().path.join("elsewhere/cgroup.procs"))?;
    let run = cgroup_of(forking.id())?;
    forking.kill()?;
    forking.wait()?;
    told.succeeded()?;
    assert_eq!(elsewhere, "");
    assert!(run.contains(&format!("/agents/{CLAUDE}/")), "{run}");
    Ok(())
}

/// A process that a test looks after.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A process that sleeps, run by `words`, with `held` as its standard input.
fn sleeper(weir: &Weir, words: &[&str], held: Option<OwnedFd>) -> Result<Kept> {
    let words = words.iter().copied().chain(["sleep", "1000"]);
    // A cgroup for each: what of one user lies in one cgroup is taken for one tree.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let cgroup = format!("elsewhere/{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut command: Command = weir.setup().scope().program(&cgroup, words)?.into_command();
    let child = Kept(command.stdin(held.map_or_else(Stdio::null, Stdio::from)).spawn()?);
    let comm = format!("/proc/{}/comm", child.0.id());
    wait_until("it sleeps", SOON, || Ok((fs::read_to_string(&comm)? == "sleep\n").then_some(())))?;
    Ok(child)
}

#[test]
fn what_an_agent_could_not_have_is_told_and_nothing_is_moved() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let user = agent.user();
    let (plain, other) = (confined(user), confined("65534"));
    let roots = ["setpriv", "--reuid", user, "--regid", user, "--groups", "0", "--no-new-privs"];
    let privileged = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"];
    let namespace = [&plain[..], &["unshare", "--user"]].concat();
    let ring = || -> Result<Option<OwnedFd>> { Ok(Some(ring(Worker::Poll)?.as_fd().try_clone_to_owned()?)) };
    let switch = || -> Result<Option<OwnedFd>> {
        let scope = weir.setup().scope().path.join("cgroup.procs");
        Ok(Some(File::options().write(true).open(scope)?.into()))
    };
    let raw = || -> Result<Option<OwnedFd>> {
        use rustix::net::{AddressFamily, SocketType, ipproto, socket};
        Ok(Some(socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?))
    };
    let root_s = || sleeper(&weir, &[], None);
    let cases: Vec<(Kept, &[&str])> = vec![
        (root_s()?, &["lacks no_new_privs", "holds capabilities (permitted, effective", "runs as uid 0", "`root`"]),
        (sleeper(&weir, &other, None)?, &["runs as uid 65534, not as uid"]),
        (sleeper(&weir, &privileged, None)?, &["lacks no_new_privs"]),
        (sleeper(&weir, &roots, None)?, &["is in the group `root`"]),
        (sleeper(&weir, &namespace, None)?, &["is in another user namespace"]),
        (sleeper(&weir, &plain, ring()?)?, &["holds an io_uring", "descriptor 0"]),
        (sleeper(&weir, &plain, switch()?)?, &["cgroup.procs`, opened so that it may change the system"]),
        (sleeper(&weir, &plain, raw()?)?, &["holds a socket of family 2 and protocol 1"]),
    ];
    for (case, expected) in &cases {
        let pid = case.0.id();
        let before = cgroup_of(pid)?;
        let refused = assign(&weir, &agent, pid)?.failed()?;
        for expected in *expected {
            ensure!(refused.contains(expected), "`{expected}` is not in: {refused}");
        }
        ensure!(refused.contains(&format!("process {pid} (`sleep`)")), "{refused}");
        assert_eq!(cgroup_of(pid)?, before);
        let stat = fs::read_to_string(format!("/proc/{pid}/status"))?;
        ensure!(stat.contains("State:\tS"), "it does not run on: {stat}");
    }
    drop(cases);
    let missing = assign(&weir, &agent, 4_000_000)?.failed()?;
    assert!(missing.contains("there is no process 4000000"), "{missing}");
    let refusals = log(&weir)?;
    let refusals = refusals.iter().filter(|row| text(row, "/event/admin/what") == "agent-assign-refused");
    assert_eq!(refusals.count(), 9);
    let runs = weir.setup().scope().path.join(format!("weir/agents/{CLAUDE}"));
    wait_until("no run is left", SOON, || {
        let mut folders = fs::read_dir(&runs)?.flatten().filter(|entry| entry.path().is_dir());
        Ok(folders.next().is_none().then_some(()))
    })
}

#[test]
fn a_fault_deep_in_a_tree_is_told_with_its_process() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let script = "sleep 1000 & unshare --user sleep 1000 & wait";
    let words = confined(agent.user()).into_iter().chain(["sh", "-c", script]);
    let tree = Kept(weir.setup().scope().program("elsewhere", words)?.into_command().stdin(Stdio::null()).spawn()?);
    wait_until("all of it runs", SOON, || {
        let procs = fs::read_to_string(weir.setup().scope().path.join("elsewhere/cgroup.procs"))?;
        let names = procs.lines().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        Ok((names.filter(|name| name == "sleep\n").count() == 2).then_some(()))
    })?;
    let refused = assign(&weir, &agent, tree.0.id())?.failed()?;
    fs::write(weir.setup().scope().path.join("elsewhere/cgroup.kill"), "1")?;
    assert_eq!(refused.matches("user namespace").count(), 1, "{refused}");
    assert_eq!(refused.matches("process ").count(), 1, "{refused}");
    assert!(refused.contains("(`sleep`)"), "{refused}");
    Ok(())
}

#[test]
fn only_root_assigns() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let weir_program = end_to_end::servers()?.weir.display().to_string();
    // A copy of the configuration that the user can read.
    let config = weir.setup().folder().join("shown.toml");
    fs::copy(weir.setup().folder().join("weir.toml"), &config)?;
    fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let config = config.display().to_string();
    let words = [&weir_program, "agent", "assign", CLAUDE, "--pid", "1", "--config", &config].map(String::from);
    let words = confined(agent.user()).map(String::from).into_iter().chain(words);
    let refused = weir.setup().scope().program("elsewhere", words)?.run()?.failed()?;
    assert!(refused.contains("only root"), "{refused}");
    Ok(())
}

/// Python that holds what `make` makes, and says when it does.
fn holder(weir: &Weir, agent: &Agent<'_>, make: &str) -> Result<(Kept, std::io::BufReader<std::process::ChildStdout>)> {
    use std::io::{BufRead, BufReader};
    let words = confined(agent.user()).into_iter().chain(["/usr/bin/python3", "-c", make]);
    let mut command = weir.setup().scope().program("elsewhere", words)?.into_command();
    let mut child = Kept(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    let mut said = BufReader::new(child.0.stdout.take().context("no pipe")?);
    let mut line = String::new();
    said.read_line(&mut line)?;
    ensure!(line == "ready\n", "it said `{line}`");
    Ok((child, said))
}

/// Its first thread ends by the system call itself; another one goes on.
const HEADLESS: &str = "import ctypes, threading, time, platform
threading.Thread(target=lambda: (print('ready', flush=True), time.sleep(1000))).start()
ctypes.CDLL(None).syscall(60 if platform.machine() == 'x86_64' else 93, 0)";

/// A parent of it.
const PARENT: &str = "import subprocess, sys
subprocess.Popen([sys.executable, '-c', HEADLESS]).wait()";

#[test]
fn a_process_whose_first_thread_has_ended_is_not_overlooked() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let parent = format!("HEADLESS = {HEADLESS:?}\n{PARENT}");
    let (parent, _said) = holder(&weir, &agent, &parent)?;
    let procs = weir.setup().scope().path.join("elsewhere/cgroup.procs");
    let child = wait_until("its first thread has ended", SOON, || {
        let ended =
            |pid: &&str| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
        Ok(fs::read_to_string(&procs)?.lines().find(ended).map(str::to_owned))
    })?;
    let refused = assign(&weir, &agent, parent.0.id())?.failed();
    // By its number: the kernel's `cgroup.kill` does not end such a one.
    Program::new(["kill", "-9", &child]).run()?.succeeded()?;
    let refused = refused?;
    assert!(refused.contains("has ended its first thread while others run"), "{refused}");
    Ok(())
}

#[test]
fn what_of_the_agent_s_user_has_left_the_tree_is_told() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let user = agent.user();
    let (tree, helper) = (sleeper(&weir, &confined(user), None)?, sleeper(&weir, &confined(user), None)?);
    let refused = assign(&weir, &agent, tree.0.id())?.failed()?;
    let expected = format!("process {} (`sleep`) has the agent's user as well", helper.0.id());
    assert!(refused.contains(&expected), "{refused}");
    drop(helper);
    assign(&weir, &agent, tree.0.id())?.succeeded()?;
    Ok(())
}

const CONNECTED: &str = "import socket, sys
tcp = socket.create_connection(('127.0.0.1', PORT))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(('127.0.0.1', PORT))
print('ready', flush=True)
sys.stdin.read(1)
for each in (tcp, udp):
    try: each.send(b'x'), print('sent', flush=True)
    except OSError as error: print('refused', error, flush=True)";

#[test]
fn connections_that_the_agent_s_egress_refuses_are_destroyed() -> Result<()> {
    use std::io::{BufRead, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let datagrams = std::net::UdpSocket::bind(("127.0.0.1", port))?;
    let database = Database::create()?;
    for (egress, answers) in [("closed", "refused"), ("open", "sent")] {
        let weir = Weir::start(|setup| {
            reader(setup, &database)?;
            let agents = setup.config.get_mut("agent").and_then(toml::Value::as_array_mut).context("no agents")?;
            let first = agents.first_mut().and_then(toml::Value::as_table_mut).context("no agent")?;
            first.insert("egress".into(), egress.into());
            Ok(())
        })?;
        let agent = weir.agent(CLAUDE)?;
        let (mut holder, said) = holder(&weir, &agent, &CONNECTED.replace("PORT", &port.to_string()))?;
        let told = assign(&weir, &agent, holder.0.id())?.succeeded()?;
        assert!(told.contains(if egress == "closed" { "2 connections" } else { "0 connections" }), "{told}");
        holder.0.stdin.as_mut().context("no pipe")?.write_all(b"x")?;
        let lines: Vec<String> = said.lines().take(2).collect::<std::io::Result<_>>()?;
        assert!(lines.iter().all(|line| line.starts_with(answers)), "{egress}: {lines:?}");
    }
    drop(datagrams);
    Ok(())
}

/// Sends a descriptor to itself, and takes it when it is told to.
const QUEUED: &str = "import os, socket, sys, time
one, other = socket.socketpair()
socket.send_fds(one, [b'x'], [0])
print('ready', flush=True)
sys.stdin.read(1)
socket.recv_fds(other, 1, 1)
print('taken', flush=True)
time.sleep(1000)";

#[test]
fn a_descriptor_on_its_way_through_a_unix_socket_is_told() -> Result<()> {
    use std::io::{BufRead, Write};
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let (mut holder, mut said) = holder(&weir, &agent, QUEUED)?;
    let refused = assign(&weir, &agent, holder.0.id())?.failed()?;
    assert!(refused.contains("a Unix socket with messages in it"), "{refused}");
    holder.0.stdin.as_mut().context("no pipe")?.write_all(b"x")?;
    said.read_line(&mut String::new())?;
    assign(&weir, &agent, holder.0.id())?.succeeded()?;
    Ok(())
}

#[test]
fn a_tree_that_a_daemon_left_half_moved_goes_back_and_runs() -> Result<()> {
    const PROCESSES: usize = 150;
    let database = Database::create()?;
    let mut weir = Weir::start(|setup| reader(setup, &database))?;
    let script = format!("for n in $(seq {}); do sleep 1000 & done; wait", PROCESSES - 1);
    let user = weir.agent(CLAUDE)?.user().to_owned();
    let words = confined(&user).into_iter().chain(["sh", "-c", &script]);
    let scope = weir.setup().scope().path.clone();
    let tree = Kept(weir.setup().scope().program("elsewhere", words)?.into_command().stdin(Stdio::null()).spawn()?);
    let in_tree = || Ok::<_, anyhow::Error>(fs::read_to_string(scope.join("elsewhere/cgroup.procs"))?.lines().count());
    wait_until("all of it runs", SOON, || Ok((in_tree()? == PROCESSES).then_some(())))?;
    let token = weir.agent(CLAUDE)?.token_file().display().to_string();
    let words = ["agent", "assign", CLAUDE, "--pid", &tree.0.id().to_string(), "--token-file", &token];
    let mut assigning = weir.program(words)?.into_command().stderr(Stdio::null()).spawn()?;
    wait_until("a part of it is moved", SOON, || Ok((in_tree()? < PROCESSES).then_some(())))?;
    weir.kill()?;
    assigning.wait()?;
    let left = in_tree()?;
    weir.start_again(&[])?;
    let back = in_tree()?;
    let states = fs::read_to_string(scope.join("elsewhere/cgroup.events"))?;
    fs::write(scope.join("elsewhere/cgroup.kill"), "1")?;
    assert!(left < PROCESSES && back == PROCESSES, "{left}, then {back} of {PROCESSES}");
    assert!(states.contains("frozen 0"), "{states}");
    wait_until("no run is left", SOON, || {
        let agents = rows(&weir.weir(["agent", "list", "--json"])?)?;
        let runs = agents.first().and_then(|agent| agent.pointer("/runs")).and_then(Value::as_array);
        Ok(runs.is_some_and(Vec::is_empty).then_some(()))
    })
}
