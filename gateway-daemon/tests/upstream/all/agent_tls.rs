//! The TLS that agents see: certificates of the host's CA before libpq, OpenSSL and rustls.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use gateway_daemon::protocol::postgres::tls::{
    AcceptError, CaError, DeclaredNames, FileError, HostCa, TlsStart, accept_tls, bundle, is_direct_tls,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;

use super::{
    certificates::{Authority, named},
    server::Server,
};

const HANDSHAKE: Duration = Duration::from_secs(20);

fn declared(names: &[&str]) -> DeclaredNames {
    let mut declared = DeclaredNames::new();
    for name in names {
        declared.add(name.parse().unwrap());
    }
    declared
}

fn config(ca: &HostCa, names: &[&str]) -> Arc<ServerConfig> {
    let names: Vec<_> = names.iter().map(|name| name.parse().unwrap()).collect();
    ca.server_config(&names).unwrap()
}

/// Answers SSLRequest, does TLS, and passes the rest to `server` in the clear.
async fn relay(listener: TcpListener, config: Arc<ServerConfig>, server: SocketAddr) {
    loop {
        let (mut agent, _) = listener.accept().await.unwrap();
        let config = Arc::clone(&config);
        tokio::spawn(async move {
            let mut request = [0; 8];
            agent.read_exact(&mut request).await?;
            agent.write_all(b"S").await?;
            let accepted = accept_tls(agent, config, Bytes::new(), TlsStart::Requested, HANDSHAKE).await;
            let mut agent = accepted.map_err(std::io::Error::other)?;
            let mut upstream = TcpStream::connect(server).await?;
            tokio::io::copy_bidirectional(&mut agent, &mut upstream).await
        });
    }
}

async fn psql(ca: &Path, port: u16, target: &str) -> Output {
    let conninfo =
        format!("{target} port={port} user=trusty dbname=postgres sslmode=verify-full sslrootcert={}", ca.display());
    let asked = tokio::task::spawn_blocking(move || {
        Command::new("psql").env_clear().args(["-X", "-At", "-c", "select 6*7", &conninfo]).output().unwrap()
    });
    asked.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_verifies_host_and_address_in_full_and_nothing_that_is_not_declared() {
    let own = Authority::new("the server's own");
    let server = Server::start(&own.issue(&["localhost"]));
    let folder = tempfile::tempdir().unwrap();
    let ca = HostCa::open_or_create(&folder.path().join("ca"), declared(&["db.weir.test", "127.0.0.1"])).unwrap();
    let (root, all) = (folder.path().join("root.pem"), folder.path().join("all.pem"));
    fs::write(&root, ca.show().pem).unwrap();
    fs::write(&all, bundle(&ca.show())).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let relay = tokio::spawn(relay(listener, config(&ca, &["db.weir.test", "127.0.0.1"]), server.address));
    let other = folder.path().join("other.pem");
    fs::write(&other, own.certificate.pem()).unwrap();
    for (roots, target, fault) in [
        (&root, "host=db.weir.test hostaddr=127.0.0.1", None),
        (&root, "host=127.0.0.1", None),
        (&all, "host=127.0.0.1", None),
        (&root, "host=localhost hostaddr=127.0.0.1", Some("does not match host name \"localhost\"")),
        (&root, "host=sub.db.weir.test hostaddr=127.0.0.1", Some("does not match host name")),
        (&other, "host=127.0.0.1", Some("certificate verify failed")),
    ] {
        let output = psql(roots, port, target).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match fault {
            None => assert_eq!((out.trim(), err.trim()), ("42", ""), "{target}"),
            Some(fault) => assert!(err.contains(fault) && out.is_empty(), "{target}: {err}"),
        }
    }
    relay.abort();
}

/// What somebody makes who has stolen the CA's key.
fn forged(folder: &Path, params: &CertificateParams) -> CertificateDer<'static> {
    let key = KeyPair::from_pem(&fs::read_to_string(folder.join("ca.key")).unwrap()).unwrap();
    let ca = CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_der(&ca, key).unwrap();
    let der = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone();
    assert!(der.len() > 100);
    der
}

fn openssl_verify(folder: &Path, name: &str, der: &CertificateDer<'_>) -> Output {
    let leaf = folder.join("leaf.der");
    fs::write(&leaf, der).unwrap();
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]).arg(folder.join("ca.pem"));
    let kind = if name.parse::<IpAddr>().is_ok() { "-verify_ip" } else { "-verify_hostname" };
    verify.args([kind, name]).arg(&leaf).output().unwrap()
}

fn rustls_verify(folder: &Path, name: &str, der: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let name = ServerName::try_from(name).unwrap();
    use rustls::client::danger::ServerCertVerifier;
    verifier.verify_server_cert(der, &[], &name, &[], rustls::pki_types::UnixTime::now()).map(|_| ())
}

