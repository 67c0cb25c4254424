//! How a server's certificate is verified in libpq's modes.

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::roots::Trusted;

/// One verifier for the three modes. In all of them the handshake's signature is checked: the server has the key
/// of the certificate that it shows.
pub(super) struct ServerCheck {
    algorithms: WebPkiSupportedAlgorithms,
    scope: Scope,
}

enum Scope {
    /// `require`.
    Any,
    /// `verify-ca`.
    Chain(Trusted),
    /// `verify-full`.
    Name(Trusted),
}

impl ServerCheck {
    pub(super) const fn any(algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { algorithms, scope: Scope::Any }
    }

    pub(super) const fn chain(algorithms: WebPkiSupportedAlgorithms, trusted: Trusted) -> Self {
        Self { algorithms, scope: Scope::Chain(trusted) }
    }

    pub(super) const fn name(algorithms: WebPkiSupportedAlgorithms, trusted: Trusted) -> Self {
        Self { algorithms, scope: Scope::Name(trusted) }
    }

    fn check_chain(
        &self,
        trusted: &Trusted,
        parsed: &ParsedCertificate<'_>,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        // A self-signed certificate put into ca_file as it is: webpki takes no CA for a server, libpq does.
        if trusted.exact.iter().any(|one| one == end_entity) {
            return check_time(end_entity, now);
        }
        verify_server_cert_signed_by_trust_anchor(parsed, &trusted.anchors, intermediates, now, self.algorithms.all)
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parse = || ParsedCertificate::try_from(end_entity);
        match &self.scope {
            Scope::Any => {}
            Scope::Chain(trusted) => self.check_chain(trusted, &parse()?, end_entity, intermediates, now)?,
            Scope::Name(trusted) => {
                let parsed = parse()?;
                self.check_chain(trusted, &parsed, end_entity, intermediates, now)?;
                verify_server_name(&parsed, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl std::fmt::Debug for ServerCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.scope {
            Scope::Any => "ServerCheck(require)",
            Scope::Chain(_) => "ServerCheck(verify-ca)",
            Scope::Name(_) => "ServerCheck(verify-full)",
        })
    }
}

fn check_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let seconds = |time: i64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(time.try_into().unwrap_or(0)));
    let not_before = seconds(parsed.validity().not_before.timestamp());
    let not_after = seconds(parsed.validity().not_after.timestamp());
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    Ok(())
}

/// A refused certificate, for people. `None` when the error is about something else.
pub(super) fn certificate_fault(error: &Error) -> Option<String> {
    let Error::InvalidCertificate(fault) = error else { return None };
    Some(match fault {
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            if presented.is_empty() {
                format!("the server's certificate has no subjectAltName, so it cannot be for `{expected}` (a common name is not looked at)")
            } else {
                let names: Vec<_> = presented.iter().map(|name| plain_name(name)).collect();
                format!("the server's certificate is for {}, not for `{expected}`", names.join(", "))
            }
        }
        CertificateError::UnknownIssuer => {
            "the server's certificate is signed by nobody whom the roots vouch for (self-signed, or a CA that isn't in ca_file)".to_owned()
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the server's certificate ended at {}", time(*not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the server's certificate begins at {}", time(*not_before))
        }
        CertificateError::BadSignature => "the server's certificate is not signed by the CA that it names".to_owned(),
        // webpki's own errors, which rustls does not tell apart.
        CertificateError::Other(OtherError(other)) => match other.to_string().as_str() {
            "CaUsedAsEndEntity" => {
                "the server shows a certificate of a CA as its own: self-signed, and it doesn't stand in ca_file"
                    .to_owned()
            }
            "UnsupportedCertVersion" => {
                "the server's certificate is of X.509 version 1, without extensions: issue one of version 3".to_owned()
            }
            other => format!("the server's certificate cannot be used: {other}"),
        },
        other => format!("the server's certificate cannot be used: {other}"),
    })
}

/// webpki writes a name as `DnsName("x")` or `IpAddress(1.2.3.4)`.
fn plain_name(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    format!("`{}`", inner.trim_matches('"'))
}

fn time(at: UnixTime) -> String {
    i64::try_from(at.as_secs())
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| "an impossible time".to_owned(), |time| time.to_string())
}
