//! The catalogue of each upstream database, as a snapshot that sessions share: fetched over a connection of Weir's own,
//! again when it is old, when a session changed the schema, or when a name is not in it.
//!
//! Changes are numbered as they are noted, which is before their author is told of them. A statement is read with a
//! snapshot that has seen what was noted when it was first asked for ([`CatalogCell::behind`]), and not with less; what
//! others change from then on is the next one's, so that nobody who goes on changing things keeps others waiting.

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
use crate::sql::{Catalog, SchemaChange};

/// A snapshot older than this is fetched again before the next statement.
const OLD: Duration = Duration::from_secs(60);
/// A snapshot younger than this is not fetched again for a name that is not in it.
const YOUNG: Duration = Duration::from_secs(1);
/// What a catalogue may hold.
const LIMITS: upstream::RowLimits =
    upstream::RowLimits { rows: 2_000_000, bytes: 256 << 20, deadline: Duration::from_secs(30) };

/// Before the look-ups: one view of all catalogues, which no setting of the role or the database cuts short. For this
/// transaction alone, so that a pooler gives none of it to others.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '30s'; \
    SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL row_security = on";
/// Once the sessions' own path is known, which the first look-up asks for.
const NO_PATH: &str = "SET LOCAL search_path = ''";

/// The snapshot of one database as one role sees it.
#[derive(Debug, Default)]
pub struct CatalogCell {
    current: ArcSwapOption<Catalog>,
    state: Mutex<State>,
    /// Changes of the schema that were noted, of either kind.
    changes: AtomicU64,
    /// The last of them that is certain.
    certain: AtomicU64,
    /// One fetch at a time; who waits for it takes its result.
    fetching: tokio::sync::Mutex<()>,
}

/// How far the changes that were noted go; the default is before all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Noted(u64);

#[derive(Debug, Default)]
struct State {
    /// When the last fetch ended.
    fetched: Option<Instant>,
    /// When the last fetch that succeeded began, and the changes that were noted by then.
    began: Option<Instant>,
    seen: Noted,
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

    /// What must have been seen before a statement is read that is asked for now, in a session whose own last change is
    /// `own`. `None` when the snapshot is good for it; else it is to be fetched until it [has seen](Self::has_seen) that.
    ///
    /// What others changed for certain is never missed. What they may have changed by a function that they called is
    /// missed for a second at most, so that their calls cost others a fetch a second and no more.
    pub fn behind(&self, own: Noted) -> Option<Noted> {
        let needed = own.max(Noted(self.certain.load(Ordering::Acquire)));
        let noted = Noted(self.changes.load(Ordering::Acquire));
        let state = self.lock();
        let Some(age) = state.fetched.map(|fetched| fetched.elapsed()) else { return Some(needed) };
        let behind = if state.failure.is_some() {
            // Told to whoever asks meanwhile, and tried again soon.
            age > YOUNG
        } else {
            let young = state.began.is_some_and(|began| began.elapsed() <= YOUNG);
            age > OLD || state.seen < needed || (state.seen < noted && !young)
        };
        behind.then_some(needed)
    }

    /// Whether a fetch brought what [`Self::behind`] asked for; one that failed is told, and not tried again at once.
    pub fn has_seen(&self, needed: Noted) -> bool {
        let state = self.lock();
        state.fetched.is_some() && (state.failure.is_some() || state.seen >= needed)
    }

    /// Whether fetching it again may help to find a name.
    pub fn may_be_behind(&self) -> bool {
        self.lock().fetched.is_none_or(|fetched| fetched.elapsed() > YOUNG)
    }

    /// Why the last fetch failed, if it did.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.lock().failure.clone()
    }

    /// A session changed the schema, or may have.
    pub fn note(&self, change: SchemaChange) -> Noted {
        let number = self.changes.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        match change {
            SchemaChange::Certain => drop(self.certain.fetch_max(number, Ordering::AcqRel)),
            SchemaChange::Possible => {}
        }
        Noted(number)
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
        let (seen, began) = (Noted(self.changes.load(Ordering::Acquire)), Instant::now());
        let result = fetch(target, database).await;
        tracing::debug!(connection = %target.name, took = ?began.elapsed(), "the catalogue was asked for");
        let mut state = self.lock();
        state.fetched = Some(Instant::now());
        state.failure = match result {
            Ok(catalog) => {
                self.current.store(Some(Arc::new(catalog)));
                state.began = Some(began);
                state.seen = seen;
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
    for (query, before) in Catalog::QUERIES.iter().zip([BEGIN, NO_PATH].into_iter().chain(std::iter::repeat(""))) {
        let text = format!("{before}; {query}");
        let rows = upstream::simple_query_rows(&mut connection, &text, &LIMITS);
        answers.push(rows.await.map_err(|failure| failure.to_string())?);
    }
    Catalog::from_rows(answers).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cell whose last fetch began and ended just now and saw `seen`.
    fn cell(seen: Noted) -> CatalogCell {
        let cell = CatalogCell::default();
        let now = Some(Instant::now());
        *cell.lock() = State { fetched: now, began: now, seen, failure: None };
        cell
    }

    #[test]
    fn who_must_see_which_change() {
        let cell = cell(Noted::default());
        let none = Noted::default();
        assert_eq!(cell.behind(none), None);
        let called = cell.note(SchemaChange::Possible);
        assert_eq!(cell.behind(none), None, "what a call may have changed is not fetched for others at once");
        assert_eq!(cell.behind(called), Some(called), "its own session reads on with it seen");
        let made = cell.note(SchemaChange::Certain);
        assert_eq!(cell.behind(none), Some(made), "a certain change is everybody's");
        assert!(!cell.has_seen(made));
        cell.lock().seen = made;
        assert_eq!((cell.behind(none), cell.behind(called)), (None, None));
    }

    #[test]
    fn what_is_changed_while_a_statement_waits_is_the_next_one_s() {
        let cell = cell(Noted::default());
        let needed = cell.behind(cell.note(SchemaChange::Certain)).unwrap();
        // A fetch that began now; before it ended another change was noted.
        let seen = Noted(cell.changes.load(Ordering::Acquire));
        cell.note(SchemaChange::Certain);
        cell.lock().seen = seen;
        assert!(cell.has_seen(needed) && cell.behind(Noted::default()).is_some());
    }

    #[test]
    fn a_call_s_possible_change_is_seen_by_others_a_second_later() {
        let cell = cell(Noted::default());
        cell.note(SchemaChange::Possible);
        let earlier = Instant::now().checked_sub(YOUNG + Duration::from_millis(1)).unwrap();
        cell.lock().began = Some(earlier);
        assert!(
            cell.behind(Noted::default()).is_some_and(|needed| cell.has_seen(needed)),
            "one fetch, whatever it sees"
        );
    }

    #[test]
    fn a_fetch_that_failed_is_told_and_tried_again_after_a_second() {
        let cell = cell(Noted::default());
        let needed = cell.note(SchemaChange::Certain);
        cell.lock().failure = Some("broken".into());
        assert!(cell.behind(needed).is_none() && cell.has_seen(needed));
        cell.lock().fetched = Instant::now().checked_sub(YOUNG + Duration::from_millis(1));
        assert!(cell.behind(needed).is_some());
    }
}
