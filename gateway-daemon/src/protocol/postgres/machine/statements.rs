//! The agent's messages: each is understood, decided, put on the record and forwarded, or replaced by its stand-in.

use std::{collections::VecDeque, sync::Arc};

use bytes::BytesMut;

use super::{
    AgentPhase, Fault, Judge, Judgement, KEPT_TEXT_BYTES, Machine, Stop, Unread,
    errors::{no_cursor, no_portal, no_statement, not_plain, over},
    expect::{Changes, Copies, Expect, Portal, Prepared, PreparedBy},
    names::{Change, Meaning},
    requests::{Ask, Asked},
};
use crate::{
    policy::{Clearance, Decision, PolicySetId, Refusal, Verdict},
    protocol::postgres::{
        answer::{self, ErrorAnswer, REFUSED, Severity},
        frame::HEADER,
        frontend::{self, Bind, Message, Target},
    },
    record::RequestKind,
    sql::{Discard, Reading, StatementKind, StatementReading, place_of},
};

/// A text that the server's scanner refuses at its first character, in any state of the transaction: what is sent in
/// place of a refused Query.
const REFUSED_QUERY: &str = "!weir refused this statement";

/// What became of a Parse.
enum Turn {
    Forward(Clearance, Asked, Changes),
    Refuse(ErrorAnswer, Asked),
    /// To be asked again after this.
    Later(Stop),
}

/// A text, judged together with what it executes or fetches from by name.
struct Judged {
    judgement: Arc<Judgement>,
    named: Vec<Arc<Reading>>,
    /// Why it is refused whatever the policies say.
    impossible: Option<ErrorAnswer>,
}

/// What became of a text.
enum Text {
    Read(Arc<Reading>),
    /// Refused unread; it is on the record.
    Refused(ErrorAnswer, Asked),
    /// The catalogue must be fetched first.
    NotYet,
}

impl<J: Judge> Machine<J> {
    /// Handles one whole message; or says what must happen before it can be given again.
    pub(super) fn message(&mut self, tag: u8, frame: &[u8]) -> Result<Option<Stop>, Fault> {
        let body = frame.get(HEADER..).unwrap_or_default();
        let message = frontend::decode(tag, body)?;
        match self.agent_phase {
            AgentPhase::CopyIn(asked) => return self.in_copy(tag, message, frame, asked).map(|()| None),
            // As the server: all up to Sync is read and dropped.
            AgentPhase::Skipping => match message {
                Message::Sync | Message::Terminate => {}
                Message::Query { .. }
                | Message::Parse { .. }
                | Message::Bind(_)
                | Message::Describe { .. }
                | Message::Execute { .. }
                | Message::Close { .. }
                | Message::Flush
                | Message::CopyDone
                | Message::CopyFail => return Ok(None),
            },
            AgentPhase::Open | AgentPhase::AwaitingCopy(_) | AgentPhase::Closed => {}
        }
        match message {
            Message::Query { sql } => return self.query(sql, frame),
            Message::Parse { name, sql, types } => return self.parse(name, sql, types, frame),
            Message::Bind(bind) => return self.bind(&bind, frame),
            Message::Describe { target } => return Ok(self.describe(target, frame)),
            Message::Execute { portal } => return self.execute(portal, frame),
            Message::Close { target } => self.close(target, frame),
            Message::Sync => {
                self.agent_phase = AgentPhase::Open;
                self.to_server.push(frame, 0);
                self.expect.push_back(Expect::Sync { last: self.requests.count() });
                self.fence_names();
            }
            Message::Flush => self.to_server.push(frame, 0),
            // Left over from a COPY that failed: the server ignores them, so it need not see them.
            Message::CopyDone | Message::CopyFail => {}
            Message::Terminate => {
                self.to_server.push(frame, 0);
                self.agent_phase = AgentPhase::Closed;
            }
        }
        Ok(None)
    }

