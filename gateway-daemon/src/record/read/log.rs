//! The log, page by page.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{ReadOnlyTable, ReadTransaction, ReadableTable};
use serde::{Deserialize, Serialize};

use super::{
    super::{
        Event, SessionId, SessionStart, StoreError, Time,
        block::{Block, Content, Frame},
        index, unfold,
        window::{BALES, BLOCKS, INDEX, SESSIONS, SessionRow, at, damaged, guarded, read_head, time_of},
    },
    LogFilter, Pages, Reader,
    filter::Verdict,
    next_of,
};

/// Blocks read in one transaction.
const PAGE: usize = 64;
/// Sessions whose start is kept at hand, and requests whose outcome is waited for. Forgetting one costs a look-up, or an
/// outcome whose request was shown is left out.
const REMEMBERED: usize = 10_000;

/// One event with its place, its time and whose it is. As JSON it is one line of `weir log --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The sequence number: rises by one for each event of this node.
    pub seq: u64,
    /// When it was recorded.
    pub time: Time,
    /// Whose session, where it belongs to one whose start is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub session: Option<Arc<SessionInfo>>,
    /// What happened.
    #[serde(flatten)]
    pub content: RowContent,
}

/// What stands at a sequence number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowContent {
    /// An event.
    Event(Box<Event>),
    /// What cannot be read, and why: damaged, or of a later version. `seq` is the first number concerned.
    Unreadable(String),
}

/// What rows say of their session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The session.
    pub id: SessionId,
    /// See [`SessionStart`].
    pub agent: String,
    /// See [`SessionStart`].
    pub issuer: String,
    /// See [`SessionStart`].
    pub subject: String,
    /// See [`SessionStart`].
    pub groups: Vec<String>,
    /// See [`SessionStart`].
    pub connection: String,
    /// See [`SessionStart`].
    pub run: String,
}

impl From<&SessionStart> for SessionInfo {
    fn from(start: &SessionStart) -> Self {
        Self {
            id: start.session,
            agent: start.agent.clone(),
            issuer: start.issuer.clone(),
            subject: start.subject.clone(),
            groups: start.groups.clone(),
            connection: start.connection.clone(),
            run: start.run.clone(),
        }
    }
}

/// Whether the bytes of answers are fetched or passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    Read,
    Left,
}

/// How a block was come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The index named it: all of it is wanted.
    Named,
    /// One behind the other: what lies behind `next` is wanted.
    InOrder,
}

/// A walk along the log. [`page`](Self::page) reads a part of it; as an iterator it gives row by row. At the end it can be
/// asked again later, and goes on with what was recorded since.
#[derive(Debug)]
pub struct Log {
    reader: Reader,
    filter: LogFilter,
    bytes: Bytes,
    /// The window being read, and the first number not yet read.
    window: Option<PathBuf>,
    next: u64,
    /// With a session asked for: the blocks of this window that the index names, before `next` is read on from.
    named: VecDeque<u64>,
    starts: HashMap<SessionId, Option<Arc<SessionInfo>>>,
    shown: HashSet<(SessionId, u64)>,
    ready: VecDeque<Row>,
    over: bool,
}

impl Log {
    pub(super) fn new(reader: Reader, filter: LogFilter, bytes: Bytes) -> Self {
        Self {
            reader,
            next: filter.from.unwrap_or(0),
            filter,
            bytes,
            window: None,
            named: VecDeque::new(),
            starts: HashMap::new(),
            shown: HashSet::new(),
            ready: VecDeque::new(),
            over: false,
        }
    }

    /// The rows of the next part, which may be none; `None` at the end of the record.
    ///
    /// # Errors
    /// When a window cannot be opened or read. Asked again, it tries again.
    pub fn page(&mut self) -> Result<Option<Vec<Row>>, StoreError> {
        if self.over {
            return Ok(None);
        }
        if self.window.is_none() && !self.enter_next()? {
            return Ok(None);
        }
        let Some(path) = self.window.clone() else { return Ok(None) };
        let page = guarded(&path, || {
            let window = self.reader.open(&path)?;
            let txn = window.begin_read().map_err(at(&path))?;
            self.read_page(&txn, &path)
        })?;
        if page.is_some() || self.over {
            return Ok(page);
        }
        // Nothing more here: on to the next window, when there is one. Asked of the folder after the blocks, so that
        // nothing was written here in between.
        if self.enter_next()? { Ok(Some(Vec::new())) } else { Ok(None) }
    }

    /// Moves to the first window, or to the one behind the present. False when there is none.
    fn enter_next(&mut self) -> Result<bool, StoreError> {
        let windows = self.reader.windows()?;
        let from = match &self.window {
            Some(now) => windows.iter().position(|path| path > now),
            None => self.first_of(&windows),
        };
        let Some(path) = from.and_then(|at| windows.get(at)) else { return Ok(false) };
        let path = path.clone();
        guarded(&path, || {
            let window = self.reader.open(&path)?;
            let txn = window.begin_read().map_err(at(&path))?;
            self.enter(&txn, &path)
        })?;
        self.window = Some(path);
        Ok(true)
    }

