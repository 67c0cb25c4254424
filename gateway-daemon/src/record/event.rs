//! What is on the record. Everything here came through a checked type; statements and answers are the agent's own bytes.
//!
//! The numbers are the fields' places in the stored form (`FORMAT.md`): a new field takes the next one and is optional,
//! none is ever used again.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::exact;

/// A session's name: the node's start time and a counter, in the order of time. Shown as 16 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(into = "String", try_from = "String")]
#[cbor(transparent)]
pub struct SessionId(#[n(0)] pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text is no session's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no session's name, which has 16 hex digits; `weir sessions` lists them", text.escape_debug())]
pub struct SessionIdError {
    text: String,
}

impl FromStr for SessionId {
    type Err = SessionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self).map_err(|_| SessionIdError { text: text.chars().take(64).collect() })
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for SessionId {
    type Error = SessionIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// One event. The store adds the sequence number and the time (UTC, never backwards on one node).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A connection was accepted, identified, and is served from here on.
    #[n(0)]
    SessionStart(#[n(0)] SessionStart),
    /// A statement was asked for and decided.
    #[n(1)]
    Request(#[n(0)] Request),
    /// A part of the answer to a request, as the agent gets it.
    #[n(2)]
    Answer(#[n(0)] Answer),
    /// A part of what the agent sends behind a request: COPY … FROM STDIN.
    #[n(3)]
    CopyIn(#[n(0)] Answer),
    /// How a request ended.
    #[n(4)]
    Outcome(#[n(0)] Outcome),
    /// A session's end.
    #[n(5)]
    SessionEnd(#[n(0)] SessionEnd),
    /// A connect that the kernel or the listener refused.
    #[n(6)]
    Refused(#[n(0)] KernelRefusal),
    /// What people and the daemon itself did: enrolments, reloads, reads of the record, freezes, starts and stops.
    #[n(7)]
    Admin(#[n(0)] AdminEvent),
}

impl Event {
    /// The session it belongs to; `None` for what happens outside any.
    pub const fn session(&self) -> Option<SessionId> {
        match self {
            Self::SessionStart(start) => Some(start.session),
            Self::Request(request) => Some(request.session),
            Self::Answer(answer) | Self::CopyIn(answer) => Some(answer.session),
            Self::Outcome(outcome) => Some(outcome.session),
            Self::SessionEnd(end) => Some(end.session),
            Self::Refused(_) | Self::Admin(_) => None,
        }
    }
}

/// See [`Event::SessionStart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct SessionStart {
    /// The session.
    #[n(0)]
    pub session: SessionId,
    /// The agent's configured name.
    #[n(1)]
    pub agent: String,
    /// The run below which it was accepted.
    #[n(2)]
    pub run: String,
    /// The token's issuer and subject.
    #[n(3)]
    pub issuer: String,
    /// See `issuer`.
    #[n(4)]
    pub subject: String,
    /// The groups in force, qualified.
    #[n(5)]
    pub groups: Vec<String>,
    /// The token's `jti`.
    #[n(6)]
    pub token_id: Option<String>,
    /// The token's `act`, as JSON.
    #[n(7)]
    pub actor: Option<String>,
    /// SHA-256 of the token.
    #[cbor(n(8), with = "minicbor::bytes")]
    #[serde(with = "exact::hex")]
    pub token_sha256: [u8; 32],
    /// The enrolled cgroup's id.
    #[n(9)]
    pub cgroup: u64,
    /// The process that connected, its user and its executable as /proc named it then.
    #[n(10)]
    pub pid: u32,
    /// See `pid`.
    #[n(11)]
    pub uid: u32,
    /// See `pid`; empty where the process was gone.
    #[n(12)]
    pub executable: String,
    /// The declared connection's name.
    #[n(13)]
    pub connection: String,
    /// The address that the agent asked for.
    #[cbor(n(14), with = "exact::address")]
    pub origin: SocketAddr,
    /// The server's address that the daemon reached; absent when it reached none.
    #[cbor(n(15), with = "exact::address_option")]
    pub upstream: Option<SocketAddr>,
    /// User and database that the agent named, and the ones used upstream.
    #[n(16)]
    pub asked_user: String,
    /// See `asked_user`.
    #[n(17)]
    pub asked_database: String,
    /// See `asked_user`.
    #[n(18)]
    pub user: String,
    /// See `asked_user`.
    #[n(19)]
    pub database: String,
    /// The agent's own `application_name`.
    #[n(20)]
    pub application: String,
    /// Whether the agent's side is TLS.
    #[n(21)]
    pub tls: bool,
    /// Whether the connection observes: what the policies deny is let pass.
    #[cbor(n(22), default)]
    #[serde(default)]
    pub observes: bool,
}

/// How a statement arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    /// A Query message.
    #[n(0)]
    Simple,
    /// A Parse message: the statement is read, and runs at an Execute.
    #[n(1)]
    Prepare,
    /// An Execute of the extended protocol.
    #[n(2)]
    Execute,
}

/// See [`Event::Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Request {
    /// The session.
    #[n(0)]
    pub session: SessionId,
    /// Counts the session's requests from 1.
    #[n(1)]
    pub request: u64,
    /// How it arrived.
    #[n(2)]
    pub kind: RequestKind,
    /// The statement as sent, secrets in it replaced by a keyed digest.
    #[n(3)]
    pub sql: String,
    /// The parameters as sent: bytes (text or binary as `formats` says), `None` for NULL.
    #[cbor(n(4), with = "exact::parameters")]
    #[serde(with = "exact::parameters")]
    pub parameters: Vec<Option<Vec<u8>>>,
    /// One format code for each parameter: 0 text, 1 binary.
    #[n(5)]
    pub formats: Vec<u16>,
    /// The parameters' type OIDs where the agent gave them, 0 where not.
    #[n(6)]
    pub types: Vec<u32>,
    /// What the statement does, one a line for people: `select public.customers (id, name)`.
    #[n(7)]
    pub accesses: Vec<String>,
    /// The decision.
    #[n(8)]
    pub decision: DecisionRecord,
    /// What an Execute runs that an earlier request made; absent where there is none.
    #[n(9)]
    #[serde(default)]
    pub runs: Option<Runs>,
}

/// What of an earlier request an Execute runs. Its answer may have no description of its own: the earlier one has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Runs {
    /// The request that prepared the statement, or the one that made the portal.
    #[n(0)]
    pub request: u64,
    /// The format codes that Bind asked for: none for all text, one for all columns, or one for each. Absent where the
    /// portal was bound by `request`.
    #[n(1)]
    pub results: Option<Vec<u16>>,
}

/// A decision on the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct DecisionRecord {
    /// Whether the policies allowed it. What they denied may have been let pass all the same: see `denied`.
    #[n(0)]
    pub allowed: bool,
    /// The `@id`s of the policies that said so.
    #[n(1)]
    pub policies: Vec<String>,
    /// SHA-256 of the policy set.
    #[cbor(n(2), with = "minicbor::bytes")]
    #[serde(with = "exact::hex")]
    pub set: [u8; 32],
    /// Why it was denied; empty when allowed.
    #[n(3)]
    pub reason: String,
    /// What the policies denied. Absent where it was allowed, where Weir itself refused it whatever the policies
    /// say.
    #[n(4)]
    #[serde(default)]
    pub denied: Option<Denied>,
}

impl DecisionRecord {
    /// Whether it was denied and let pass, since its connection observes.
    pub fn is_observed(&self) -> bool {
        self.denied.as_ref().is_some_and(|denied| denied.observed)
    }

    /// Whether it was let pass, allowed or not.
    pub fn passed(&self) -> bool {
        self.allowed || self.is_observed()
    }
}

/// A denial of the policies on the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Denied {
    /// Whether the statement was let pass, since its connection observes.
    #[n(0)]
    pub observed: bool,
    /// Every access that was denied.
    #[n(1)]
    pub accesses: Vec<DeniedAccess>,
}

/// An access that the policies denied, in their own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct DeniedAccess {
    /// The action: `select`.
    #[n(0)]
    pub action: String,
    /// The entity's type: `Table`.
    #[n(1)]
    pub kind: String,
    /// The entity's name: `orders/shop/public/customers`.
    #[n(2)]
    pub id: String,
    /// The columns it names; none where `all_columns`.
    #[n(3)]
    pub columns: Vec<String>,
    /// Whether it may be every column.
    #[n(4)]
    pub all_columns: bool,
    /// The policies that forbid it; none where nothing permits it.
    #[n(5)]
    pub forbidden_by: Vec<String>,
    /// Where nothing permits it, permits whose scope it is in, but whose conditions did not hold.
    #[cbor(n(6), default)]
    #[serde(default)]
    pub unmet: Vec<String>,
}

/// See [`Event::Answer`] and [`Event::CopyIn`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Answer {
    /// The session.
    #[n(0)]
    pub session: SessionId,
    /// The request it belongs to.
    #[n(1)]
    pub request: u64,
    /// Whole messages of the protocol, header and body, as they cross the agent's side. The store splits and compresses.
    #[cbor(n(2), with = "minicbor::bytes")]
    #[serde(with = "exact::bytes")]
    pub bytes: Vec<u8>,
}

/// See [`Event::Outcome`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Outcome {
    /// The session.
    #[n(0)]
    pub session: SessionId,
    /// The request it belongs to.
    #[n(1)]
    pub request: u64,
    /// CommandComplete's tags, one for each statement of the request.
    #[n(2)]
    pub tags: Vec<String>,
    /// Rows that the agent got.
    #[n(3)]
    pub rows: u64,
    /// Bytes of the answer, recorded or not.
    #[n(4)]
    pub bytes: u64,
    /// SHA-256 over the answer's bytes.
    #[cbor(n(5), with = "minicbor::bytes")]
    #[serde(with = "exact::hex")]
    pub digest: [u8; 32],
    /// Whether the answer's bytes went over the record's limit, so that only the digest speaks for the rest.
    #[n(6)]
    pub truncated: bool,
    /// SQLSTATE and message of the error that ended it, if one did.
    #[n(7)]
    pub error: Option<(String, String)>,
    /// From the request's last byte to the answer's last.
    #[n(8)]
    #[serde(rename = "duration_us", with = "exact::micros")]
    pub duration: Duration,
}

