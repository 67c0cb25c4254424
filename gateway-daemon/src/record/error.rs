//! What can go wrong with the record, in words for the operator and for the agent that is refused because of it.

use std::{io::ErrorKind, path::PathBuf};

/// Why something is not on the record. Whoever gets one refuses what it wanted to record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No space is left; the store tries again by itself.
    #[error("the record has no space left in `{path}`: {cause}")]
    Full {
        /// The window's file, or the store's folder.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// The disk or the file system failed; the store tries again by itself.
    #[error("the record cannot be written to `{path}`: {cause}")]
    Io {
        /// See [`StoreError::Full`].
        path: PathBuf,
        /// See [`StoreError::Full`].
        cause: String,
    },
    /// There is nothing to read.
    #[error("there is no record in `{path}`; name a store's folder, or one window's file")]
    Absent {
        /// What was named.
        path: PathBuf,
    },
    /// What should be read cannot be.
    #[error("the record in `{path}` cannot be read: {cause}")]
    Unreadable {
        /// What was named.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// A window's content is not what was written.
    #[error("the record in `{path}` is damaged: {cause}")]
    Damaged {
        /// The window's file.
        path: PathBuf,
        /// What is wrong, and where.
        cause: String,
    },
    /// Another process has the store.
    #[error(
        "the record's folder `{path}` is in use by a daemon; ask that one (`weir status`, `weir log` without --store) or \
         stop it"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// More waits for the disk than may.
    #[error("{waiting} bytes wait for the record, at most {limit} may")]
    Queue {
        /// Bytes that wait.
        waiting: u64,
        /// The limit of the settings.
        limit: u64,
    },
    /// The store was closed, or its writer died.
    #[error("the record is closed")]
    Closed,
    /// A receipt was asked for what was never appended: an error of the caller.
    #[error("a receipt up to {upto} was asked for, {appended} events were appended")]
    NotAppended {
        /// What was asked.
        upto: u64,
        /// What there is.
        appended: u64,
    },
    /// The event could not be encoded.
    #[error("an event cannot be encoded: {cause}")]
    Encode {
        /// Why.
        cause: String,
    },
}

impl StoreError {
    /// Sorts what redb says. Its errors do not name the file, so it is added here.
    pub(super) fn from_redb(path: impl Into<PathBuf>, error: impl Into<redb::Error>) -> Self {
        let (path, error) = (path.into(), error.into());
        let cause = error.to_string();
        match error {
            redb::Error::Io(error) => Self::from_io(path, &error),
            redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableDoesNotExist(_) => Self::Damaged { path, cause },
            // What redb adds later is an I/O error to us: refused, and tried again.
            _ => Self::Io { path, cause },
        }
    }

    /// Sorts what the system says.
    pub(super) fn from_io(path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        let (path, cause) = (path.into(), error.to_string());
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Self::Full { path, cause },
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => Self::Damaged { path, cause },
            _ => Self::Io { path, cause },
        }
    }
}
