//! Ways round Weir, from inside and from outside: each is refused, and on the record.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::kernel_support::{Worker, ring};
use end_to_end::{Database, Weir, servers, wait_until};
use serde_json::Value;

use crate::stage::{CLAUDE, Client, PYTHON, READ, log, outsider_psql, reader, refusals, text};

const RECORDED: Duration = Duration::from_secs(10);

/// Waits until a refusal is on the record of which `like` is true.
fn recorded(weir: &Weir, what: &str, like: impl Fn(&Value) -> bool) -> Result<()> {
    wait_until(what, RECORDED, || Ok(refusals(&log(weir)?).into_iter().any(&like).then_some(())))
}

fn destination(refusal: &Value) -> Option<SocketAddr> {
    text(refusal, "/destination").parse().ok()
}

/// The names under which the server is reached, as psql takes them, with the address that means.
fn aliases() -> Result<Vec<(String, IpAddr)>> {
    let own = std::process::Command::new("hostname").output()?.stdout;
    let own = String::from_utf8(own)?.trim().to_owned();
    let resolve = |host: &str| -> Result<IpAddr> {
        let found = std::net::ToSocketAddrs::to_socket_addrs(&(host, 1))?.next();
        Ok(found.with_context(|| format!("{host} leads nowhere"))?.ip())
    };
    ["127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "localhost", own.as_str()]
        .into_iter()
        .map(|host| Ok((host.to_owned(), resolve(host)?)))
        .collect()
}

#[test]
fn every_alias_of_the_server_leads_an_agent_to_weir_and_an_outsider_nowhere() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let (programs, port) = (&servers()?.postgres.programs, servers()?.postgres.port);
    for (number, (host, ip)) in aliases()?.into_iter().enumerate() {
        let address = format!("host={host} port={port} dbname={}", database.name);
        let query = format!("SELECT 'alias {number}'");
        let psql = programs.join("psql").display().to_string();
        let ran = agent.run([psql.as_str(), "-XAtq", "-d", &address, "-c", &query])?;
        assert_eq!(ran.succeeded().context(host.clone())?, format!("alias {number}"));
        let asked = log(&weir)?.into_iter().any(|row| text(&row, "/event/request/sql") == query);
        ensure!(asked, "what was asked of {host} is not on the record");
        for user in [None, Some(agent.user())] {
            let refused = outsider_psql(&weir, user, "outside", &address)?.run()?.failed()?;
            ensure!(refused.contains("Operation not permitted"), "{user:?} by {host}: {refused}");
        }
        recorded(&weir, &format!("the outsiders by {host}"), |refusal| {
            destination(refusal).is_some_and(|to| to.ip().to_canonical() == ip.to_canonical() && to.port() == port)
                && text(refusal, "/what") == "connect from outside any agent"
        })?;
    }
    Ok(())
}

#[test]
fn outsiders_are_told_apart_on_the_record() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let address = database.address()?;
    for user in [None, Some("daemon"), Some("postgres")] {
        let told = outsider_psql(&weir, user, "elsewhere/below", &address)?.run()?.failed()?;
        ensure!(told.contains("Operation not permitted"), "{told}");
        let uid = user.map_or(Ok(0), uid_of)?;
        recorded(&weir, "the outsider", |refusal| {
            refusal.pointer("/uid").and_then(Value::as_u64) == Some(uid)
                && text(refusal, "/comm") == "psql"
                && refusal.pointer("/agent").is_none_or(Value::is_null)
        })?;
    }
    Ok(())
}

fn uid_of(user: &str) -> Result<u64> {
    let id = std::process::Command::new("id").args(["-u", user]).output()?.stdout;
    Ok(String::from_utf8(id)?.trim().parse()?)
}

#[test]
fn a_connection_straight_to_the_listener_belongs_to_nobody() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let psql = servers()?.postgres.programs.join("psql").display().to_string();
    for host in ["127.0.0.1", "::1", "0.0.0.0"] {
        let address = format!("host={host} port={} dbname={} connect_timeout=10", weir.port(), database.name);
        let straight = agent.run([psql.as_str(), "-X", "-d", &address, "-c", "SELECT 1"])?.failed()?;
        ensure!(straight.contains("closed") || straight.contains("refused"), "{straight}");
    }
    recorded(&weir, "the straight connection", |refusal| {
        text(refusal, "/what").contains("straight to Weir's listener")
    })?;
    let sessions = log(&weir)?.iter().filter(|row| row.pointer("/event/session_start").is_some()).count();
    assert_eq!(sessions, 0);
    Ok(())
}