/// See [`Event::SessionEnd`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct SessionEnd {
    /// The session.
    #[n(0)]
    pub session: SessionId,
    /// Why it ended: `closed by the agent`, `token expired`, `killed by root`…
    #[n(1)]
    pub reason: String,
    /// Requests it made.
    #[n(2)]
    pub requests: u64,
    /// Of those, refused ones.
    #[n(3)]
    pub refused: u64,
    /// Rows it got.
    #[n(4)]
    pub rows: u64,
    /// Bytes of answers it got.
    #[n(5)]
    pub bytes: u64,
    /// Requests that the policies denied and that were let pass.
    #[cbor(n(6), default)]
    #[serde(default)]
    pub observed: u64,
}

/// See [`Event::Refused`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct KernelRefusal {
    /// The agent, when the task lies in an enrolled cgroup.
    #[n(0)]
    pub agent: Option<String>,
    /// The task.
    #[n(1)]
    pub uid: u32,
    /// See `uid`.
    #[n(2)]
    pub pid: u32,
    /// The task's name as the kernel has it (at most 15 bytes, the task's own choice).
    #[n(3)]
    pub comm: String,
    /// The cgroup: the enrolled one, else the task's own.
    #[n(4)]
    pub cgroup: u64,
    /// The address asked for.
    #[cbor(n(5), with = "exact::address")]
    pub destination: SocketAddr,
    /// What was tried and why it was refused: `connect from outside any agent`, `udp to a protected target`…
    #[n(6)]
    pub what: String,
    /// How many alike were folded into this event (at least 1).
    #[n(7)]
    pub count: u64,
}

