//! What is wrong with a configuration, for people.

use std::{fmt, io, path::PathBuf};

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}{}", mend(source), path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file has faults.
    #[error("{}", list(path, faults))]
    Faults {
        /// The file.
        path: PathBuf,
        /// All of them, in the order of the file.
        faults: Vec<Fault>,
    },
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1; 0 where the fault is of the whole file.
    pub line: usize,
    /// The key, with its table: `connection "orders".port`.
    pub key: String,
    /// What is wrong and how to mend it.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.key, self.message) }
    }
}

fn mend(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "; write one with `weir init`, or name yours by --config",
        io::ErrorKind::PermissionDenied => "; it is for root: run this as root",
        io::ErrorKind::IsADirectory => "; name the file in it by --config",
        _ => "",
    }
}

fn list(path: &std::path::Path, faults: &[Fault]) -> String {
    faults
        .iter()
        .map(|fault| match fault.line {
            0 => format!("{}: {fault}", path.display()),
            line => format!("{}:{line}: {fault}", path.display()),
        })
        .collect::<Vec<_>>()
        .join("\n")
}
