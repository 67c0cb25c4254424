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
