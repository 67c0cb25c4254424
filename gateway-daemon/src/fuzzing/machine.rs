//! The session machine between an agent and a server, both at the fuzzer's will.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, LazyLock},
    task::{Context, Poll, Waker},
};

use super::{
    Script, message,
    server::{Oracle, Server},
    take_message,
};
use crate::{
    limits::{Account, AgentLimits},
    policy::{Decision, Denier, PolicySetId, Verdict},
    protocol::postgres::{
        answer::ErrorAnswer,
        gate::Gate,
        machine::{Fault, Judge, Judgement, Machine, MachineLimits, Stop, Unread},
    },
    record::{Recorder, SessionId},
    sql::{Action, Catalog, Class, Object, Reading, ReadingCache, SessionNames, StatementReading},
};

const STATEMENTS: &[&str] = &[
    "SELECT 1",
    "SELECT * FROM orders",
    "SELECT * FROM secrets",
    "DELETE FROM orders",
    "",
    "SELEC",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "PREPARE a AS SELECT 1",
    "PREPARE a AS SELECT * FROM orders",
    "PREPARE b AS DELETE FROM orders",
    "PREPARE a AS SELECT * FROM secrets",
    "EXECUTE a",
    "EXECUTE b",
    "EXPLAIN ANALYZE EXECUTE a",
    "DEALLOCATE a",
    "DEALLOCATE ALL",
    "DECLARE a CURSOR FOR SELECT * FROM orders",
    "DECLARE a CURSOR WITH HOLD FOR SELECT 1",
    "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM orders",
    "FETCH a",
    "FETCH c",
    "CLOSE a",
    "CLOSE ALL",
    "DISCARD ALL",
    "COPY orders FROM STDIN",
    "COPY orders TO STDOUT",
    "COPY orders FROM STDIN; SELECT 1; COPY orders FROM STDIN",
    "SELECT 1; SELECT * FROM secrets",
    "PREPARE a AS SELECT 1; EXECUTE a",
    "DEALLOCATE a; PREPARE a AS SELECT * FROM orders",
    "BEGIN; DECLARE a CURSOR FOR SELECT 1; COMMIT",
    "DECLARE a CURSOR FOR SELECT * FROM orders; FETCH a",
];
const NAMES: &[&str] = &["", "a", "b", "c"];
const NONCE: &str = "0123456789abcdef0123456789abcdef";
/// What Weir sends in the place of a refused Query.
const REFUSED_QUERY: &str = "!weir refused this statement";
const LIMITS: MachineLimits = MachineLimits {
    message_bytes: 1 << 16,
    server_message_bytes: 1 << 20,
    statement_bytes: 1 << 12,
    pipeline: 8,
    names: 8,
    answer_bytes: 1 << 12,
};

static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::default);
static NO_NAMES: LazyLock<SessionNames> = LazyLock::new(|| CATALOG.session_names());
static CACHE: LazyLock<ReadingCache> = LazyLock::new(ReadingCache::default);

/// Refuses `secrets`, and when told to be strict, `orders` too.
#[derive(Debug, Default)]
struct Policy {
    strict: Cell<bool>,
}

impl Policy {
    fn permits(&self, object: &Object) -> bool {
        match object {
            Object::Relation { name, .. } => match &**name {
                "secrets" => false,
                "orders" => !self.strict.get(),
                _ => true,
            },
            _ => true,
        }
    }
}

impl Oracle for Rc<Policy> {
    fn read(&self, sql: &str) -> Option<Arc<Reading>> {
        CACHE.read(sql, &CATALOG, &NO_NAMES).ok()
    }

    fn allows(&self, statement: &StatementReading) -> bool {
        statement.accesses.iter().all(|access| self.permits(&access.object))
    }
}

impl Judge for Rc<Policy> {
    fn read(&mut self, sql: &str) -> Result<Arc<Reading>, Unread> {
        CACHE.read(sql, &CATALOG, &NO_NAMES).map_err(|error| Unread::Never {
            answer: Box::new(ErrorAnswer::fatal("42601", error.to_string())),
            kept: String::new(),
        })
    }

