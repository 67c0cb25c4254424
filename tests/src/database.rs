//! A database of the test's own on the shared server.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use crate::program::Program;
use crate::servers::{Servers, servers};

/// A copy of the template, dropped with this value.
#[derive(Debug)]
pub struct Database {
    /// Its name.
    pub name: String,
}

impl Database {
    /// Copies the template.
    pub fn create() -> Result<Self> {
        let servers = servers()?;
        let name = unique("test");
        let (template, role) = (&servers.postgres.template, &servers.postgres.role);
        psql(servers, "postgres", &format!("CREATE DATABASE {name} TEMPLATE {template} OWNER {role}"))?;
        Ok(Self { name })
    }

    /// Runs `sql` as the superuser, past Weir, and gives what psql prints, unaligned and without headings.
    pub fn sql(&self, sql: &str) -> Result<String> {
        psql(servers()?, &self.name, sql)
    }

    /// What a client that knows nothing of Weir would be told to connect to, as `psql` takes it.
    pub fn address(&self) -> Result<String> {
        let servers = servers()?;
        Ok(format!("host=127.0.0.1 port={} dbname={}", servers.postgres.port, self.name))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let dropped = servers().and_then(|servers| {
            psql(servers, "postgres", &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name))
        });
        if let Err(error) = dropped {
            eprintln!("cannot drop the database {}: {error:#}", self.name);
        }
    }
}

fn psql(servers: &Servers, database: &str, sql: &str) -> Result<String> {
    let (program, sockets) = (servers.postgres.programs.join("psql"), &servers.postgres.private_sockets);
    let psql = Program::new([program]).args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database]);
    let psql = psql.args(["-p", &servers.postgres.port.to_string(), "-c", sql, "-h"]).args([sockets]);
    psql.run()?.succeeded()
}

/// A name that nothing else of this run has: letters, digits and underscores.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
