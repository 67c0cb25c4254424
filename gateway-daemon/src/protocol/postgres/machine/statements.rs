//! The agent's messages: each is understood, decided, put on the record and forwarded, or replaced by its stand-in.

use std::{collections::VecDeque, sync::Arc};

use bytes::BytesMut;

use super::{
    AgentPhase, Fault, Judge, Judgement, KEPT_TEXT_BYTES, Machine, Unread,
    expect::{Changes, Copies, Expect, Portal, Prepared},
    names::Change,
    requests::{Ask, Asked},
};
use crate::{
    policy::{Clearance, Decision, PolicySetId, Refusal, Verdict},
    protocol::postgres::{
        answer::{self, ErrorAnswer, LIMIT, REFUSED, Severity},
        frame::HEADER,
        frontend::{self, Bind, Message, Target},
    },
    record::RequestKind,
    sql::{Discard, Reading, StatementKind, StatementReading},
};

/// A text that the server's scanner refuses at its first character, in any state of the transaction: what is sent in
/// place of a refused Query.
const REFUSED_QUERY: &str = "!weir refused this statement";

/// What became of a Parse.
enum Turn {
    Forward(Clearance, Asked, Changes),
    Refuse(ErrorAnswer, Asked),
    /// The catalogue must be fetched first.
    NotYet,
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
    /// Handles one whole message; `false` when it must be given again after the catalogue was fetched.
    pub(super) fn message(&mut self, tag: u8, frame: &[u8]) -> Result<bool, Fault> {
        let body = frame.get(HEADER..).unwrap_or_default();
        let message = frontend::decode(tag, body)?;
        match self.agent_phase {
            AgentPhase::CopyIn(asked) => return self.in_copy(tag, message, frame, asked).map(|()| true),
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
                | Message::CopyFail => return Ok(true),
            },
            AgentPhase::Open | AgentPhase::AwaitingCopy | AgentPhase::Closed => {}
        }
        match message {
            Message::Query { sql } => return self.query(sql, frame),
            Message::Parse { name, sql, types } => return self.parse(name, sql, types, frame),
            Message::Bind(bind) => self.bind(&bind, frame)?,
            Message::Describe { target } => self.describe(target, frame),
            Message::Execute { portal } => self.execute(portal, frame)?,
            Message::Close { target } => self.close(target, frame),
            Message::Sync => {
                self.agent_phase = AgentPhase::Open;
                self.to_server.push(frame, 0);
                self.expect.push_back(Expect::Sync { last: self.requests.count() });
            }
            Message::Flush => self.to_server.push(frame, 0),
            // Left over from a COPY that failed: the server ignores them, so it need not see them.
            Message::CopyDone | Message::CopyFail => {}
            Message::Terminate => {
                self.to_server.push(frame, 0);
                self.agent_phase = AgentPhase::Closed;
            }
        }
        Ok(true)
    }

    fn query(&mut self, sql: &str, frame: &[u8]) -> Result<bool, Fault> {
        self.judge.standing().map_err(|answer| Fault::Standing(Box::new(answer)))?;
        let reading = match self.read(RequestKind::Simple, sql)? {
            Text::Read(reading) => reading,
            Text::NotYet => return Ok(false),
            Text::Refused(answer, asked) => {
                self.refuse_query(asked, answer);
                return Ok(true);
            }
        };
        let (judgement, missing) = self.judge_named(&reading);
        let ask = self.ask_for(RequestKind::Simple, sql, &reading, &judgement);
        let asked = self.requests.ask(&mut self.log, ask, &judgement.decision)?;
        let clearance = match (judgement.decision.clear(), missing) {
            (Err(refusal), _) => {
                let answer = self.refusal(&refusal);
                self.refuse_query(asked, answer);
                return Ok(true);
            }
            (Ok(_), Some(answer)) => {
                self.refuse_query(asked, answer);
                return Ok(true);
            }
            (Ok(clearance), None) => clearance,
        };
        let text: Arc<str> = sql.into();
        let changes: VecDeque<Changes> =
            reading.statements.iter().map(|statement| self.changes_of(statement, &text, asked)).collect();
        if let Some(answer) = self.over_limit(&reading, &changes) {
            self.refuse_query(asked, answer);
            return Ok(true);
        }
        for changes in &changes {
            self.note_changes(changes);
        }
        let copies = copies_of(&reading);
        self.to_server.forward(frame, clearance, asked.event);
        let statements = reading.statements.len();
        self.expect.push_back(Expect::Query { asked, changes, statements, copies, refused: None });
        self.await_copy(copies);
        Ok(true)
    }

    fn refuse_query(&mut self, asked: Asked, answer: ErrorAnswer) {
        let mut bytes = BytesMut::new();
        answer::query(&mut bytes, REFUSED_QUERY);
        self.to_server.push(&bytes, 0);
        let refused = Some(Box::new(answer));
        let changes = VecDeque::new();
        self.expect.push_back(Expect::Query { asked, changes, statements: 0, copies: Copies::No, refused });
    }

    fn parse(&mut self, name: &str, sql: &str, types: &[u8], frame: &[u8]) -> Result<bool, Fault> {
        self.judge.standing().map_err(|answer| Fault::Standing(Box::new(answer)))?;
        match self.turn_of_parse(name, sql, types)? {
            Turn::NotYet => return Ok(false),
            Turn::Refuse(answer, asked) => self.stand_in(Some(asked), answer),
            Turn::Forward(clearance, asked, changes) => {
                self.note_changes(&changes);
                self.to_server.forward(frame, clearance, asked.event);
                self.expect.push_back(Expect::Parse { asked, changes });
            }
        }
        Ok(true)
    }

    fn turn_of_parse(&mut self, name: &str, sql: &str, types: &[u8]) -> Result<Turn, Fault> {
        let reading = match self.read(RequestKind::Prepare, sql)? {
            Text::Read(reading) => reading,
            Text::NotYet => return Ok(Turn::NotYet),
            Text::Refused(answer, asked) => return Ok(Turn::Refuse(answer, asked)),
        };
        let types: Vec<u32> = types.as_chunks::<4>().0.iter().map(|oid| u32::from_be_bytes(*oid)).collect();
        let (judgement, missing) = self.judge_named(&reading);
        let mut ask = self.ask_for(RequestKind::Prepare, sql, &reading, &judgement);
        ask.types.clone_from(&types);
        let asked = self.requests.ask(&mut self.log, ask, &judgement.decision)?;
        let clearance = match (judgement.decision.clear(), missing) {
            (Err(refusal), _) => return Ok(Turn::Refuse(self.refusal(&refusal), asked)),
            (Ok(_), Some(answer)) => return Ok(Turn::Refuse(answer, asked)),
            (Ok(clearance), None) => clearance,
        };
        let weight = self.keep_text(sql.len());
        let prepared = Prepared { sql: sql.into(), reading: reading.clone(), asked, types, _weight: weight };
        let statement = Some(Change::Define(name.into(), Arc::new(prepared)));
        let changes = Changes { statement, portal: None };
        match self.over_limit(&reading, [&changes]) {
            Some(answer) => Ok(Turn::Refuse(answer, asked)),
            None => Ok(Turn::Forward(clearance, asked, changes)),
        }
    }

    fn bind(&mut self, bind: &Bind<'_>, frame: &[u8]) -> Result<(), Fault> {
        self.judge.standing().map_err(|answer| Fault::Standing(Box::new(answer)))?;
        let Some(prepared) = self.statements.get(bind.statement) else {
            self.stand_in(None, no_statement(bind.statement));
            return Ok(());
        };
        let (judgement, missing) = self.judge_named(&prepared.reading);
        let mut ask = self.ask_for(RequestKind::Execute, &prepared.sql, &prepared.reading, &judgement);
        ask.parameters = bind.parameters().map(|value| value.map(<[u8]>::to_vec)).collect();
        ask.formats = bind.formats().collect();
        ask.types.clone_from(&prepared.types);
        let asked = self.requests.ask(&mut self.log, ask, &judgement.decision)?;
        match (judgement.decision.clear(), missing) {
            (Err(refusal), _) => {
                let answer = self.refusal(&refusal);
                self.stand_in(Some(asked), answer);
            }
            (Ok(_), Some(answer)) => self.stand_in(Some(asked), answer),
            (Ok(clearance), None) => {
                let portal = Portal::bound(prepared.sql.clone(), prepared.reading.clone(), asked);
                let portal = Some(Change::Define(bind.portal.into(), Arc::new(portal)));
                let changes = Changes { statement: None, portal };
                if let Some(answer) = self.over_limit(&prepared.reading, [&changes]) {
                    self.stand_in(Some(asked), answer);
                    return Ok(());
                }
                self.note_changes(&changes);
                self.to_server.forward(frame, clearance, asked.event);
                self.expect.push_back(Expect::Bind { asked, changes });
            }
        }
        Ok(())
    }

    fn execute(&mut self, name: &str, frame: &[u8]) -> Result<(), Fault> {
        self.judge.standing().map_err(|answer| Fault::Standing(Box::new(answer)))?;
        let Some(portal) = self.portals.get(name) else {
            self.stand_in(None, no_portal(name));
            return Ok(());
        };
        let (judgement, missing) = self.judge_named(&portal.reading);
        let asked = if portal.first_use() {
            portal.asked
        } else {
            let ask = self.ask_for(RequestKind::Execute, &portal.sql, &portal.reading, &judgement);
            self.requests.ask(&mut self.log, ask, &judgement.decision)?
        };
        match (judgement.decision.clear(), missing) {
            (Err(refusal), _) => {
                let answer = self.refusal(&refusal);
                self.stand_in(Some(asked), answer);
            }
            (Ok(_), Some(answer)) => self.stand_in(Some(asked), answer),
            (Ok(clearance), None) => {
                // A text of the extended protocol has one statement; the server refuses more.
                // Executing a cursor fetches from it, and does not declare it again.
                let changes = match portal.reading.statements.first() {
                    Some(statement) if !portal.is_cursor => self.changes_of(statement, &portal.sql, asked),
                    Some(_) | None => Changes::default(),
                };
                if let Some(answer) = self.over_limit(&portal.reading, [&changes]) {
                    self.stand_in(Some(asked), answer);
                    return Ok(());
                }
                self.note_changes(&changes);
                let copies = copies_of(&portal.reading);
                self.to_server.forward(frame, clearance, asked.event);
                self.expect.push_back(Expect::Execute { asked, changes, copies });
                self.await_copy(copies);
            }
        }
        Ok(())
    }

    fn describe(&mut self, target: Target<'_>, frame: &[u8]) {
        let asked = match target {
            Target::Statement(name) => {
                self.statements.get(name).map(|prepared| prepared.asked).ok_or_else(|| no_statement(name))
            }
            Target::Portal(name) => self.portals.get(name).map(|portal| portal.asked).ok_or_else(|| no_portal(name)),
        };
        match asked {
            Ok(asked) => {
                self.to_server.push(frame, 0);
                self.expect.push_back(Expect::Describe { asked });
            }
            Err(answer) => self.stand_in(None, answer),
        }
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
                self.agent_phase = match self.expect.front() {
                    // Another statement of the same text may ask for data as well.
                    Some(Expect::Query { .. }) => AgentPhase::AwaitingCopy,
                    Some(_) | None => AgentPhase::Open,
                };
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

    /// A part of a CopyData message.
    pub(super) fn copy_part(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        match self.agent_phase {
            AgentPhase::CopyIn(asked) => {
                self.log.append_copy_in(asked.number, bytes)?;
                self.to_server.push(bytes, 0);
                Ok(())
            }
            // Left over from a COPY that failed: the server ignores it.
            AgentPhase::Open | AgentPhase::Skipping | AgentPhase::AwaitingCopy | AgentPhase::Closed => Ok(()),
        }
    }

    fn await_copy(&mut self, copies: Copies) {
        if copies.may_copy_in() {
            self.agent_phase = AgentPhase::AwaitingCopy;
        }
    }

    /// Decides a reading together with what it executes or fetches from by name. The error is the server's own for a name
    /// that does not exist: nothing is forwarded that Weir could not read.
    fn judge_named(&mut self, reading: &Arc<Reading>) -> (Arc<Judgement>, Option<ErrorAnswer>) {
        let mut named = Vec::new();
        let mut missing = None;
        for (at, statement) in reading.statements.iter().enumerate() {
            if let Some(name) = &statement.executes {
                let earlier = reading.statements.iter().take(at).rev().any(|earlier| {
                    matches!(&earlier.kind, StatementKind::Prepare { name: prepared, .. } if prepared == name)
                });
                match self.statements.get(name) {
                    // The PREPARE of the same text is judged with what it prepares: see `prepared_reading`.
                    _ if earlier => {}
                    Some(prepared) => named.push(prepared.reading.clone()),
                    None => missing = Some(no_statement(name)),
                }
            }
            if let StatementKind::Fetch { name } = &statement.kind {
                let earlier = reading.statements.iter().take(at).any(|earlier| {
                    matches!(&earlier.kind, StatementKind::DeclareCursor { name: declared } if declared == name)
                });
                match self.portals.get(name) {
                    _ if earlier => {}
                    Some(portal) => named.push(portal.reading.clone()),
                    None => missing = Some(no_cursor(name)),
                }
            }
            if let StatementKind::Prepare { statement, .. } = &statement.kind {
                named.push(Arc::new(Reading::from(StatementReading::clone(statement))));
            }
        }
        (self.judge.decide(reading, &named), missing)
    }

    /// What a statement does to names once the server completed it.
    fn changes_of(&self, statement: &StatementReading, text: &Arc<str>, asked: Asked) -> Changes {
        let none = Changes::default();
        match &statement.kind {
            StatementKind::Prepare { name, statement } => {
                let reading = Arc::new(Reading::from(StatementReading::clone(statement)));
                let weight = self.keep_text(text.len());
                let prepared = Prepared { sql: text.clone(), reading, asked, types: Vec::new(), _weight: weight };
                Changes { statement: Some(Change::Define(name.clone(), Arc::new(prepared))), ..none }
            }
            StatementKind::Deallocate { name: Some(name) } => {
                Changes { statement: Some(Change::Forget(name.clone())), ..none }
            }
            StatementKind::Deallocate { name: None } => Changes { statement: Some(Change::ForgetAll), ..none },
            StatementKind::DeclareCursor { name } => {
                let reading = Arc::new(Reading::from(statement.clone()));
                let portal = Portal::cursor(text.clone(), reading, asked);
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
        self.judge.forwarding(reading).err().map(over)
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
            verdict: Verdict::Deny { what: "unknown".into(), reason: answer.message.clone() },
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
        }
    }
}

fn over(message: String) -> ErrorAnswer {
    ErrorAnswer { severity: Severity::Error, sqlstate: LIMIT, message, detail: String::new(), hint: String::new() }
}

/// What the server itself says of a prepared statement that does not exist.
fn no_statement(name: &str) -> ErrorAnswer {
    let message = match name {
        "" => "unnamed prepared statement does not exist".to_owned(),
        name => format!("prepared statement \"{name}\" does not exist"),
    };
    let (detail, hint) = (String::new(), String::new());
    ErrorAnswer { severity: Severity::Error, sqlstate: "26000", message, detail, hint }
}

/// What the server itself says of a portal that does not exist.
fn no_portal(name: &str) -> ErrorAnswer {
    let (detail, hint) = (String::new(), String::new());
    let message = format!("portal \"{name}\" does not exist");
    ErrorAnswer { severity: Severity::Error, sqlstate: "34000", message, detail, hint }
}

/// The same of a cursor: one and the same thing, under the name that SQL has for it.
fn no_cursor(name: &str) -> ErrorAnswer {
    ErrorAnswer { message: format!("cursor \"{name}\" does not exist"), ..no_portal(name) }
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