    fn decide(&mut self, reading: &Arc<Reading>, named: &[Arc<Reading>]) -> Arc<Judgement> {
        let mut statements = std::iter::once(reading).chain(named).flat_map(|reading| &reading.statements);
        let allowed = statements.all(|statement| self.allows(statement));
        let (what, reason) = ("refused".to_owned(), "the policy says so".to_owned());
        let deny = Verdict::Deny { what, reason, access: None, by: Denier::Policies(Vec::new()) };
        let decision = Decision {
            verdict: if allowed { Verdict::Allow } else { deny },
            policies: Vec::new(),
            set: PolicySetId([0; 32]),
            durable_first: has_effects(reading),
        };
        Arc::new(Judgement { decision, accesses: Vec::new(), tables: Arc::default(), reads_volume: false })
    }

    fn forwarding(&mut self, _: &Reading) -> Result<(), String> {
        Ok(())
    }

    fn completed(&mut self) {}

    fn idle(&mut self) {}

    fn redact(&self, _: &str, _: &Reading) -> Option<String> {
        None
    }

    fn standing(&self) -> Result<(), ErrorAnswer> {
        Ok(())
    }

    fn hint(&self) -> &str {
        ""
    }
}

fn has_effects(reading: &Reading) -> bool {
    let accesses = reading.statements.iter().flat_map(|statement| &statement.accesses);
    accesses.into_iter().any(|access| access.action.class() != Class::Read && access.action != Action::Transaction)
}

/// Agent and server talk through the machine. Either the server is one that does what PostgreSQL does, and nothing may
/// run that is refused; or both sides say anything, and what leaves must be whole, decided, on the record, and the same
/// however the bytes were cut.
pub fn machine(data: &[u8]) {
    let mut script = Script::new(data);
    if script.one_in(2) { hostile(&mut script) } else { conversation(&mut script) }
}

/// One message of the agent.
fn agent_message(script: &mut Script<'_>) -> Vec<u8> {
    let text = |text: &str| [text.as_bytes(), b"\0"].concat();
    let kind = if script.one_in(2) { b'P' } else { b'S' };
    let name = script.pick(NAMES);
    let of = || [&[kind], name.as_bytes(), b"\0"].concat();
    match script.byte() % 16 {
        0..=2 => message(b'Q', &text(script.pick(STATEMENTS))),
        3 | 4 => message(b'P', &[text(name), text(script.pick(STATEMENTS)), vec![0, 0]].concat()),
        5 | 6 => message(b'B', &[text(script.pick(NAMES)), text(name), vec![0; 6]].concat()),
        7 | 8 => message(b'E', &[text(name), vec![0; 4]].concat()),
        9 => message(b'D', &of()),
        10 => message(b'C', &of()),
        11 | 12 => message(b'S', b""),
        13 => message(b'd', script.bytes()),
        14 => {
            if script.one_in(2) {
                message(b'f', b"\0")
            } else {
                message(b'c', b"")
            }
        }
        _ if script.one_in(8) => message(b'X', b""),
        _ => message(b'H', b""),
    }
}

/// What stands between the two, with what is on its way.
struct Session {
    machine: Machine<Rc<Policy>>,
    policy: Rc<Policy>,
    from_agent: Vec<u8>,
    from_server: Vec<u8>,
    to_server: Vec<u8>,
    to_agent: Vec<u8>,
}

impl Session {
    fn new() -> Self {
        let policy = Rc::<Policy>::default();
        let log = Recorder::without_record().session(SessionId(1));
        Self {
            machine: Machine::new(Rc::clone(&policy), log, LIMITS, Account::alone("", AgentLimits::NONE), NONCE),
            policy,
            from_agent: Vec::new(),
            from_server: Vec::new(),
            to_server: Vec::new(),
            to_agent: Vec::new(),
        }
    }

    /// Gives both sides' bytes to the machine as far as it takes them, `cut` bytes more at a time.
    fn feed(&mut self, cut: usize) -> Result<(), Fault> {
        loop {
            let before = (self.from_agent.len(), self.from_server.len());
            give(&mut self.from_agent, cut, |bytes| {
                self.machine.from_agent(bytes).map(|taken| (taken.bytes, taken.stop))
            })?;
            give(&mut self.from_server, cut, |bytes| {
                self.machine.from_server(bytes).map(|taken| (taken.bytes, taken.stop))
            })?;
            if before == (self.from_agent.len(), self.from_server.len()) {
                return Ok(());
            }
        }
    }

