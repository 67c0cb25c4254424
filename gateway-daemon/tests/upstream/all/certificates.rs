//! Certificates for test servers.

use std::{
    process::Command,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// A CA of a test.
pub(super) struct Authority {
    pub(super) certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub(super) struct Identity {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = named(&[], name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    pub(super) fn issue(&self, names: &[&str]) -> Identity {
        self.issue_with(&named(names, "server"), &KeyPair::generate().unwrap())
    }

    pub(super) fn issue_with(&self, params: &CertificateParams, key: &KeyPair) -> Identity {
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

pub(super) fn named(names: &[&str], common_name: &str) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
    params
}

pub(super) fn self_signed(params: &CertificateParams, key: &KeyPair) -> Identity {
    Identity { certificate: params.self_signed(key).unwrap().pem(), key: key.serialize_pem() }
}

/// A self-signed certificate by OpenSSL, whose arguments choose key and extensions.
pub(super) fn by_openssl(arguments: &[&str]) -> Identity {
    let folder = tempfile::tempdir().unwrap();
    openssl(&folder, &["req", "-x509", "-nodes", "-subj", "/CN=localhost", "-keyout", "key", "-out", "crt"], arguments);
    read(&folder)
}

/// One of X.509 version 1, as `openssl x509 -req` makes them without an extension file.
pub(super) fn version_1() -> Identity {
    let folder = tempfile::tempdir().unwrap();
    let key = ["-newkey", "rsa:2048", "-nodes", "-keyout", "key"];
    openssl(&folder, &["req", "-new", "-subj", "/CN=localhost", "-out", "csr"], &key);
    openssl(&folder, &["x509", "-req", "-in", "csr", "-signkey", "key", "-out", "crt"], &[]);
    read(&folder)
}

fn openssl(folder: &tempfile::TempDir, verb: &[&str], arguments: &[&str]) {
    let done = Command::new("openssl").current_dir(folder).args(verb).args(arguments).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn read(folder: &tempfile::TempDir) -> Identity {
    let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
    Identity { certificate: read("crt"), key: read("key") }
}
