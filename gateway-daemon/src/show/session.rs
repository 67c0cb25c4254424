//! `weir show SESSION`: everything about one session, in order.

use std::{collections::HashMap, io};

use super::{
    RowLimit,
    described::Described,
    escape::{bytes, line, lines},
    postgres::{Messages, VALUE},
    value::binary,
};
use crate::record::{
    DecisionRecord, Event, Outcome, Request, RequestKind, Row, RowContent, SessionEnd, SessionStart, Time,
};

/// Characters of a statement, and of short texts that are shown.
const SQL: usize = 20_000;
const SHORT: usize = 200;
/// Answers laid out at once: more than a pipeline has of them open.
const OPEN: usize = 64;
const INDENT: usize = 4;

/// Writes a session as its rows come (from [`Reader::session`](crate::record::Reader::session)).
#[derive(Debug)]
pub struct SessionPage<W> {
    out: W,
    limit: RowLimit,
    /// What is being laid out, by request and direction.
    answers: HashMap<(u64, Way), Messages>,
    described: Described,
    /// The request whose text was written last.
    last: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    Answer,
    Sent,
}

impl<W: io::Write> SessionPage<W> {
    /// Writes to `out`, so many rows of each result.
    pub fn new(out: W, limit: RowLimit) -> Self {
        Self { out, limit, answers: HashMap::new(), described: Described::default(), last: None }
    }

