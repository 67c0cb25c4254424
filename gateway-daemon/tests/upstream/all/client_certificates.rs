//! Weir's own certificate, against a real server that asks for it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use gateway_daemon::protocol::postgres::upstream::{
    AuthKind, ClientCertificate, Roots, TlsMode, Upstream, UpstreamError, UpstreamSettings, UpstreamTls, connect,
    simple_query_rows,
};
use rcgen::KeyPair;

use super::{
    certificates::{Authority, Identity, named},
    queries::LIMITS,
    server::{Server, own, roots, settings, start},
};

/// A server that knows clients' certificates of one CA, and a folder for Weir's.
struct Stage {
    server: Server,
    clients: Authority,
    _roots: tempfile::NamedTempFile,
    trusted: Roots,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
        let (roots, trusted) = roots(&servers.certificate.pem());
        let identity = servers.issue(&["localhost"]);
        let mut server = Server::start(&identity);
        let file = server.data().join("clients.crt");
        fs::write(&file, clients.certificate.pem()).unwrap();
        own(&file);
        server.set("ssl_ca_file = 'clients.crt'\n");
        server.identify(&identity);
        Self { server, clients, _roots: roots, trusted, folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts an identity where Weir looks for it.
    fn put(&self, identity: &Identity) {
        write(&self.file("crt"), &identity.certificate, 0o644);
        write(&self.file("key"), &identity.key, 0o600);
    }

    fn settings(&self, role: &str) -> UpstreamSettings {
        let client = Arc::new(ClientCertificate::new(self.file("crt"), self.file("key")));
        let mut settings = settings(TlsMode::VerifyFull, &self.trusted, "localhost", role);
        settings.tls = UpstreamTls::with_client(TlsMode::VerifyFull, &self.trusted, Some(client)).unwrap();
        settings
    }

    async fn connect(&self, settings: &UpstreamSettings) -> Result<Upstream, UpstreamError> {
        connect(settings, self.server.address, &start("postgres")).await
    }

    async fn refusal(&self, settings: &UpstreamSettings) -> String {
        self.connect(settings).await.expect_err("refused").report()
    }

    fn issue(&self, name: &str, key: &KeyPair) -> Identity {
        self.clients.issue_with(&named(&[], name), key)
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    // Renamed into place, as certificate managers do.
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(new, path).unwrap();
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

/// What the server saw: the certificate's subject and serial number.
async fn seen(upstream: &mut Upstream) -> (String, String) {
    let sql = "select client_dn, client_serial::text from pg_stat_ssl where pid = pg_backend_pid()";
    let rows = simple_query_rows(upstream, sql, &LIMITS).await.unwrap();
    let value = |n: usize| rows[0][n].clone().unwrap_or_default();
    (value(0), value(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_a_certificate_gets_it_and_lets_its_role_in() {
    let stage = Stage::new();
    stage.put(&stage.issue("certy", &key()));
    let mut settings = stage.settings("certy");
    settings.credential = None;
    let mut upstream = stage.connect(&settings).await.unwrap_or_else(|error| panic!("{}", error.report()));
    assert_eq!((upstream.authenticated, seen(&mut upstream).await.0), (AuthKind::Trust, "/CN=certy".to_owned()));

    // One that asks for a password as well gets both.
    let both = stage.settings("twofold");
    let refused = stage.refusal(&both).await;
    assert!(refused.contains("28000") || refused.contains("28P01"), "another's certificate: {refused}");
    stage.put(&stage.issue("twofold", &key()));
    assert_eq!(stage.connect(&both).await.unwrap().authenticated, AuthKind::ScramPlus);
    let other = stage.refusal(&settings).await;
    assert!(other.contains("28000") && other.contains("the certificate's common name must be the role"), "{other}");

    let mut without = super::server::settings(TlsMode::VerifyFull, &stage.trusted, "localhost", "twofold");
    let refused = stage.refusal(&without).await;
    assert!(refused.contains("set `client_cert_file` and `client_key_file`"), "{refused}");
    without.user = "scram".into();
    stage.connect(&without).await.expect("a server that asks for none by its rules lets others in without");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_every_usual_kind_and_encoding_are_taken() {
    let stage = Stage::new();
    let settings = stage.settings("twofold");
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    for (case, key, traditional, label) in [
        ("PKCS#8, P-256", key(), false, "BEGIN PRIVATE KEY"),
        ("PKCS#8, RSA", rsa, false, "BEGIN PRIVATE KEY"),
        (
            "PKCS#1",
            KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap(),
            true,
            "BEGIN RSA PRIVATE KEY",
        ),
        ("SEC1", p384, true, "BEGIN EC PRIVATE KEY"),
        ("Ed25519", ed25519, false, "BEGIN PRIVATE KEY"),
    ] {
        stage.put(&stage.issue("twofold", &key));
        if traditional {
            openssl(&stage, &["pkey", "-in", "key", "-traditional", "-out", "old"]);
            fs::rename(stage.file("old"), stage.file("key")).unwrap();
        }
        assert!(fs::read_to_string(stage.file("key")).unwrap().contains(label), "{case}");
        if let Err(error) = stage.connect(&settings).await {
            panic!("{case}: {}\n{}", error.report(), stage.server.log());
        }
    }
}

fn openssl(stage: &Stage, arguments: &[&str]) {
    let done = Command::new("openssl").current_dir(stage.folder.path()).args(arguments).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_shown_from_the_next_connection_on() {
    let stage = Stage::new();
    let settings = stage.settings("twofold");
    let (first, second) = (stage.issue("twofold", &key()), stage.issue("twofold", &key()));
    stage.put(&first);
    let before = seen(&mut stage.connect(&settings).await.unwrap()).await;
    // Half of the renewal: the pair does not agree, and the last one serves.
    write(&stage.file("crt"), &second.certificate, 0o644);
    let between = seen(&mut stage.connect(&settings).await.unwrap()).await;
    assert_eq!(before, between);
    write(&stage.file("key"), &second.key, 0o600);
    let after = seen(&mut stage.connect(&settings).await.unwrap()).await;
    assert_ne!(before, after);
    // What is taken away is not shown any more.
    fs::remove_file(stage.file("key")).unwrap();
    assert!(stage.refusal(&settings).await.contains("cannot be read"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_cannot_be_used_is_refused_with_its_file_and_the_mend() {
    let stage = Stage::new();
    let good = stage.issue("twofold", &key());
    let (crt, key_file) = (stage.file("crt").display().to_string(), stage.file("key").display().to_string());
    let encrypted = {
        stage.put(&good);
        openssl(&stage, &["pkey", "-in", "key", "-aes256", "-passout", "pass:x", "-out", "encrypted"]);
        fs::read_to_string(stage.file("encrypted")).unwrap()
    };
    let stranger = Authority::new("strangers").issue_with(&named(&[], "twofold"), &key());
    let mut params = named(&[], "twofold");
    params.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
    params.not_after = (SystemTime::now() - Duration::from_secs(3600)).into();
    let ended = stage.clients.issue_with(&params, &key());
    let rows: Vec<(&str, &str, &str, u32, Vec<&str>)> = vec![
        ("no key", &good.certificate, "", 0o600, vec![&key_file, "holds no private key", "PKCS#8, PKCS#1 or SEC1"]),
        ("a certificate for a key", &good.certificate, &good.certificate, 0o600, vec!["holds no private key"]),
        ("encrypted", &good.certificate, &encrypted, 0o600, vec![&key_file, "is encrypted", "openssl pkey"]),
        ("open", &good.certificate, &good.key, 0o644, vec![&key_file, "is open to others", "0644", "chmod"]),
        ("no certificate", "nothing", &good.key, 0o600, vec![&crt, "holds no certificate"]),
        (
            "broken",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &good.key,
            0o600,
            vec![&crt, "broken"],
        ),
        ("another's key", &good.certificate, &stranger.key, 0o600, vec![&crt, &key_file, "is not that of"]),
        ("ended", &ended.certificate, &ended.key, 0o600, vec![&crt, "ended at 20", "renew it"]),
        ("a stranger", &stranger.certificate, &stranger.key, 0o600, vec!["its CA is unknown", "`ssl_ca_file`"]),
    ];
    for (case, certificate, key, mode, said) in rows {
        write(&stage.file("crt"), certificate, 0o644);
        write(&stage.file("key"), key, mode);
        let refused = stage.refusal(&stage.settings("twofold")).await;
        for part in said {
            assert!(refused.contains(part), "{case}: no `{part}` in {refused}\n{}", stage.server.log());
        }
        assert!(!refused.contains("BEGIN"), "{case}: {refused}");
    }
    fs::remove_file(stage.file("crt")).unwrap();
    let refused = stage.refusal(&stage.settings("twofold")).await;
    assert!(refused.contains(&format!("client_cert_file `{crt}` cannot be read: No such file")), "{refused}");
}
