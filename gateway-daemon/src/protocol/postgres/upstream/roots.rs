//! TLS towards servers: the configured mode and roots, made into a rustls configuration once.

use std::{fmt, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde::Deserialize;

use super::{super::tls::ALPN, client::ClientCertificate, verify::ServerCheck};

/// The longest CA file that is read, in bytes.
const MAX_CA_FILE: u64 = 4 * 1024 * 1024;

/// libpq's `sslmode`, without those that fall back to the clear by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS with whatever certificate: helps against those who listen, not against those who interpose.
    Require,
    /// The certificate's chain must lead to a root.
    VerifyCa,
    /// And the certificate must be for the configured host.
    VerifyFull,
}

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The system's roots.
    System,
    /// The certificates of a PEM file, and no others.
    File(PathBuf),
}

/// The mode with what it needs, ready for connections.
#[derive(Clone)]
pub struct UpstreamTls {
    mode: TlsMode,
    /// Absent for `disable` alone.
    config: Option<Arc<ClientConfig>>,
    /// Shown to servers that ask for one.
    client: Option<Arc<ClientCertificate>>,
}

/// Why roots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsSettingsError {
    /// The CA file cannot be read.
    #[error("ca_file `{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The CA file is no PEM file of certificates.
    #[error("ca_file `{path}`: {fault}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// The system has no roots.
    #[error("the system has no root certificates (package ca-certificates): set ca_file")]
    NoSystemRoots,
    /// The crypto provider has none of the protocol versions.
    #[error("TLS cannot be set up")]
    Provider(#[from] rustls::Error),
}

impl UpstreamTls {
    /// Reads the roots that the mode needs. Blocks; for start and reload.
    ///
    /// # Errors
    /// Why the roots cannot be used.
    pub fn new(mode: TlsMode, roots: &Roots) -> Result<Self, TlsSettingsError> {
        Self::with_client(mode, roots, None)
    }

    /// The same, with the certificate that Weir shows to servers that ask for one.
    ///
    /// # Errors
    /// Why the roots cannot be used. The certificate's own files are read with each connection.
    pub fn with_client(
        mode: TlsMode,
        roots: &Roots,
        client: Option<Arc<ClientCertificate>>,
    ) -> Result<Self, TlsSettingsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let check = match mode {
            TlsMode::Disable => return Ok(Self { mode, config: None, client: None }),
            TlsMode::Require => ServerCheck::any(algorithms),
            TlsMode::VerifyCa => ServerCheck::chain(algorithms, load(roots)?),
            TlsMode::VerifyFull => ServerCheck::name(algorithms, load(roots)?),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .dangerous() // the verifier is ours, for the modes that webpki's own lacks
            .with_custom_certificate_verifier(Arc::new(check));
        let mut config = match &client {
            Some(client) => config.with_client_cert_resolver(Arc::<ClientCertificate>::clone(client)),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        // PostgreSQL keeps no sessions, and each connection shall verify for itself.
        config.resumption = Resumption::disabled();
        Ok(Self { mode, config: Some(Arc::new(config)), client })
    }

    /// The mode.
    pub const fn mode(&self) -> TlsMode {
        self.mode
    }

    /// The certificate that is shown to servers.
    pub const fn client(&self) -> Option<&Arc<ClientCertificate>> {
        self.client.as_ref()
    }

    pub(super) const fn config(&self) -> Option<&Arc<ClientConfig>> {
        self.config.as_ref()
    }
}

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamTls").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl fmt::Display for TlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disable => "disable",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        })
    }
}

/// Trusted certificates: as anchors of chains, and as they are.
pub(super) struct Trusted {
    pub(super) anchors: RootCertStore,
    /// Those of a CA file, for servers that present one of them itself.
    pub(super) exact: Vec<CertificateDer<'static>>,
}

fn load(roots: &Roots) -> Result<Trusted, TlsSettingsError> {
    let mut anchors = RootCertStore::empty();
    match roots {
        Roots::System => {
            let found = rustls_native_certs::load_native_certs();
            anchors.add_parsable_certificates(found.certs);
            if anchors.is_empty() {
                return Err(TlsSettingsError::NoSystemRoots);
            }
            Ok(Trusted { anchors, exact: Vec::new() })
        }
        Roots::File(path) => {
            let exact = read_certificates(path)?;
            for certificate in &exact {
                anchors.add(certificate.clone()).map_err(|error| TlsSettingsError::Pem {
                    path: path.clone(),
                    fault: format!("a certificate cannot be used: {error}"),
                })?;
            }
            Ok(Trusted { anchors, exact })
        }
    }
}

fn read_certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsSettingsError> {
    use std::io::Read;
    let failed = |source| TlsSettingsError::Read { path: path.clone(), source };
    let pem = |fault: String| TlsSettingsError::Pem { path: path.clone(), fault };
    let mut text = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_CA_FILE + 1).read_to_end(&mut text).map_err(failed)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_CA_FILE {
        return Err(pem(format!("longer than {MAX_CA_FILE} bytes")));
    }
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|error| pem(error.to_string()))?;
    if certificates.is_empty() {
        return Err(pem("no certificate in it".to_owned()));
    }
    Ok(certificates)
}
