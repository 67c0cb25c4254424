//! What agents reach beside declared servers, as the configuration says: refused at once, told, and on the record.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Setup, Weir, servers, wait_until};
use serde_json::Value;
use toml::Table;

use crate::stage::{CLAUDE, PYTHON, log, reader, refusals, rows, text};

const RECORDED: Duration = Duration::from_secs(10);
const CODEX: &str = "codex";

/// Tries each address, and says how that went.
const TRY: &str = r"
import socket, sys, time
begun = time.monotonic()
for word in sys.argv[1:]:
    kind, address, port = word.split('/')
    made = socket.socket(socket.AF_INET, getattr(socket, 'SOCK_' + kind))
    try:
        made.connect((address, int(port)))
        print('passed')
    except OSError as error:
        print(type(error).__name__)
assert time.monotonic() - begun < 5, 'a refusal must come at once'
";

fn tried(weir: &Weir, agent: &str, addresses: &[&str]) -> Result<Vec<String>> {
    let told = weir.agent(agent)?.run([&[PYTHON, "-c", TRY], addresses].concat())?.succeeded()?;
    Ok(told.lines().map(str::to_owned).collect())
}

/// Sets keys of an agent that was declared.
fn egress(setup: &mut Setup, agent: &str, mode: &str, allow: &[&str]) -> Result<()> {
    let agents = setup.config.get_mut("agent").and_then(toml::Value::as_array_mut).context("no agents")?;
    let named = |table: &&mut toml::Value| table.get("name").and_then(toml::Value::as_str) == Some(agent);
    let table = agents.iter_mut().find(named).and_then(toml::Value::as_table_mut).context("no such agent")?;
    table.insert("egress".into(), mode.into());
    let entry = |address: &&str| {
        Table::from_iter([("address".into(), (*address).into()), ("reason".into(), "a test's server".into())]).into()
    };
    table.insert("egress_allow".into(), toml::Value::Array(allow.iter().map(entry).collect()));
    Ok(())
}

#[test]
fn each_agent_reaches_what_its_egress_says_and_refusals_are_on_the_record() -> Result<()> {
    let database = Database::create()?;
    let permitted = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let _permitted = TcpListener::bind(permitted)?;
    let other = TcpListener::bind(("127.0.0.1", 0))?;
    let resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolver = resolver.lines().find_map(|line| line.strip_prefix("nameserver ")).unwrap_or("127.0.0.1").trim();
    let weir = Weir::start(|setup| {
        reader(setup, &database)?;
        setup.agent(CODEX, &["readers"])?;
        egress(setup, CODEX, "closed", &[&permitted.to_string()])
    })?;
    let word = |kind: &str, address: SocketAddr| format!("{kind}/{}/{}", address.ip(), address.port());
    let (permitted, other) = (word("STREAM", permitted), word("STREAM", other.local_addr()?));
    let (refused, nobody) = ("PermissionError", "ConnectionRefusedError");
    let addresses = [permitted.as_str(), &other, "STREAM/127.0.0.77/6379", "DGRAM/127.0.0.77/9"];
    assert_eq!(tried(&weir, CLAUDE, &addresses)?, ["passed", "passed", refused, "passed"]);
    assert_eq!(tried(&weir, CODEX, &addresses)?, ["passed", refused, refused, refused]);
    // No packet is sent by the connect of a datagram's socket.
    let name = format!("DGRAM/{resolver}/53");
    if resolver.contains('.') {
        assert_eq!(tried(&weir, CODEX, &[&name, "DGRAM/192.0.2.77/53"])?, ["passed", refused]);
    }
    // Declared servers are reached, through Weir.
    assert_eq!(weir.agent(CODEX)?.psql(&database, "SELECT count(*) FROM customers")?.succeeded()?, "100");
    assert_eq!(tried(&weir, CLAUDE, &["STREAM/127.0.0.77/8080"])?, [nobody]);

    for (agent, destination, what) in [
        (CLAUDE, "127.0.0.77:6379", "egress databases: connect to a listed port: 6379 (Redis or Valkey)"),
        (CODEX, "127.0.0.77:6379", "egress closed: connect to an address that is not allowed"),
        (CODEX, "127.0.0.77:9", "egress closed: connect to an address that is not allowed"),
    ] {
        wait_until("the refusal is on the record", RECORDED, || {
            let like = |refusal: &&Value| {
                text(refusal, "/agent") == agent
                    && text(refusal, "/destination") == destination
                    && text(refusal, "/what") == what
            };
            Ok(refusals(&log(&weir)?).iter().any(like).then_some(()))
        })?;
    }
    let shown = weir.weir(["log"])?.succeeded()?;
    ensure!(shown.contains("6379 (Redis or Valkey)"), "{shown}");

    let status = rows(&weir.weir(["status", "--json"])?)?;
    let modes: Vec<(&str, &str)> = status[0]
        .pointer("/egress")
        .and_then(Value::as_array)
        .context("no egress")?
        .iter()
        .map(|agent| (text(agent, "/agent"), text(agent, "/mode")))
        .collect();
    assert_eq!(modes, [(CLAUDE, "databases"), (CODEX, "closed")]);
    let told = weir.weir(["status"])?.succeeded()?;
    ensure!(told.contains("mode: closed") && told.contains("a test's server"), "{told}");
    Ok(())
}