/// Each prints `made` when it got round.
const SOCKETS: [(&str, &str, &str); 7] = [
    ("udp", "s(AF_INET, SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))", "PermissionError"),
    ("connected udp", "s(AF_INET, SOCK_DGRAM).connect(('127.0.0.1', PORT))", "PermissionError"),
    ("udp over inet6", "s(AF_INET6, SOCK_DGRAM).sendto(b'x', ('::1', PORT))", "PermissionError"),
    ("vsock", "s(AF_VSOCK, SOCK_STREAM)", "OSError"),
    ("raw", "s(AF_INET, SOCK_RAW, IPPROTO_TCP)", "PermissionError"),
    ("packet", "s(AF_PACKET, SOCK_RAW)", "OSError"),
    ("sctp", "s(AF_INET, SOCK_STREAM, 132)", "Error"),
];

#[test]
fn other_kinds_of_sockets_lead_nowhere() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let port = servers()?.postgres.port;
    for (name, attempt, refused) in SOCKETS {
        let program =
            format!("from socket import *; s = socket; {}; print('made')", attempt.replace("PORT", &port.to_string()));
        let ran = agent.run([PYTHON, "-c", &program])?;
        ensure!(!ran.stdout().contains("made"), "{name} got through");
        ensure!(ran.stderr().contains(refused), "{name}: {}", ran.stderr());
    }
    recorded(&weir, "the agent's datagram", |refusal| {
        text(refusal, "/what") == "datagram to a protected address" && text(refusal, "/agent") == CLAUDE
    })?;
    recorded(&weir, "the agent's connected datagram socket", |refusal| {
        text(refusal, "/what") == "connect to a protected address without tcp" && text(refusal, "/agent") == CLAUDE
    })?;
    // A ring would make sockets that no filter sees.
    let ring = "import ctypes; c = ctypes.CDLL(None, use_errno=True); r = c.syscall(425, 4, ctypes.create_string_buffer(120)); print(r, ctypes.get_errno())";
    assert_eq!(agent.run([PYTHON, "-c", ring])?.succeeded()?, "-1 1");
    Ok(())
}

/// Tells on a descriptor what its own descriptors are, and tries to use one of them as a ring: to enter it, and to map its
/// queue, which is all that one with a thread of the kernel's needs. Last it reads its input to the end.
const USE_RING: &str = r"
import ctypes, os, sys
tell, ring = int(sys.argv[1]), int(sys.argv[2])
c = ctypes.CDLL(None, use_errno=True)
c.mmap.restype = ctypes.c_void_p
names = [f'/proc/self/fd/{number}' for number in os.listdir('/proc/self/fd')]
rings = [os.readlink(name) for name in names if os.path.lexists(name) and 'io_uring' in os.readlink(name)]
entered = c.syscall(426, ring, 0, 0, 0, None, 0) == 0
mapped = c.mmap(None, 4096, 3, 1, ring, 0) != ctypes.c_void_p(-1).value
os.write(tell, repr((len(rings), entered, mapped)).encode())
if ring == 0 and not rings:
    assert os.read(0, 1) == b''
";

/// A ring with SQPOLL acts as the process that made it, which here may be let through where an agent is not.
#[test]
fn a_ring_that_its_starter_holds_is_of_no_use_to_an_agent() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let ring = ring(Worker::Poll)?;
    // Inherited by all that this process starts, as one of a careless starter would be.
    rustix::io::fcntl_setfd(&ring, rustix::io::FdFlags::empty())?;
    for number in 0..3 {
        let tell = if number == 1 { 2 } else { 1 };
        let words = [PYTHON, "-c", USE_RING, &tell.to_string(), &number.to_string()];
        let mut outside = Command::new(PYTHON);
        outside.args(&words[1..]);
        let own = told_with_ring(outside, &ring, number)?;
        ensure!(own == "(2, True, True)", "outside of a run it must be of use, or nothing is tried: {own}");
        let inside = told_with_ring(agent.program(words)?.into_command(), &ring, number)?;
        ensure!(inside == "(0, False, False)", "as descriptor {number}: {inside}");
    }
    Ok(())
}

/// What a program tells on its standard output or error, with a ring as its descriptor `number`.
fn told_with_ring(mut command: Command, ring: &impl AsFd, number: u8) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ring = Stdio::from(ring.as_fd().try_clone_to_owned()?);
    match number {
        0 => command.stdin(ring),
        1 => command.stdout(ring),
        _ => command.stderr(ring),
    };
    let output = command.output()?;
    let told = if number == 1 { output.stderr } else { output.stdout };
    Ok(String::from_utf8(told)?)
}