    /// Takes one row.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn row(&mut self, row: &Row) -> io::Result<()> {
        let event = match &row.content {
            RowContent::Event(event) => &**event,
            RowContent::Unreadable(cause) => {
                return writeln!(self.out, "\n⟦event {} cannot be read: {}⟧", row.seq, line(cause, SHORT));
            }
        };
        match event {
            Event::SessionStart(start) => self.start(row.time, start),
            Event::Request(request) => self.request(row.time, request),
            Event::Answer(answer) => self.messages(answer.request, Way::Answer, &answer.bytes),
            Event::CopyIn(answer) => self.messages(answer.request, Way::Sent, &answer.bytes),
            Event::Outcome(outcome) => self.outcome(outcome),
            Event::SessionEnd(end) => self.end(row.time, end),
            // Not of any session.
            Event::Refused(_) | Event::Admin(_) => Ok(()),
        }
    }

    /// Writes what is left of answers without an outcome.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn finish(&mut self) -> io::Result<()> {
        let mut open: Vec<_> = self.answers.keys().map(|(request, _)| *request).collect();
        open.sort_unstable();
        for request in open {
            self.finish_messages(request)?;
        }
        self.out.flush()
    }

    fn start(&mut self, time: Time, start: &SessionStart) -> io::Result<()> {
        let text = |text: &str| line(text, SHORT);
        let groups: Vec<String> = start.groups.iter().map(|group| text(group)).collect();
        let upstream = start.upstream.map_or("none reached".into(), |upstream| upstream.to_string());
        let mut head = super::Table::new()
            .column("session", super::table::Align::Left)
            .column(start.session.to_string(), super::table::Align::Left);
        for (name, value) in [
            ("started", time.to_string()),
            ("agent", format!("{} (run {})", text(&start.agent), text(&start.run))),
            ("subject", format!("{} at {}", text(&start.subject), text(&start.issuer))),
            ("acts for", start.actor.as_deref().map_or("-".into(), text)),
            ("groups", groups.join(", ")),
            ("process", format!("pid {}, uid {}, {}", start.pid, start.uid, text(&start.executable))),
            ("connection", format!("{}: asked for {}, reached {upstream}", text(&start.connection), start.origin)),
            ("asked as", format!("{} to {}", text(&start.asked_user), text(&start.asked_database))),
            ("served as", format!("{} to {}", text(&start.user), text(&start.database))),
            ("application", text(&start.application)),
            ("agent's side", if start.tls { "TLS" } else { "no TLS" }.into()),
        ] {
            head.row(vec![name.into(), value]);
        }
        if start.observes {
            head.row(vec!["MODE".into(), "OBSERVE: what the policies deny is let pass".into()]);
        }
        write!(self.out, "{}", head.render(0))
    }

    fn request(&mut self, time: Time, request: &Request) -> io::Result<()> {
        let Request { request: number, kind, sql, parameters, formats, types, accesses, decision, .. } = request;
        self.last = Some(*number);
        self.described.asked(request);
        let described = self.described.parameters(*number);
        let kind = match kind {
            RequestKind::Simple => "query",
            RequestKind::Prepare => "parse",
            RequestKind::Execute => "execute",
        };
        writeln!(self.out, "\n#{number}  {time}  {kind}  {}", decided(decision))?;
        for sql_line in lines(sql, SQL).lines() {
            writeln!(self.out, "    {sql_line}")?;
        }
        for (at, value) in parameters.iter().enumerate() {
            // One format for all, or one for each (Bind).
            let format = formats.get(at).or_else(|| formats.first().filter(|_| formats.len() == 1));
            let shown = match value {
                None => "⟦NULL⟧".into(),
                Some(value) if format == Some(&1) => {
                    // The agent's own word counts: the server read the value by it.
                    let given = types.get(at).copied().filter(|kind| *kind != 0);
                    binary(given.or_else(|| described.get(at).copied()).unwrap_or(0), value)
                }
                Some(value) => bytes(value, VALUE),
            };
            writeln!(self.out, "    ${} = {shown}", at.saturating_add(1))?;
        }
        for access in accesses {
            writeln!(self.out, "    → {}", line(access, SHORT))?;
        }
        Ok(())
    }

    fn messages(&mut self, request: u64, way: Way, recorded: &[u8]) -> io::Result<()> {
        if self.answers.len() >= OPEN && !self.answers.contains_key(&(request, way)) {
            self.finish()?;
        }
        let mut out = String::new();
        let limit = self.limit;
        let messages = self.answers.entry((request, way)).or_insert_with(|| Messages::new(limit, INDENT));
        if let Some(columns) = self.described.columns(request) {
            messages.expect(columns);
        }
        messages.feed(recorded, &mut out);
        self.described.learn(request, messages);
        self.put(request, &out)
    }

    fn finish_messages(&mut self, request: u64) -> io::Result<()> {
        for way in [Way::Sent, Way::Answer] {
            if let Some(messages) = self.answers.remove(&(request, way)) {
                let mut out = String::new();
                messages.finish(&mut out);
                self.put(request, &out)?;
            }
        }
        Ok(())
    }

    /// Writes a part of an answer; says whose it is when another request's text stands above.
    fn put(&mut self, request: u64, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if self.last != Some(request) {
            writeln!(self.out, "\n#{request}  (goes on)")?;
            self.last = Some(request);
        }
        write!(self.out, "{text}")
    }

    fn outcome(&mut self, outcome: &Outcome) -> io::Result<()> {
        self.finish_messages(outcome.request)?;
        let Outcome { request, rows, bytes, truncated, error, duration, .. } = outcome;
        let millis = duration.as_secs_f64() * 1000.0;
        let mut text = format!("    {rows} rows, {bytes} bytes, {millis:.1} ms");
        if let Some((code, message)) = error {
            text.push_str(&format!(", error {}: {}", line(code, 5), line(message, SHORT)));
        }
        if *truncated {
            text.push_str(" ⟦the record keeps the beginning and a digest of all⟧");
        }
        text.push('\n');
        self.put(*request, &text)
    }

    fn end(&mut self, time: Time, end: &SessionEnd) -> io::Result<()> {
        self.finish()?;
        let SessionEnd { reason, requests, refused, rows, bytes, observed, .. } = end;
        let observed = if *observed > 0 { format!(", {observed} DENIED AND LET PASS") } else { String::new() };
        writeln!(
            self.out,
            "\nended {time}: {}; {requests} requests, {refused} refused, {rows} rows, {bytes} bytes{observed}",
            line(reason, SHORT)
        )
    }
}

fn decided(decision: &DecisionRecord) -> String {
    let policies: Vec<String> = decision.policies.iter().map(|policy| line(policy, 60)).collect();
    let by = if policies.is_empty() { "no policy".into() } else { policies.join(", ") };
    let set: String = decision.set.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let reason = line(&decision.reason, SHORT);
    match (decision.allowed, decision.is_observed()) {
        (true, _) => format!("allowed by {by} (policies {set}…)"),
        (false, true) => format!("LET PASS, though DENIED by {by} (policies {set}…; mode = observe): {reason}"),
        (false, false) => format!("DENIED by {by} (policies {set}…): {reason}"),
    }
}
