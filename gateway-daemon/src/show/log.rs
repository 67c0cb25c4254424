//! `weir log`: a line for each request with its outcome, and for whatever else happened.

use std::{
    collections::{HashMap, HashSet},
    io,
    time::{Duration, Instant},
};

use unicode_width::UnicodeWidthStr;

use super::line;
use crate::record::{
    AdminEvent, Event, KernelRefusal, Outcome, Request, RequestKind, Row, RowContent, SessionEnd, SessionId,
    SessionInfo, SessionStart, Time,
};

/// Requests whose outcome is waited for; over it the oldest are shown without one.
const MOST_PENDING: usize = 1000;
/// Columns before the last: time, agent, connection, what.
const WIDTHS: [usize; 4] = [27, 14, 12, 7];

/// Writes the log as rows come. A request's line waits for its outcome, so lines stand in the order in which things ended.
#[derive(Debug)]
pub struct LogTable<W> {
    out: W,
    /// Characters of a statement that a line shows.
    limit: usize,
    pending: HashMap<(SessionId, u64), Pending>,
    /// Parses that were shown: one that fails says so later.
    prepared: HashSet<(SessionId, u64)>,
    /// Requests that were shown without an outcome: it is told when it comes.
    running: HashSet<(SessionId, u64)>,
    has_head: bool,
}

/// A request whose outcome has not come.
#[derive(Debug)]
struct Pending {
    seq: u64,
    /// When it was read here.
    came: Instant,
    time: Time,
    request: Box<Request>,
    whose: Whose,
}

/// Whose something is, safe to show.
#[derive(Debug, Clone, Default)]
struct Whose {
    agent: String,
    connection: String,
}

impl<W: io::Write> LogTable<W> {
    /// Writes to `out`, at most `limit` characters of each statement.
    pub fn new(out: W, limit: usize) -> Self {
        Self { out, limit, pending: HashMap::new(), prepared: HashSet::new(), running: HashSet::new(), has_head: false }
    }