    fn query(&mut self, sql: &str, frame: &[u8]) -> Result<Option<Stop>, Fault> {
        self.judge.standing().map_err(|answer| Fault::Standing(Box::new(answer)))?;
        let reading = match self.read(RequestKind::Simple, sql)? {
            Text::Read(reading) => reading,
            Text::NotYet => return Ok(Some(Stop::Catalog)),
            Text::Refused(answer, asked) => {
                self.refuse_query(asked, answer);
                return Ok(None);
            }
        };
        let judged = match self.judge_named(&reading) {
            Ok(judged) => judged,
            Err(stop) => return Ok(Some(stop)),
        };
        let ask = self.ask_for(RequestKind::Simple, sql, &reading, &judged.judgement);
        let asked = self.requests.ask(&mut self.log, ask, &judged.judgement.decision)?;
        let clearance = match self.clear(&judged, Some(sql)) {
            Ok(clearance) => clearance,
            Err(answer) => {
                self.refuse_query(asked, answer);
                return Ok(None);
            }
        };
        let text: Arc<str> = sql.into();
        let changes: VecDeque<Changes> = reading
            .statements
            .iter()
            .enumerate()
            .map(|(at, statement)| self.changes_of(at, statement, &text, asked))
            .collect();
        if let Some(answer) = self.over_limit(&reading, &judged.named, &changes) {
            self.refuse_query(asked, answer);
            return Ok(None);
        }
        for changes in &changes {
            self.note_changes(changes);
        }
        let copies = copies_of(&reading);
        self.to_server.forward(frame, clearance, asked.event);
        let statements = reading.statements.len();
        self.expect.push_back(Expect::Query { asked, changes, statements, copies, refused: None });
        self.fence_names();
        self.await_copy(copies, asked);
        Ok(None)
    }

    fn refuse_query(&mut self, asked: Asked, answer: ErrorAnswer) {
        let mut bytes = BytesMut::new();
        answer::query(&mut bytes, REFUSED_QUERY);
        self.to_server.push(&bytes, 0);
        let refused = Some(Box::new(answer));
        let changes = VecDeque::new();
        self.expect.push_back(Expect::Query { asked, changes, statements: 0, copies: Copies::No, refused });
        self.fence_names();
    }

    fn parse(&mut self, name: &str, sql: &str, types: &[u8], frame: &[u8]) -> Result<Option<Stop>, Fault> {
        self.judge.standing().map_err(|answer| Fault::Standing(Box::new(answer)))?;
        match self.turn_of_parse(name, sql, types)? {
            Turn::Later(stop) => return Ok(Some(stop)),
            Turn::Refuse(answer, asked) => self.stand_in(Some(asked), answer),
            Turn::Forward(clearance, asked, changes) => {
                self.note_changes(&changes);
                self.to_server.forward(frame, clearance, asked.event);
                self.expect.push_back(Expect::Parse { asked, changes });
            }
        }
        Ok(None)
    }

    fn turn_of_parse(&mut self, name: &str, sql: &str, types: &[u8]) -> Result<Turn, Fault> {
        let reading = match self.read(RequestKind::Prepare, sql)? {
            Text::Read(reading) => reading,
            Text::NotYet => return Ok(Turn::Later(Stop::Catalog)),
            Text::Refused(answer, asked) => return Ok(Turn::Refuse(answer, asked)),
        };
        let types: Vec<u32> = types.as_chunks::<4>().0.iter().map(|oid| u32::from_be_bytes(*oid)).collect();
        let judged = match self.judge_named(&reading) {
            Ok(judged) => judged,
            Err(stop) => return Ok(Turn::Later(stop)),
        };
        let mut ask = self.ask_for(RequestKind::Prepare, sql, &reading, &judged.judgement);
        ask.types.clone_from(&types);
        let asked = self.requests.ask(&mut self.log, ask, &judged.judgement.decision)?;
        let clearance = match self.clear(&judged, Some(sql)) {
            Ok(clearance) => clearance,
            Err(answer) => return Ok(Turn::Refuse(answer, asked)),
        };
        let weight = self.keep_text(sql.len());
        let prepared = Prepared { sql: sql.into(), by: PreparedBy::Parse, asked, types, _weight: weight };
        let statement = Some(Change::Define(name.into(), Arc::new(prepared)));
        let changes = Changes { statement, portal: None };
        match self.over_limit(&reading, &judged.named, [&changes]) {
            Some(answer) => Ok(Turn::Refuse(answer, asked)),
            None => Ok(Turn::Forward(clearance, asked, changes)),
        }
    }