/// The cgroups of an agent's runs that live.
fn run_cgroups(weir: &Weir, agent: &str) -> Result<Vec<PathBuf>> {
    let folder = weir.setup().scope().path.join("weir/agents").join(agent);
    let entries = fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    Ok(entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

#[test]
fn a_child_cgroup_is_its_agent_s_and_no_process_moves_out() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| reader(setup, &database))?;
    let agent = weir.agent(CLAUDE)?;
    let mut client = Client::start(&agent, &database)?;
    client.connect()?.rows()?;
    let [run] = run_cgroups(&weir, CLAUDE)?.try_into().map_err(|runs| anyhow::anyhow!("not one run: {runs:?}"))?;

    let below = run.strip_prefix(&weir.setup().scope().path)?.join("a/b/c").display().to_string();
    let psql = servers()?.postgres.programs.join("psql").display().to_string();
    let words = [psql.as_str(), "-XAtq", "-d", &database.address()?, "-c", "SELECT 'from below'"];
    let told = weir.setup().scope().program_as(agent.user(), &below, words)?.run()?.succeeded()?;
    assert_eq!(told, "from below");
    let log = log(&weir)?;
    let asked = log.iter().find(|row| text(row, "/event/request/sql").contains("from below")).context("no record")?;
    assert_eq!(text(asked, "/session/agent"), CLAUDE);

    for folder in [weir.setup().scope().path.clone(), weir.setup().scope().cgroup("outside")?, run.join("own")] {
        let shown = folder.display();
        let leave = format!(
            "import os; os.makedirs('{shown}', exist_ok=True); open('{shown}/cgroup.procs', 'w').write('0'); print('moved')"
        );
        let ran = agent.run([PYTHON, "-c", &leave])?;
        ensure!(ran.stderr().contains("PermissionError") || ran.stderr().contains("Read-only"), "{}", ran.stderr());
        ensure!(!ran.stdout().contains("moved"), "an agent moved to {shown}");
    }
    Ok(())
}

#[test]
fn an_agent_s_identity_is_not_to_be_borrowed() -> Result<()> {
    let database = Database::create()?;
    let weir = Weir::start(|setup| {
        reader(setup, &database)?;
        setup.policy("read.cedar", READ)?;
        setup.agent("codex", &["nobodies"])
    })?;
    let (claude, codex) = (weir.agent(CLAUDE)?, weir.agent("codex")?);
    let mut rightful = Client::start(&claude, &database)?;
    rightful.connect()?.rows()?;
    rightful.sql("SELECT count(*) FROM customers")?.rows()?;

    // It may name whom it likes: its cgroup says who it is.
    let mut other = Client::start(&codex, &database)?;
    other.connect()?.rows()?;
    let refused = other.sql("SELECT count(*) FROM customers")?;
    assert_eq!(refused.sqlstate.as_deref(), Some("42501"), "{refused:?}");
    let address = format!("{} user=claude application_name=weir:claude:0", database.address()?);
    let psql = servers()?.postgres.programs.join("psql").display().to_string();
    let named = codex.run([psql.as_str(), "-X", "-d", &address, "-c", "SELECT count(*) FROM customers"])?.failed()?;
    assert!(named.contains("permission") || named.contains("refused"), "{named}");
    let log = log(&weir)?;
    let denied = log.iter().filter(|row| row.pointer("/event/request/decision/allowed") == Some(&Value::Bool(false)));
    let whose: Vec<_> = denied.map(|row| text(row, "/session/agent")).collect();
    assert_eq!(whose, ["codex", "codex"]);

    // Nor is it let start the other, nor does its token serve for the other.
    let weir_program = servers()?.weir.display().to_string();
    let token = weir.setup().folder().join("codex.token").display().to_string();
    let control = weir.setup().folder().join("run/control.sock").display().to_string();
    let words = [&weir_program, "run", "--agent", CLAUDE, "--control", &control, "--", "true"];
    let refused = codex.run(words)?.failed()?;
    assert!(refused.contains("may not start") || refused.contains("token"), "{refused}");
    let refused = weir.weir(["run", "--agent", CLAUDE, "--token-file", &token, "--", "true"])?.failed()?;
    assert!(refused.contains("subject"), "{refused}");
    let refused = weir.weir(["agent", "refresh", CLAUDE, "--token-file", &token])?.failed()?;
    assert!(!refused.is_empty());
    let end = rightful.close()?;
    ensure!(end.error.is_none(), "{end:?}");
    Ok(())
}
