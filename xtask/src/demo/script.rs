//! What the demo's programs are told.

use anyhow::{Context, Result};
use serde_json::Value;

/// Made by the superuser, for Weir's role.
pub(super) const TABLES: &str = "
    SET ROLE weir_orders;
    CREATE TABLE orders (id int PRIMARY KEY, name text NOT NULL, amount numeric(10, 2) NOT NULL);
    INSERT INTO orders VALUES (1, 'Ada', 10), (2, 'Barbara', 20), (3, 'Grace', 30);";

/// The agent's script.
pub(super) const REPORT: &str = r#"import sys
import psycopg

with psycopg.connect(sys.argv[1]) as connection:
    print(f"connected to {connection.info.host}:{connection.info.port}")
    total = connection.execute("SELECT sum(amount) FROM orders WHERE amount >= %s", (10,)).fetchone()[0]
    print(f"total {total}")
"#;

/// A family of sockets that leads to the hypervisor.
pub(super) const VSOCK: &str = "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); print('made')";

/// A datagram to the server.
pub(super) fn udp(port: u16) -> String {
    format!(
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'hello', ('127.0.0.1', {port})); print('sent')"
    )
}

/// The oldest session of `weir sessions --json`, which stands last.
pub(super) fn first_session(lines: &str) -> Result<String> {
    let first = lines.lines().last().context("no session is on the record")?;
    let first: Value = serde_json::from_str(first).with_context(|| format!("not JSON: {first}"))?;
    let session = first.pointer("/start/session").and_then(Value::as_str);
    Ok(session.with_context(|| format!("no `session` in {first}"))?.to_owned())
}
