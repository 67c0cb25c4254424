//! One session after start-up, without I/O: bytes of either side in, bytes for either side out, each behind what it needs
//! on the record.
//!
//! ```text
//!   agent ──► from_agent ──► judge ──► to_server ══gate══► server
//!   agent ◄══gate══ to_agent ◄── from_server ◄───────────── server
//!                        │              │
//!                        └── SessionLog ┘  requests, answers, outcomes
//! ```
//!
//! The server must stay in the state that a PostgreSQL error leaves, also where Weir refuses. So a refused message is
//! replaced by a stand-in that fails on the server with no other effect, and the server's error is replaced by Weir's:
//! transactions fail and pipelines skip to Sync on both sides alike.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::BytesMut;

use super::{
    answer::{self, ErrorAnswer},
    frame::{Header, MessageLimit},
    gate::Gate,
};
use crate::{
    limits::{Account, TableVolume},
    policy::Decision,
    record::{Event, Receipt, SessionEnd, SessionLog, StoreError},
    sql::Reading,
};

mod answers;
mod cut;
mod errors;
mod expect;
mod fault;
mod names;
mod requests;
mod statements;
#[cfg(test)]
mod tests;
mod understood;

use cut::Cut;
use expect::{Expect, Portal, Prepared};
pub use fault::Fault;
use names::Names;
use requests::Requests;

/// Who understands and decides: the world as the machine sees it.
pub trait Judge {
    /// Understands a text under the names that the session may have.
    ///
    /// # Errors
    /// [`Unread::NotYet`] when something must be fetched first; the machine asks again with the same text.
    fn read(&mut self, sql: &str) -> Result<Arc<Reading>, Unread>;

    /// Decides a text, with the readings of what it executes or fetches from by name.
    fn decide(&mut self, reading: &Arc<Reading>, named: &[Arc<Reading>]) -> Arc<Judgement>;

    /// The text is about to be forwarded: what it may do to names counts from now on.
    ///
    /// # Errors
    /// A limit that the session has reached.
    fn forwarding(&mut self, reading: &Reading) -> Result<(), String>;

    /// A statement completed; its transaction may be open still.
    fn completed(&mut self);

    /// No transaction is open any longer: what was forwarded has happened or not.
    fn idle(&mut self);

    /// The text as the record may keep it.
    fn redact(&self, sql: &str, reading: &Reading) -> Option<String>;

    /// Whether the agent's identity still stands.
    ///
    /// # Errors
    /// Why it does not; ends the session.
    fn standing(&self) -> Result<(), ErrorAnswer>;

    /// How a refused agent may ask.
    fn hint(&self) -> &str;
}

/// A text that has no reading.
#[derive(Debug)]
pub enum Unread {
    /// The catalogue must be fetched first.
    NotYet,
    /// It cannot be read, so it is refused.
    Never {
        /// What the agent is told.
        answer: Box<ErrorAnswer>,
        /// The text as the record may keep it.
        kept: String,
    },
}

/// A decision with what it was made of, for the record.
#[derive(Debug)]
pub struct Judgement {
    /// The decision.
    pub decision: Decision,
    /// Each access in a line for people.
    pub accesses: Vec<Arc<str>>,
    /// The tables whose rows the answer may hold: what comes back counts for each of them.
    pub tables: Arc<[Arc<TableVolume>]>,
    /// Whether it depends on what the agent has had: then all that the session asked before must be answered first.
    pub reads_volume: bool,
}

/// Limits of one session.
#[derive(Debug, Clone, Copy)]
pub struct MachineLimits {
    /// Largest message from the agent, COPY data left out.
    pub message_bytes: usize,
    /// Largest message from the server.
    pub server_message_bytes: usize,
    /// Largest statement.
    pub statement_bytes: usize,
    /// Messages that wait for the server's answer.
    pub pipeline: usize,
    /// Prepared statements and portals.
    pub names: usize,
    /// Bytes of one answer that are recorded.
    pub answer_bytes: u64,
}