    /// The window that holds the first row wanted, by the names alone.
    fn first_of(&self, windows: &[PathBuf]) -> Option<usize> {
        let since = self.filter.since.unwrap_or_default();
        let starts_late = |path: &PathBuf| {
            let late_seq = super::window::first_seq(path).is_some_and(|first| first > self.next);
            late_seq || time_of(path).is_some_and(|time| time > since)
        };
        let past = windows.iter().position(starts_late).unwrap_or(windows.len());
        (!windows.is_empty()).then(|| past.saturating_sub(1))
    }

    /// Finds where to begin in a window.
    fn enter(&mut self, txn: &ReadTransaction, path: &Path) -> Result<(), StoreError> {
        let head = read_head(txn, path)?;
        self.next = self.next.max(head.first);
        self.named.clear();
        let blocks = txn.open_table(BLOCKS).map_err(at(path))?;
        if let Some(since) = self.filter.since.filter(|since| since.0 > head.time) {
            self.next = self.next.max(block_at(&blocks, since, head.first, path)?);
        }
        if let Some(id) = self.filter.session {
            self.enter_session(txn, id, path)?;
        }
        Ok(())
    }

    /// Asks the index for a session's blocks. A window that does not know the session has none.
    fn enter_session(&mut self, txn: &ReadTransaction, id: SessionId, path: &Path) -> Result<(), StoreError> {
        let sessions = txn.open_table(SESSIONS).map_err(at(path))?;
        let known = sessions.get(id.0).map_err(at(path))?.is_some();
        let index = txn.open_table(INDEX).map_err(at(path))?;
        let mut tail = self.next;
        for row in index.range(self.next..).map_err(at(path))? {
            let (end, row) = row.map_err(at(path))?;
            let found = if known { index::find(row.value(), id.0) } else { Ok(Vec::new()) };
            let found = found.map_err(|error| damaged(path, format!("index row {}: {error}", end.value())))?;
            // A block that holds `next` begins before it.
            self.named.extend(found);
            tail = end.value();
        }
        self.next = self.next.max(tail);
        Ok(())
    }

    fn read_page(&mut self, txn: &ReadTransaction, path: &Path) -> Result<Option<Vec<Row>>, StoreError> {
        let blocks = txn.open_table(BLOCKS).map_err(at(path))?;
        let mut page = Vec::new();
        let mut read = 0;
        while read < PAGE {
            let Some(first) = self.named.pop_front() else { break };
            if let Some(value) = blocks.get(first).map_err(at(path))? {
                self.block(txn, (first, value.value()), Place::Named, path, &mut page)?;
            }
            read += 1;
        }
        if read > 0 {
            return Ok(Some(page));
        }
        // The block that holds `next` may begin before it.
        let from = blocks.range(..=self.next).map_err(at(path))?.next_back();
        let from = from.transpose().map_err(at(path))?.map_or(self.next, |(key, _)| key.value());
        for row in blocks.range(from..).map_err(at(path))?.take(PAGE) {
            let (key, value) = row.map_err(at(path))?;
            read += usize::from(self.block(txn, (key.value(), value.value()), Place::InOrder, path, &mut page)?);
            if self.over {
                break;
            }
        }
        Ok((read > 0).then_some(page))
    }

    /// Reads a block's rows. Says whether there was anything new.
    fn block(
        &mut self,
        txn: &ReadTransaction,
        (first, value): (u64, &[u8]),
        place: Place,
        path: &Path,
        page: &mut Vec<Row>,
    ) -> Result<bool, StoreError> {
        let block = match Block::parse(first, value).and_then(|block| block.check().map(|()| block)) {
            Ok(block) => block,
            Err(cause) => {
                let new = first >= self.next;
                self.next = self.next.max(first.saturating_add(1));
                if new {
                    let content = RowContent::Unreadable(cause);
                    page.push(Row { seq: first, time: Time::default(), session: None, content });
                }
                return Ok(new);
            }
        };
        let mut new = false;
        for frame in block.frames() {
            let frame = frame.map_err(|cause| damaged(path, cause))?;
            let before = place == Place::InOrder && frame.seq < self.next;
            if before || self.filter.from.is_some_and(|from| frame.seq < from) {
                continue;
            }
            new = true;
            self.next = self.next.max(frame.seq.saturating_add(1));
            if self.filter.until.is_some_and(|until| frame.time >= until) {
                self.over = true;
                break;
            }
            if self.filter.since.is_none_or(|since| frame.time >= since)
                && let Some(row) = self.row(txn, &frame, path)?
            {
                page.push(row);
            }
        }
        Ok(new)
    }

