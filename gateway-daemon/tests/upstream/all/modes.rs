//! libpq's TLS modes against a real server, good and bad.

use std::time::{Duration, SystemTime};

use gateway_daemon::protocol::postgres::upstream::{AuthKind, ChannelBinding, Roots, TlsMode, UpstreamTls, connect};
use rcgen::{IsCa, KeyPair};

use super::{
    certificates::{Authority, Identity, by_openssl, named, self_signed, version_1},
    server::{Server, roots, settings, start},
};

/// What a connection attempt shall come to.
enum Outcome {
    In(AuthKind),
    /// Part of the error's text.
    Refused(&'static str),
}

use Outcome::{In, Refused};

const BOUND: Outcome = In(AuthKind::ScramPlus);

async fn check(server: &Server, case: &str, mode: TlsMode, roots: &Roots, host: &str, outcome: Outcome) {
    let settings = settings(mode, roots, host, "scram");
    match (connect(&settings, server.address, &start("postgres")).await, outcome) {
        (Ok(upstream), In(kind)) => {
            assert_eq!(upstream.authenticated, kind, "{case}");
            assert_eq!(upstream.tls(), mode != TlsMode::Disable, "{case}");
        }
        (Err(error), Refused(fault)) => {
            let text = error.to_string();
            assert!(text.contains(fault), "{case}: {text}");
            assert!(text.starts_with("connection `orders`, server 127.0.0.1:"), "{text}");
            assert!(error.failure.help().is_some(), "{case}: no help for {text}");
        }
        (Ok(upstream), Refused(fault)) => panic!("{case}: {upstream:?} instead of {fault}"),
        (Err(error), In(_)) => panic!("{case}: {error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mode_verifies_what_libpq_verifies() {
    use TlsMode::{Disable, Require, VerifyCa, VerifyFull};
    let (ca, other) = (Authority::new("right"), Authority::new("wrong"));
    let (_right, right) = roots(&ca.certificate.pem());
    let (_wrong, wrong) = roots(&other.certificate.pem());
    let mut server = Server::start(&ca.issue(&["localhost", "127.0.0.1"]));
    for (case, mode, roots, host, outcome) in [
        ("name", VerifyFull, &right, "localhost", BOUND),
        ("address", VerifyFull, &right, "127.0.0.1", BOUND),
        (
            "other name",
            VerifyFull,
            &right,
            "db.example",
            Refused("is for `localhost`, `127.0.0.1`, not for `db.example`"),
        ),
        ("other address", VerifyFull, &right, "127.0.0.2", Refused("not for `127.0.0.2`")),
        ("no name", VerifyFull, &right, "a b", Refused("neither a host name nor an address")),
        ("other CA", VerifyFull, &wrong, "localhost", Refused("nobody whom the roots vouch for")),
        ("other CA", VerifyCa, &wrong, "localhost", Refused("nobody whom the roots vouch for")),
        ("system's CAs", VerifyFull, &Roots::System, "localhost", Refused("nobody whom the roots vouch for")),
        ("chain without name", VerifyCa, &right, "db.example", BOUND),
        ("any certificate", Require, &wrong, "db.example", BOUND),
        ("no TLS", Disable, &wrong, "db.example", In(AuthKind::Scram)),
    ] {
        check(&server, case, mode, roots, host, outcome).await;
    }

    let key = KeyPair::generate().unwrap();
    let mut params = named(&["localhost"], "self");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained); // as `openssl req -x509` makes them
    let own = self_signed(&params, &key);
    let (_itself, itself) = roots(&own.certificate);
    server.identify(&own);
    for (case, mode, roots, host, outcome) in [
        ("self-signed", VerifyFull, &right, "localhost", Refused("self-signed")),
        ("self-signed", VerifyCa, &right, "localhost", Refused("self-signed")),
        ("self-signed, itself in ca_file", VerifyFull, &itself, "localhost", BOUND),
        ("self-signed, itself in ca_file", VerifyFull, &itself, "db.example", Refused("not for `db.example`")),
        ("self-signed", Require, &right, "localhost", BOUND),
    ] {
        check(&server, case, mode, roots, host, outcome).await;
    }

    server.identify(&dated(&ca, -7200, -3600));
    check(&server, "expired", VerifyCa, &right, "localhost", Refused("certificate ended at 20")).await;
    check(&server, "expired", Require, &right, "localhost", BOUND).await;
    server.identify(&dated(&ca, 3600, 7200));
    check(&server, "not yet", VerifyFull, &right, "localhost", Refused("certificate begins at 20")).await;

    server.identify(&version_1());
    check(&server, "version 1", VerifyCa, &right, "localhost", Refused("is of X.509 version 1")).await;

    server.identify(&ca.issue(&[]));
    check(&server, "no names", VerifyFull, &right, "server", Refused("no subjectAltName")).await;
    check(&server, "no names", VerifyCa, &right, "server", BOUND).await;
}

fn dated(ca: &Authority, from: i64, to: i64) -> Identity {
    let at = |offset: i64| {
        let distance = Duration::from_secs(offset.unsigned_abs());
        let now = SystemTime::now();
        if offset < 0 { now - distance } else { now + distance }
    };
    let mut params = named(&["localhost"], "server");
    params.not_before = at(from).into();
    params.not_after = at(to).into();
    ca.issue_with(&params, &KeyPair::generate().unwrap())
}

/// RFC 5929: the hash is the signature's own, whatever it is; the server computes it with OpenSSL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channel_binding_agrees_with_the_server_for_every_kind_of_certificate() {
    let rsa = |algorithm| KeyPair::generate_rsa_for(algorithm, rcgen::RsaKeySize::_2048).unwrap();
    let key = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    let own = |key| self_signed(&named(&["localhost"], "self"), &key);
    let ed25519 = ["-newkey", "ed25519", "-addext", "subjectAltName=DNS:localhost"];
    let identities = [
        ("P-256", AuthKind::ScramPlus, own(key(&rcgen::PKCS_ECDSA_P256_SHA256))),
        ("P-384", AuthKind::ScramPlus, own(key(&rcgen::PKCS_ECDSA_P384_SHA384))),
        ("RSA SHA-256", AuthKind::ScramPlus, own(rsa(&rcgen::PKCS_RSA_SHA256))),
        ("RSA SHA-384", AuthKind::ScramPlus, own(rsa(&rcgen::PKCS_RSA_SHA384))),
        ("RSA SHA-512", AuthKind::ScramPlus, own(rsa(&rcgen::PKCS_RSA_SHA512))),
        ("Ed25519", AuthKind::Scram, by_openssl(&ed25519)), // defines no hash
    ];
    let ca = Authority::new("unused");
    let mut server = Server::start(&ca.issue(&["localhost"]));
    for (case, kind, identity) in &identities {
        let (_itself, itself) = roots(&identity.certificate);
        server.identify(identity);
        check(&server, case, TlsMode::VerifyFull, &itself, "localhost", In(*kind)).await;
        let mut strict = settings(TlsMode::VerifyFull, &itself, "localhost", "scram");
        strict.channel_binding = ChannelBinding::Require;
        let outcome = connect(&strict, server.address, &start("postgres")).await;
        assert_eq!(outcome.is_ok(), *kind == AuthKind::ScramPlus, "{case}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_refused_unless_tls_is_disabled() {
    let ca = Authority::new("ca");
    let (_file, trusted) = roots(&ca.certificate.pem());
    let server = Server::start(&ca.issue(&["localhost"]));
    server.psql("alter system set ssl = off");
    server.psql("select pg_reload_conf()");
    let mut server = server;
    server.stop();
    server.identify(&ca.issue(&["localhost"]));
    for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        check(&server, "no TLS", mode, &trusted, "localhost", Refused("the server does not offer TLS")).await;
    }
    check(&server, "plain", TlsMode::Disable, &trusted, "localhost", In(AuthKind::Scram)).await;
}

#[test]
fn roots_that_cannot_be_used_are_named() {
    let (_empty, empty) = roots("nothing here");
    let (_broken, broken) = roots("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (roots, fault) in [
        (Roots::File("/no/such/file".into()), "ca_file `/no/such/file` cannot be read"),
        (empty, "no certificate in it"),
        (broken, "a certificate cannot be used"),
    ] {
        let error = UpstreamTls::new(TlsMode::VerifyFull, &roots).unwrap_err().to_string();
        assert!(error.contains(fault), "{error}");
    }
    assert!(UpstreamTls::new(TlsMode::VerifyFull, &Roots::System).is_ok());
}