    fn bind(&mut self, bind: &Bind<'_>, frame: &[u8]) -> Result<Option<Stop>, Fault> {
        self.judge.standing().map_err(|answer| Fault::Standing(Box::new(answer)))?;
        let prepared = match self.statements.get(bind.statement) {
            Meaning::Known(prepared) => prepared,
            Meaning::Unsettled => return Ok(Some(Stop::Busy)),
            Meaning::Nothing => {
                self.stand_in(None, no_statement(bind.statement));
                return Ok(None);
            }
        };
        let reading = match self.reread(&prepared) {
            Ok(reading) => reading,
            Err(Unread::NotYet) => return Ok(Some(Stop::Catalog)),
            Err(Unread::Never { answer, .. }) => {
                self.stand_in(None, *answer);
                return Ok(None);
            }
        };
        let judged = match self.judge_named(&reading) {
            Ok(judged) => judged,
            Err(stop) => return Ok(Some(stop)),
        };
        let mut ask = self.ask_for(RequestKind::Execute, &prepared.sql, &reading, &judged.judgement);
        ask.parameters = bind.parameters().map(|value| value.map(<[u8]>::to_vec)).collect();
        ask.formats = bind.formats().collect();
        ask.types.clone_from(&prepared.types);
        let asked = self.requests.ask(&mut self.log, ask, &judged.judgement.decision)?;
        let clearance = match self.clear(&judged, None) {
            Ok(clearance) => clearance,
            Err(answer) => {
                self.stand_in(Some(asked), answer);
                return Ok(None);
            }
        };
        let portal = Portal::bound(prepared, reading.clone(), asked);
        let portal = Some(Change::Define(bind.portal.into(), Arc::new(portal)));
        let changes = Changes { statement: None, portal };
        if let Some(answer) = self.over_limit(&reading, &judged.named, [&changes]) {
            self.stand_in(Some(asked), answer);
            return Ok(None);
        }
        self.note_changes(&changes);
        self.to_server.forward(frame, clearance, asked.event);
        self.expect.push_back(Expect::Bind { asked, changes });
        Ok(None)
    }

    fn execute(&mut self, name: &str, frame: &[u8]) -> Result<Option<Stop>, Fault> {
        self.judge.standing().map_err(|answer| Fault::Standing(Box::new(answer)))?;
        let portal = match self.portals.get(name) {
            Meaning::Known(portal) => portal,
            Meaning::Unsettled => return Ok(Some(Stop::Busy)),
            Meaning::Nothing => {
                self.stand_in(None, no_portal(name));
                return Ok(None);
            }
        };
        let judged = match self.judge_named(&portal.reading) {
            Ok(judged) => judged,
            Err(stop) => return Ok(Some(stop)),
        };
        // The Bind's request is this one's as well, as long as no Sync came between the two.
        let asked = if portal.first_use() && self.requests.is_live(portal.asked.number) {
            portal.asked
        } else {
            let ask = self.ask_for(RequestKind::Execute, &portal.sql, &portal.reading, &judged.judgement);
            self.requests.ask(&mut self.log, ask, &judged.judgement.decision)?
        };
        let clearance = match self.clear(&judged, None) {
            Ok(clearance) => clearance,
            Err(answer) => {
                self.stand_in(Some(asked), answer);
                return Ok(None);
            }
        };
        // A text of the extended protocol has one statement; the server refuses more. Executing a cursor fetches from
        // it, and does not declare it again.
        let changes = match portal.reading.statements.first() {
            Some(statement) if !portal.is_cursor => self.changes_of(0, statement, &portal.sql, asked),
            Some(_) | None => Changes::default(),
        };
        if let Some(answer) = self.over_limit(&portal.reading, &judged.named, [&changes]) {
            self.stand_in(Some(asked), answer);
            return Ok(None);
        }
        self.note_changes(&changes);
        let copies = copies_of(&portal.reading);
        self.to_server.forward(frame, clearance, asked.event);
        self.expect.push_back(Expect::Execute { asked, changes, copies });
        self.await_copy(copies, asked);
        Ok(None)
    }

    /// The clearance, or what the agent is told instead: with the place, where the message itself brought the text.
    fn clear(&self, judged: &Judged, text: Option<&str>) -> Result<Clearance, ErrorAnswer> {
        match (judged.judgement.decision.clear(), &judged.impossible) {
            (Err(refusal), _) => {
                let place = text.zip(refusal.access.as_deref()).and_then(|(text, access)| place_of(text, access));
                Err(self.refusal(&refusal).at(place))
            }
            (Ok(_), Some(answer)) => Err(answer.clone()),
            (Ok(clearance), None) => Ok(clearance),
        }
    }

