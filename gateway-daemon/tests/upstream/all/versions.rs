//! Versions of the protocol: a server that speaks 3.2, one that negotiates 3.0, a pooler that knows 3.0 alone.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use gateway_daemon::protocol::postgres::upstream::{
    BackendKey, Failure, Roots, SessionAttributes, TlsMode, UpstreamSettings, cancel, connect, simple_query_rows,
};

use super::{
    certificates::Authority,
    queries::LIMITS,
    server::{Server, credential, settings, start},
    several::target,
};

fn plain(user: &str) -> UpstreamSettings {
    settings(TlsMode::Disable, &Roots::System, "localhost", user)
}

/// A sleep that `key` cancels, and that no other key of the same process does.
async fn cancels_by_its_key_alone(settings: &UpstreamSettings, address: SocketAddr) -> usize {
    let mut sleeper = connect(settings, address, &start("postgres")).await.unwrap();
    let key = sleeper.greeting.key.clone().unwrap();
    let sleeping = tokio::spawn(async move { simple_query_rows(&mut sleeper, "select pg_sleep(60)", &LIMITS).await });
    let mut wrong = key.secret.to_vec();
    *wrong.last_mut().unwrap() ^= 1;
    let shorter = &key.secret[..key.secret.len() - 1];
    let longer = [&key.secret, &[0][..]].concat();
    // Again and again: a cancel that comes before the statement runs is lost.
    for _ in 0..10 {
        for secret in [&wrong[..], shorter, &longer[..]] {
            let stranger = BackendKey { process: key.process, secret: secret.into() };
            // Some servers close without a word when the length is wrong.
            let _ = cancel(settings, address, &stranger).await;
        }
    }
    assert!(!sleeping.is_finished(), "another key cancels as well");
    let begun = Instant::now();
    while !sleeping.is_finished() {
        cancel(settings, address, &key).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing was cancelled");
        tokio::task::yield_now().await;
    }
    let outcome = sleeping.await.unwrap();
    assert!(matches!(&outcome, Err(Failure::Server { sqlstate, .. }) if sqlstate == "57014"), "{outcome:?}");
    key.secret.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_3_2_gives_a_long_key_and_cancels_by_it_alone() {
    let server = Server::start_18();
    let length = cancels_by_its_key_alone(&plain("scram"), server.address).await;
    assert!((5..=256).contains(&length), "{length} bytes");
    // And what Weir asks a server for its own ends is understood by this one.
    let target = target(SessionAttributes::Primary, &[server.address]);
    let catalog = target.catalogs.cell("postgres");
    catalog.fetch(&target, "postgres").await;
    assert_eq!((catalog.failure(), catalog.current().is_some()), (None, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_negotiates_3_0_gives_a_short_key_and_cancels_by_it_alone() {
    let ca = Authority::new("ca");
    let server = Server::start(&ca.issue(&["localhost"]));
    assert_eq!(cancels_by_its_key_alone(&plain("scram"), server.address).await, 4);
}

/// Debian's pgbouncer, which takes a version that it does not know for a broken packet.
struct Pgbouncer {
    process: Child,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

impl Pgbouncer {
    fn start(server: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} dbname=postgres user=postgres\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
             ignore_startup_parameters = standard_conforming_strings\n",
            server.port(),
            path("users"),
        );
        fs::write(path("users"), "\"scram\" \"hunter2\"\n").unwrap();
        fs::write(path("ini"), settings).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let mut command = Command::new("pgbouncer");
        // It refuses to run as root.
        let opened = Command::new("chown").args(["-R", "postgres"]).arg(folder.path()).status().unwrap();
        assert!(opened.success());
        command.args(["--user", "postgres"]).arg(path("ini")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().unwrap();
        let pooler = Self { process, folder, address: (Ipv4Addr::LOCALHOST, port).into() };
        let begun = Instant::now();
        while std::net::TcpStream::connect(pooler.address).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", pooler.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        pooler
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Pgbouncer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_does_not_know_3_2_is_asked_for_3_0_and_only_once_the_hard_way() {
    let ca = Authority::new("ca");
    let server = Server::start(&ca.issue(&["localhost"]));
    let pooler = Pgbouncer::start(server.address);
    let mut settings = plain("scram");
    settings.credential = credential("hunter2");
    for session in 0..3 {
        let connected = connect(&settings, pooler.address, &start("postgres")).await;
        let upstream = connected.unwrap_or_else(|error| panic!("{session}: {error:?}\n{}", pooler.log()));
        assert_eq!(upstream.greeting.key.unwrap().secret.len(), 4);
    }
    assert_eq!(pooler.log().matches("pooler error: bad packet").count(), 1, "{}", pooler.log());
}