    fn row(&mut self, txn: &ReadTransaction, frame: &Frame<'_>, path: &Path) -> Result<Option<Row>, StoreError> {
        let (seq, time) = (frame.seq, frame.time);
        let content = frame.content();
        let event = match content {
            Content::Event(event) => Ok(*event),
            Content::Spilled(spilled) => {
                if self.filter.session.is_some_and(|id| spilled.session != Some(id)) {
                    return Ok(None);
                }
                unfold::spilled(&txn.open_table(BALES).map_err(at(path))?, &spilled.chunks, path)
            }
            Content::Answer(bytes) | Content::CopyIn(bytes)
                if self.bytes == Bytes::Left || self.filter.session.is_some_and(|id| id != bytes.session) =>
            {
                return Ok(None);
            }
            Content::Answer(bytes) => {
                unfold::answer(&txn.open_table(BALES).map_err(at(path))?, &bytes, path).map(Event::Answer)
            }
            Content::CopyIn(bytes) => {
                unfold::answer(&txn.open_table(BALES).map_err(at(path))?, &bytes, path).map(Event::CopyIn)
            }
            Content::Unknown(cause) => return Ok(Some(Row::unreadable(seq, time, cause))),
        };
        let event = match event {
            Ok(event) => event,
            Err(error) => return Ok(Some(Row::unreadable(seq, time, error.to_string()))),
        };
        let session = match event.session() {
            Some(id) => self.start(txn, id, path)?,
            None => None,
        };
        Ok(self.passes(&event, session.as_deref()).then(|| Row {
            seq,
            time,
            session,
            content: RowContent::Event(Box::new(event)),
        }))
    }

    fn passes(&mut self, event: &Event, session: Option<&SessionInfo>) -> bool {
        let verdict = self.filter.judge(event, session);
        let of_requests = self.filter.table.is_some() || self.filter.action.is_some() || self.filter.decision.is_some();
        match (verdict, event) {
            (Verdict::Hide, _) => false,
            (Verdict::Show, Event::Request(request)) if of_requests => {
                if self.shown.len() >= REMEMBERED {
                    self.shown.clear();
                }
                self.shown.insert((request.session, request.request));
                true
            }
            (Verdict::Show, _) => true,
            (Verdict::AsItsRequest, _) if !of_requests => true,
            (Verdict::AsItsRequest, Event::Outcome(outcome)) => self.shown.remove(&(outcome.session, outcome.request)),
            (Verdict::AsItsRequest, Event::Answer(answer) | Event::CopyIn(answer)) => {
                self.shown.contains(&(answer.session, answer.request))
            }
            (Verdict::AsItsRequest, _) => false,
        }
    }

    /// Whose session it is, as this window tells.
    fn start(
        &mut self,
        txn: &ReadTransaction,
        id: SessionId,
        path: &Path,
    ) -> Result<Option<Arc<SessionInfo>>, StoreError> {
        if let Some(known) = self.starts.get(&id) {
            return Ok(known.clone());
        }
        let sessions = txn.open_table(SESSIONS).map_err(at(path))?;
        let row = sessions.get(id.0).map_err(at(path))?;
        let info = match row {
            Some(row) => SessionRow::decode(id, row.value(), path)?.info().map(Arc::new),
            None => None,
        };
        if self.starts.len() >= REMEMBERED {
            self.starts.clear();
        }
        if info.is_some() {
            self.starts.insert(id, info.clone());
        }
        Ok(info)
    }
}

impl Pages for Log {
    type Item = Row;

    fn next_page(&mut self) -> Result<Option<Vec<Row>>, StoreError> {
        self.page()
    }

    fn ready(&mut self) -> &mut VecDeque<Row> {
        &mut self.ready
    }

    fn end(&mut self) {
        self.over = true;
    }
}

impl Iterator for Log {
    type Item = Result<Row, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        next_of(self)
    }
}

impl Row {
    const fn unreadable(seq: u64, time: Time, cause: String) -> Self {
        Self { seq, time, session: None, content: RowContent::Unreadable(cause) }
    }
}

impl SessionRow {
    /// What the row says of its session; `None` when its start cannot be read.
    pub(super) fn info(&self) -> Option<SessionInfo> {
        match minicbor::decode(&self.start).ok()? {
            Event::SessionStart(start) => Some(SessionInfo::from(&start)),
            Event::Request(_)
            | Event::Answer(_)
            | Event::CopyIn(_)
            | Event::Outcome(_)
            | Event::SessionEnd(_)
            | Event::Refused(_)
            | Event::Admin(_) => None,
        }
    }
}

/// The last block that begins at or before `time`, by bisection: times rise with the numbers.
fn block_at(
    blocks: &ReadOnlyTable<u64, &'static [u8]>,
    time: Time,
    first: u64,
    path: &Path,
) -> Result<u64, StoreError> {
    let last = blocks.last().map_err(at(path))?.map_or(first, |(key, _)| key.value());
    let (mut low, mut high) = (first, last);
    while low < high {
        let middle = low.midpoint(high).max(low.saturating_add(1));
        let Some(row) = blocks.range(first..=middle).map_err(at(path))?.next_back() else { break };
        let (key, value) = row.map_err(at(path))?;
        let begins = Block::parse(key.value(), value.value()).map_or(Time(0), |block| block.time);
        if begins <= time {
            low = middle;
        } else {
            high = key.value().saturating_sub(1).min(middle.saturating_sub(1));
        }
    }
    let row = blocks.range(first..=low.max(first)).map_err(at(path))?.next_back();
    Ok(row.transpose().map_err(at(path))?.map_or(first, |(key, _)| key.value()))
}