#[test]
fn a_run_that_outlives_the_daemon_has_the_egress_that_the_next_one_is_told() -> Result<()> {
    let other = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let _other = TcpListener::bind(other)?;
    let _datagrams = std::net::UdpSocket::bind(other)?;
    let mut weir = Weir::start(|setup| {
        setup.agent(CLAUDE, &[])?;
        egress(setup, CLAUDE, "open", &[])
    })?;
    // Tries whenever it is told to, until its input ends; what it connected at first it tries to speak on.
    const AGAIN: &str = r"
import socket, sys
there = ('127.0.0.1', int(sys.argv[1]))
kept = [socket.create_connection(there, 5), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
kept[1].connect(there)
for line in sys.stdin:
    words = []
    for each in kept:
        try:
            each.send(b'x')
            words.append('kept')
        except OSError as error:
            words.append('cut')
    try:
        socket.create_connection(there, 5).close()
        words.append('passed')
    except OSError as error:
        words.append(type(error).__name__)
    print(*words, flush=True)
";
    let folder = weir.setup().folder().to_owned();
    let (asks, tells) = (folder.join("asks"), folder.join("tells"));
    let script = format!(
        "exec 3<>{asks} && setsid {PYTHON} -c \"$1\" {port} <&3 >{tells} 2>&1",
        asks = asks.display(),
        tells = tells.display(),
        port = other.port()
    );
    for path in [&asks, &tells] {
        let made = if path == &asks {
            Command::new("mkfifo").arg(path).status()?.success()
        } else {
            fs::write(path, "").is_ok()
        };
        ensure!(made && Command::new("chmod").arg("666").arg(path).status()?.success(), "{}", path.display());
    }
    let mut run = weir.agent(CLAUDE)?.program(["sh", "-c", &script, "sh", AGAIN])?.into_command();
    let mut run = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let ask = |count: usize| -> Result<Vec<String>> {
        fs::OpenOptions::new()
            .write(true)
            .open(&asks)
            .map_err(anyhow::Error::from)
            .and_then(|mut pipe| Ok(std::io::Write::write_all(&mut pipe, b"again\n")?))?;
        wait_until("the agent tells", RECORDED, || {
            let told: Vec<String> = fs::read_to_string(&tells)?.lines().map(str::to_owned).collect();
            Ok((told.len() >= count).then_some(told))
        })
    };
    let passed = "kept kept passed";
    assert_eq!(ask(1)?, [passed]);
    weir.kill()?;
    assert_eq!(ask(2)?, [passed; 2], "as long as nobody says otherwise");
    weir.start_again(&[])?;
    assert_eq!(ask(3)?, [passed; 3], "the next one says the same");
    weir.kill()?;
    let config = folder.join("weir.toml");
    let closed = fs::read_to_string(&config)?.replace("egress = \"open\"", "egress = \"closed\"");
    ensure!(closed.contains("closed"), "{closed}");
    fs::write(&config, closed)?;
    weir.start_again(&[])?;
    assert_eq!(ask(4)?.last().map(String::as_str), Some("cut cut PermissionError"));
    drop(run.kill());
    drop(run.wait());
    Ok(())
}

/// Serves two things that answer as PostgreSQL might, and a PostgreSQL, in a network namespace of its own; then asks the
/// doctor.
const NEIGHBOURS: &str = r"
import socket, subprocess, sys, threading, time
programs, folder, *doctor = sys.argv[1:]

def serve(port, answers):
    listener = socket.create_server(('127.0.0.1', port))
    def run():
        while True:
            stream, _ = listener.accept()
            for answer in answers:
                if not stream.recv(4096):
                    break
                stream.sendall(answer)
    threading.Thread(target=run, daemon=True).start()

serve(15001, [b'N', b'R\0\0\0\x08\0\0\0\0'])
serve(15002, [b'N', b'NO\r\n'])
as_postgres = ['setpriv', '--reuid=postgres', '--regid=postgres', '--clear-groups']
initdb = [programs + '/initdb', '-D', folder, '-A', 'trust', '--no-sync']
subprocess.run(as_postgres + initdb, check=True, stdout=subprocess.DEVNULL, cwd='/')
server = subprocess.Popen(
    as_postgres + [programs + '/postgres', '-D', folder, '-p', '15003', '-k', '', '-h', '127.0.0.1,::1', '-F'],
    cwd='/', stderr=subprocess.DEVNULL)
try:
    for _ in range(300):
        try:
            socket.create_connection(('127.0.0.1', 15003)).close()
            break
        except OSError:
            time.sleep(0.1)
    sys.stdout.write(subprocess.run(doctor, stdout=subprocess.PIPE, text=True).stdout)
finally:
    server.terminate()
    server.wait()
";

#[test]
fn the_doctor_finds_a_postgresql_at_whatever_port_by_asking() -> Result<()> {
    let mut weir = Weir::start(|setup| setup.agent(CLAUDE, &[]))?;
    // One that serves in another network namespace than the doctor's would be told so.
    weir.stop()?;
    let folder = tempfile::tempdir_in("/var/tmp")?;
    ensure!(Command::new("chown").arg("postgres").arg(folder.path()).status()?.success(), "no user postgres");
    let servers = servers()?;
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh", PYTHON, "-c", NEIGHBOURS]);
    command.arg(&servers.postgres.programs).arg(folder.path()).arg(&servers.weir);
    command.args(["doctor", "--probe", "--json", "--config"]).arg(weir.setup().folder().join("weir.toml"));
    let output = command.stdin(Stdio::null()).output()?;
    let told = String::from_utf8(output.stdout)?;
    let findings: Vec<Value> =
        serde_json::from_str(&told).with_context(|| format!("{told}{}", String::from_utf8_lossy(&output.stderr)))?;
    let found: Vec<(&str, &str)> = findings
        .iter()
        .filter(|finding| text(finding, "/check").starts_with("PostgreSQL at "))
        .map(|finding| (text(finding, "/check"), text(finding, "/verdict")))
        .collect();
    let expected = [("PostgreSQL at 127.0.0.1:15001", "FAILED"), ("PostgreSQL at 127.0.0.1:15003", "FAILED")];
    assert_eq!(found, expected, "{told}");
    let real = findings.iter().find(|finding| text(finding, "/check").ends_with(":15003")).context("no finding")?;
    ensure!(text(real, "/seen").contains("answers as PostgreSQL does (N: without TLS)"), "{real}");
    ensure!(text(real, "/mend").contains("[[connection]]"), "{real}");
    Ok(())
}
