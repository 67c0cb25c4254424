//! A credential that is renewed before it ends.
//!
//! ```text
//! fetched ──────────── due ─────────── ends
//!    handed out         handed out and   never handed out
//!                       renewed aside
//! ```

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use aws_lc_rs::rand;
use secrecy::ExposeSecret;
use tokio::{sync::Mutex, time::Instant};

use super::{Credential, SecretError, SecretRef};

/// A credential without an expiry is read again after this, so that a changed file is seen.
const KEPT_WITHOUT_EXPIRY: Duration = Duration::from_secs(60);

/// A credential with an expiry is renewed this long before it, or at half of what is left if that is sooner.
const RENEWED_BEFORE: Duration = Duration::from_secs(120);

/// Hosts that were started together do not renew together: up to this part of the time is taken off, in 1/256ths.
const JITTER: u32 = 26;

/// After a failed attempt, the same answer is given for this long: no storm of commands. Twice as long after each
/// further one, up to the limit.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
const FAILURE_KEPT_AT_MOST: Duration = Duration::from_secs(30);

/// A command is not run again for a credential that the server refused while its last run is younger than this.
const COMMAND_AGE: Duration = Duration::from_secs(1);

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
    fetched: Instant,
    /// When to fetch anew.
    due: Instant,
}

#[derive(Debug)]
struct Failure {
    error: Arc<SecretError>,
    until: Instant,
    /// For how long the next failure is kept.
    next: Duration,
}

impl CredentialSource {
    /// A source that has fetched nothing yet.
    pub fn new(reference: SecretRef) -> Self {
        Self { reference, current: ArcSwapOption::empty(), fetching: Mutex::new(None) }
    }

    /// The credential, fetched when there is none that may be used. One that is due for renewal is handed out as long as
    /// it has not ended, while another task fetches its successor.
    ///
    /// # Errors
    /// Why it could not be fetched, when there is no earlier one that is still valid.
    pub async fn current(self: &Arc<Self>) -> Result<Arc<Credential>, Arc<SecretError>> {
        let kept = self.current.load_full();
        match kept.as_deref().map(Kept::age) {
            Some((Age::Fresh, credential)) => Ok(credential),
            Some((Age::Due, credential)) => {
                let own = Arc::clone(self);
                tokio::spawn(async move {
                    // Whoever is at it already does it for all.
                    if let Ok(mut failure) = own.fetching.try_lock() {
                        let _ = own.fetch(&mut failure).await;
                    }
                });
                Ok(credential)
            }
            Some((Age::Over, _)) | None => {
                let mut failure = self.fetching.lock().await;
                self.fetch(&mut failure).await
            }
        }
    }

    /// Another credential than `refused`, which the server did not accept: it may have been changed since it was fetched.
    /// `None` when there is no other.
    ///
    /// # Errors
    /// Why there is none now.
    pub async fn instead_of(&self, refused: &Arc<Credential>) -> Result<Option<Arc<Credential>>, Arc<SecretError>> {
        let mut failure = self.fetching.lock().await;
        let kept = self.current.load_full();
        if let Some(kept) = kept.filter(|kept| Arc::ptr_eq(&kept.credential, refused)) {
            if matches!(self.reference, SecretRef::Command(_)) && kept.fetched.elapsed() < COMMAND_AGE {
                return Ok(None);
            }
            self.current.store(None);
        }
        let other = self.fetch(&mut failure).await?;
        Ok((!other.is_same(refused)).then_some(other))
    }

    /// Fetches, unless that was done or has failed just now.
    async fn fetch(&self, failure: &mut Option<Failure>) -> Result<Arc<Credential>, Arc<SecretError>> {
        let kept = self.current.load_full();
        let usable = match kept.as_deref().map(Kept::age) {
            Some((Age::Fresh, credential)) => return Ok(credential),
            Some((Age::Due, credential)) => Some(credential),
            Some((Age::Over, _)) | None => None,
        };
        if let Some(known) = failure.as_ref().filter(|known| Instant::now() < known.until) {
            return usable.ok_or_else(|| Arc::clone(&known.error));
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
                let wait = failure.as_ref().map_or(FAILURE_KEPT, |last| last.next);
                let next = wait.saturating_mul(2).min(FAILURE_KEPT_AT_MOST);
                *failure = Some(Failure { error: Arc::clone(&error), until: Instant::now() + wait, next });
                // It may have ended meanwhile.
                usable.filter(|credential| credential.is_valid()).ok_or(error)
            }
        }
    }
}

/// What a kept credential is good for.
enum Age {
    /// To be used.
    Fresh,
    /// To be used while it is renewed.
    Due,
    /// Not to be used.
    Over,
}

impl Kept {
    fn new(credential: Arc<Credential>) -> Self {
        let left = credential.expires.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        let keep = left.map_or(KEPT_WITHOUT_EXPIRY, |left| left.saturating_sub(RENEWED_BEFORE.min(left / 2)));
        let keep = keep.saturating_sub((keep / 256).saturating_mul(jitter()));
        let fetched = Instant::now();
        // An expiry too far for the clock to reach is looked at again after the usual time.
        let due = fetched.checked_add(keep).unwrap_or(fetched + KEPT_WITHOUT_EXPIRY);
        Self { credential, fetched, due }
    }

    fn age(&self) -> (Age, Arc<Credential>) {
        let age = if !self.credential.is_valid() {
            Age::Over
        } else if Instant::now() < self.due {
            Age::Fresh
        } else if self.credential.expires.is_some() {
            Age::Due
        } else {
            // From a file or variable: if it is gone now, that is a withdrawal.
            Age::Over
        };
        (age, Arc::clone(&self.credential))
    }
}

impl Credential {
    /// Whether it has not ended.
    fn is_valid(&self) -> bool {
        self.expires.is_none_or(|end| SystemTime::now() < end)
    }

    fn is_same(&self, other: &Self) -> bool {
        let (own, others) = (self.password.expose_secret(), other.password.expose_secret());
        let same = aws_lc_rs::constant_time::verify_slices_are_equal(own.as_bytes(), others.as_bytes()).is_ok();
        same && self.user == other.user
    }
}

/// Below [`JITTER`]; nothing depends on its being unpredictable.
fn jitter() -> u32 {
    let mut byte = [0];
    match rand::fill(&mut byte) {
        Ok(()) => u32::from(byte[0]) % JITTER,
        Err(_) => 0,
    }
}
