//! What the doctor says of ports: which are protected, and which an agent reaches around Weir.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use end_to_end::{Database, Weir, servers};
use serde_json::Value;
use toml::Table;

use crate::stage::{PYTHON, reader, text};

/// Listens under a name, says at which port, and waits until its input ends.
const LISTEN: &str = r"
import socket, sys
open('/proc/self/comm', 'w').write(sys.argv[1])
listener = socket.create_server((sys.argv[2], 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
";

/// A process that has a server's name, and listens as one.
struct Named {
    process: Child,
    port: u16,
}

impl Named {
    fn start(name: &str, address: &str) -> Result<Self> {
        let mut command = Command::new(PYTHON);
        command.args(["-c", LISTEN, name, address]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let mut port = String::new();
        BufReader::new(process.stdout.take().context("no output")?).read_line(&mut port)?;
        Ok(Self { process, port: port.trim().parse()? })
    }

    /// Protects it at one address.
    fn protect(&self, setup: &mut end_to_end::Setup, address: &str) -> Result<()> {
        let address = format!("{address}:{}", self.port);
        setup.push("protect", Table::from_iter([("address".into(), address.into()), ("reason".into(), "test".into())]))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[test]
fn servers_that_an_agent_reaches_around_weir_are_told_with_the_mend() -> Result<()> {
    let database = Database::create()?;
    let closed = Named::start("mysqld", "127.0.0.1")?;
    let forgotten = Named::start("redis-server", "127.0.0.1")?;
    let half_closed = Named::start("mariadbd", "0.0.0.0")?;
    let plain = TcpListener::bind(("127.0.0.1", 0))?;
    let weir = Weir::start(|setup| {
        closed.protect(setup, "127.0.0.1")?;
        half_closed.protect(setup, "127.0.0.1")?;
        reader(setup, &database)
    })?;
    let doctor = weir.weir(["doctor", "--json"])?;
    assert_eq!(doctor.status().code(), Some(1), "a doctor that finds something fails");
    let findings: Vec<Value> = serde_json::from_str(&doctor.stdout())?;
    let seen = |check: &str, verdict: &str| -> Result<&str> {
        let found = findings.iter().find(|finding| text(finding, "/check") == check);
        let found = found.with_context(|| format!("the doctor says nothing of `{check}`"))?;
        ensure!(text(found, "/verdict") == verdict, "{found}");
        ensure!(verdict == "ok" || !text(found, "/mend").is_empty(), "{found}");
        Ok(text(found, "/seen"))
    };

    let protected: Vec<&str> = seen("ports protected", "ok")?.split("; ").collect();
    let declared = format!("{} (postgres): orders", servers()?.postgres.port);
    let refused = format!("{} (mysqld): refused to all", closed.port);
    ensure!(protected.contains(&declared.as_str()) && protected.contains(&refused.as_str()), "{protected:?}");

    let open = seen(&format!("port {}", forgotten.port), "FAILED")?;
    assert_eq!(open, format!("{} (redis-server): Redis. Open to agents around Weir at 127.0.0.1", forgotten.port));
    let half_open = seen(&format!("port {}", half_closed.port), "FAILED")?;
    ensure!(half_open.contains("MariaDB") && half_open.contains("127.0.0.0/8"), "{half_open}");

    let own = plain.local_addr()?.port();
    let others: Vec<&str> = seen("ports open", "note")?.split(", ").collect();
    ensure!(others.iter().any(|other| other.starts_with(&format!("{own} ("))), "{others:?}");
    Ok(())
}