    /// What a prepared statement means now.
    fn reread(&mut self, prepared: &Prepared) -> Result<Arc<Reading>, Unread> {
        let reading = self.judge.read(&prepared.sql)?;
        let PreparedBy::Sql(at) = prepared.by else { return Ok(reading) };
        match reading.statements.get(at).map(|statement| &statement.kind) {
            Some(StatementKind::Prepare { statement, .. }) => {
                Ok(Arc::new(Reading::from(StatementReading::clone(statement))))
            }
            // The same text has the same statements, whatever names mean.
            Some(_) | None => {
                let kept = format!("/* not read: {} bytes */", prepared.sql.len());
                Err(Unread::Never { answer: Box::new(no_statement("")), kept })
            }
        }
    }

    fn describe(&mut self, target: Target<'_>, frame: &[u8]) -> Option<Stop> {
        let asked = match target {
            Target::Statement(name) => match self.statements.get(name) {
                Meaning::Known(prepared) => Ok(prepared.asked),
                Meaning::Unsettled => return Some(Stop::Busy),
                Meaning::Nothing => Err(no_statement(name)),
            },
            Target::Portal(name) => match self.portals.get(name) {
                Meaning::Known(portal) => Ok(portal.asked),
                Meaning::Unsettled => return Some(Stop::Busy),
                Meaning::Nothing => Err(no_portal(name)),
            },
        };
        match asked {
            Ok(asked) => {
                self.to_server.push(frame, 0);
                self.expect.push_back(Expect::Describe { asked });
            }
            Err(answer) => self.stand_in(None, answer),
        }
        None
    }

    fn close(&mut self, target: Target<'_>, frame: &[u8]) {
        let changes = match target {
            Target::Statement(name) => Changes { statement: Some(Change::Forget(name.into())), portal: None },
            Target::Portal(name) => Changes { statement: None, portal: Some(Change::Forget(name.into())) },
        };
        self.note_changes(&changes);
        self.to_server.push(frame, 0);
        self.expect.push_back(Expect::Close { changes });
    }

    /// Sends the stand-in of a refused message: it fails on the server as the message fails here.
    fn stand_in(&mut self, asked: Option<Asked>, answer: ErrorAnswer) {
        let mut bytes = BytesMut::new();
        answer::describe_statement(&mut bytes, &self.no_such_name);
        self.to_server.push(&bytes, 0);
        self.expect.push_back(Expect::StandIn { asked, answer: Box::new(answer) });
        self.agent_phase = AgentPhase::Skipping;
    }

    /// A message while the server takes COPY data.
    fn in_copy(&mut self, tag: u8, message: Message<'_>, frame: &[u8], asked: Asked) -> Result<(), Fault> {
        match message {
            Message::CopyDone | Message::CopyFail => {
                // The server acts on what was sent only now: all of it must be on the record.
                let needs = self.log.append_copy_in(asked.number, frame)?;
                self.log.commit();
                self.to_server.push(frame, needs);
                // A text of several statements may ask for more.
                let more = matches!(self.expect.front(), Some(Expect::Query { statements, .. }) if *statements > 1);
                self.agent_phase = if more { AgentPhase::AwaitingCopy(asked) } else { AgentPhase::Open };
                Ok(())
            }
            // The server ignores them here, for libraries that send Sync before they know of the COPY.
            Message::Flush | Message::Sync => Ok(()),
            Message::Query { .. }
            | Message::Parse { .. }
            | Message::Bind(_)
            | Message::Describe { .. }
            | Message::Execute { .. }
            | Message::Close { .. }
            | Message::Terminate => Err(Fault::InCopy { tag }),
        }
    }

    /// A part of a CopyData message, for a request or for nobody.
    pub(super) fn copy_part(&mut self, to: Option<Asked>, bytes: &[u8]) -> Result<(), Fault> {
        if let Some(asked) = to {
            self.log.append_copy_in(asked.number, bytes)?;
            self.to_server.push(bytes, 0);
        }
        Ok(())
    }

    fn await_copy(&mut self, copies: Copies, asked: Asked) {
        if copies.may_copy_in() {
            self.agent_phase = AgentPhase::AwaitingCopy(asked);
        }
    }

