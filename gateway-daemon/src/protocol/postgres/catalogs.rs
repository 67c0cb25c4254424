//! The catalogue of each upstream database, as a snapshot that sessions share: fetched over a connection of Weir's own,
//! again when it is old, when a session changed the schema, or when a name is not in it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;

use super::{serve::Target, upstream};
use crate::sql::Catalog;

/// A snapshot older than this is fetched again before the next statement.
const OLD: Duration = Duration::from_secs(60);
/// A snapshot younger than this is not fetched again for a name that is not in it.
const YOUNG: Duration = Duration::from_secs(1);
/// What a catalogue may hold.
const LIMITS: upstream::RowLimits =
    upstream::RowLimits { rows: 2_000_000, bytes: 256 << 20, deadline: Duration::from_secs(30) };

/// The snapshot of one database as one role sees it.
#[derive(Debug, Default)]
pub struct CatalogCell {
    current: ArcSwapOption<Catalog>,
    state: Mutex<State>,
    changed: AtomicBool,
    /// One fetch at a time; who waits for it takes its result.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    fetched: Option<Instant>,
    failure: Option<Arc<str>>,
}

/// The cells of one connection, by database.
#[derive(Debug, Default)]
pub struct Catalogs(Mutex<HashMap<String, Arc<CatalogCell>>>);

/// Databases of one connection whose catalogues are kept.
const MAX_DATABASES: usize = 256;

impl Catalogs {
    /// The cell of a database.
    pub fn cell(&self, database: &str) -> Arc<CatalogCell> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cells.len() >= MAX_DATABASES && !cells.contains_key(database) {
            cells.clear();
        }
        cells.entry(database.to_owned()).or_default().clone()
    }
}

impl CatalogCell {
    /// The snapshot in force, if there is one.
    pub fn current(&self) -> Option<Arc<Catalog>> {
        self.current.load_full()
    }

    /// Whether it must be fetched before the next statement is read.
    pub fn is_stale(&self) -> bool {
        self.changed.load(Ordering::Acquire) || self.age().is_none_or(|age| age > OLD)
    }

    /// Whether fetching it again may help to find a name.
    pub fn may_be_behind(&self) -> bool {
        self.age().is_none_or(|age| age > YOUNG)
    }

    /// Why the last fetch failed, if it did.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.lock().failure.clone()
    }

    /// A session may have changed the schema.
    pub fn note_change(&self) {
        self.changed.store(true, Ordering::Release);
    }

    /// Fetches it, unless another fetch that began after this call did. A failure is kept, for those who ask.
    pub async fn fetch(&self, target: &Target, database: &str) {
        let asked = Instant::now();
        let _alone = self.fetching.lock().await;
        if self.lock().fetched.is_some_and(|fetched| fetched > asked) {
            return;
        }
        self.changed.store(false, Ordering::Release);
        let began = Instant::now();
        let result = fetch(target, database).await;
        let mut state = self.lock();
        state.fetched = Some(began);
        state.failure = match result {
            Ok(catalog) => {
                self.current.store(Some(Arc::new(catalog)));
                None
            }
            Err(failure) => {
                tracing::warn!(connection = %target.name, "the catalogue cannot be read: {failure}");
                Some(failure.into())
            }
        };
    }

    fn age(&self) -> Option<Duration> {
        self.lock().fetched.map(|fetched| fetched.elapsed())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn fetch(target: &Target, database: &str) -> Result<Catalog, String> {
    let parameters = upstream::StartupParameters {
        database: database.to_owned(),
        application_name: "weir: catalogue".to_owned(),
        settings: Vec::new(),
    };
    let mut connection = target.connect(&parameters).await.map_err(|error| error.to_string())?;
    let mut answers = Vec::with_capacity(Catalog::QUERIES.len());
    for query in Catalog::QUERIES {
        let rows = upstream::simple_query_rows(&mut connection, query, &LIMITS);
        answers.push(rows.await.map_err(|failure| failure.to_string())?);
    }
    Catalog::from_rows(answers).map_err(|error| error.to_string())
}
