//! Whatever is recorded comes back; whatever happens to the file is told.

use std::{fs, path::PathBuf, time::Duration};

use super::support::{noise, request, start, wait};
use gateway_daemon::record::{
    AdminEvent, DecisionRecord, Denied, DeniedAccess, Event, KernelRefusal, LogFilter, Outcome, Reader, Recorder,
    Request, RequestKind, Row, RowContent, Runs, SessionEnd, SessionId, StoreSettings,
};
use proptest::{collection::vec, option, prelude::*};

fn any_request() -> impl Strategy<Value = Event> {
    let kind = prop_oneof![Just(RequestKind::Simple), Just(RequestKind::Prepare), Just(RequestKind::Execute)];
    let names = || vec(any::<String>(), 0..3);
    let access = (any::<[String; 3]>(), names(), any::<bool>(), names(), names()).prop_map(
        |([action, kind, id], columns, all_columns, forbidden_by, unmet)| DeniedAccess {
            action,
            kind,
            id,
            columns,
            all_columns,
            forbidden_by,
            unmet,
        },
    );
    let denied = (any::<bool>(), vec(access, 0..3)).prop_map(|(observed, accesses)| Denied { observed, accesses });
    let decision = (any::<bool>(), names(), any::<[u8; 32]>(), any::<String>(), option::of(denied))
        .prop_map(|(allowed, policies, set, reason, denied)| DecisionRecord { allowed, policies, set, reason, denied });
    let sent = (vec(option::of(vec(any::<u8>(), 0..40)), 0..4), vec(any::<u16>(), 0..3), vec(any::<u32>(), 0..3));
    let sql = prop_oneof![any::<String>(), Just("é".repeat(9_000)), Just("\0".repeat(70_000))];
    let runs = option::of((any::<u64>(), option::of(vec(any::<u16>(), 0..3))))
        .prop_map(|runs| runs.map(|(request, results)| Runs { request, results }));
    (any::<u64>(), kind, sql, sent, vec(any::<String>(), 0..3), decision, runs).prop_map(
        |(request, kind, sql, (parameters, formats, types), accesses, decision, runs)| {
            let session = SessionId(7);
            Event::Request(Request {
                session,
                request,
                kind,
                sql,
                parameters,
                formats,
                types,
                accesses,
                decision,
                runs,
            })
        },
    )
}

fn any_event() -> impl Strategy<Value = Event> {
    let outcome = (any::<(u64, u64, u64, bool)>(), vec(any::<String>(), 0..3), any::<[u8; 32]>(), any::<(u32, bool)>())
        .prop_map(|((request, rows, bytes, truncated), tags, digest, (micros, failed))| {
            let error = failed.then(|| ("42501".to_owned(), "no".to_owned()));
            let duration = Duration::from_micros(micros.into());
            Event::Outcome(Outcome {
                session: SessionId(7),
                request,
                tags,
                rows,
                bytes,
                digest,
                truncated,
                error,
                duration,
            })
        });
    let refusal =
        (option::of(any::<String>()), any::<(u32, u32, u64, u64)>(), any::<std::net::SocketAddr>(), any::<String>())
            .prop_map(|(agent, (uid, pid, cgroup, count), destination, what)| {
                Event::Refused(KernelRefusal { agent, uid, pid, comm: what.clone(), cgroup, destination, what, count })
            });
    let admin = (option::of(any::<u32>()), any::<String>(), any::<String>())
        .prop_map(|(uid, what, detail)| Event::Admin(AdminEvent { uid, what, detail }));
    let end = (any::<String>(), any::<[u64; 5]>()).prop_map(|(reason, [requests, refused, rows, bytes, observed])| {
        Event::SessionEnd(SessionEnd { session: SessionId(7), reason, requests, refused, rows, bytes, observed })
    });
    prop_oneof![4 => any_request(), 2 => outcome, 1 => refusal, 1 => admin, 1 => end]
}

fn settings() -> (tempfile::TempDir, StoreSettings) {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings::new(dir.path());
    (dir, settings)
}

