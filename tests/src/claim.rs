//! Things of which the machine has few: each test claims its own, by a lock that ends with its process.

use std::fs::{self, File, TryLockError};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::program::wait_until;
use crate::servers;

/// Shared by all runs on the machine, and root's alone.
const LOCKS: &str = "/run/weir-test-locks";
/// Below 1024, where an unprivileged process can't listen; above most of the well-known ones.
const PORTS: std::ops::Range<u16> = 700..943;
/// Tests that ran before may have to end first.
const DEADLINE: Duration = Duration::from_secs(120);

/// A Unix user that no other test uses now.
#[derive(Debug)]
pub struct UnixUser {
    /// Its name.
    pub name: String,
    _lock: File,
}

impl UnixUser {
    /// Waits for one that is free.
    pub fn claim() -> Result<Self> {
        let servers = servers()?;
        wait_until("a free Unix user", DEADLINE, || {
            for name in &servers.users {
                if let Some(lock) = lock(name)? {
                    return Ok(Some(Self { name: name.clone(), _lock: lock }));
                }
            }
            Ok(None)
        })
    }
}

/// A privileged TCP port that no other test uses now.
#[derive(Debug)]
pub struct Port {
    /// Its number, below 1024.
    pub number: u16,
    _lock: File,
}

impl Port {
    /// Waits for one that is free.
    pub fn claim() -> Result<Self> {
        wait_until("a free privileged port", DEADLINE, || {
            for number in PORTS {
                let Some(lock) = lock(&format!("port-{number}"))? else { continue };
                // Somebody else's server may sit there.
                if TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok() {
                    return Ok(Some(Self { number, _lock: lock }));
                }
            }
            Ok(None)
        })
    }
}

/// The lock called `name`, if nobody holds it.
fn lock(name: &str) -> Result<Option<File>> {
    fs::create_dir_all(LOCKS).with_context(|| format!("cannot make {LOCKS}: end-to-end tests run as root"))?;
    let file = File::create(Path::new(LOCKS).join(name))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}
