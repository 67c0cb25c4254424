//! The host's own CA: one key on disk, a certificate that is good for the declared names alone, and server
//! certificates in memory.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand,
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::NoServerSessionStorage,
};
use x509_parser::{
    oid_registry::OID_X509_EXT_NAME_CONSTRAINTS,
    prelude::{FromDer, X509Certificate},
};

use super::{
    ALPN,
    files::{self, FileError},
    names::{DeclaredNames, ServerNameEntry},
};

/// How long a CA certificate is good, and when before its end it is issued anew with the same key.
const CA_LIFETIME: Duration = Duration::from_secs(3 * 365 * DAY);
const CA_RENEWED_BEFORE: Duration = Duration::from_secs(365 * DAY);

/// The same for the certificates that agents see.
const SERVER_LIFETIME: Duration = Duration::from_secs(7 * DAY);
const SERVER_RENEWED_BEFORE: Duration = Duration::from_secs(3 * DAY);

/// Certificates begin a little in the past, since clocks are set back.
const BACKDATED: Duration = Duration::from_secs(3600);

/// The most server configurations kept: an agent may ask for every address of a range.
const MAX_CONFIGS: usize = 1024;

const DAY: u64 = 24 * 3600;

/// Why the CA cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Its files.
    #[error(transparent)]
    File(#[from] FileError),
    /// The key file holds no usable key.
    #[error("`{path}` holds no P-256 key in PKCS #8: restore it, or take it away to have a new CA made")]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// A certificate cannot be made.
    #[error("a certificate cannot be made")]
    Issue(#[from] rcgen::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// A name that no connection declares.
    #[error("`{name}` is not declared, so the host's CA does not vouch for it")]
    Undeclared {
        /// The name.
        name: ServerNameEntry,
    },
    /// A server without names.
    #[error("a server certificate needs a name")]
    NoName,
    /// rustls takes the certificate not.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// The host's CA.
pub struct HostCa {
    folder: PathBuf,
    state: Mutex<State>,
}

struct State {
    key: KeyPair,
    certificate: CaCertificate,
    names: DeclaredNames,
    configs: HashMap<Vec<ServerNameEntry>, Issued>,
}

struct CaCertificate {
    der: CertificateDer<'static>,
    ends: SystemTime,
}

#[derive(Clone)]
struct Issued {
    config: Arc<ServerConfig>,
    renew: SystemTime,
}

/// What may be shown of the CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaView {
    /// The certificate.
    pub pem: String,
    /// SHA-256 of the certificate's DER, as `openssl x509 -fingerprint -sha256` writes it.
    pub fingerprint: String,
    /// The declared names and networks.
    pub names: Vec<String>,
    /// When the certificate ends.
    pub expires: SystemTime,
}

impl HostCa {
    /// Opens the CA in `folder`, or makes one. The certificate is issued anew, with the same key, when `names` are
    /// not those it was issued for or its end is near. Blocks.
    ///
    /// # Errors
    /// The files cannot be used, or are open to others.
    pub fn open_or_create(folder: &Path, names: DeclaredNames) -> Result<Self, CaError> {
        files::prepare_folder(folder)?;
        let path = folder.join(KEY_FILE);
        let key = match files::read_key(&path)? {
            Some(pem) => KeyPair::from_pem_and_sign_algo(&pem, &rcgen::PKCS_ECDSA_P256_SHA256)
                .map_err(|_| CaError::Key { path })?,
            None => {
                let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
                files::create_key(&path, &key.serialize_pem().into())?;
                key
            }
        };
        let certificate = current_certificate(folder, &key, &names)?;
        let state = State { key, certificate, names, configs: HashMap::new() };
        Ok(Self { folder: folder.to_owned(), state: Mutex::new(state) })
    }

    /// Takes other names, after a reload of the configuration. Blocks.
    ///
    /// # Errors
    /// The new certificate cannot be made or stored; then the old one stays.
    pub fn declare(&self, names: DeclaredNames) -> Result<(), CaError> {
        let mut state = self.lock();
        state.certificate = current_certificate(&self.folder, &state.key, &names)?;
        state.names = names;
        state.configs.clear();
        Ok(())
    }

    /// Makes a new key and certificate. Agents that are running trust the old one and must be started anew. Blocks.
    ///
    /// # Errors
    /// They cannot be made or stored; then the old ones stay.
    pub fn rotate(&self) -> Result<CaView, CaError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut state = self.lock();
        // Between the two files a crash leaves a certificate of another key, which the next start replaces.
        files::replace_key(&self.folder.join(KEY_FILE), &key.serialize_pem().into())?;
        state.certificate = issue_ca(&self.folder, &key, &state.names)?;
        state.key = key;
        state.configs.clear();
        Ok(state.view())
    }

    /// The certificate, for `weir ca show`.
    pub fn show(&self) -> CaView {
        self.lock().view()
    }

    /// Whether a certificate may be made for this name.
    pub fn declares(&self, name: &ServerNameEntry) -> bool {
        self.lock().names.contain(name)
    }

    /// A server configuration for a target with these names: its declared host names, and the address that the
    /// agent asked for. Kept until shortly before its certificate ends.
    ///
    /// # Errors
    /// A name that is not declared, or no certificate can be made.
    pub fn server_config(&self, names: &[ServerNameEntry]) -> Result<Arc<ServerConfig>, CaError> {
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        let now = SystemTime::now();
        let mut state = self.lock();
        if let Some(issued) = state.configs.get(&names).filter(|issued| now < issued.renew) {
            return Ok(Arc::clone(&issued.config));
        }
        let config = state.issue(&names, now)?;
        if state.configs.len() >= MAX_CONFIGS {
            state.configs.clear(); // making one again takes less than a millisecond
        }
        let renew = now.checked_add(SERVER_LIFETIME.saturating_sub(SERVER_RENEWED_BEFORE)).unwrap_or(now);
        state.configs.insert(names, Issued { config: Arc::clone(&config), renew });
        Ok(config)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one assignment after all that can fail.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for HostCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostCa").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// The system's roots and `ca` as one PEM text, for SSL_CERT_FILE and its like. Blocks.
pub fn bundle(ca: &CaView) -> String {
    let found = rustls_native_certs::load_native_certs();
    for fault in &found.errors {
        tracing::warn!(error = %fault, "a root certificate of the system cannot be read");
    }
    let mut text = ca.pem.clone();
    for certificate in found.certs {
        text.push_str(&files::certificate_pem(&certificate));
    }
    text
}

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.pem";

/// The certificate on disk where it still fits, else a new one.
fn current_certificate(folder: &Path, key: &KeyPair, names: &DeclaredNames) -> Result<CaCertificate, CaError> {
    let stored = files::read_certificate(&folder.join(CERTIFICATE_FILE))?;
    if let Some(der) = stored
        && let Some(kept) = still_fits(der, key, names)?
    {
        return Ok(kept);
    }
    issue_ca(folder, key, names)
}

/// A stored certificate, if it is of this key, for these names, and far from its end.
fn still_fits(
    der: CertificateDer<'static>,
    key: &KeyPair,
    names: &DeclaredNames,
) -> Result<Option<CaCertificate>, CaError> {
    let now = SystemTime::now();
    let wanted = ca_certificate(key, names, now)?;
    let (Ok((_, stored)), Ok((_, fresh))) = (X509Certificate::from_der(&der), X509Certificate::from_der(wanted.der()))
    else {
        return Ok(None);
    };
    let constraints = |certificate: &X509Certificate<'_>| {
        let found = certificate.get_extension_unique(&OID_X509_EXT_NAME_CONSTRAINTS).ok().flatten();
        found.map(|extension| (extension.critical, extension.value.to_vec()))
    };
    let same = stored.public_key().raw == fresh.public_key().raw
        && stored.subject().as_raw() == fresh.subject().as_raw()
        && constraints(&stored) == constraints(&fresh)
        && constraints(&stored).is_some();
    let ends = end_of(&stored);
    let fits = same && now.checked_add(CA_RENEWED_BEFORE).is_some_and(|soon| soon < ends);
    Ok(fits.then(|| CaCertificate { der: der.clone(), ends }))
}

fn issue_ca(folder: &Path, key: &KeyPair, names: &DeclaredNames) -> Result<CaCertificate, CaError> {
    let now = SystemTime::now();
    let der = ca_certificate(key, names, now)?.der().clone();
    // As the certificate says it, in whole seconds.
    let ends = X509Certificate::from_der(&der).map_or(now, |(_, parsed)| end_of(&parsed));
    files::replace_certificate(&folder.join(CERTIFICATE_FILE), &files::certificate_pem(&der))?;
    Ok(CaCertificate { der, ends })
}

fn end_of(certificate: &X509Certificate<'_>) -> SystemTime {
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn ca_certificate(key: &KeyPair, names: &DeclaredNames, now: SystemTime) -> Result<Certificate, CaError> {
    let mut params = ca_params(key, now)?;
    params.name_constraints = Some(names.constraints());
    Ok(params.self_signed(key)?)
}

/// Subject and validity of the CA. The subject names the key, so that after a rotation nobody tries the wrong one.
fn ca_params(key: &KeyPair, now: SystemTime) -> Result<CertificateParams, CaError> {
    let mut params = dated(now, CA_LIFETIME)?;
    let hash = digest(&SHA256, &key.subject_public_key_info());
    let id: String = hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("Weir host CA {id}"));
    // Nothing below it but servers: no further CA, no other use.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn dated(now: SystemTime, lifetime: Duration) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.not_before = now.checked_sub(BACKDATED).unwrap_or(now).into();
    params.not_after = now.checked_add(lifetime).unwrap_or(now).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| CaError::Random)?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

impl State {
    fn view(&self) -> CaView {
        let hash = digest(&SHA256, &self.certificate.der);
        let pairs: Vec<_> = hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        CaView {
            pem: files::certificate_pem(&self.certificate.der),
            fingerprint: pairs.join(":"),
            names: self.names.list(),
            expires: self.certificate.ends,
        }
    }

    /// A server certificate with a key of its own.
    fn issue(&self, names: &[ServerNameEntry], now: SystemTime) -> Result<Arc<ServerConfig>, CaError> {
        if names.is_empty() {
            return Err(CaError::NoName);
        }
        if let Some(name) = names.iter().find(|name| !self.names.contain(name)) {
            return Err(CaError::Undeclared { name: name.clone() });
        }
        let mut params = dated(now, SERVER_LIFETIME)?;
        // No common name that looks like a host's: OpenSSL would hold it against the constraints.
        params.distinguished_name.push(DnType::CommonName, "Weir server certificate");
        params.subject_alt_names = names.iter().map(alternative_name).collect::<Result<_, _>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &Issuer::new(ca_params(&self.key, now)?, &self.key))?;
        server_config(certificate, &key)
    }
}

fn alternative_name(name: &ServerNameEntry) -> Result<SanType, rcgen::Error> {
    Ok(match name {
        ServerNameEntry::Dns(host) => SanType::DnsName(host.to_string().try_into()?),
        ServerNameEntry::Ip(address) => SanType::IpAddress(*address),
    })
}

fn server_config(certificate: Certificate, key: &KeyPair) -> Result<Arc<ServerConfig>, CaError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Sessions are long and on one host: nothing to resume, and nothing to keep for it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
