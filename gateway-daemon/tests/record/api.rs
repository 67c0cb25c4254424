//! The record through its public face: what is appended becomes durable and is found again.

use std::path::Path;

use super::support::{admin, answer_message, outcome, refusal, request, session_end, start, wait};
use gateway_daemon::record::{
    DecisionFilter, Denied, Event, LogFilter, Reader, Recorder, Row, RowContent, SessionFilter, SessionId,
    SessionStart, StoreError, StoreSettings,
};

fn open(dir: &Path) -> Recorder {
    open_with(StoreSettings::new(dir))
}

fn open_with(settings: StoreSettings) -> Recorder {
    let (recorder, findings) = Recorder::open(settings).unwrap();
    assert_eq!(findings, []);
    recorder
}

fn events(rows: impl Iterator<Item = Result<Row, StoreError>>) -> Vec<Event> {
    rows.map(|row| match row.unwrap().content {
        RowContent::Event(event) => *event,
        RowContent::Unreadable(cause) => panic!("{cause}"),
    })
    .collect()
}

/// The bytes of a session's answers, one behind the other.
fn answer(reader: &Reader, id: SessionId) -> Vec<u8> {
    let mut bytes = Vec::new();
    for event in events(reader.session(id)) {
        if let Event::Answer(answer) | Event::CopyIn(answer) = event {
            bytes.extend(answer.bytes);
        }
    }
    bytes
}

#[test]
fn what_has_a_receipt_is_read_back_as_it_was_appended() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let id = recorder.next_session();
    let mut log = recorder.session(id);
    let wrote = [Event::SessionStart(start(id, "claude")), request(id, 1, "SELECT 1", true), outcome(id, 1, 1)];
    for event in &wrote {
        log.append(event).unwrap();
    }
    assert_eq!((log.appended(), log.durable()), (3, 0), "nothing is handed over before commit");
    assert_eq!(wait(log.receipt(3)).unwrap().upto(), 3);
    assert_eq!(log.bytes_ahead(), 0);
    let rows: Vec<Row> = recorder.reader().unwrap().log(LogFilter::default()).map(Result::unwrap).collect();
    assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(rows.is_sorted_by_key(|row| row.time));
    assert_eq!(rows[1].session.as_ref().unwrap().agent, "claude");
    let json: Vec<String> = rows.iter().map(|row| serde_json::to_string(row).unwrap()).collect();
    let back: Vec<Row> = json.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(back, rows, "JSON is exact");
    assert_eq!(events(rows.into_iter().map(Ok)), wrote);
}

#[test]
fn a_receipt_for_what_was_never_appended_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let mut log = recorder.session(recorder.next_session());
    assert_eq!(wait(log.receipt(1)).unwrap_err(), StoreError::NotAppended { upto: 1, appended: 0 });
}

#[test]
fn answers_of_any_size_and_cut_come_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    for sizes in
        [vec![10], vec![300, 5], vec![1000; 500], vec![70_000, 10, 200_000], vec![65_400, 65_400], vec![3_000_000]]
    {
        let id = recorder.next_session();
        let mut log = recorder.session(id);
        let mut sent = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            let message = answer_message(*size, u8::try_from(at % 251).unwrap());
            log.append_answer(1, &message).unwrap();
            sent.extend(message);
        }
        let all = log.appended();
        wait(log.receipt(all)).unwrap();
        assert!(answer(&recorder.reader().unwrap(), id) == sent, "{} messages", sizes.len());
    }
}

#[test]
fn a_chunk_begins_with_a_message_wherever_messages_are_small() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let id = recorder.next_session();
    let mut log = recorder.session(id);
    let messages: Vec<u8> = (0..500).flat_map(|at| answer_message(at, 0)).collect();
    log.append_answer(1, &messages).unwrap();
    wait(log.receipt(1)).unwrap();
    let chunks = events(recorder.reader().unwrap().session(id));
    assert!(chunks.len() > 1);
    for chunk in chunks {
        let Event::Answer(answer) = chunk else { panic!("{chunk:?}") };
        assert_eq!(answer.bytes[0], b'D');
    }
}

#[test]
fn a_long_statement_is_kept_whole() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let id = recorder.next_session();
    let mut log = recorder.session(id);
    let wrote = [request(id, 1, &"SELECT 'é' -- ".repeat(40_000), true), request(id, 2, "SELECT 1", true)];
    wrote.iter().for_each(|event| assert!(log.append(event).is_ok()));
    wait(log.receipt(2)).unwrap();
    let reader = recorder.reader().unwrap();
    assert!(events(reader.session(id)) == wrote, "not printed: it is long");
    assert!(events(reader.log(LogFilter::default())) == wrote, "not printed: it is long");
}