/// Bytes of statement text that one session's prepared statements and portals may hold.
const KEPT_TEXT_BYTES: usize = 64 << 20;
/// Messages from the server that are looked at whole: errors, notices, row descriptions.
const WHOLE_MESSAGE_BYTES: usize = 16 << 20;
/// Messages of the agent's that are judged in a row before other sessions get their turn.
const MESSAGES: usize = 32;
/// A gate that holds more stops the reading of the other side.
const GATE_BYTES: usize = 256 * 1024;

/// How far the machine came with what it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Bytes that were used up; the rest is to be given again, with more behind it.
    pub bytes: usize,
    /// Why it stopped before the end.
    pub stop: Stop,
}

/// Why the machine did not use all bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The last message is not whole.
    More,
    /// Something must be answered or written first.
    Busy,
    /// The catalogue must be fetched first.
    Catalog,
    /// It is not the agent's turn before this.
    Until(Instant),
    /// The agent said goodbye.
    Closed,
}

/// The state of one session.
#[derive(Debug)]
pub struct Machine<J> {
    judge: J,
    log: SessionLog,
    limits: MachineLimits,
    /// What the agent uses up.
    account: Arc<Account>,
    /// The message at hand has had its turn.
    admitted: bool,
    /// … and waits until the answers before it are counted.
    waits_for_count: bool,
    /// The answer that is cut off since the agent has used up an amount.
    cut: Option<Cut>,
    /// Something with effects was forwarded since the server was last ready.
    effects: bool,
    to_server: Gate,
    to_agent: Gate,
    expect: VecDeque<Expect>,
    requests: Requests,
    statements: Names<Arc<Prepared>>,
    portals: Names<Arc<Portal>>,
    /// Text held by `statements` and `portals`.
    kept_text: Arc<AtomicUsize>,
    agent_phase: AgentPhase,
    /// COPY data that streams through.
    agent_body: Option<CopyBody>,
    server_body: usize,
    /// The pipeline is full, and the server was asked to answer.
    hurried: bool,
    /// A name that no prepared statement has: describing it is the stand-in of a refused message.
    no_such_name: String,
    /// The process number that the server gave the session, and the one that the agent was told, as they stand in messages.
    processes: Option<([u8; 4], [u8; 4])>,
}

/// What is left of a CopyData message's body. Where it goes was decided with its header: the server reads header and body
/// as one, whatever happens in between.
#[derive(Debug, Clone, Copy)]
struct CopyBody {
    left: usize,
    /// The request that it belongs to; `None` for what the server would ignore.
    to: Option<requests::Asked>,
}

/// What the agent's next message may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AgentPhase {
    /// Any message.
    Open,
    /// A message was refused: all up to Sync is skipped, as the server would.
    Skipping,
    /// This request may ask for COPY data: the server decides first how the next message is read.
    AwaitingCopy(requests::Asked),
    /// The server asked for COPY data for this request.
    CopyIn(requests::Asked),
    /// Terminate came.
    Closed,
}

impl<J: Judge> Machine<J> {
    /// A session whose agent has seen ReadyForQuery. `nonce` is 32 hex digits that the agent cannot guess.
    pub fn new(judge: J, log: SessionLog, limits: MachineLimits, account: Arc<Account>, nonce: &str) -> Self {
        Self {
            judge,
            log,
            limits,
            requests: Requests::charged_to(account.clone()),
            account,
            admitted: false,
            waits_for_count: false,
            cut: None,
            effects: false,
            to_server: Gate::default(),
            to_agent: Gate::default(),
            expect: VecDeque::new(),
            statements: Names::default(),
            portals: Names::default(),
            kept_text: Arc::default(),
            agent_phase: AgentPhase::Open,
            agent_body: None,
            server_body: 0,
            hurried: false,
            no_such_name: format!("weir refused this {nonce}"),
            processes: None,
        }
    }

    /// The same, with the process number that the server gave the session and the one that the agent was told.
    #[must_use]
    pub const fn known_as(mut self, server: u32, agent: u32) -> Self {
        self.processes = Some((server.to_be_bytes(), agent.to_be_bytes()));
        self
    }

