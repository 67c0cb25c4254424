//! Keys of cancel requests. The agent gets a key of Weir's own, never the server's; it serves the same agent alone.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};

use super::{
    serve::Server,
    startup::CancelKey,
    upstream::BackendKey,
    version::{MIN_SECRET, ProtocolVersion},
};

/// Keys that were given out, by their process number.
#[derive(Debug, Default)]
pub struct Cancels(Mutex<HashMap<u32, Entry>>);

#[derive(Clone)]
struct Entry {
    secret: Box<[u8]>,
    agent: Arc<str>,
    cancel: Option<Cancel>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("agent", &self.agent).finish_non_exhaustive()
    }
}

/// Where a cancel request leads.
#[derive(Debug, Clone)]
pub struct Cancel {
    /// The server.
    pub server: Arc<Server>,
    /// Its address.
    pub address: SocketAddr,
    /// The server's key.
    pub key: BackendKey,
}

/// A key's place; dropping it makes the key void.
#[derive(Debug)]
pub struct CancelPlace {
    cancels: Arc<Cancels>,
    key: CancelKey,
}

/// The system gives no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

impl Cancels {
    /// Gives out a key. Without a server's key there is nothing that it could cancel.
    ///
    /// # Errors
    /// When no key can be made that cannot be guessed.
    pub fn enter(
        self: &Arc<Self>,
        agent: Arc<str>,
        server: Arc<Server>,
        address: SocketAddr,
        key: Option<BackendKey>,
        version: ProtocolVersion,
    ) -> Result<CancelPlace, NoRandomness> {
        let cancel = key.map(|key| Cancel { server, address, key });
        let mut secret = vec![0; secret_bytes(version)].into_boxed_slice();
        rand::fill(&mut secret).map_err(|_| NoRandomness)?;
        let mut keys = self.lock();
        loop {
            let mut process = [0; 4];
            rand::fill(&mut process).map_err(|_| NoRandomness)?;
            // A process number is positive, as clients expect.
            let process = u32::from_be_bytes(process) & 0x7fff_ffff;
            if process == 0 || keys.contains_key(&process) {
                continue;
            }
            keys.insert(process, Entry { secret: secret.clone(), agent, cancel });
            return Ok(CancelPlace { cancels: self.clone(), key: CancelKey { process, secret } });
        }
    }

    /// Where the key leads, for a request of this agent.
    pub fn find(&self, key: &CancelKey, agent: &str) -> Option<Cancel> {
        let entry = self.lock().get(&key.process).cloned()?;
        let same = verify_slices_are_equal(&entry.secret, &key.secret).is_ok();
        if same && *entry.agent == *agent { entry.cancel } else { None }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CancelPlace {
    /// The key.
    pub const fn key(&self) -> &CancelKey {
        &self.key
    }
}

/// As long as the agent's version has room for, and never longer than nobody can guess.
const fn secret_bytes(version: ProtocolVersion) -> usize {
    match version {
        ProtocolVersion::V3_0 => MIN_SECRET,
        ProtocolVersion::V3_2 => 32,
    }
}

impl Drop for CancelPlace {
    fn drop(&mut self) {
        self.cancels.lock().remove(&self.key.process);
    }
}