#[test]
fn a_session_that_vanishes_is_ended_on_the_record() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let id = recorder.next_session();
    let mut log = recorder.session(id);
    log.append(&Event::SessionStart(start(id, "claude"))).unwrap();
    log.append(&request(id, 1, "DELETE 1", false)).unwrap();
    drop(log);
    recorder.close();
    let reader = Reader::offline(dir.path());
    drop(recorder);
    assert!(matches!(reader, Err(StoreError::Locked { .. })), "the folder is held until the last handle goes");
    let sessions: Vec<_> =
        Reader::offline(dir.path()).unwrap().sessions(SessionFilter::default()).map(Result::unwrap).collect();
    let end = sessions[0].end.as_ref().unwrap();
    assert_eq!((end.requests, end.refused), (1, 1));
    assert!(end.reason.starts_with("cut off"), "{}", end.reason);
}

#[test]
fn only_one_process_has_the_folder_and_nobody_else_reads_it() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("record");
    let recorder = open(&store);
    assert!(matches!(Recorder::open(StoreSettings::new(&store)), Err(StoreError::Locked { .. })));
    assert_eq!(std::fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o700);
    for file in std::fs::read_dir(&store).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    drop(recorder);
    open(&store);
}

#[test]
fn numbers_go_on_and_sessions_are_found_across_windows_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = StoreSettings::new(dir.path());
    settings.window_bytes = 100_000;
    let recorder = open_with(settings.clone());
    let (long, short) = (recorder.next_session(), recorder.next_session());
    let mut log = recorder.session(long);
    log.append(&Event::SessionStart(start(long, "long"))).unwrap();
    let mut other = recorder.session(short);
    other.append(&Event::SessionStart(start(short, "short"))).unwrap();
    other.append(&session_end(short)).unwrap();
    other.commit();
    let mut sent = Vec::new();
    for at in 1..=60 {
        log.append(&request(long, at, "SELECT 1", true)).unwrap();
        let noise = super::support::noise(at, 10_000);
        log.append_answer(at, &noise).unwrap();
        sent.extend(noise);
        let all = log.appended();
        wait(log.receipt(all)).unwrap();
    }
    log.append(&session_end(long)).unwrap();
    drop(log);
    drop(recorder);
    let windows = std::fs::read_dir(dir.path()).unwrap().count();
    assert!(windows > 3, "{windows} windows");
    let recorder = open_with(settings);
    assert!(recorder.next_session() > short);
    wait(recorder.record(&admin("daemon-start")).unwrap()).unwrap();
    let reader = recorder.reader().unwrap();
    assert_eq!(reader.verify().unwrap(), []);
    assert!(answer(&reader, long) == sent);
    let sessions: Vec<_> = reader.sessions(SessionFilter::default()).map(|s| s.unwrap().start.agent).collect();
    assert_eq!(sessions, ["long", "short"], "each is told once");
    let seqs: Vec<u64> = reader.log(LogFilter::default()).map(|row| row.unwrap().seq).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b));
    assert_eq!(reader.log(LogFilter { from: Some(seqs[5]), ..LogFilter::default() }).count(), seqs.len() - 5);
    let agents: std::collections::BTreeSet<_> = reader
        .log(LogFilter { agent: Some("long".into()), ..LogFilter::default() })
        .map(|row| row.unwrap().session.unwrap().agent.clone())
        .collect();
    assert_eq!(agents.len(), 1, "each window knows whose its events are");
}

#[test]
fn the_log_shows_what_was_asked_for_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    for agent in ["a", "b"] {
        let id = recorder.next_session();
        let mut log = recorder.session(id);
        log.append(&Event::SessionStart(start(id, agent))).unwrap();
        for (at, sql, allowed) in [(1, "SELECT 1", true), (2, "UPDATE x", false), (3, "DELETE y", true)] {
            log.append(&request(id, at, sql, allowed)).unwrap();
            log.append(&outcome(id, at, at)).unwrap();
        }
        log.append(&session_end(id)).unwrap();
    }
    wait(recorder.record(&refusal(Some("a"))).unwrap()).unwrap();
    wait(recorder.record(&admin("policy-reload")).unwrap()).unwrap();
    let reader = recorder.reader().unwrap();
    let some = |text: &str| Some(text.to_owned());
    let all = LogFilter::default();
    for (what, filter, count) in [
        ("all", all.clone(), 18),
        ("one agent, with what the kernel refused it", LogFilter { agent: some("a"), ..all.clone() }, 9),
        ("an agent that is not there", LogFilter { agent: some("c"), ..all.clone() }, 0),
        ("a subject", LogFilter { subject: some("b@example"), ..all.clone() }, 8),
        ("a group", LogFilter { group: some("corp/developers"), ..all.clone() }, 16),
        ("part of a group's name", LogFilter { group: some("corp"), ..all.clone() }, 0),
        ("a connection", LogFilter { connection: some("orders"), ..all.clone() }, 16),
        ("a table without its schema, with outcomes", LogFilter { table: some("customers"), ..all.clone() }, 12),
        ("a table with its schema", LogFilter { table: some("public.customers"), ..all.clone() }, 12),
        ("another schema's table", LogFilter { table: some("private.customers"), ..all.clone() }, 0),
        ("an action", LogFilter { action: some("update"), ..all.clone() }, 4),
        ("a class of actions", LogFilter { action: some("write"), ..all.clone() }, 8),
        ("allowed", LogFilter { decision: Some(DecisionFilter::Allow), ..all.clone() }, 8),
        ("denied", LogFilter { decision: Some(DecisionFilter::Deny), ..all.clone() }, 5),
        ("let pass", LogFilter { decision: Some(DecisionFilter::Observed), ..all.clone() }, 0),
        ("denied by policies", LogFilter { decision: Some(DecisionFilter::Unpermitted), ..all.clone() }, 4),
        ("both of two", LogFilter { agent: some("b"), action: some("select"), ..all.clone() }, 2),
    ] {
        assert_eq!(reader.log(filter).map(Result::unwrap).count(), count, "{what}");
    }
    let times: Vec<_> = reader.log(all.clone()).map(|row| row.unwrap().time).collect();
    let middle = times[9];
    let since = reader.log(LogFilter { since: Some(middle), ..all.clone() }).count();
    let until = reader.log(LogFilter { until: Some(middle), ..all }).count();
    assert_eq!(since + until, 18);
    assert_eq!(until, times.iter().filter(|time| **time < middle).count());
}