    /// What goes to the server.
    pub const fn to_server(&mut self) -> &mut Gate {
        &mut self.to_server
    }

    /// What goes to the agent.
    pub const fn to_agent(&mut self) -> &mut Gate {
        &mut self.to_agent
    }

    /// The session's record.
    pub const fn log(&mut self) -> &mut SessionLog {
        &mut self.log
    }

    /// The judge.
    pub const fn judge(&mut self) -> &mut J {
        &mut self.judge
    }

    /// Whether more of the agent's bytes should be read now.
    pub fn wants_agent(&self) -> bool {
        self.agent_phase != AgentPhase::Closed && !self.is_full() && self.cut.is_none()
    }

    /// Whether the agent is in the middle of COPY data: nothing but more of it can be said to the server.
    pub const fn is_in_copy(&self) -> bool {
        self.agent_body.is_some() || matches!(self.agent_phase, AgentPhase::CopyIn(_))
    }

    /// Whether the agent is ahead of the server or of the record.
    fn is_full(&self) -> bool {
        self.to_server.held() >= GATE_BYTES || self.log.is_ahead()
    }

    /// Whether more of the server's bytes should be read now.
    pub fn wants_server(&self) -> bool {
        self.to_agent.held() < GATE_BYTES
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.expect.is_empty() && self.to_agent.held() == 0 && self.to_server.held() == 0
    }