    /// Decides a reading together with what it executes or fetches from by name; or says what must happen first. A name that
    /// does not exist gets the server's own error: nothing is forwarded that was not read.
    fn judge_named(&mut self, reading: &Arc<Reading>) -> Result<Judged, Stop> {
        let mut named = Vec::new();
        let mut impossible = None;
        for (at, statement) in reading.statements.iter().enumerate() {
            let mut earlier = reading.statements.iter().take(at).map(|earlier| &earlier.kind);
            if let Some(name) = &statement.executes {
                // What the same text prepares is judged there.
                if earlier.any(|earlier| matches!(earlier, StatementKind::Prepare { name: n, .. } if n == name)) {
                    continue;
                }
                match self.statements.get(name) {
                    Meaning::Nothing => impossible = Some(no_statement(name)),
                    Meaning::Unsettled => return Err(Stop::Busy),
                    Meaning::Known(prepared) => match self.reread(&prepared) {
                        Ok(reading) => named.push(reading),
                        Err(Unread::NotYet) => return Err(Stop::Catalog),
                        Err(Unread::Never { answer, .. }) => impossible = Some(*answer),
                    },
                }
            } else if let StatementKind::Fetch { name } = &statement.kind {
                if earlier.any(|earlier| matches!(earlier, StatementKind::DeclareCursor { name: n } if n == name)) {
                    continue;
                }
                match self.portals.get(name) {
                    Meaning::Nothing => impossible = Some(no_cursor(name)),
                    Meaning::Unsettled => return Err(Stop::Busy),
                    Meaning::Known(portal) => named.push(portal.reading.clone()),
                }
            } else if let StatementKind::Prepare { statement, .. } = &statement.kind {
                named.push(Arc::new(Reading::from(StatementReading::clone(statement))));
            }
        }
        if !named.iter().all(|reading| is_plain(reading)) {
            impossible = Some(not_plain());
        }
        let judgement = self.judge.decide(reading, &named);
        Ok(Judged { judgement, named, impossible })
    }

    /// What a statement does to names once the server completed it.
    fn changes_of(&self, at: usize, statement: &StatementReading, text: &Arc<str>, asked: Asked) -> Changes {
        let none = Changes::default();
        match &statement.kind {
            StatementKind::Prepare { name, .. } => {
                let weight = self.keep_text(text.len());
                let by = PreparedBy::Sql(at);
                let prepared = Prepared { sql: text.clone(), by, asked, types: Vec::new(), _weight: weight };
                Changes { statement: Some(Change::Define(name.clone(), Arc::new(prepared))), ..none }
            }
            StatementKind::Deallocate { name: Some(name) } => {
                Changes { statement: Some(Change::Forget(name.clone())), ..none }
            }
            StatementKind::Deallocate { name: None } => Changes { statement: Some(Change::ForgetAll), ..none },
            StatementKind::DeclareCursor { name } => {
                let reading = Arc::new(Reading::from(statement.clone()));
                let weight = self.keep_text(text.len());
                let portal = Portal::cursor(text.clone(), reading, asked, weight);
                Changes { portal: Some(Change::Define(name.clone(), Arc::new(portal))), ..none }
            }
            StatementKind::Close { name: Some(name) } => Changes { portal: Some(Change::Forget(name.clone())), ..none },
            StatementKind::Close { name: None } => Changes { portal: Some(Change::ForgetAll), ..none },
            StatementKind::Discard(Discard::All) => {
                Changes { statement: Some(Change::ForgetAll), portal: Some(Change::ForgetAll) }
            }
            StatementKind::Discard(Discard::Plans | Discard::Sequences | Discard::Temporary)
            | StatementKind::Empty
            | StatementKind::Query
            | StatementKind::Dml
            | StatementKind::Utility
            | StatementKind::Transaction(_)
            | StatementKind::Execute { .. }
            | StatementKind::Fetch { .. }
            | StatementKind::CopyIn
            | StatementKind::CopyOut
            | StatementKind::Set { .. }
            | StatementKind::Reset { .. }
            | StatementKind::Show { .. }
            | StatementKind::Listen { .. }
            | StatementKind::Unlisten { .. }
            | StatementKind::Notify { .. } => none,
        }
    }

