//! An issuer of tokens: its keys by `OpenID` Connect Discovery or from a file, kept while they may be, and tokens checked
//! with them.
//!
//! Keys at hand are used without a lock until their server's `Cache-Control` ends (5 minutes to 1 hour). Then, and for
//! a `kid` that they lack, they are asked for again: by one task at a time, and never sooner than the interval in the
//! settings after the last attempt, whatever tokens come. When the issuer cannot be reached the keys at hand serve on
//! until `stale_window` has passed since they were fetched; after that every token is refused. A file is read again
//! as often as that, for a provider that this host does not reach. It is what there is: one that is gone, or cannot be used,
//! leaves no keys.

mod error;
mod fetch;
mod file;

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use secrecy::SecretString;
use serde_json::Value;
use tokio::sync::Mutex;

pub use error::{FetchError, IssuerError, SettingsError, UrlError};

use self::fetch::{Client, Scheme, Url};
use super::{
    clock::Moment,
    json,
    token::{KeySet, TokenError, TokenRules, TokenSettings, Unverified, Verified},
};

/// A file of keys that could not be used is looked at again after this.
const FILE_AGAIN: Duration = Duration::from_secs(1);

/// How long keys are kept without asking, at least and at most.
const KEEP: (Duration, Duration) = (Duration::from_secs(5 * 60), Duration::from_secs(60 * 60));

/// What an operator says about an issuer.
#[derive(Debug, Clone)]
pub struct IssuerSettings {
    /// What its tokens must have.
    pub token: TokenSettings,
    /// A PEM file with the certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// A JWK set (RFC 7517) in a file: the issuer itself is never asked.
    pub jwks_file: Option<PathBuf>,
    /// How long keys serve while newer ones cannot be had.
    pub stale_window: Duration,
    /// The least time between two requests for an unknown `kid`, and after one that failed.
    pub refetch_interval: Duration,
    /// For each of the two documents, connecting included.
    pub timeout: Duration,
}

impl IssuerSettings {
    /// The defaults: the system's certificates, a day of stale keys, 30 seconds between requests, 5 for an answer.
    pub const fn new(token: TokenSettings) -> Self {
        Self {
            token,
            ca_file: None,
            jwks_file: None,
            stale_window: Duration::from_secs(24 * 60 * 60),
            refetch_interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
        }
    }
}

/// One issuer, shared by all who verify its tokens.
pub struct Issuer {
    rules: TokenRules,
    source: Source,
    stale_window: Duration,
    refetch_interval: Duration,
    keys: ArcSwapOption<Fetched>,
    /// Held while keys are asked for: single flight.
    last_attempt: Mutex<Option<Attempt>>,
}

/// Where an issuer's keys come from.
enum Source {
    /// Its discovery document names them.
    Discovery { document: Url, client: Box<Client> },
    /// The operator put them here.
    File(PathBuf),
}

/// Keys, with the times (since boot) that bound their use.
struct Fetched {
    keys: KeySet,
    at: Duration,
    fresh_until: Duration,
}

/// The last time that keys were asked for.
struct Attempt {
    at: Duration,
    failure: Option<Arc<IssuerError>>,
}

impl Issuer {
    /// Checks the settings. Asks nobody yet: an issuer that is down must not keep the daemon from starting.
    ///
    /// # Errors
    /// The first setting that cannot be meant.
    pub fn new(settings: IssuerSettings) -> Result<Self, SettingsError> {
        let IssuerSettings { token, ca_file, jwks_file, stale_window, refetch_interval, timeout } = settings;
        let rules = TokenRules::new(token)?;
        let source = match jwks_file {
            Some(path) => {
                // Read now, so that a file that is no key set is told at the start; it may be better when it is needed.
                file::keys(&path).map_err(|error| SettingsError::KeysFile { reason: error.to_string() })?;
                Source::File(path)
            }
            None => {
                let document = discovery_url(rules.issuer())
                    .map_err(|fault| SettingsError::Url { url: rules.issuer().to_owned(), fault })?;
                Source::Discovery { document, client: Box::new(Client::new(ca_file.as_deref(), timeout)?) }
            }
        };
        Ok(Self {
            rules,
            source,
            stale_window,
            refetch_interval,
            keys: ArcSwapOption::empty(),
            last_attempt: Mutex::new(None),
        })
    }

