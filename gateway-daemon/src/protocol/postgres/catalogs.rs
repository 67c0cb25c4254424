//! The catalogue of each upstream database, as a snapshot that sessions share: fetched over a connection of Weir's own,
//! again when it is old, when a session changed the schema, or when a name is not in it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
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
    /// Changes of the schema that were noted.
    changes: AtomicU64,
    /// One fetch at a time; who waits for it takes its result.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// When the last fetch ended.
    fetched: Option<Instant>,
    /// When the last fetch that succeeded began, and the changes that were noted by then.
    began: Option<Instant>,
    seen_changes: u64,
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
        let state = self.lock();
        let Some(age) = state.fetched.map(|fetched| fetched.elapsed()) else { return true };
        if state.failure.is_some() {
            // Told to whoever asks meanwhile, and tried again soon.
            return age > YOUNG;
        }
        age > OLD || state.seen_changes < self.changes.load(Ordering::Acquire)
    }

    /// Whether fetching it again may help to find a name.
    pub fn may_be_behind(&self) -> bool {
        self.lock().fetched.is_none_or(|fetched| fetched.elapsed() > YOUNG)
    }

    /// Why the last fetch failed, if it did.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.lock().failure.clone()
    }

    /// A session may have changed the schema.
    pub fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Fetches it, unless another fetch that began after this call did. A failure is kept, for those who ask.
    pub async fn fetch(&self, target: &Target, database: &str) {
        let asked = Instant::now();
        let _alone = self.fetching.lock().await;
        if self.lock().began.is_some_and(|began| began > asked) {
            return;
        }
        // Counted before the fetch begins: a change that is noted during it is not taken for seen. A fetch that is given
        // up on the way leaves everything as it was.
        let (seen_changes, began) = (self.changes.load(Ordering::Acquire), Instant::now());
        let result = fetch(target, database).await;
        let mut state = self.lock();
        state.fetched = Some(Instant::now());
        state.failure = match result {
            Ok(catalog) => {
                self.current.store(Some(Arc::new(catalog)));
                state.began = Some(began);
                state.seen_changes = seen_changes;
                None
            }
            Err(failure) => {
                tracing::warn!(connection = %target.name, "the catalogue cannot be read: {failure}");
                Some(failure.into())
            }
        };
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
    let mut connection = target.connect(&parameters).await.map_err(|error| error.to_string())?.upstream;
    let mut answers = Vec::with_capacity(Catalog::QUERIES.len());
    for query in Catalog::QUERIES {
        let rows = upstream::simple_query_rows(&mut connection, query, &LIMITS);
        answers.push(rows.await.map_err(|failure| failure.to_string())?);
    }
    Catalog::from_rows(answers).map_err(|error| error.to_string())
}
