//! Channel binding data of type `tls-server-end-point` (RFC 5929 chapter 4.1).

use aws_lc_rs::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use x509_parser::{
    oid_registry::{
        OID_HASH_SHA1, OID_NIST_HASH_SHA256, OID_NIST_HASH_SHA384, OID_NIST_HASH_SHA512, OID_PKCS1_MD5WITHRSAENC,
        OID_PKCS1_RSASSAPSS, OID_PKCS1_SHA1WITHRSA, OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA,
        OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ECDSA_WITH_SHA512,
    },
    prelude::{FromDer, X509Certificate},
    signature_algorithm::SignatureAlgorithm,
};

/// The hash of the server's certificate by the hash function of its own signature, SHA-256 in place of MD5 and
/// SHA-1. `None` where the RFC defines nothing: the signature uses no single hash (Ed25519), or one unknown here.
pub(super) fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let identifier = &parsed.signature_algorithm;
    let oid = &identifier.algorithm;
    let hash: &Algorithm = if [OID_PKCS1_SHA256WITHRSA, OID_SIG_ECDSA_WITH_SHA256].contains(oid) {
        &SHA256
    } else if [OID_PKCS1_SHA384WITHRSA, OID_SIG_ECDSA_WITH_SHA384].contains(oid) {
        &SHA384
    } else if [OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA512].contains(oid) {
        &SHA512
    } else if [OID_PKCS1_MD5WITHRSAENC, OID_PKCS1_SHA1WITHRSA].contains(oid) {
        &SHA256
    } else if *oid == OID_PKCS1_RSASSAPSS {
        pss_hash(&SignatureAlgorithm::try_from(identifier).ok()?)?
    } else {
        return None;
    };
    Some(digest(hash, certificate).as_ref().to_vec())
}

/// RSASSA-PSS names its hash in its parameters.
fn pss_hash(algorithm: &SignatureAlgorithm<'_>) -> Option<&'static Algorithm> {
    let SignatureAlgorithm::RSASSA_PSS(parameters) = algorithm else { return None };
    let oid = parameters.hash_algorithm_oid();
    if *oid == OID_NIST_HASH_SHA256 || *oid == OID_HASH_SHA1 {
        Some(&SHA256)
    } else if *oid == OID_NIST_HASH_SHA384 {
        Some(&SHA384)
    } else if *oid == OID_NIST_HASH_SHA512 {
        Some(&SHA512)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Servers before PostgreSQL 16 fail on RSASSA-PSS themselves, so OpenSSL is the judge.
    #[test]
    fn the_hash_is_that_of_the_certificates_signature() {
        let pss: &[&str] = &["-newkey", "rsa:2048", "-sigopt", "rsa_padding_mode:pss"];
        let rsa: &[&str] = &["-newkey", "rsa:2048"];
        for (key, hash, expected) in [
            (pss, "-sha256", Some("-sha256")),
            (pss, "-sha384", Some("-sha384")),
            (pss, "-sha512", Some("-sha512")),
            (rsa, "-sha1", Some("-sha256")),
            (rsa, "-sha512", Some("-sha512")),
            (rsa, "-sha3-256", None),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let openssl = |arguments: &[&str]| {
                let done = Command::new("openssl").current_dir(&folder).args(arguments).output().unwrap();
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
                done.stdout
            };
            let request =
                ["req", "-x509", "-nodes", "-subj", "/CN=x", "-keyout", "key", "-outform", "DER", "-out", "crt"];
            openssl(&[&request[..], key, &[hash]].concat());
            let certificate = std::fs::read(folder.path().join("crt")).unwrap();
            let wanted = expected.map(|hash| openssl(&["dgst", hash, "-binary", "crt"]));
            assert_eq!(tls_server_end_point(&certificate), wanted, "{key:?} {hash}");
        }
        assert_eq!(tls_server_end_point(b"no certificate"), None);
    }
}