    /// The event that something waits for, if anything does.
    pub fn waits_for(&self) -> Option<u64> {
        match (self.to_server.waits_for(), self.to_agent.waits_for()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Opens both gates as far as the receipt goes.
    pub fn release(&mut self, receipt: &Receipt) {
        self.to_server.release(receipt);
        self.to_agent.release(receipt);
    }

    /// Takes bytes from the agent.
    ///
    /// # Errors
    /// What ends the session.
    pub fn from_agent(&mut self, input: &[u8]) -> Result<Taken, Fault> {
        let (mut used, mut messages) = (0, 0);
        loop {
            let rest = input.get(used..).unwrap_or_default();
            if self.agent_phase == AgentPhase::Closed {
                return Ok(Taken { bytes: input.len(), stop: Stop::Closed });
            }
            if self.is_full() || self.cut.is_some() {
                return Ok(Taken { bytes: used, stop: Stop::Busy });
            }
            if let Some(body) = self.agent_body.take() {
                let part = rest.get(..body.left.min(rest.len())).unwrap_or_default();
                self.copy_part(body.to, part)?;
                used += part.len();
                let left = body.left - part.len();
                if left > 0 {
                    self.agent_body = Some(CopyBody { left, ..body });
                    return Ok(Taken { bytes: used, stop: Stop::More });
                }
                continue;
            }
            if let AgentPhase::AwaitingCopy(_) = self.agent_phase {
                return Ok(Taken { bytes: used, stop: Stop::Busy });
            }
            if self.expect.len() >= self.limits.pipeline {
                self.hurry_server();
                return Ok(Taken { bytes: used, stop: Stop::Busy });
            }
            self.hurried = false;
            let limit = MessageLimit { bytes: self.limits.message_bytes, name: "limits.message_bytes" };
            let Some(header) = Header::decode(rest, limit).map_err(Fault::AgentFrame)? else {
                return Ok(Taken { bytes: used, stop: Stop::More });
            };
            if header.tag == b'd' {
                // COPY data streams: its header now, its body as it comes.
                let head = rest.get(..super::frame::HEADER).unwrap_or_default();
                let to = match self.agent_phase {
                    AgentPhase::CopyIn(asked) => Some(asked),
                    // Left over from a COPY that failed: the server ignores it.
                    AgentPhase::Open | AgentPhase::Skipping | AgentPhase::AwaitingCopy(_) | AgentPhase::Closed => None,
                };
                self.copy_part(to, head)?;
                used += head.len();
                self.agent_body = Some(CopyBody { left: header.body, to });
                continue;
            }
            let Some(frame) = rest.get(..header.frame()) else {
                return Ok(Taken { bytes: used, stop: Stop::More });
            };
            if messages >= MESSAGES {
                return Ok(Taken { bytes: used, stop: Stop::Busy });
            }
            messages += 1;
            if let Some(stop) = self.message(header.tag, frame)? {
                return Ok(Taken { bytes: used, stop });
            }
            self.admitted = false;
            self.waits_for_count = false;
            used += frame.len();
        }
    }

    /// Asks the server for the answers that it keeps back up to a Sync: the agent's Sync is not read before they came.
    fn hurry_server(&mut self) {
        if !self.hurried {
            self.flush_server();
            self.hurried = true;
        }
    }

    /// To be called when both sides have been read dry: what waits for the record is handed to it.
    pub fn settle(&mut self) {
        if self.waits_for().is_some_and(|event| event > self.log.durable()) {
            self.log.commit();
        }
    }

    /// Ends the session on the record.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn end(&mut self, reason: &str) -> Result<(), StoreError> {
        let requests_ended = self.requests.end_all(&mut self.log, "", reason);
        let end = SessionEnd {
            session: self.log.id(),
            reason: reason.to_owned(),
            requests: self.requests.count(),
            refused: self.requests.refused,
            rows: self.requests.rows,
            bytes: self.requests.bytes,
            observed: self.requests.observed,
        };
        let ended = self.log.append(&Event::SessionEnd(end));
        self.log.commit();
        requests_ended.and(ended.map(drop))
    }

    /// Queues an error that ends the session, behind all that is on its way to the agent. Says nothing behind half a message
    /// of the server's, where it would be read as the rest of it.
    pub fn say_fatal(&mut self, answer: &ErrorAnswer) {
        if self.server_body > 0 {
            return;
        }
        let needs = self.log.appended();
        self.to_agent.push(&answer.to_bytes(), needs);
    }

    /// Queues an error that ends the session because the record failed, in the place of all that waits for the record: that
    /// never leaves. Says nothing where the agent has half a message already, which would be read as the rest of it.
    pub fn say_unrecorded(&mut self, answer: &ErrorAnswer) {
        // Pieces of one message wait for the same event: a message is dropped whole, or has nothing behind it.
        let cut = self.server_body > 0 && self.to_agent.abandon() == 0;
        self.abandon();
        if !cut {
            self.to_agent.push(&answer.to_bytes(), 0);
        }
    }

    /// Drops what waits for the record on both sides.
    pub fn abandon(&mut self) {
        self.to_agent.abandon();
        self.to_server.abandon();
    }

    /// Tells the server goodbye.
    pub fn say_goodbye(&mut self) {
        let mut bytes = BytesMut::new();
        answer::terminate(&mut bytes);
        self.to_server.push(&bytes, 0);
    }

    /// Forgets the names of what the server skips after an error, and keeps those behind the next Sync.
    fn restart_names(&mut self) {
        self.statements.restart();
        self.portals.restart();
        for expect in &self.expect {
            for changes in expect.changes() {
                changes.statement.iter().cloned().for_each(|change| self.statements.expect(change));
                changes.portal.iter().cloned().for_each(|change| self.portals.expect(change));
            }
            if let Expect::Sync { .. } | Expect::Query { .. } = expect {
                self.statements.fence();
                self.portals.fence();
            }
        }
    }

    fn confirm(&mut self, changes: &expect::Changes) {
        if changes.statement.is_some() {
            self.statements.confirm();
        }
        if changes.portal.is_some() {
            self.portals.confirm();
        }
    }

    fn note_changes(&mut self, changes: &expect::Changes) {
        if let Some(change) = &changes.statement {
            self.statements.expect(change.clone());
        }
        if let Some(change) = &changes.portal {
            self.portals.expect(change.clone());
        }
    }

    /// What comes now runs whether what came before succeeds or not.
    const fn fence_names(&mut self) {
        self.statements.fence();
        self.portals.fence();
    }

    fn keep_text(&self, bytes: usize) -> expect::Weight {
        self.kept_text.fetch_add(bytes, Ordering::Relaxed);
        expect::Weight::new(self.kept_text.clone(), bytes)
    }
}
