//! The CA's two files: a key that nobody else may read, and a certificate that everybody may. Both are written
//! whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use zeroize::Zeroizing;

/// The longest key or certificate file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Why the CA's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Reading or writing failed.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Someone else may read or change it.
    #[error(
        "`{path}` must belong to the daemon's user and be closed to others (owner {owner}, mode {mode:04o}): if others had it, run `weir ca rotate` after `chmod`"
    )]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
}

/// Makes the folder, or checks that nobody else can put files into it.
pub(super) fn prepare_folder(folder: &Path) -> Result<(), FileError> {
    let failed = |source| FileError::Io { action: "make", path: folder.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let meta = fs::metadata(folder).map_err(failed)?;
    check_owner(folder, &meta, 0o022)
}

/// The key's PEM text, if there is a file.
pub(super) fn read_key(path: &Path) -> Result<Option<Zeroizing<String>>, FileError> {
    let failed = |source| FileError::Io { action: "read", path: path.to_owned(), source };
    let flags = rustix::fs::OFlags::NOFOLLOW.union(rustix::fs::OFlags::NONBLOCK).bits();
    let flags = i32::try_from(flags).map_err(|_| failed(ErrorKind::InvalidInput.into()))?;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let meta = file.metadata().map_err(failed)?;
    check_owner(path, &meta, 0o077)?;
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

/// Writes a first key; never over another.
pub(super) fn create_key(path: &Path, pem: &Zeroizing<String>) -> Result<(), FileError> {
    let written = write_beside(path, pem.as_bytes(), 0o600)?;
    let linked = fs::hard_link(&written, path).and_then(|()| sync_folder(path));
    let removed = fs::remove_file(&written);
    linked.and(removed).map_err(|source| FileError::Io { action: "write", path: path.to_owned(), source })
}

/// Writes a key over the one before.
pub(super) fn replace_key(path: &Path, pem: &Zeroizing<String>) -> Result<(), FileError> {
    replace(path, pem.as_bytes(), 0o600)
}

/// Writes the certificate.
pub(super) fn replace_certificate(path: &Path, pem: &str) -> Result<(), FileError> {
    replace(path, pem.as_bytes(), 0o644)
}

/// The stored certificate; `None` when there is none or the file holds something else, since it can be made anew.
pub(super) fn read_certificate(path: &Path) -> Result<Option<CertificateDer<'static>>, FileError> {
    let mut pem = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut pem)) {
        Ok(_) => Ok(CertificateDer::from_pem_slice(&pem).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Io { action: "read", path: path.to_owned(), source }),
    }
}

/// A certificate as PEM (RFC 7468).
pub(super) fn certificate_pem(der: &CertificateDer<'_>) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let body = BASE64_STANDARD.encode(der);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, further) = rest.split_at_checked(64).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = further;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let written = write_beside(path, bytes, mode)?;
    fs::rename(&written, path).and_then(|()| sync_folder(path)).map_err(|source| FileError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

/// Writes and syncs a file that is not yet in its place.
fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, FileError> {
    let beside = path.with_extension("new");
    let failed = |source| FileError::Io { action: "write", path: beside.clone(), source };
    match fs::remove_file(&beside) {
        Ok(()) => {} // left by a crash
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(failed)?;
    // The umask may have taken what the mode gives.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    file.set_permissions(permissions).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(beside)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn check_owner(path: &Path, meta: &fs::Metadata, forbidden: u32) -> Result<(), FileError> {
    if meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & forbidden == 0 {
        return Ok(());
    }
    Err(FileError::Open { path: path.to_owned(), owner: meta.uid(), mode: meta.mode() & 0o7777 })
}
