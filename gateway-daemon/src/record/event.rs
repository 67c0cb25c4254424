//! What is on the record. Everything here came through a checked type; statements and answers are the agent's own bytes.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

/// A session's name: the node's start time and a counter, in the order of time. Shown as 16 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// One event. The store adds the sequence number and the time (UTC, never backwards on one node).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A connection was accepted, identified, and is served from here on.
    SessionStart(SessionStart),
    /// A statement was asked for and decided.
    Request(Request),
    /// A part of the answer to a request, as the agent gets it.
    Answer(Answer),
    /// A part of what the agent sends behind a request: COPY … FROM STDIN.
    CopyIn(Answer),
    /// How a request ended.
    Outcome(Outcome),
    /// A session's end.
    SessionEnd(SessionEnd),
    /// A connect that the kernel or the listener refused.
    Refused(KernelRefusal),
    /// What people and the daemon itself did: enrolments, reloads, reads of the record, freezes, starts and stops.
    Admin(AdminEvent),
}

/// See [`Event::SessionStart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStart {
    /// The session.
    pub session: SessionId,
    /// The agent's configured name.
    pub agent: String,
    /// The run below which it was accepted.
    pub run: String,
    /// The token's issuer and subject.
    pub issuer: String,
    /// See `issuer`.
    pub subject: String,
    /// The groups in force, qualified.
    pub groups: Vec<String>,
    /// The token's `jti`.
    pub token_id: Option<String>,
    /// The token's `act`, as JSON.
    pub actor: Option<String>,
    /// SHA-256 of the token.
    pub token_sha256: [u8; 32],
    /// The enrolled cgroup's id.
    pub cgroup: u64,
    /// The process that connected, its user and its executable as /proc named it then.
    pub pid: u32,
    /// See `pid`.
    pub uid: u32,
    /// See `pid`; empty where the process was gone.
    pub executable: String,
    /// The declared connection's name.
    pub connection: String,
    /// The address that the agent asked for.
    pub origin: SocketAddr,
    /// The server's address that the daemon reached; absent when it reached none.
    pub upstream: Option<SocketAddr>,
    /// User and database that the agent named, and the ones used upstream.
    pub asked_user: String,
    /// See `asked_user`.
    pub asked_database: String,
    /// See `asked_user`.
    pub user: String,
    /// See `asked_user`.
    pub database: String,
    /// The agent's own `application_name`.
    pub application: String,
    /// Whether the agent's side is TLS.
    pub tls: bool,
}

/// How a statement arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestKind {
    /// A Query message.
    Simple,
    /// A Parse message: the statement is read, and runs at an Execute.
    Prepare,
    /// An Execute of the extended protocol.
    Execute,
}

/// See [`Event::Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The session.
    pub session: SessionId,
    /// Counts the session's requests from 1.
    pub request: u64,
    /// How it arrived.
    pub kind: RequestKind,
    /// The statement as sent, secrets in it replaced by a keyed digest.
    pub sql: String,
    /// The parameters as sent: bytes (text or binary as `formats` says), `None` for NULL.
    pub parameters: Vec<Option<Vec<u8>>>,
    /// One format code for each parameter: 0 text, 1 binary.
    pub formats: Vec<u16>,
    /// The parameters' type OIDs where the agent gave them, 0 where not.
    pub types: Vec<u32>,
    /// What the statement does, one a line for people: `select public.customers (id, name)`.
    pub accesses: Vec<String>,
    /// The decision.
    pub decision: DecisionRecord,
}

/// A decision on the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// Whether it was allowed.
    pub allowed: bool,
    /// The `@id`s of the policies that said so.
    pub policies: Vec<String>,
    /// SHA-256 of the policy set.
    pub set: [u8; 32],
    /// Why it was refused; empty when allowed.
    pub reason: String,
}

/// See [`Event::Answer`] and [`Event::CopyIn`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The session.
    pub session: SessionId,
    /// The request it belongs to.
    pub request: u64,
    /// Whole messages of the protocol, header and body, as they cross the agent's side. The store splits and compresses.
    pub bytes: Vec<u8>,
}

/// See [`Event::Outcome`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The session.
    pub session: SessionId,
    /// The request it belongs to.
    pub request: u64,
    /// CommandComplete's tags, one for each statement of the request.
    pub tags: Vec<String>,
    /// Rows that the agent got.
    pub rows: u64,
    /// Bytes of the answer, recorded or not.
    pub bytes: u64,
    /// SHA-256 over the answer's bytes.
    pub digest: [u8; 32],
    /// Whether the answer's bytes went over the record's limit, so that only the digest speaks for the rest.
    pub truncated: bool,
    /// SQLSTATE and message of the error that ended it, if one did.
    pub error: Option<(String, String)>,
    /// From the request's last byte to the answer's last.
    pub duration: Duration,
}

/// See [`Event::SessionEnd`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEnd {
    /// The session.
    pub session: SessionId,
    /// Why it ended: `closed by the agent`, `token expired`, `killed by root`…
    pub reason: String,
    /// Requests it made.
    pub requests: u64,
    /// Of those, refused ones.
    pub refused: u64,
    /// Rows it got.
    pub rows: u64,
    /// Bytes of answers it got.
    pub bytes: u64,
}

/// See [`Event::Refused`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRefusal {
    /// The agent, when the task lies in an enrolled cgroup.
    pub agent: Option<String>,
    /// The task.
    pub uid: u32,
    /// See `uid`.
    pub pid: u32,
    /// The task's name as the kernel has it (at most 15 bytes, the task's own choice).
    pub comm: String,
    /// The cgroup: the enrolled one, else the task's own.
    pub cgroup: u64,
    /// The address asked for.
    pub destination: SocketAddr,
    /// What was tried and why it was refused: `connect from outside any agent`, `udp to a protected target`…
    pub what: String,
    /// How many alike were folded into this event (at least 1).
    pub count: u64,
}

/// See [`Event::Admin`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminEvent {
    /// The person's uid on this host; `None` for the daemon itself.
    pub uid: Option<u32>,
    /// What was done, a fixed word: `daemon-start`, `agent-enrol`, `policy-reload`, `record-read`…
    pub what: String,
    /// To what, and how, for people.
    pub detail: String,
}
