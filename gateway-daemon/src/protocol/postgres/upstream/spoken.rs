//! Which version of the protocol a connection's servers are asked for: 3.2, which they negotiate down by themselves, and
//! 3.0 where something on the way (an old pooler) does not know how to.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::super::version::ProtocolVersion;

/// After this, 3.2 is tried again: the pooler may have been renewed.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What is known of a connection's servers.
#[derive(Debug, Default)]
pub struct Spoken {
    /// When a server that refused 3.2 took 3.0.
    old: Mutex<Option<Instant>>,
}

impl Spoken {
    /// The version to ask for.
    pub(super) fn to_ask(&self) -> ProtocolVersion {
        let old = self.old.lock().unwrap_or_else(PoisonError::into_inner);
        match *old {
            Some(seen) if seen.elapsed() < REMEMBERED => ProtocolVersion::V3_0,
            Some(_) | None => ProtocolVersion::V3_2,
        }
    }

    /// A server refused 3.2, and took 3.0.
    pub(super) fn is_old(&self) {
        *self.old.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}
