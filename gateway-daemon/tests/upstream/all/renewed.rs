//! Credentials that end, against a real server that makes them end (`VALID UNTIL`).

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use gateway_daemon::{
    protocol::postgres::upstream::{Roots, TlsMode, UpstreamSettings, connect, simple_query_rows},
    secret::{CredentialSource, SecretRef},
};

use super::{
    certificates::Authority,
    queries::LIMITS,
    server::{Server, secret_file, settings, start},
};

/// How long a credential is good for, in seconds.
const LEASE: u64 = 6;

/// A command as those of clouds and vaults: each run makes another password, which the server takes until it ends.
fn vendor(folder: &Path, server: &Server) -> SecretRef {
    let script = folder.join("vendor");
    let (count, port) = (folder.join("count").display().to_string(), server.address.port());
    let text = format!(
        "#!/bin/sh\nset -e\necho >> {count}\np=lease-$(wc -l < {count})\nend=$(date -u -d '+{LEASE} seconds' +%FT%T.%NZ)\n\
         /usr/bin/psql -Xqh 127.0.0.1 -p {port} -U postgres -d postgres \
         -c \"alter role leased password '$p' valid until '$end'\"\n\
         printf '{{\"user\":\"leased\",\"password\":\"%s\",\"expiry\":\"%s\"}}' \"$p\" \"$end\"\n"
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    SecretRef::Command(vec![script.display().to_string()])
}

fn with(source: SecretRef) -> UpstreamSettings {
    UpstreamSettings {
        credential: Some(Arc::new(CredentialSource::new(source))),
        ..settings(TlsMode::Disable, &Roots::System, "127.0.0.1", "scram")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leased_password_is_renewed_before_it_ends_and_sessions_outlive_it() {
    let ca = Authority::new("ca");
    let (server, folder) = (Server::start(&ca.issue(&["localhost"])), tempfile::tempdir().unwrap());
    let settings = with(vendor(folder.path(), &server));
    let mut first = connect(&settings, server.address, &start("postgres")).await.unwrap();
    let begun = Instant::now();
    let mut logins = 0;
    // Over two leases, every login is let in: by the last password or, where that was just replaced, by the next.
    while begun.elapsed() < Duration::from_secs(2 * LEASE + 1) {
        let login = connect(&settings, server.address, &start("postgres")).await;
        let login = login.unwrap_or_else(|error| panic!("{:?}: {}", begun.elapsed(), error.report()));
        assert_eq!(&*login.user, "leased");
        logins += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let runs = fs::read_to_string(folder.path().join("count")).unwrap().lines().count();
    assert!((3..=8).contains(&runs), "{runs} runs for {logins} logins");
    let rows = simple_query_rows(&mut first, "select current_user", &LIMITS).await.expect("still there");
    assert_eq!(rows, [[Some("leased".to_owned())]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_was_changed_meanwhile_is_fetched_anew_within_the_same_login() {
    let ca = Authority::new("ca");
    let server = Server::start(&ca.issue(&["localhost"]));
    let file = secret_file("hunter2");
    let settings = with(SecretRef::File(file.path().to_owned()));
    connect(&settings, server.address, &start("postgres")).await.unwrap();
    server.psql("alter role scram password 'changed'");
    let refused = connect(&settings, server.address, &start("postgres")).await.unwrap_err();
    assert!(refused.to_string().contains("28P01"), "{refused}");
    fs::write(file.path(), "changed").unwrap();
    connect(&settings, server.address, &start("postgres")).await.expect("the file has another");
    server.psql("alter role scram password 'again'");
    fs::write(file.path(), "again").unwrap();
    connect(&settings, server.address, &start("postgres")).await.expect("the cached one is wrong, the file's is right");
}