    fn over_limit<'a>(
        &mut self,
        reading: &Reading,
        named: &[Arc<Reading>],
        changes: impl IntoIterator<Item = &'a Changes>,
    ) -> Option<ErrorAnswer> {
        let limit = self.limits.names;
        let (mut defines, mut full) = (false, false);
        for Changes { statement, portal } in changes {
            defines |= matches!(statement, Some(Change::Define(..))) || matches!(portal, Some(Change::Define(..)));
            full |=
                self.statements.overflow(statement.as_ref(), limit) || self.portals.overflow(portal.as_ref(), limit);
        }
        if full {
            return Some(over(format!(
                "the session has {limit} prepared statements or portals, the limit of limits.prepared_statements"
            )));
        }
        if defines && self.kept_text.load(std::sync::atomic::Ordering::Relaxed) > KEPT_TEXT_BYTES {
            return Some(over(format!("the session's prepared statements hold over {KEPT_TEXT_BYTES} bytes of text")));
        }
        let mut readings = std::iter::once(reading).chain(named.iter().map(AsRef::as_ref));
        readings.find_map(|reading| self.judge.forwarding(reading).err()).map(over)
    }

    fn read(&mut self, kind: RequestKind, sql: &str) -> Result<Text, Fault> {
        let (length, limit) = (sql.len(), self.limits.statement_bytes);
        let (answer, kept) = if length > limit {
            let answer =
                over(format!("the statement has {length} bytes, over the limit of {limit} (limits.statement_bytes)"));
            (answer, format!("/* not read: {length} bytes */"))
        } else {
            match self.judge.read(sql) {
                Ok(reading) => return Ok(Text::Read(reading)),
                Err(Unread::NotYet) => return Ok(Text::NotYet),
                Err(Unread::Never { answer, kept }) => (*answer, kept),
            }
        };
        let decision = Decision {
            verdict: Verdict::Deny { what: "unknown".into(), reason: answer.message.clone(), access: None },
            policies: Vec::new(),
            set: PolicySetId([0; 32]),
            durable_first: true,
        };
        let none = (Vec::new(), Vec::new(), Vec::new());
        let ask = Ask { kind, sql: kept.into(), parameters: none.0, formats: none.1, types: none.2, accesses: &[] };
        let asked = self.requests.ask(&mut self.log, ask, &decision)?;
        Ok(Text::Refused(answer, asked))
    }

    /// The request as the record keeps it: secrets in the text are replaced.
    fn ask_for<'a>(&self, kind: RequestKind, sql: &'a str, reading: &Reading, judgement: &'a Judgement) -> Ask<'a> {
        let sql = match self.judge.redact(sql, reading) {
            Some(redacted) => std::borrow::Cow::Owned(redacted),
            None => std::borrow::Cow::Borrowed(sql),
        };
        let accesses = &judgement.accesses;
        Ask { kind, sql, parameters: Vec::new(), formats: Vec::new(), types: Vec::new(), accesses }
    }

    fn refusal(&self, refusal: &Refusal) -> ErrorAnswer {
        let policies: Vec<&str> = refusal.policies.iter().map(|id| &*id.0).collect();
        let detail = match policies.as_slice() {
            [] => refusal.reason.clone(),
            policies => format!("{} (policy {})", refusal.reason, policies.join(", ")),
        };
        ErrorAnswer {
            severity: Severity::Error,
            sqlstate: REFUSED,
            message: format!("Weir refused this statement: {}", refusal.what),
            detail,
            hint: self.judge.hint().to_owned(),
            position: None,
        }
    }
}

/// Whether a statement may be run by another's name for it. The server would run anything that was prepared, also what
/// changes names or runs yet another: only what returns or changes rows is followed.
fn is_plain(reading: &Reading) -> bool {
    reading.statements.iter().all(|statement| {
        let rows =
            matches!(statement.kind, StatementKind::Query | StatementKind::Dml | StatementKind::DeclareCursor { .. });
        rows && statement.executes.is_none()
    })
}

fn copies_of(reading: &Reading) -> Copies {
    let has = |kind: &StatementKind| reading.statements.iter().any(|statement| statement.kind == *kind);
    match (has(&StatementKind::CopyIn), has(&StatementKind::CopyOut)) {
        (false, false) => Copies::No,
        (true, false) => Copies::In,
        (false, true) => Copies::Out,
        (true, true) => Copies::Both,
    }
}
