//! A credential that is renewed before it ends.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use tokio::{sync::Mutex, time::Instant};

use super::{Credential, SecretError, SecretRef};

/// A credential without an expiry is read again after this, so that a changed file is seen.
const KEPT_WITHOUT_EXPIRY: Duration = Duration::from_secs(60);

/// A credential with an expiry is renewed this long before it, or at half of what is left if that is sooner.
const RENEWED_BEFORE: Duration = Duration::from_secs(120);

/// After a failed attempt, the same answer is given for this long: no storm of commands.
const FAILURE_KEPT: Duration = Duration::from_secs(1);

/// A reference with what it gave last: renewed before it ends, fetched once however many ask.
#[derive(Debug)]
pub struct CredentialSource {
    reference: SecretRef,
    current: ArcSwapOption<Kept>,
    /// Held while fetching: those who wait find the result.
    fetching: Mutex<Option<Failure>>,
}

#[derive(Debug)]
struct Kept {
    credential: Arc<Credential>,
    /// When to fetch anew.
    renew: Instant,
    /// Until when it may be used if that fails.
    ends: Option<SystemTime>,
}

#[derive(Debug)]
struct Failure {
    error: Arc<SecretError>,
    until: Instant,
}

impl CredentialSource {
    /// A source that has fetched nothing yet.
    pub fn new(reference: SecretRef) -> Self {
        Self { reference, current: ArcSwapOption::empty(), fetching: Mutex::new(None) }
    }

    /// The credential, fetched when there is none or its time has come.
    ///
    /// # Errors
    /// Why it could not be fetched, when there is no earlier one that is still valid.
    pub async fn current(&self) -> Result<Arc<Credential>, Arc<SecretError>> {
        if let Some(fresh) = self.fresh() {
            return Ok(fresh);
        }
        let mut failure = self.fetching.lock().await;
        if let Some(fresh) = self.fresh() {
            return Ok(fresh);
        }
        if let Some(known) = failure.as_ref().filter(|known| Instant::now() < known.until) {
            return self.still_valid().ok_or_else(|| Arc::clone(&known.error));
        }
        match self.reference.resolve().await {
            Ok(credential) => {
                *failure = None;
                let credential = Arc::new(credential);
                self.current.store(Some(Arc::new(Kept::new(Arc::clone(&credential)))));
                Ok(credential)
            }
            Err(error) => {
                let error = Arc::new(error);
                tracing::warn!(error = %error, "a credential could not be fetched");
                *failure = Some(Failure { error: Arc::clone(&error), until: Instant::now() + FAILURE_KEPT });
                self.still_valid().ok_or(error)
            }
        }
    }

    /// Forgets `refused`, which the server did not accept, unless a newer one has taken its place already.
    pub fn discard(&self, refused: &Arc<Credential>) {
        let current = self.current.load();
        if current.as_ref().is_some_and(|kept| Arc::ptr_eq(&kept.credential, refused)) {
            self.current.compare_and_swap(&current, None);
        }
    }

    fn fresh(&self) -> Option<Arc<Credential>> {
        let kept = self.current.load();
        kept.as_ref().filter(|kept| Instant::now() < kept.renew && kept.valid()).map(|kept| kept.credential.clone())
    }

    fn still_valid(&self) -> Option<Arc<Credential>> {
        // One without an end is from a file or variable that is gone now: that is a withdrawal.
        let kept = self.current.load();
        kept.as_ref().filter(|kept| kept.ends.is_some() && kept.valid()).map(|kept| kept.credential.clone())
    }
}

impl Kept {
    fn new(credential: Arc<Credential>) -> Self {
        let ends = credential.expires;
        let left = ends.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        let keep = left.map_or(KEPT_WITHOUT_EXPIRY, |left| left.saturating_sub(RENEWED_BEFORE.min(left / 2)));
        // An expiry too far for the clock to reach is looked at again after the usual time.
        let now = Instant::now();
        Self { credential, renew: now.checked_add(keep).unwrap_or(now + KEPT_WITHOUT_EXPIRY), ends }
    }

    fn valid(&self) -> bool {
        self.ends.is_none_or(|end| SystemTime::now() < end)
    }
}
