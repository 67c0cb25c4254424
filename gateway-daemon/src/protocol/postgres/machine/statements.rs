//! The agent's messages: each is understood, decided, put on the record and forwarded, or replaced by its stand-in.

use std::{collections::VecDeque, sync::Arc};

use bytes::BytesMut;

use super::{
    AgentPhase, Fault, Judge, Machine, Stop, Unread,
    errors::{no_function_call, no_portal, no_statement},
    expect::{Changes, Copies, Expect, Portal, Prepared, PreparedBy},
    names::{Change, Meaning},
    requests::Asked,
    understood::{Text, copies_of},
};
use crate::{
    policy::Clearance,
    protocol::postgres::{
        answer::{self, ErrorAnswer},
        frame::HEADER,
        frontend::{self, Bind, Message, Target},
    },
    record::{RequestKind, Runs},
};

/// A text that the server's scanner refuses at its first character, in any state of the transaction: what is sent in
/// place of a refused Query.
pub(super) const REFUSED_QUERY: &str = "!weir refused this statement";
/// What the record keeps of a FunctionCall.
const FUNCTION_CALL: &str = "/* FunctionCall, not read */";

/// What became of a Parse.
enum Turn {
    Forward(Clearance, Asked, Changes),
    Refuse(ErrorAnswer, Asked),
    /// To be asked again after this.
    Later(Stop),
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
                | Message::CopyFail
                | Message::FunctionCall => return Ok(None),
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
            Message::FunctionCall => return self.function_call(),
            Message::Terminate => {
                self.to_server.push(frame, 0);
                self.agent_phase = AgentPhase::Closed;
            }
        }
        Ok(None)
    }

    fn query(&mut self, sql: &str, frame: &[u8]) -> Result<Option<Stop>, Fault> {
        self.judge.standing().map_err(|answer| Fault::Standing(Box::new(answer)))?;
        if let Some(stop) = self.admit()? {
            return Ok(Some(stop));
        }
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
        let clearance = match self.clear(&judged, asked, Some(sql)) {
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
        self.forward(frame, clearance, asked);
        let statements = reading.statements.len();
        self.expect.push_back(Expect::Query { asked, changes, statements, copies, refused: None });
        self.fence_names();
        self.await_copy(copies, asked);
        Ok(None)
    }

    /// It names a function by its OID, which no list and no policy knows. Its answer on the server, an error as well, is
    /// that of a Query.
    fn function_call(&mut self) -> Result<Option<Stop>, Fault> {
        self.judge.standing().map_err(|answer| Fault::Standing(Box::new(answer)))?;
        if let Some(stop) = self.admit()? {
            return Ok(Some(stop));
        }
        let answer = no_function_call();
        let asked = self.refused_unread(RequestKind::Simple, &answer, FUNCTION_CALL.to_owned())?;
        self.refuse_query(asked, answer);
        Ok(None)
    }

    fn parse(&mut self, name: &str, sql: &str, types: &[u8], frame: &[u8]) -> Result<Option<Stop>, Fault> {
        self.judge.standing().map_err(|answer| Fault::Standing(Box::new(answer)))?;
        if let Some(stop) = self.admit()? {
            return Ok(Some(stop));
        }
        match self.turn_of_parse(name, sql, types)? {
            Turn::Later(stop) => return Ok(Some(stop)),
            Turn::Refuse(answer, asked) => self.stand_in(Some(asked), answer),
            Turn::Forward(clearance, asked, changes) => {
                self.note_changes(&changes);
                self.forward(frame, clearance, asked);
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
        let clearance = match self.clear(&judged, asked, Some(sql)) {
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
        if let Some(stop) = self.admit()? {
            return Ok(Some(stop));
        }
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
        ask.runs = Some(Runs { request: prepared.asked.number, results: Some(bind.results().collect()) });
        let asked = self.requests.ask(&mut self.log, ask, &judged.judgement.decision)?;
        let clearance = match self.clear(&judged, asked, None) {
            Ok(clearance) => clearance,
            Err(answer) => {
                self.stand_in(Some(asked), answer);
                return Ok(None);
            }
        };
        let portal = Portal::bound(prepared, reading.clone(), asked, judged.lifted());
        let portal = Some(Change::Define(bind.portal.into(), Arc::new(portal)));
        let changes = Changes { statement: None, portal };
        if let Some(answer) = self.over_limit(&reading, &judged.named, [&changes]) {
            self.stand_in(Some(asked), answer);
            return Ok(None);
        }
        self.note_changes(&changes);
        self.forward(frame, clearance, asked);
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
        // The Bind's request is this one's as well, as long as no Sync came between the two. Not when what is lifted now
        // was not lifted then: its own event must say so.
        let told =
            judged.lifted().is_none_or(|now| portal.lifted.as_ref().is_some_and(|then| then.decision == now.decision));
        let asked = if portal.first_use() && told && self.requests.is_live(portal.asked.number) {
            portal.asked
        } else {
            if let Some(stop) = self.admit()? {
                return Ok(Some(stop));
            }
            let mut ask = self.ask_for(RequestKind::Execute, &portal.sql, &portal.reading, &judged.judgement);
            ask.runs = Some(Runs { request: portal.asked.number, results: None });
            self.requests.ask(&mut self.log, ask, &judged.judgement.decision)?
        };
        let clearance = match self.clear(&judged, asked, None) {
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
        self.forward(frame, clearance, asked);
        self.expect.push_back(Expect::Execute { asked, changes, copies });
        self.await_copy(copies, asked);
        Ok(None)
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
    pub(super) fn stand_in(&mut self, asked: Option<Asked>, answer: ErrorAnswer) {
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
            | Message::FunctionCall
            | Message::Terminate => Err(Fault::InCopy { tag }),
        }
    }

    /// A part of a CopyData message, for a request or for nobody.
    pub(super) fn copy_part(&mut self, to: Option<Asked>, bytes: &[u8]) -> Result<(), Fault> {
        if let Some(asked) = to {
            self.may_record()?;
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
}