    /// Says that the first `upto` events are on the record, and takes what may leave.
    fn release(&mut self, upto: u64) {
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(Ok(receipt)) = self.machine.log().poll_receipt(&mut context, upto) {
            self.machine.release(&receipt);
        }
        self.drain();
    }

    fn release_all(&mut self) {
        let upto = self.machine.log().appended();
        self.release(upto);
    }

    fn drain(&mut self) {
        take_ready(self.machine.to_server(), &mut self.to_server);
        take_ready(self.machine.to_agent(), &mut self.to_agent);
    }
}

fn take_ready(gate: &mut Gate, out: &mut Vec<u8>) {
    out.extend_from_slice(gate.ready());
    gate.advance(gate.ready().len());
}

/// Gives bytes in growing pieces, and drops what was taken.
fn give(
    bytes: &mut Vec<u8>,
    cut: usize,
    mut take: impl FnMut(&[u8]) -> Result<(usize, Stop), Fault>,
) -> Result<(), Fault> {
    let (mut used, mut end) = (0, 0);
    while end < bytes.len() {
        end = end.saturating_add(cut.max(1)).min(bytes.len());
        let (taken, stop) = take(bytes.get(used..end).unwrap_or_default())?;
        used += taken;
        assert!(used <= end, "no more is taken than was given");
        if stop != Stop::More {
            break;
        }
    }
    bytes.drain(..used);
    Ok(())
}

/// A server that does what PostgreSQL does: it never runs what the policy in force refuses, the machine never takes its
/// words for a breach of the protocol, and in the end every message has its answer.
fn conversation(script: &mut Script<'_>) {
    let mut session = Session::new();
    let mut server = Server::default();
    let mut wire = Vec::new();
    while !script.is_empty() && !server.ended {
        match script.byte() % 8 {
            0..=3 => session.from_agent.extend(agent_message(script)),
            4 if session.machine.is_idle() && session.from_agent.is_empty() && wire.is_empty() => {
                let strict = &session.policy.strict;
                strict.set(!strict.get());
            }
            4 | 5 => session.release_all(),
            6 => {
                let half = session.machine.log().appended() / 2;
                session.release(half);
            }
            _ => serve(&mut session, &mut server, &mut wire, script),
        }
        if !fed(&mut session, usize::from(script.byte())) {
            return;
        }
    }
    loop {
        let before = session.to_agent.len();
        session.release_all();
        serve(&mut session, &mut server, &mut wire, &mut Script::new(&[]));
        if !fed(&mut session, usize::MAX) {
            return;
        }
        session.release_all();
        if session.to_agent.len() == before && session.to_server.is_empty() {
            break;
        }
    }
    if !server.ended && !session.machine.is_in_copy() {
        assert!(session.machine.is_idle(), "something has no answer: {:?}", session.machine);
        assert!(session.from_agent.is_empty(), "something is never read: {:?}", session.from_agent);
    }
    while take_message(&mut session.to_agent).is_some() {}
    assert!(session.to_agent.is_empty(), "the agent is left with half a message");
}

/// Hands the server what has left for it, and its answers to the machine's input.
fn serve(session: &mut Session, server: &mut Server, wire: &mut Vec<u8>, script: &mut Script<'_>) {
    wire.append(&mut session.to_server);
    while let Some((_, frame)) = take_message(wire) {
        server.take(&frame, &session.policy, script);
    }
    session.from_server.append(&mut server.out);
}

/// Feeds both sides; false where the agent's own breach of the protocol ends the session.
fn fed(session: &mut Session, cut: usize) -> bool {
    match session.feed(cut) {
        Ok(()) => true,
        Err(Fault::Agent(_) | Fault::AgentFrame(_) | Fault::InCopy { .. }) => false,
        Err(fault) => unreachable!("a server without fault ends the session: {fault}"),
    }
}