fn events(reader: &Reader) -> Vec<Event> {
    let event = |row: Row| match row.content {
        RowContent::Event(event) => *event,
        RowContent::Unreadable(cause) => panic!("{cause}"),
    };
    reader.log(LogFilter::default()).map(|row| event(row.unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_events_come_back_as_they_were(wrote in vec(any_event(), 1..20)) {
        let (_dir, settings) = settings();
        let (recorder, _) = Recorder::open(settings).unwrap();
        let mut log = recorder.session(SessionId(7));
        for event in &wrote {
            log.append(event).unwrap();
        }
        let all = log.appended();
        wait(log.receipt(all)).unwrap();
        prop_assert!(events(&recorder.reader().unwrap()) == wrote);
    }

    #[test]
    fn bytes_come_back_whole_however_they_were_appended(
        parts in vec((0usize..150_000, any::<bool>(), any::<bool>()), 1..8),
        seed in any::<u64>(),
    ) {
        let (_dir, settings) = settings();
        let (recorder, _) = Recorder::open(settings).unwrap();
        let mut log = recorder.session(SessionId(7));
        let mut sent = Vec::new();
        for (len, compressible, commit) in parts {
            let part = if compressible { vec![b'a'; len] } else { noise(seed, len) };
            log.append_answer(1, &part).unwrap();
            sent.extend(part);
            if commit {
                log.commit();
            }
        }
        let all = log.appended();
        wait(log.receipt(all)).unwrap();
        let mut read = Vec::new();
        for row in recorder.reader().unwrap().session(SessionId(7)) {
            if let RowContent::Event(event) = row.unwrap().content
                && let Event::Answer(answer) = *event
            {
                read.extend(answer.bytes);
            }
        }
        prop_assert!(read == sent);
    }
}

/// A closed store of one window, with answers in bales and long events; its file.
fn written() -> (tempfile::TempDir, StoreSettings, PathBuf) {
    let (dir, settings) = settings();
    let (recorder, _) = Recorder::open(settings.clone()).unwrap();
    for session in 0..5 {
        let id = recorder.next_session();
        let mut log = recorder.session(id);
        log.append(&Event::SessionStart(start(id, "claude"))).unwrap();
        for number in 1..20 {
            log.append(&request(id, number, &"SELECT ".repeat(1 + 3_000 * usize::from(number == 7)), true)).unwrap();
            log.append_answer(number, &noise(number + session, 5_000)).unwrap();
            log.commit();
        }
    }
    drop(recorder);
    let file = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    (dir, settings, file)
}

/// All that a reader does; the sum of what it found wrong.
fn read_everything(path: &std::path::Path) -> usize {
    let reader = match Reader::offline(path) {
        Ok(reader) => reader,
        Err(_) => return 1,
    };
    let mut wrong = reader.verify().map_or(1, |wrong| wrong.len());
    let unreadable = |row: Result<Row, _>| !matches!(row, Ok(Row { content: RowContent::Event(_), .. }));
    wrong += reader.log(LogFilter::default()).filter(|row| row.is_err()).count();
    for session in reader.sessions(Default::default()) {
        match session {
            Ok(session) => {
                wrong += reader.session(session.start.session).map(unreadable).filter(|wrong| *wrong).count();
            }
            Err(_) => wrong += 1,
        }
    }
    wrong
}

#[test]
fn damage_anywhere_in_the_file_is_told_and_never_panics() {
    let (dir, settings, file) = written();
    let whole = fs::read(&file).unwrap();
    assert_eq!(read_everything(dir.path()), 0);
    let events_before = events(&Reader::offline(dir.path()).unwrap());
    let mut found = 0;
    for round in 0..300u64 {
        let mut bytes = whole.clone();
        let random = noise(round, 8);
        let at = usize::from_be_bytes(random.try_into().unwrap()) % bytes.len();
        let len = 1 + usize::try_from(round).unwrap() % 60;
        let end = (at + len).min(bytes.len());
        bytes[at..end].copy_from_slice(&noise(round + 1, end - at));
        fs::write(&file, &bytes).unwrap();
        let wrong = read_everything(dir.path());
        found += usize::from(wrong > 0);
        if wrong == 0 {
            let now = events(&Reader::offline(dir.path()).unwrap());
            assert!(now == events_before, "round {round}: bytes {at}..{end} changed what is read and nobody said so");
        }
        assert!(fs::read(&file).unwrap() == bytes, "round {round}: reading offline changed the evidence");
    }
    assert!(found > 20, "{found} of 300 were in bytes that count");
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert!(read_everything(dir.path()) > 0);
    let (recorder, findings) = Recorder::open(settings).unwrap();
    assert_eq!(findings.len(), 1, "a window that cannot be continued is told");
    let first = recorder.next_session();
    wait(recorder.record(&request(first, 1, "SELECT 1", true)).unwrap()).unwrap();
    assert!(fs::read(&file).unwrap() == whole[..whole.len() / 2], "and left as evidence");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}
