//! Weir's own certificate towards servers (`client_cert_file`, `client_key_file`): checked before each connection, and
//! read anew when its files have changed.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::secret::{MAX_SECRET, SecretError, read_private};

/// Where a certificate and its key lie, with what was read there last.
pub struct ClientCertificate {
    certificate: PathBuf,
    key: PathBuf,
    held: ArcSwapOption<Held>,
}

struct Held {
    read_from: [FileState; 2],
    pair: Arc<CertifiedKey>,
    ends: SystemTime,
}

/// What changes when a file does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum ClientCertificateError {
    /// The certificate cannot be read.
    #[error("client_cert_file `{path}` cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key cannot be read, or is open to others.
    #[error("client_key_file")]
    Key(#[source] SecretError),
    /// A file that holds something else.
    #[error("`{path}` {fault}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the mend.
        fault: &'static str,
    },
    /// The two do not belong together.
    #[error("the key in `{key}` is not that of the first certificate in `{certificate}`: put the agreeing pair there")]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate's time is over.
    #[error("the certificate in `{path}` ended at {ended}: renew it")]
    Ended {
        /// The certificate's file.
        path: PathBuf,
        /// When.
        ended: jiff::Timestamp,
    },
    /// Reading was broken off.
    #[error("reading the certificate was broken off")]
    BrokenOff,
}

impl ClientCertificate {
    /// Of these files, which are read when a connection is made.
    pub const fn new(certificate: PathBuf, key: PathBuf) -> Self {
        Self { certificate, key, held: ArcSwapOption::const_empty() }
    }

    /// Reads the files if they have changed, so that a handshake shows what lies in them now.
    ///
    /// # Errors
    /// Why there is nothing to show.
    pub async fn refresh(self: &Arc<Self>) -> Result<(), Arc<ClientCertificateError>> {
        let own = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || own.read_if_changed()).await;
        read.unwrap_or(Err(ClientCertificateError::BrokenOff)).map_err(Arc::new)
    }

    fn read_if_changed(&self) -> Result<(), ClientCertificateError> {
        let state = self.state()?;
        let held = self.held.load_full();
        let held = match held {
            Some(held) if held.read_from == state => held,
            held => match (self.read(state), held) {
                (Ok(fresh), _) => {
                    let fresh = Arc::new(fresh);
                    self.held.store(Some(Arc::clone(&fresh)));
                    fresh
                }
                // Whoever renews writes one file after the other: between the two the last pair serves.
                (Err(error @ ClientCertificateError::Mismatch { .. }), Some(held)) => {
                    tracing::warn!(%error, "a client certificate is being renewed; the last one is shown");
                    held
                }
                (Err(error), _) => return Err(error),
            },
        };
        if held.ends > SystemTime::now() {
            return Ok(());
        }
        let ended = jiff::Timestamp::try_from(held.ends).unwrap_or_default();
        Err(ClientCertificateError::Ended { path: self.certificate.clone(), ended })
    }

    fn state(&self) -> Result<[FileState; 2], ClientCertificateError> {
        let certificate = FileState::of(&self.certificate).map_err(|source| self.unreadable(source))?;
        let unreadable = |source| SecretError::Read { path: self.key.clone(), source };
        let key = FileState::of(&self.key).map_err(|source| ClientCertificateError::Key(unreadable(source)))?;
        Ok([certificate, key])
    }

    fn unreadable(&self, source: io::Error) -> ClientCertificateError {
        ClientCertificateError::Read { path: self.certificate.clone(), source }
    }

    fn read(&self, read_from: [FileState; 2]) -> Result<Held, ClientCertificateError> {
        let content = |path: &Path, fault| ClientCertificateError::Content { path: path.to_owned(), fault };
        let no_chain = |fault| content(&self.certificate, fault);
        let text = read_public(&self.certificate).map_err(|source| self.unreadable(source))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let chain = chain.map_err(|_| no_chain("is no PEM file of certificates"))?;
        let leaf = chain.first().ok_or_else(|| no_chain("holds no certificate (PEM)"))?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| no_chain("begins with a broken certificate"))?;
        let ends = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
        let ends = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(ends)).unwrap_or(SystemTime::UNIX_EPOCH);

        let text = read_private(&self.key, "client_key_file").map_err(ClientCertificateError::Key)?;
        if is_encrypted(&text) {
            return Err(content(&self.key, "is encrypted: store it decrypted (`openssl pkey`), for root alone"));
        }
        let key = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|_| content(&self.key, "holds no private key (PEM: PKCS#8, PKCS#1 or SEC1)"))?;
        let key = any_supported_type(&key)
            .map_err(|_| content(&self.key, "holds a key of an unknown kind: use RSA, ECDSA or Ed25519"))?;
        let pair = CertifiedKey::new(chain, key);
        match pair.keys_match() {
            // Keys whose public half is not told apart are left to the server.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(Held { read_from, pair: Arc::new(pair), ends })
            }
            Err(_) => {
                Err(ClientCertificateError::Mismatch { certificate: self.certificate.clone(), key: self.key.clone() })
            }
        }
    }
}

impl FileState {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// A file that is no secret, up to the length of one.
fn read_public(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    let limit = u64::try_from(MAX_SECRET).unwrap_or(u64::MAX);
    fs::File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut text)?;
    if text.len() > MAX_SECRET {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_SECRET} bytes")));
    }
    Ok(text)
}

/// RFC 7468 chapter 11, and the headers of RFC 1421 that OpenSSL's older format has.
fn is_encrypted(pem: &[u8]) -> bool {
    [&b"BEGIN ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| pem.windows(mark.len()).any(|part| part == *mark))
}

/// Shows what [`ClientCertificate::refresh`] found.
impl ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.held.load().as_ref().map(|held| Arc::clone(&held.pair))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate")
            .field("certificate", &self.certificate)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