/// See [`Event::Admin`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct AdminEvent {
    /// The person's uid on this host; `None` for the daemon itself.
    #[n(0)]
    pub uid: Option<u32>,
    /// What was done, a fixed word: `daemon-start`, `agent-enrol`, `policy-reload`, `record-read`…
    #[n(1)]
    pub what: String,
    /// To what, and how, for people.
    #[n(2)]
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use minicbor::bytes::ByteArray;

    use super::*;

    #[test]
    fn what_earlier_versions_wrote_reads_without_what_they_did_not_keep() {
        let decision = minicbor::to_vec((false, ["p"], ByteArray::from([9; 32]), "no")).unwrap();
        let decision: DecisionRecord = minicbor::decode(&decision).unwrap();
        assert_eq!((decision.denied.is_none(), decision.passed(), &*decision.reason), (true, false, "no"));
        let end = minicbor::to_vec((7_u64, "closed", 3_u64, 2_u64, 1_u64, 9_u64)).unwrap();
        let end: SessionEnd = minicbor::decode(&end).unwrap();
        assert_eq!((end.requests, end.refused, end.bytes, end.observed), (3, 2, 9, 0));
    }

    #[test]
    fn what_is_allowed_takes_no_room_for_denials() {
        let (policies, reason) = (Vec::new(), String::new());
        let allowed = DecisionRecord { allowed: true, policies, set: [9; 32], reason, denied: None };
        assert_eq!(minicbor::to_vec(&allowed).unwrap().first(), Some(&0x84), "an array of four");
    }
}