#[test]
fn even_with_its_key_the_ca_vouches_for_declared_names_alone() {
    let hosts: &[&str] = &["db.weir.test", "10.1.2.3", "fd00::7"];
    for (names, genuine, forgeries) in [
        (hosts, hosts, &["other.test", "weir.test", "xdb.weir.test", "10.1.2.4", "fd00::8"][..]),
        (&["db.weir.test"][..], &["db.weir.test"][..], &["127.0.0.1", "::1", "other.test"][..]),
        (&["10.1.2.3"][..], &["10.1.2.3"][..], &["db.weir.test", "::1", "10.1.2.2"][..]),
        (&["fd00::7"][..], &["fd00::7"][..], &["127.0.0.1", "localhost"][..]),
        (&[][..], &[][..], &["127.0.0.1", "localhost", "::1"][..]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let _ca = HostCa::open_or_create(folder.path(), declared(names)).unwrap();
        let leaf = |name: &str| {
            let mut params = named(&[name], "somebody");
            params.is_ca = IsCa::ExplicitNoCa;
            params.use_authority_key_identifier_extension = true;
            forged(folder.path(), &params)
        };
        for name in genuine {
            let der = leaf(name);
            let openssl = openssl_verify(folder.path(), name, &der);
            assert!(openssl.status.success(), "{name}: {}", String::from_utf8_lossy(&openssl.stderr));
            rustls_verify(folder.path(), name, &der).unwrap();
        }
        for name in forgeries {
            let der = leaf(name);
            let openssl = openssl_verify(folder.path(), name, &der);
            let text = String::from_utf8_lossy(&openssl.stderr).into_owned();
            assert!(!openssl.status.success() && text.contains("subtree violation"), "{names:?} {name}: {text}");
            let error = rustls_verify(folder.path(), name, &der).unwrap_err();
            assert!(error.to_string().contains("NameConstraintViolation"), "{names:?} {name}: {error}");
        }
    }
}

#[test]
fn the_ca_makes_no_further_ca() {
    let folder = tempfile::tempdir().unwrap();
    let _ca = HostCa::open_or_create(folder.path(), declared(&["db.weir.test"])).unwrap();
    let text =
        Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(folder.path().join("ca.pem")).output();
    let text = String::from_utf8(text.unwrap().stdout).unwrap();
    for line in [
        "X509v3 Name Constraints: critical",
        "X509v3 Basic Constraints: critical",
        "CA:TRUE, pathlen:0",
        "X509v3 Key Usage: critical",
        "DNS:db.weir.test",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let mut params = named(&[], "a CA below");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let below_key = KeyPair::generate().unwrap();
    let key = KeyPair::from_pem(&fs::read_to_string(folder.path().join("ca.key")).unwrap()).unwrap();
    let ca = CertificateDer::from_pem_file(folder.path().join("ca.pem")).unwrap();
    let below = params.signed_by(&below_key, &Issuer::from_ca_cert_der(&ca, key).unwrap()).unwrap();
    let leaf = named(&["db.weir.test"], "leaf");
    let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &Issuer::new(params, below_key)).unwrap();
    let (between, end) = (folder.path().join("between.pem"), folder.path().join("end.pem"));
    fs::write(&between, below.pem()).unwrap();
    fs::write(&end, leaf.pem()).unwrap();
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-CAfile"]).arg(folder.path().join("ca.pem")).arg("-untrusted").arg(between).arg(end);
    let verified = verify.output().unwrap();
    let text = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(!verified.status.success() && text.contains("path length constraint exceeded"), "{text}");
}

#[test]
fn the_ca_stays_the_same_until_names_or_key_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca");
    let one = || declared(&["db.weir.test", "10.0.0.1"]);
    let ca = HostCa::open_or_create(&path, one()).unwrap();
    let first = ca.show();
    assert_eq!(first.names, ["db.weir.test", "10.0.0.1"]);
    assert!(first.expires > SystemTime::now() + Duration::from_secs(2 * 365 * 24 * 3600));
    let shown = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(path.join("ca.pem"))
        .output();
    assert!(String::from_utf8(shown.unwrap().stdout).unwrap().contains(&first.fingerprint));
    assert_eq!(HostCa::open_or_create(&path, one()).unwrap().show(), first);

    let key = fs::read(path.join("ca.key")).unwrap();
    let mut wider = one();
    wider.add("other.test".parse().unwrap());
    ca.declare(wider.clone()).unwrap();
    assert_ne!(ca.show().fingerprint, first.fingerprint);
    assert_eq!(fs::read(path.join("ca.key")).unwrap(), key, "other names, the same key");
    assert_eq!(HostCa::open_or_create(&path, wider.clone()).unwrap().show(), ca.show());

    let rotated = ca.rotate().unwrap();
    assert_eq!(rotated.names, ca.show().names);
    assert_ne!(fs::read(path.join("ca.key")).unwrap(), key);
    assert_eq!(HostCa::open_or_create(&path, wider.clone()).unwrap().show(), rotated);

    // As after a crash between the two files of a rotation: the certificate is of another key.
    fs::write(path.join("ca.pem"), &first.pem).unwrap();
    let mended = HostCa::open_or_create(&path, wider).unwrap();
    let der = CertificateDer::from_pem_slice(mended.show().pem.as_bytes()).unwrap();
    assert_eq!(fs::read_to_string(path.join("ca.pem")).unwrap(), mended.show().pem);
    config(&mended, &["db.weir.test"]);
    assert!(der.len() > 100 && mended.show().fingerprint != first.fingerprint);
}

