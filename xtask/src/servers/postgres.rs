//! A PostgreSQL cluster of our own, in a folder that goes with it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::give_to;
use crate::paths::which;
use crate::process::{self, Server, free_port};

/// The Unix user that it runs as: the server refuses to run as root.
const USER: &str = "postgres";
const START_DEADLINE: Duration = Duration::from_secs(60);

/// What pg_regress sets for a server that it starts itself.
const CONFORMANCE: &str = "max_prepared_transactions = 2\n";

/// What the server is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Passwords by SCRAM; nothing survives a crash; a second Unix socket that everybody can open.
    Tests,
    /// Passwords by SCRAM.
    Demo,
    /// No question asked over TCP: a login would cost the same everywhere and hide what differs.
    Bench,
    /// The same, and what PostgreSQL's regression suite wants; nothing survives a crash.
    Conformance,
}

/// A server that serves until this value is dropped, on 127.0.0.1 and ::1.
pub(crate) struct Postgres {
    folder: PathBuf,
    /// Where `psql` and `pgbench` are.
    pub(crate) bin: PathBuf,
    /// Its TCP port.
    pub(crate) port: u16,
    _server: Server,
}

impl Postgres {
    /// Makes a cluster in `folder`, which it makes too, and starts it.
    pub(crate) fn start(folder: &Path, purpose: Purpose) -> Result<Self> {
        let bin = postgres_bin()?;
        let (folder, port) = (folder.to_path_buf(), free_port()?);
        for (name, mode) in [("", 0o755), ("sockets", 0o700), ("open-sockets", 0o755), ("data", 0o700)] {
            let path = folder.join(name);
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            give_to(USER, &path)?;
        }
        let data = folder.join("data");
        let mut initdb = Command::new("setpriv");
        initdb.args(["--reuid", USER, "--regid", USER, "--init-groups"]).arg(bin.join("initdb"));
        initdb.args(["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=reject", "-D"]).arg(&data);
        process::output(initdb.current_dir(&folder))?;
        make_certificates(&folder)?;
        fs::write(data.join("pg_hba.conf"), hba(purpose))?;
        fs::write(data.join("pg_ident.conf"), "root root postgres\n")?;
        let private = folder.join("sockets").display().to_string();
        let (sockets, fsync) = match purpose {
            Purpose::Tests => (format!("{private},{}", folder.join("open-sockets").display()), "off"),
            Purpose::Demo | Purpose::Bench => (private, "on"),
            Purpose::Conformance => (private, "off"),
        };
        let more = if purpose == Purpose::Conformance { CONFORMANCE } else { "" };
        let configuration = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1,::1'\nmax_connections = 1000\n\
             unix_socket_directories = '{sockets}'\nfsync = {fsync}\n\
             ssl = on\nssl_cert_file = '{0}/server.crt'\nssl_key_file = '{0}/server.key'\n\
             shared_buffers = 256MB\nlogging_collector = off\n{more}",
            folder.display()
        );
        fs::write(data.join("postgresql.auto.conf"), configuration)?;
        let args = ["-D", data.to_str().context("the path of the cluster isn't UTF-8")?];
        let log = folder.join("postgres.log");
        let mut server = Server::start(&bin.join("postgres"), &args, Some(USER), log, Signal::INT)?;
        server.wait_until(START_DEADLINE, |server| server.log().contains("ready to accept connections"))?;
        Ok(Self { folder, bin, port, _server: server })
    }

    /// Runs `sql` as the superuser and gives what psql prints, unaligned and without headings.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", USER, "-d", database, "-c", sql]).arg("-h");
        process::output(psql.arg(self.private_sockets()).args(["-p", &self.port.to_string()]))
    }

    /// The folder of a Unix socket that root alone may use.
    pub(crate) fn private_sockets(&self) -> PathBuf {
        self.folder.join("sockets")
    }

    /// The folder of a Unix socket that everybody may use.
    pub(crate) fn public_sockets(&self) -> PathBuf {
        self.folder.join("open-sockets")
    }

    /// The certificate of the authority that the server's is from.
    pub(crate) fn ca_certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// That authority's key, for tests that need another certificate.
    pub(crate) fn ca_key(&self) -> PathBuf {
        self.folder.join("ca.key")
    }
}

/// Root is the superuser over the sockets; nobody else gets in there without a password.
fn hba(purpose: Purpose) -> String {
    let method = match purpose {
        Purpose::Tests | Purpose::Demo => "scram-sha-256",
        Purpose::Bench | Purpose::Conformance => "trust",
    };
    format!("local all postgres peer map=root\nlocal all all scram-sha-256\nhost all all samehost {method}\n")
}

/// An authority and the server's certificate, for the names of this machine only.
fn make_certificates(folder: &Path) -> Result<()> {
    // openssl's own configuration would make every certificate an authority.
    let configuration = "[req]\ndistinguished_name = dn\nprompt = no\n[dn]\nCN = Weir test\n\
        [authority]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\n\
        [server]\nbasicConstraints = critical, CA:FALSE\nsubjectAltName = DNS:localhost, IP:127.0.0.1, IP:::1\n";
    fs::write(folder.join("openssl.cnf"), configuration)?;
    let make = |name: &str, extensions: &str, signer: &[&str]| {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(folder).args(["req", "-x509", "-config", "openssl.cnf", "-extensions", extensions]);
        openssl.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "7"]);
        openssl.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")]).args(signer);
        process::output(&mut openssl)
    };
    make("ca", "authority", &["-subj", "/CN=Weir test authority"])?;
    make("server", "server", &["-subj", "/CN=localhost", "-CA", "ca.crt", "-CAkey", "ca.key"])?;
    give_to(USER, &folder.join("server.key"))
}

/// Where PostgreSQL's programs are: the newest that Debian has in its own place, or those on PATH.
pub(crate) fn postgres_bin() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| Path::new(&format!("/usr/lib/postgresql/{version}/bin/postgres")).is_file())
        .max();
    let on_path = || which("postgres").and_then(|program| program.parent().map(Path::to_path_buf));
    newest
        .map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")))
        .or_else(on_path)
        .context("PostgreSQL's server isn't installed: run `cargo xtask setup`")
}