#[test]
fn what_was_denied_and_let_pass_is_neither_allowed_nor_refused() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let id = recorder.next_session();
    let mut log = recorder.session(id);
    log.append(&Event::SessionStart(SessionStart { observes: true, ..start(id, "a") })).unwrap();
    let Event::Request(mut observed) = request(id, 1, "UPDATE x", false) else { panic!("a request is one") };
    observed.decision.denied = Some(Denied { observed: true, accesses: Vec::new() });
    log.append(&Event::Request(observed)).unwrap();
    log.append(&outcome(id, 1, 7)).unwrap();
    // Ends by itself: the sums are the log's own.
    drop(log);
    wait(recorder.record(&refusal(Some("a"))).unwrap()).unwrap();
    let reader = recorder.reader().unwrap();
    for (decision, count) in [
        (DecisionFilter::Allow, 0),
        (DecisionFilter::Deny, 1),
        (DecisionFilter::Observed, 2),
        (DecisionFilter::Unpermitted, 2),
    ] {
        let filter = LogFilter { decision: Some(decision), ..LogFilter::default() };
        assert_eq!(reader.log(filter).map(Result::unwrap).count(), count, "{decision:?}");
    }
    let session = reader.sessions(SessionFilter::default()).next().unwrap().unwrap();
    let end = session.end.unwrap();
    assert!(session.start.observes);
    assert_eq!((end.requests, end.refused, end.observed), (1, 0, 1));
}

#[test]
fn a_log_at_its_end_goes_on_when_more_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let reader = recorder.reader().unwrap();
    let mut follow = reader.follow().unwrap();
    let mut log = reader.log(LogFilter::default());
    assert!(log.next().is_none());
    for at in 0..3 {
        wait(recorder.record(&admin("x")).unwrap()).unwrap();
        wait(follow.changed()).unwrap();
        assert_eq!(log.next().unwrap().unwrap().seq, at + 1);
        assert!(log.next().is_none());
    }
}

#[test]
fn without_a_record_receipts_are_given_at_once() {
    let recorder = Recorder::without_record();
    let id = recorder.next_session();
    let mut log = recorder.session(id);
    log.append(&Event::SessionStart(start(id, "claude"))).unwrap();
    log.append_answer(1, &[0; 100_000]).unwrap();
    assert_eq!(wait(log.receipt(2)).unwrap().upto(), 2);
    assert_eq!((log.bytes_ahead(), recorder.is_recording(), recorder.reader().is_none()), (0, false, true));
    wait(recorder.record(&admin("x")).unwrap()).unwrap();
}

#[test]
fn what_waits_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = StoreSettings::new(dir.path());
    settings.queue_bytes = 10_000;
    let recorder = open_with(settings);
    let mut log = recorder.session(recorder.next_session());
    let refused = log.append_answer(1, &[1; 20_000]).unwrap_err();
    assert_eq!(refused, StoreError::Queue { waiting: 20_000, limit: 10_000 });
    log.append_answer(1, &[1; 5_000]).unwrap();
    wait(log.receipt(1)).unwrap();
    log.append_answer(2, &[1; 9_000]).unwrap();
    wait(log.receipt(2)).unwrap();
}

#[test]
fn a_closed_store_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let id = recorder.next_session();
    let mut log = recorder.session(id);
    log.append(&request(id, 1, "SELECT 1", true)).unwrap();
    log.commit();
    recorder.close();
    assert_eq!(wait(log.receipt(1)).unwrap().upto(), 1, "what waited was written");
    assert_eq!(log.append(&request(id, 2, "SELECT 1", true)).unwrap_err(), StoreError::Closed);
}