/// Anything from both sides, given whole and given in pieces.
fn hostile(script: &mut Script<'_>) {
    let cut = usize::from(script.byte() % 16) + 1;
    let mut parts = Vec::new();
    while !script.is_empty() {
        parts.push(match script.byte() % 8 {
            0..=2 => Part::Agent(agent_message(script)),
            3 => Part::Agent(message(script.byte(), script.bytes())),
            4 => Part::Agent(script.bytes().to_vec()),
            5 | 6 => Part::Server(server_message(script)),
            _ => Part::Server(script.bytes().to_vec()),
        });
    }
    let whole = run(&parts, usize::MAX, Receipts::All);
    let cut = run(&parts, cut, Receipts::All);
    assert_eq!(whole.fault, cut.fault, "a fault depends on how the bytes were cut");
    // Rows in one piece with what ends the session are not passed on any more.
    assert!(whole.fault.is_some() || whole.to_agent == cut.to_agent, "what the agent gets depends on the cut");
    assert!(cut.to_agent.starts_with(&whole.to_agent), "what the agent gets depends on the cut");
    assert_eq!(whole.to_server, cut.to_server, "what leaves for the server depends on the cut");
    run(&parts, usize::MAX, Receipts::None);
}

/// What the store says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Receipts {
    All,
    None,
}

enum Part {
    Agent(Vec<u8>),
    Server(Vec<u8>),
}

struct Outcome {
    to_server: Vec<u8>,
    to_agent: Vec<u8>,
    fault: Option<String>,
}

/// A message of the server, sensible by itself.
fn server_message(script: &mut Script<'_>) -> Vec<u8> {
    let messages: [(u8, &[u8]); 18] = [
        (b'Z', b"I"),
        (b'Z', b"T"),
        (b'Z', b"E"),
        (b'C', b"SELECT 1\0"),
        (b'1', b""),
        (b'2', b""),
        (b'3', b""),
        (b'n', b""),
        (b't', b"\0\0"),
        (b'T', b"\0\0"),
        (b'D', b"\0\0"),
        (b'I', b""),
        (b's', b""),
        (b'G', b"\0\0\0"),
        (b'H', b"\0\0\0"),
        (b'E', b"SERROR\0VERROR\0C42601\0Mno\0\0"),
        (b'E', b"SFATAL\0VFATAL\0C57P01\0Mno\0\0"),
        (b'A', b"\0\0\0\x01a\0\0"),
    ];
    let at = usize::from(script.byte()) % (messages.len() + 1);
    match messages.get(at) {
        Some((tag, body)) => message(*tag, body),
        None => message(script.byte(), script.bytes()),
    }
}

fn run(parts: &[Part], cut: usize, receipts: Receipts) -> Outcome {
    let mut session = Session::new();
    let mut fault = None;
    for part in parts {
        match part {
            Part::Agent(bytes) => session.from_agent.extend(bytes),
            Part::Server(bytes) => session.from_server.extend(bytes),
        }
        let asked = session.machine.log().appended() > 0;
        let before = session.to_agent.len();
        let fed = session.feed(cut);
        match receipts {
            Receipts::All => session.release_all(),
            Receipts::None => {
                session.drain();
                assert!(!asked || session.to_agent.len() == before, "an answer leaves before it is on the record");
            }
        }
        if let Err(error) = fed {
            fault = Some(error.to_string());
            break;
        }
    }
    check_sent(&session, receipts);
    Outcome { to_server: session.to_server, to_agent: session.to_agent, fault }
}

/// All that left for the server is whole messages, and each text among them was allowed, or is Weir's own; what has effects left
/// with its receipt.
fn check_sent(session: &Session, receipts: Receipts) {
    let mut sent = session.to_server.clone();
    while let Some((tag, frame)) = take_message(&mut sent) {
        let body = frame.get(5..).unwrap_or_default();
        let mut texts = body.split(|&byte| byte == 0).map(|text| std::str::from_utf8(text).unwrap_or("not UTF-8"));
        let text = match tag {
            b'Q' => texts.next(),
            b'P' => texts.nth(1),
            b'B' | b'D' | b'E' | b'C' | b'S' | b'H' | b'X' | b'c' | b'd' | b'f' => None,
            other => unreachable!("a message of type {other} left for the server"),
        };
        let Some(text) = text.filter(|text| *text != REFUSED_QUERY) else { continue };
        let Some(reading) = session.policy.read(text) else { unreachable!("this left for the server unread: {text}") };
        let allowed = reading.statements.iter().all(|statement| session.policy.allows(statement));
        assert!(allowed, "this left for the server: {text}");
        assert!(receipts == Receipts::All || !has_effects(&reading), "this left unrecorded: {text}");
    }
    assert!(sent.first().is_none_or(|&tag| tag == b'd'), "half a message left for the server");
}