    /// The issuer's configured name.
    pub fn name(&self) -> &str {
        self.rules.name()
    }

    /// The URL that `iss` must equal.
    pub fn url(&self) -> &str {
        self.rules.issuer()
    }

    /// Verifies a token at the moment `now`, which is when the call is made.
    ///
    /// # Errors
    /// The first rule that the token breaks, or why the issuer's keys cannot be had.
    pub async fn verify(&self, token: &SecretString, now: Moment) -> Result<Verified, TokenError> {
        let unverified = Unverified::parse(token, &self.rules)?;
        let fetched = self.keys_for(unverified.kid(), now).await.map_err(TokenError::Keys)?;
        unverified.verify(&self.rules, &fetched.keys, now.wall)
    }

    /// The keys that the issuer publishes at this moment: for who sets it up.
    ///
    /// # Errors
    /// Why they cannot be had.
    pub async fn keys_now(&self) -> Result<KeySet, IssuerError> {
        match &self.source {
            Source::Discovery { document, client } => Ok(self.ask(client, document).await?.0),
            Source::File(path) => file::keys(path),
        }
    }

    /// The keys to check a token that names `kid` with.
    async fn keys_for(&self, kid: &str, now: Moment) -> Result<Arc<Fetched>, Arc<IssuerError>> {
        if let Some(fetched) = self.at_hand(kid, now) {
            return Ok(fetched);
        }
        let mut last = self.last_attempt.lock().await;
        // Whoever held the lock may have fetched them.
        if let Some(fetched) = self.at_hand(kid, now) {
            return Ok(fetched);
        }
        let pause = |last: &Attempt| self.pause_after(last);
        if let Some(recent) = last.as_ref().filter(|last| now.boot < last.at.saturating_add(pause(last))) {
            return self.without_asking(recent, kid, now);
        }
        let outcome = self.fetch(now).await.map_err(Arc::new);
        *last = Some(Attempt { at: now.boot, failure: outcome.as_ref().err().map(Arc::clone) });
        outcome.or_else(|error| {
            tracing::warn!(issuer.name = self.name(), %error, "the issuer's keys cannot be had");
            self.at_hand_though_old(kid, now, error)
        })
    }

    /// How long after an attempt the next one is made.
    fn pause_after(&self, last: &Attempt) -> Duration {
        match (&self.source, &last.failure) {
            // Nothing serves meanwhile, and nobody is bothered.
            (Source::File(_), Some(_)) => FILE_AGAIN.min(self.refetch_interval),
            (Source::File(_), None) | (Source::Discovery { .. }, _) => self.refetch_interval,
        }
    }

    /// What there is when the last attempt was a moment ago.
    fn without_asking(&self, recent: &Attempt, kid: &str, now: Moment) -> Result<Arc<Fetched>, Arc<IssuerError>> {
        let next = recent.at.saturating_add(self.pause_after(recent)).saturating_sub(now.boot);
        let in_seconds = next.as_secs().saturating_add(1);
        let error = match &recent.failure {
            None => IssuerError::RecentlyFetched { in_seconds },
            Some(last) => IssuerError::Waiting { in_seconds, last: Arc::clone(last) },
        };
        self.at_hand_though_old(kid, now, Arc::new(error))
    }

    /// Keys that know `kid` and are not stale; without them, `error`, which says why there are no newer ones.
    fn at_hand_though_old(
        &self,
        kid: &str,
        now: Moment,
        error: Arc<IssuerError>,
    ) -> Result<Arc<Fetched>, Arc<IssuerError>> {
        match self.keys.load_full() {
            Some(fetched) if now.boot >= fetched.at.saturating_add(self.stale_window) => {
                Err(Arc::new(IssuerError::Stale { limit_seconds: self.stale_window.as_secs(), last: error }))
            }
            Some(fetched) if fetched.keys.knows(kid) => Ok(fetched),
            Some(_) | None => Err(error),
        }
    }

