//! The machine, fed with bytes of both sides.

mod used_up;

use bytes::BytesMut;

use super::*;
use crate::{
    limits::AgentLimits,
    policy::{DeniedAccess, Denier, Lifts, Mode, PolicySetId, Verdict},
    record::{Recorder, SessionId},
    sql::{Action, Catalog, Columns, SessionNames},
};

/// Reads with the real reader over an empty catalogue, and refuses what mentions `forbidden`.
struct TestJudge {
    catalog: Catalog,
    names: SessionNames,
    forbidden: &'static str,
    mode: Mode,
}

impl Judge for TestJudge {
    fn read(&mut self, sql: &str) -> Result<Arc<Reading>, Unread> {
        crate::sql::read(sql, &self.catalog, &self.names).map(Arc::new).map_err(|error| Unread::Never {
            answer: Box::new(ErrorAnswer::fatal("42601", error.to_string())),
            kept: sql.to_owned(),
        })
    }

    fn decide(&mut self, reading: &Arc<Reading>, named: &[Arc<Reading>]) -> Arc<Judgement> {
        let mut accesses: Vec<Arc<str>> = Vec::new();
        for statement in std::iter::once(reading).chain(named).flat_map(|reading| &reading.statements) {
            accesses.extend(
                statement.accesses.iter().map(|access| format!("{} {}", access.action.name(), access.object).into()),
            );
        }
        let refused = accesses.iter().any(|access| access.contains(self.forbidden));
        let verdict = if refused {
            let (what, reason) = (self.forbidden.to_owned(), "a test says so".to_owned());
            let (kind, id, columns) = ("Database", "orders/shop".to_owned(), Columns::None);
            let denied =
                DeniedAccess { action: Action::Select, kind, id, columns, forbidden_by: Vec::new(), unmet: Vec::new() };
            Verdict::Deny { what, reason, access: None, by: Denier::Policies(vec![denied]) }
        } else {
            Verdict::Allow
        };
        let decision = Decision { verdict, policies: Vec::new(), set: PolicySetId([0; 32]), durable_first: false };
        let decision = decision.under(self.mode);
        Arc::new(Judgement { decision, accesses, tables: Arc::default(), reads_volume: false })
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
        "ask"
    }
}

fn machine() -> Machine<TestJudge> {
    machine_of(Account::alone("", AgentLimits::NONE))
}