    /// The line of heads, before the first other one.
    fn head(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.has_head, true) {
            return Ok(());
        }
        self.put(["time", "agent", "connection", "what"], "")
    }

    /// Takes one row.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn row(&mut self, row: &Row) -> io::Result<()> {
        let whose = row.session.as_deref().map(Whose::from).unwrap_or_default();
        let event = match &row.content {
            RowContent::Event(event) => &**event,
            RowContent::Unreadable(cause) => {
                let text = format!("event {}: {}", row.seq, line(cause, self.limit));
                return self.entry(row.time, &whose, "DAMAGED", &text);
            }
        };
        match event {
            // A Parse says nothing more, unless it fails.
            Event::Request(request) if request.decision.passed() && request.kind == RequestKind::Prepare => {
                if self.prepared.len() < MOST_PENDING {
                    self.prepared.insert((request.session, request.request));
                }
                self.request(row.time, request, &whose, None)
            }
            Event::Request(request) if request.decision.passed() => {
                let key = (request.session, request.request);
                let request = Box::new(request.clone());
                self.pending
                    .insert(key, Pending { seq: row.seq, came: Instant::now(), time: row.time, request, whose });
                if self.pending.len() > MOST_PENDING { self.show_oldest() } else { Ok(()) }
            }
            Event::Request(request) => self.request(row.time, request, &whose, None),
            Event::Outcome(outcome) => match self.pending.remove(&(outcome.session, outcome.request)) {
                Some(Pending { time, request, whose, .. }) => self.request(time, &request, &whose, Some(outcome)),
                None if self.prepared.remove(&(outcome.session, outcome.request)) => {
                    self.late(row.time, outcome, &whose)
                }
                None if self.running.remove(&(outcome.session, outcome.request)) => {
                    let text =
                        format!("request {} of session {}:{}", outcome.request, outcome.session, came_to(outcome));
                    self.entry(row.time, &whose, "done", &text)
                }
                None => Ok(()),
            },
            // Bytes are for `weir show`.
            Event::Answer(_) | Event::CopyIn(_) => Ok(()),
            Event::SessionStart(start) => self.start(row.time, start),
            Event::SessionEnd(end) => {
                self.prepared.retain(|(session, _)| *session != end.session);
                self.running.retain(|(session, _)| *session != end.session);
                self.end(row.time, end, &whose)
            }
            Event::Refused(refusal) => self.refused(row.time, refusal),
            Event::Admin(admin) => self.admin(row.time, admin),
        }
    }

    /// Shows what still waits for its outcome.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn finish(&mut self) -> io::Result<()> {
        self.head()?;
        while !self.pending.is_empty() {
            self.show_oldest()?;
        }
        self.out.flush()
    }

    /// Shows what has waited for its outcome for `long`: it runs still. For whoever follows.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn show_running(&mut self, long: Duration) -> io::Result<()> {
        let mut due: Vec<_> = self.pending.iter().filter(|(_, pending)| pending.came.elapsed() >= long).collect();
        due.sort_unstable_by_key(|(_, pending)| pending.seq);
        for key in due.into_iter().map(|(key, _)| *key).collect::<Vec<_>>() {
            if let Some(Pending { time, request, whose, .. }) = self.pending.remove(&key) {
                if self.running.len() < MOST_PENDING {
                    self.running.insert(key);
                }
                self.request(time, &request, &whose, None)?;
            }
        }
        self.out.flush()
    }

    fn show_oldest(&mut self) -> io::Result<()> {
        let oldest = self.pending.iter().min_by_key(|(_, pending)| pending.seq).map(|(key, _)| *key);
        match oldest.and_then(|key| self.pending.remove(&key)) {
            Some(Pending { time, request, whose, .. }) => self.request(time, &request, &whose, None),
            None => Ok(()),
        }
    }

    fn request(&mut self, time: Time, request: &Request, whose: &Whose, outcome: Option<&Outcome>) -> io::Result<()> {
        let prepares = request.kind == RequestKind::Prepare;
        let decision = &request.decision;
        let what = match (decision.allowed, decision.is_observed()) {
            (true, _) if prepares => "prepare",
            (true, _) => "allow",
            (false, true) => "OBSERVE",
            (false, false) => "DENY",
        };
        let policies = decision.policies.iter().map(|id| line(id, 60)).collect::<Vec<_>>().join(", ");
        let mut text = line(&request.sql, self.limit);
        text.push_str(&format!("  [{}]", if policies.is_empty() { "no policy" } else { &policies }));
        if !decision.allowed {
            let passed = if decision.is_observed() { "LET PASS, though denied: " } else { "" };
            text.push_str(&format!(" {passed}{}", line(&decision.reason, 200)));
        }
        match outcome {
            Some(outcome) => text.push_str(&came_to(outcome)),
            None if decision.passed() && !prepares => text.push_str("  no outcome yet"),
            None => {}
        }
        self.entry(time, whose, what, &text)
    }

    /// The outcome of a request whose line stands already: told when it is an error.
    fn late(&mut self, time: Time, outcome: &Outcome, whose: &Whose) -> io::Result<()> {
        let Some((code, message)) = &outcome.error else { return Ok(()) };
        let (code, message) = (line(code, 5), line(message, 120));
        self.entry(time, whose, "error", &format!("request {}: {code}: {message}", outcome.request))
    }

    fn start(&mut self, time: Time, start: &SessionStart) -> io::Result<()> {
        let whose = Whose::from(&SessionInfo::from(start));
        let text = format!(
            "session {} of {} at {}, pid {}, {} for {}{}",
            start.session,
            line(&start.subject, 80),
            line(&start.issuer, 80),
            start.pid,
            line(&start.executable, 80),
            start.origin,
            if start.observes { "; DENIALS ARE LET PASS (mode = observe)" } else { "" },
        );
        self.entry(time, &whose, "start", &text)
    }

    fn end(&mut self, time: Time, end: &SessionEnd, whose: &Whose) -> io::Result<()> {
        let SessionEnd { session, reason, requests, refused, rows, bytes, observed } = end;
        let reason = line(reason, 120);
        let text =
            format!("session {session}: {reason}; {requests} requests, {refused} refused, {rows} rows, {bytes} bytes");
        let text = if *observed > 0 { format!("{text}, {observed} DENIED AND LET PASS") } else { text };
        self.entry(time, whose, "end", &text)
    }

    fn refused(&mut self, time: Time, refusal: &KernelRefusal) -> io::Result<()> {
        let KernelRefusal { agent, uid, pid, comm, destination, what, count, .. } = refusal;
        let whose = Whose { agent: agent.as_deref().map_or("-".into(), |agent| line(agent, 40)), ..Whose::default() };
        let times = if *count > 1 { format!(", {count} times") } else { String::new() };
        let what = line(what, 300);
        // A session's refusal knows its process by number only.
        let comm = if comm.is_empty() { String::new() } else { format!(" ({})", line(comm, 15)) };
        self.entry(time, &whose, "REFUSED", &format!("{what}: {destination} by pid {pid}{comm}, uid {uid}{times}"))
    }

    fn admin(&mut self, time: Time, admin: &AdminEvent) -> io::Result<()> {
        let who = admin.uid.map_or("weir".into(), |uid| format!("uid {uid}"));
        let text = format!("{who}: {} {}", line(&admin.what, 40), line(&admin.detail, self.limit));
        self.entry(time, &Whose::default(), "admin", &text)
    }

    fn entry(&mut self, time: Time, whose: &Whose, what: &str, text: &str) -> io::Result<()> {
        self.head()?;
        self.put([&time.to_string(), &whose.agent, &whose.connection, what], text)
    }

    fn put(&mut self, cells: [&str; 4], text: &str) -> io::Result<()> {
        let mut out = String::new();
        for (cell, width) in cells.into_iter().zip(WIDTHS) {
            out.push_str(cell);
            // A long name pushes the line to the right; it is not cut.
            out.push_str(&" ".repeat(width.saturating_sub(cell.width()).saturating_add(2)));
        }
        out.push_str(text);
        writeln!(self.out, "{}", out.trim_end())
    }
}

/// An outcome, to stand behind what it belongs to.
fn came_to(outcome: &Outcome) -> String {
    match &outcome.error {
        Some((code, message)) => format!("  error {}: {}", line(code, 5), line(message, 120)),
        None => {
            let millis = outcome.duration.as_secs_f64() * 1000.0;
            format!("  {} rows, {} bytes, {millis:.1} ms", outcome.rows, outcome.bytes)
        }
    }
}

impl From<&SessionInfo> for Whose {
    fn from(info: &SessionInfo) -> Self {
        Self { agent: line(&info.agent, 40), connection: line(&info.connection, 40) }
    }
}