    /// Keys that are fresh and know `kid`.
    fn at_hand(&self, kid: &str, now: Moment) -> Option<Arc<Fetched>> {
        self.keys.load_full().filter(|fetched| now.boot < fetched.fresh_until && fetched.keys.knows(kid))
    }

    /// Gets the keys anew.
    async fn fetch(&self, now: Moment) -> Result<Arc<Fetched>, IssuerError> {
        let (least, most) = KEEP;
        let (keys, keep) = match &self.source {
            Source::Discovery { document, client } => {
                let (keys, max_age) = self.ask(client, document).await?;
                (keys, max_age.unwrap_or(most).clamp(least, most))
            }
            // Small and local: whoever withdraws a key waits no longer than this.
            Source::File(path) => match file::keys(path) {
                Ok(keys) => (keys, self.refetch_interval),
                Err(error) => {
                    // Gone is a withdrawal. Discovery may be out of reach; a file is not.
                    self.keys.store(None);
                    return Err(error);
                }
            },
        };
        // Stale keys are never fresh.
        let fresh_until = now.boot.saturating_add(keep.min(self.stale_window));
        let fetched = Arc::new(Fetched { keys, at: now.boot, fresh_until });
        self.keys.store(Some(Arc::clone(&fetched)));
        Ok(fetched)
    }

    /// Asks for both documents anew: a provider that moves its keys says so in the first.
    async fn ask(&self, client: &Client, document: &Url) -> Result<(KeySet, Option<Duration>), IssuerError> {
        let failed = |url: &Url| {
            let url = url.text();
            move |source| IssuerError::Fetch { url, source: Arc::new(source) }
        };
        let discovery = client.get(document).await.map_err(failed(document))?;
        let keys_url = self.read_discovery(document, &discovery.body)?;
        let set = client.get(&keys_url).await.map_err(failed(&keys_url))?;
        let keys = KeySet::parse(&set.body).map_err(|fault| IssuerError::KeySet { url: keys_url.text(), fault })?;
        Ok((keys, set.max_age))
    }

    /// Where the keys are, when the document is this issuer's.
    fn read_discovery(&self, document: &Url, body: &[u8]) -> Result<Url, IssuerError> {
        let (url, scheme) = (document.text(), document.scheme());
        let document = json::parse_object(body).map_err(|_| IssuerError::Discovery {
            url: Arc::clone(&url),
            fault: "it is not a JSON object, or names a key twice",
        })?;
        if document.get("issuer").and_then(Value::as_str) != Some(self.rules.issuer()) {
            return Err(IssuerError::OtherIssuer { url, expected: self.rules.issuer().into() });
        }
        let Some(keys_url) = document.get("jwks_uri").and_then(Value::as_str) else {
            return Err(IssuerError::Discovery { url, fault: "it has no `jwks_uri`" });
        };
        let refused = |fault| IssuerError::KeysUrl { url: Arc::clone(&url), fault };
        let keys_url = Url::parse(keys_url).map_err(refused)?;
        match (scheme, keys_url.scheme()) {
            (Scheme::Https, Scheme::Http) => Err(refused(UrlError::Downgrade)),
            (Scheme::Https | Scheme::Http, Scheme::Https) | (Scheme::Http, Scheme::Http) => Ok(keys_url),
        }
    }
}

/// Checks an issuer's URL before anything is asked of it.
///
/// # Errors
/// Why it cannot be one.
pub fn check_url(issuer: &str) -> Result<(), UrlError> {
    discovery_url(issuer).map(drop)
}

/// `OpenID` Connect Discovery section 4: the issuer without a slash at its end, and the well-known path.
fn discovery_url(issuer: &str) -> Result<Url, UrlError> {
    if Url::parse(issuer)?.has_query() {
        return Err(UrlError::QueryOrFragment);
    }
    Url::parse(&format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer)))
}