fn machine_of(account: Arc<Account>) -> Machine<TestJudge> {
    let catalog = Catalog::default();
    let names = catalog.session_names();
    let judge = TestJudge { catalog, names, forbidden: "secrets", mode: Mode::Enforce };
    let limits = MachineLimits {
        message_bytes: 1 << 20,
        server_message_bytes: 1 << 30,
        statement_bytes: 1 << 16,
        pipeline: 1000,
        names: 100,
        answer_bytes: 1 << 20,
    };
    Machine::new(judge, Recorder::without_record().session(SessionId(1)), limits, account, "nonce")
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    message.extend(body);
    message
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn bind(portal: &str, statement: &str) -> Vec<u8> {
    message(b'B', format!("{portal}\0{statement}\0\0\0\0\0\0\0").as_bytes())
}

fn execute(portal: &str) -> Vec<u8> {
    message(b'E', format!("{portal}\0\0\0\0\0").as_bytes())
}

fn error(sqlstate: &str) -> Vec<u8> {
    message(b'E', format!("SERROR\0VERROR\0C{sqlstate}\0Mfrom the server\0\0").as_bytes())
}

const SYNC: [u8; 5] = *b"S\0\0\0\x04";
const READY: [u8; 6] = *b"Z\0\0\0\x05I";

/// What left towards the server, tags alone.
fn tags(bytes: &[u8]) -> String {
    let (mut tags, mut rest) = (String::new(), bytes);
    while let Some((&tag, tail)) = rest.split_first() {
        tags.push(char::from(tag));
        let length = u32::from_be_bytes(tail[..4].try_into().unwrap());
        rest = &tail[usize::try_from(length).unwrap()..];
    }
    tags
}

impl Machine<TestJudge> {
    fn agent_says(&mut self, bytes: &[u8]) -> Taken {
        self.from_agent(bytes).unwrap()
    }

    fn server_says(&mut self, bytes: &[u8]) {
        let taken = self.from_server(bytes).unwrap();
        assert_eq!(taken.bytes, bytes.len(), "all was used");
    }

    /// Takes what may leave after everything is on the record.
    fn left(&mut self, side: Side) -> Vec<u8> {
        let upto = self.log.appended();
        self.release(&Receipt::for_test(upto));
        let gate = if side == Side::Server { &mut self.to_server } else { &mut self.to_agent };
        let bytes = gate.ready().to_vec();
        gate.advance(bytes.len());
        bytes
    }
}

#[derive(PartialEq, Eq)]
enum Side {
    Agent,
    Server,
}

#[test]
fn an_answer_comes_out_byte_for_byte() {
    let mut machine = machine();
    machine.agent_says(&query("SELECT 1"));
    assert_eq!(machine.left(Side::Server), query("SELECT 1"));
    let mut answer = message(b'T', b"\0\0");
    answer.extend(message(b'D', b"\0\x01\0\0\0\x011"));
    answer.extend(message(b'C', b"SELECT 1\0"));
    answer.extend(READY);
    machine.server_says(&answer);
    assert_eq!(machine.left(Side::Agent), answer);
    assert!(machine.is_idle());
}

#[test]
fn split_anywhere_the_answer_is_the_same() {
    let mut answer = message(b'T', b"\0\0");
    for _ in 0..3 {
        answer.extend(message(b'D', b"\0\x01\0\0\0\x03abc"));
    }
    answer.extend(message(b'C', b"SELECT 3\0"));
    answer.extend(READY);
    for cut in 0..answer.len() {
        let mut machine = machine();
        machine.agent_says(&query("SELECT 1"));
        let (one, two) = answer.split_at(cut);
        let used = machine.from_server(one).unwrap().bytes;
        let mut rest = one[used..].to_vec();
        rest.extend(two);
        machine.server_says(&rest);
        assert_eq!(machine.left(Side::Agent), answer, "cut at {cut}");
    }
}

#[test]
fn a_refused_query_fails_on_the_server_too_and_its_error_is_ours() {
    let mut machine = machine();
    machine.agent_says(&query("SELECT * FROM secrets"));
    let forwarded = machine.left(Side::Server);
    assert_eq!(tags(&forwarded), "Q");
    assert!(!String::from_utf8_lossy(&forwarded).contains("secrets"));
    let mut answer = error("42601");
    answer.extend(b"Z\0\0\0\x05E");
    machine.server_says(&answer);
    let told = machine.left(Side::Agent);
    assert_eq!(tags(&told), "EZ");
    let text = String::from_utf8_lossy(&told).into_owned();
    assert!(text.contains("C42501") && text.contains("a test says so") && !text.contains("from the server"), "{text}");
    assert_eq!(told.last(), Some(&b'E'), "the transaction is failed, as the server says");
}

#[test]
fn where_the_connection_observes_a_denied_read_is_forwarded_once_its_record_is_durable() {
    let mut machine = machine();
    machine.judge.mode = Mode::Observe(Lifts::Everything);
    machine.agent_says(&query("SELECT * FROM secrets"));
    assert_eq!(machine.to_server.ready(), b"", "not before the receipt, though it is a read");
    assert_eq!(machine.to_server.waits_for(), Some(machine.log.appended()));
    assert_eq!(machine.left(Side::Server), query("SELECT * FROM secrets"));
    assert_eq!((machine.requests.refused, machine.requests.observed), (0, 1));
    machine.agent_says(&query("SELECT 1"));
    assert_eq!(machine.to_server.ready(), query("SELECT 1"), "what is allowed does not wait");
}

/// Whatever the mode, these are not the policies' to deny.
#[test]
fn where_the_connection_observes_weirs_own_refusals_bind() {
    let stand_ins = |sent: &[u8]| {
        let mut machine = machine();
        machine.judge.mode = Mode::Observe(Lifts::Everything);
        machine.agent_says(sent);
        machine.left(Side::Server)
    };
    let long = format!("SELECT '{}' FROM secrets", "x".repeat(1 << 16));
    let chained = "PREPARE a AS SELECT 1; EXECUTE b";
    for sql in [long.as_str(), "SELEC * FROM secrets", chained, "EXECUTE nothing", "FETCH 1 FROM secrets"] {
        let forwarded = stand_ins(&query(sql));
        assert!(forwarded.starts_with(b"Q") && forwarded[5] == b'!', "{sql}");
    }
    assert_eq!(tags(&stand_ins(&[bind("", "unseen"), SYNC.to_vec()].concat())), "DS");
    assert_eq!(tags(&stand_ins(&message(b'F', b"\0\0\0\x01"))), "Q", "a FunctionCall is refused as a Query is");
}

#[test]
fn an_execute_whose_denial_the_bind_did_not_have_has_an_event_of_its_own() {
    for (at_execute, requests) in [("nothing", 2), ("secrets", 3)] {
        let mut machine = machine();
        machine.judge.mode = Mode::Observe(Lifts::Everything);
        machine.judge.forbidden = "nothing";
        machine.agent_says(&[parse("", "SELECT * FROM secrets"), bind("", "")].concat());
        assert_eq!((machine.requests.count(), machine.requests.observed), (2, 0));
        // The policies change in between.
        machine.judge.forbidden = at_execute;
        machine.agent_says(&[execute(""), SYNC.to_vec()].concat());
        assert_eq!((machine.requests.count(), machine.requests.observed), (requests, requests - 2));
        assert_eq!(tags(&machine.left(Side::Server)), "PBES");
    }
    // Denied at both: one event says so for both.
    let mut machine = machine();
    machine.judge.mode = Mode::Observe(Lifts::Everything);
    machine.agent_says(&[parse("", "SELECT * FROM secrets"), bind("", ""), execute(""), SYNC.to_vec()].concat());
    assert_eq!((machine.requests.count(), machine.requests.observed), (2, 2));
    assert_eq!(tags(&machine.left(Side::Server)), "PBES");
}

#[test]
fn a_refusal_in_a_pipeline_skips_to_sync_on_both_sides() {
    let mut machine = machine();
    let mut pipeline = Vec::new();
    for sql in ["SELECT 1", "SELECT * FROM secrets", "SELECT 2"] {
        pipeline.extend(parse("", sql));
        pipeline.extend(bind("", ""));
        pipeline.extend(execute(""));
    }
    pipeline.extend(SYNC);
    pipeline.extend(query("SELECT 3"));
    machine.agent_says(&pipeline);
    // One statement, the stand-in, Sync, and what comes behind it.
    assert_eq!(tags(&machine.left(Side::Server)), "PBEDSQ");
    let mut answer = Vec::new();
    for part in [message(b'1', b""), message(b'2', b""), message(b'C', b"SELECT 1\0"), error("26000"), READY.to_vec()] {
        answer.extend(part);
    }
    machine.server_says(&answer);
    let told = machine.left(Side::Agent);
    assert_eq!(tags(&told), "12CEZ");
    assert!(String::from_utf8_lossy(&told).contains("C42501"));
}

#[test]
fn an_error_of_the_servers_own_in_place_of_a_stand_ins_is_passed_on() {
    let mut machine = machine();
    machine.agent_says(&query("SELECT * FROM secrets"));
    machine.left(Side::Server);
    let cancelled = error("57014");
    machine.server_says(&cancelled);
    assert_eq!(machine.left(Side::Agent), cancelled);
}

#[test]
fn what_the_server_skips_after_an_error_never_defined_a_name() {
    let mut machine = machine();
    let mut pipeline = parse("a", "SELECT 1");
    pipeline.extend(parse("b", "SELECT 2"));
    pipeline.extend(SYNC);
    machine.agent_says(&pipeline);
    machine.left(Side::Server);
    let mut answer = error("42601");
    answer.extend(READY);
    machine.server_says(&answer);
    let mut second = bind("", "b");
    second.extend(SYNC);
    machine.agent_says(&second);
    assert_eq!(tags(&machine.left(Side::Server)), "DS", "an unknown name is not bound, but fails");
    let mut answer = error("26000");
    answer.extend(READY);
    machine.server_says(&answer);
    let told = String::from_utf8_lossy(&machine.left(Side::Agent)).into_owned();
    assert!(told.contains("prepared statement \"b\" does not exist"), "{told}");
}

#[test]
fn execute_of_a_prepared_secret_is_refused_by_every_way_to_name_it() {
    for sql in ["PREPARE p AS SELECT * FROM secrets", "DECLARE c CURSOR FOR SELECT * FROM secrets"] {
        let mut machine = machine();
        machine.agent_says(&query(sql));
        assert!(!String::from_utf8_lossy(&machine.left(Side::Server)).contains("secrets"), "{sql}");
    }
}

#[test]
fn a_sync_before_copy_data_is_dropped_as_the_server_does() {
    let mut machine = machine();
    let mut pipeline = parse("", "COPY t FROM STDIN");
    pipeline.extend(bind("", ""));
    pipeline.extend(execute(""));
    pipeline.extend(SYNC);
    let used = machine.agent_says(&pipeline);
    assert_eq!((used.stop, pipeline.len() - used.bytes), (Stop::Busy, SYNC.len()), "the server decides first");
    assert_eq!(tags(&machine.left(Side::Server)), "PBE");
    let mut answer = message(b'1', b"");
    answer.extend(message(b'2', b""));
    answer.extend(message(b'G', b"\0\0\0"));
    machine.server_says(&answer);
    let mut data = SYNC.to_vec();
    data.extend(message(b'd', b"1\n"));
    data.extend(message(b'c', b""));
    data.extend(SYNC);
    machine.agent_says(&data);
    assert_eq!(tags(&machine.left(Side::Server)), "dcS");
    let mut answer = message(b'C', b"COPY 1\0");
    answer.extend(READY);
    machine.server_says(&answer);
    assert_eq!(tags(&machine.left(Side::Agent)), "12GCZ");
    assert!(machine.is_idle());
}

#[test]
fn a_copy_data_message_is_forwarded_whole_even_when_the_copy_fails_within_it() {
    let mut machine = machine();
    machine.agent_says(&query("COPY t FROM STDIN"));
    machine.left(Side::Server);
    machine.server_says(&message(b'G', b"\0\0\0"));
    let data = message(b'd', b"0123456789");
    machine.agent_says(&data[..8]);
    let mut failed = error("22P02");
    failed.extend(READY);
    machine.server_says(&failed);
    machine.agent_says(&data[8..]);
    assert_eq!(machine.left(Side::Server), data, "the server reads header and body as one");
    machine.agent_says(&message(b'd', b"late"));
    assert_eq!(machine.left(Side::Server), b"", "what comes after the failure is dropped");
}

#[test]
fn behind_a_sync_a_name_waits_for_the_server_to_say_what_it_means() {
    let mut machine = machine();
    let mut first = parse("a", "DELETE FROM t");
    first.extend(SYNC);
    machine.agent_says(&first);
    machine.left(Side::Server);
    let mut answer = message(b'1', b"");
    answer.extend(READY);
    machine.server_says(&answer);
    let mut pipeline = parse("a", "SELECT 1");
    pipeline.extend(SYNC);
    let settled = pipeline.len();
    pipeline.extend(bind("", "a"));
    pipeline.extend(execute(""));
    pipeline.extend(SYNC);
    let taken = machine.agent_says(&pipeline);
    assert_eq!((taken.bytes, taken.stop), (settled, Stop::Busy));
    let mut failed = error("42P05");
    failed.extend(READY);
    machine.server_says(&failed);
    machine.agent_says(&pipeline[settled..]);
    machine.left(Side::Server);
    let asked = machine.requests.count();
    assert!(asked >= 3, "the Bind was asked for by what the name means now");
}

#[test]
fn execute_does_not_run_what_changes_names() {
    for prepared in ["DEALLOCATE b", "PREPARE b AS DELETE FROM t", "EXECUTE other", "SET search_path = x"] {
        let mut machine = machine();
        let mut pipeline = parse("x", prepared);
        pipeline.extend(SYNC);
        machine.agent_says(&pipeline);
        let mut answer = message(b'1', b"");
        answer.extend(READY);
        // `EXECUTE other` is refused at once: there is no such statement.
        if machine.expect.iter().any(|expect| matches!(expect, Expect::StandIn { .. })) {
            continue;
        }
        machine.left(Side::Server);
        machine.server_says(&answer);
        machine.agent_says(&query("EXECUTE x"));
        let forwarded = machine.left(Side::Server);
        assert!(!String::from_utf8_lossy(&forwarded).contains("EXECUTE"), "{prepared}");
    }
}

#[test]
fn an_execute_behind_the_sync_of_its_bind_has_an_outcome_of_its_own() {
    let mut machine = machine();
    let mut pipeline = query("BEGIN");
    pipeline.extend(parse("", "SELECT 1"));
    pipeline.extend(bind("p", ""));
    pipeline.extend(SYNC);
    machine.agent_says(&pipeline);
    let mut answer = message(b'C', b"BEGIN\0");
    answer.extend(b"Z\0\0\0\x05T");
    answer.extend(message(b'1', b""));
    answer.extend(message(b'2', b""));
    answer.extend(b"Z\0\0\0\x05T");
    machine.server_says(&answer);
    let before = machine.requests.count();
    machine.agent_says(&execute("p"));
    assert_eq!(machine.requests.count(), before + 1);
}

#[test]
fn a_copy_behind_another_statement_waits_for_its_own_answer() {
    let mut machine = machine();
    let mut pipeline = query("SELECT 1");
    pipeline.extend(query("COPY t FROM STDIN"));
    machine.agent_says(&pipeline);
    let mut answer = message(b'C', b"SELECT 1\0");
    answer.extend(READY);
    answer.extend(message(b'G', b"\0\0\0"));
    machine.server_says(&answer);
    machine.left(Side::Server);
    machine.agent_says(&message(b'd', b"1\n"));
    assert_eq!(tags(&machine.left(Side::Server)), "d");
}

#[test]
fn nothing_is_said_into_the_middle_of_a_row() {
    let mut machine = machine();
    machine.agent_says(&query("SELECT 1"));
    machine.left(Side::Server);
    let row = message(b'D', b"\0\x01\0\0\0\x03abc");
    machine.server_says(&row[..8]);
    machine.say_fatal(&ErrorAnswer::fatal("57P01", "over"));
    assert_eq!(machine.left(Side::Agent), row[..8]);
}

#[test]
fn rows_that_nothing_asked_for_end_the_session() {
    for unasked in [message(b'D', b"\0\0"), message(b'C', b"SELECT 1\0"), READY.to_vec(), message(b'G', b"\0\0\0")] {
        assert!(matches!(machine().from_server(&unasked), Err(Fault::Server(_))), "{unasked:?}");
    }
}

#[test]
fn nothing_of_an_answer_leaves_before_its_request_is_on_the_record() {
    let mut machine = machine();
    machine.agent_says(&query("SELECT 1"));
    let request = machine.log.appended();
    machine.server_says(&message(b'D', b"\0\0"));
    assert!(machine.to_agent().ready().is_empty());
    machine.release(&Receipt::for_test(request));
    assert_eq!(tags(machine.to_agent().ready()), "D");
    machine.server_says(&message(b'C', b"SELECT 1\0"));
    assert_eq!(tags(machine.to_agent().ready()), "D", "the last message waits for the outcome");
    let outcome = machine.log.appended();
    machine.release(&Receipt::for_test(outcome));
    assert_eq!(tags(machine.to_agent().ready()), "DC");
}

#[test]
fn a_notification_of_its_own_names_the_process_that_the_agent_was_told() {
    let mut machine = machine().known_as(4711, 7);
    let notification = |process: u32| message(b'A', &[&process.to_be_bytes()[..], b"news\0hello\0"].concat());
    for (server, agent) in [(4711, 7), (7, 7), (4712, 4712)] {
        machine.server_says(&notification(server));
        assert_eq!(machine.left(Side::Agent), notification(agent));
    }
    machine.server_says(&message(b'A', b"\0\0"));
    assert_eq!(machine.left(Side::Agent), message(b'A', b"\0\0"), "what is cut off is passed on as it is");
}

proptest::proptest! {
    /// Whatever either side sends, in whatever pieces: an answer or a fault, never a panic.
    #[test]
    fn no_bytes_of_either_side_panic(
        pieces in proptest::collection::vec(
            (proptest::bool::ANY, proptest::sample::select(vec![0u8, b'Q', b'P', b'B', b'E', b'D', b'C', b'S', b'H', b'c', b'd', b'f', b'1', b'2', b'3', b'T', b'Z', b'G', b'n', b'I', b's', b'N', b'A']),
             proptest::collection::vec(proptest::num::u8::ANY, 0..40)),
            0..30)
    ) {
        let mut machine = machine();
        for (agent, tag, body) in pieces {
            let bytes = message(tag, &body);
            let result = if agent { machine.from_agent(&bytes) } else { machine.from_server(&bytes) };
            if result.is_err() {
                break;
            }
        }
        let mut out = BytesMut::new();
        answer::terminate(&mut out);
    }
}