#[test]
fn the_key_is_the_daemons_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca");
    let ca = HostCa::open_or_create(&path, declared(&["a.test"])).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&path), mode(&path.join("ca.key"))), (0o700, 0o600));
    assert!(!format!("{ca:?}").contains("PRIVATE"));
    let open = || HostCa::open_or_create(&path, declared(&["a.test"]));
    fs::set_permissions(path.join("ca.key"), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(open().unwrap_err(), CaError::File(FileError::Open { .. })));
    fs::set_permissions(path.join("ca.key"), fs::Permissions::from_mode(0o600)).unwrap();
    open().unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(open().unwrap_err(), CaError::File(FileError::Open { .. })));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    fs::rename(path.join("ca.key"), path.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(path.join("elsewhere"), path.join("ca.key")).unwrap();
    assert!(matches!(open().unwrap_err(), CaError::File(FileError::Io { .. })), "a link in the key's place");
    fs::remove_file(path.join("ca.key")).unwrap();
    fs::write(path.join("ca.key"), "no key").unwrap();
    fs::set_permissions(path.join("ca.key"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(open().unwrap_err(), CaError::Key { .. }));
}

#[test]
fn server_certificates_are_for_declared_targets_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut names = declared(&["db.weir.test"]);
    names.add_network("10.7.0.0".parse().unwrap(), 16).unwrap();
    assert_eq!(names.list(), ["db.weir.test", "10.7.0.0/16"]);
    assert!(names.add_network("0.0.0.0".parse().unwrap(), 0).is_err());
    assert!(names.add_network("10.0.0.0".parse().unwrap(), 33).is_err());
    let ca = HostCa::open_or_create(folder.path(), names).unwrap();
    let first = config(&ca, &["db.weir.test", "10.7.255.1"]);
    assert!(Arc::ptr_eq(&first, &config(&ca, &["10.7.255.1", "DB.weir.test."])));
    assert!(!Arc::ptr_eq(&first, &config(&ca, &["db.weir.test"])));
    for name in ["other.test", "x.db.weir.test", "10.8.0.1", "::1"] {
        let refused = ca.server_config(&[name.parse().unwrap()]).unwrap_err();
        assert!(matches!(refused, CaError::Undeclared { .. }), "{name}");
    }
    assert!(matches!(ca.server_config(&[]), Err(CaError::NoName)));
    ca.rotate().unwrap();
    assert!(!Arc::ptr_eq(&first, &config(&ca, &["db.weir.test", "10.7.255.1"])));
    for wrong in ["*.weir.test", "a b", "", "-"] {
        let parsed = wrong.parse::<gateway_daemon::protocol::postgres::tls::ServerNameEntry>();
        assert!(parsed.is_err(), "{wrong}");
    }
}

/// A client with these ALPN protocols meets [`accept_tls`], some of its bytes read before.
async fn direct(alpn: &[&[u8]], start: TlsStart) -> Result<String, AcceptError> {
    let folder = tempfile::tempdir().unwrap();
    let ca = HostCa::open_or_create(folder.path(), declared(&["db.weir.test"])).unwrap();
    let server = config(&ca, &["db.weir.test"]);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.show().pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let asking = tokio::spawn(async move {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("db.weir.test").unwrap();
        let mut tls = TlsConnector::from(Arc::new(client)).connect(name, tcp).await?;
        tls.write_all(b"hello").await?;
        tls.shutdown().await
    });
    let (mut tcp, _) = listener.accept().await.unwrap();
    let mut read = vec![0; 100];
    tcp.read_exact(&mut read).await.unwrap();
    assert!(is_direct_tls(read[0]) && !is_direct_tls(0));
    let mut agent = accept_tls(tcp, server, Bytes::from(read), start, HANDSHAKE).await?;
    assert!(agent.is_tls() && agent.tcp().peer_addr().is_ok());
    let mut heard = String::new();
    agent.read_to_string(&mut heard).await.unwrap();
    asking.await.unwrap().unwrap();
    Ok(heard)
}

#[tokio::test]
async fn direct_tls_needs_postgresqls_alpn_and_a_request_nothing_behind_it() {
    assert_eq!(direct(&[b"postgresql"], TlsStart::Direct).await.unwrap(), "hello");
    assert!(matches!(direct(&[], TlsStart::Direct).await, Err(AcceptError::NoAlpn)));
    assert!(matches!(direct(&[b"h2", b"http/1.1"], TlsStart::Direct).await, Err(AcceptError::Handshake(_))));
    assert!(matches!(direct(&[], TlsStart::Requested).await, Err(AcceptError::Stuffed { count: 100 })));
}

#[tokio::test]
async fn a_silent_client_ends_at_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let ca = HostCa::open_or_create(folder.path(), declared(&["db.weir.test"])).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let limit = Duration::from_millis(100);
    let ended = accept_tls(tcp, config(&ca, &["db.weir.test"]), Bytes::new(), TlsStart::Requested, limit).await;
    assert!(matches!(ended, Err(AcceptError::Deadline { .. })));
}
