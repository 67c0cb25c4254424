//! The list of sessions, the newest first.

use std::{
    collections::{HashSet, VecDeque},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    super::{
        Event, SessionEnd, SessionId, SessionStart, StoreError, Time,
        window::{SESSIONS, SessionRow, at, guarded},
    },
    Pages, Reader, SessionFilter, SessionInfo, next_of,
};

/// Rows read in one transaction.
const PAGE: usize = 512;

/// One session. As JSON it is one line of `weir sessions --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSummary {
    /// How it began.
    pub start: SessionStart,
    /// When.
    pub started: Time,
    /// How it ended; `None` while it lives, and when the daemon did not live to see it end.
    pub end: Option<SessionEnd>,
    /// When.
    pub ended: Option<Time>,
}

/// A walk along the sessions, page by page or as an iterator.
#[derive(Debug)]
pub struct Sessions {
    reader: Reader,
    filter: SessionFilter,
    /// The window being read, and the first session not to be read any more.
    window: Option<PathBuf>,
    below: u64,
    /// Sessions of a later window that began in an earlier one: told there, with their end.
    carried: HashSet<u64>,
    ready: VecDeque<SessionSummary>,
    over: bool,
}

impl Sessions {
    pub(super) fn new(reader: Reader, filter: SessionFilter) -> Self {
        Self {
            reader,
            filter,
            window: None,
            below: u64::MAX,
            carried: HashSet::new(),
            ready: VecDeque::new(),
            over: false,
        }
    }

    /// The next part, which may be empty; `None` at the end.
    ///
    /// # Errors
    /// When a window cannot be opened or read.
    pub fn page(&mut self) -> Result<Option<Vec<SessionSummary>>, StoreError> {
        if self.over {
            return Ok(None);
        }
        let windows = self.reader.windows()?;
        let path = match &self.window {
            Some(path) => path.clone(),
            None => match windows.last() {
                Some(path) => path.clone(),
                None => return Ok(None),
            },
        };
        let page = guarded(&path, || self.read_page(&path))?;
        if page.is_some() {
            self.window = Some(path);
            return Ok(page);
        }
        match windows.iter().rev().find(|window| **window < path) {
            Some(earlier) => {
                self.window = Some(earlier.clone());
                self.below = u64::MAX;
                Ok(Some(Vec::new()))
            }
            None => {
                self.over = true;
                Ok(None)
            }
        }
    }

    fn read_page(&mut self, path: &Path) -> Result<Option<Vec<SessionSummary>>, StoreError> {
        let window = self.reader.open(path)?;
        let txn = window.begin_read().map_err(at(path))?;
        let first = super::window::read_head(&txn, path)?.first;
        let table = txn.open_table(SESSIONS).map_err(at(path))?;
        let (mut page, mut read) = (Vec::new(), 0);
        for row in table.range(..self.below).map_err(at(path))?.rev().take(PAGE) {
            let (key, value) = row.map_err(at(path))?;
            read += 1;
            self.below = key.value();
            let row = SessionRow::decode(SessionId(key.value()), value.value(), path)?;
            let told = if row.start_seq < first {
                !self.carried.insert(key.value())
            } else {
                self.carried.remove(&key.value())
            };
            if !told && let Some(summary) = self.summary(&row) {
                page.push(summary);
            }
        }
        Ok((read > 0).then_some(page))
    }

    fn summary(&self, row: &SessionRow) -> Option<SessionSummary> {
        let Ok(Event::SessionStart(start)) = minicbor::decode(&row.start) else { return None };
        let end = match row.end.as_ref().map(|end| minicbor::decode(end)) {
            Some(Ok(Event::SessionEnd(end))) => Some(end),
            _ => None,
        };
        let summary = SessionSummary { start, started: Time(row.start_time), end, ended: row.end_time.map(Time) };
        let info = SessionInfo::from(&summary.start);
        self.filter.passes(&info, summary.started, summary.ended).then_some(summary)
    }
}

impl Pages for Sessions {
    type Item = SessionSummary;

    fn next_page(&mut self) -> Result<Option<Vec<SessionSummary>>, StoreError> {
        self.page()
    }

    fn ready(&mut self) -> &mut VecDeque<SessionSummary> {
        &mut self.ready
    }

    fn end(&mut self) {
        self.over = true;
    }
}

impl Iterator for Sessions {
    type Item = Result<SessionSummary, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        next_of(self)
    }
}
