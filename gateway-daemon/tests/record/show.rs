//! What people see of hostile sessions: whole outputs.

use std::sync::Arc;

use super::support::{admin, outcome, refusal, request, session_end, start};
use gateway_daemon::{
    record::{
        Answer, DecisionRecord, Denied, Event, Request, RequestKind, Row, RowContent, SessionEnd, SessionId,
        SessionInfo, SessionStart, SessionSummary, Time,
    },
    show::{LogTable, RowLimit, SessionPage, json, sessions},
};

const ID: SessionId = SessionId(0x1234);

fn rows() -> Vec<Row> {
    let mut hostile = start(ID, "cl\u{430}ude");
    hostile.application = "psql\x1b]0;owned\x07\r\nDENY".into();
    hostile.executable = "/tmp/\u{202e}lqsp".into();
    let info = Arc::new(SessionInfo::from(&hostile));
    let events = [
        Event::SessionStart(hostile),
        request(ID, 1, "SELECT id,\n\tname -- \x1b[8mhidden\u{2066}\nFROM p\u{430}yments", true),
        Event::Answer(Answer { session: ID, request: 1, bytes: answer() }),
        outcome(ID, 1, 2),
        denied(request(ID, 2, "DELETE FROM customers", false)),
        request(ID, 3, &"x".repeat(30_000), true),
        Event::SessionEnd(match session_end(ID) {
            Event::SessionEnd(end) => end,
            other => panic!("{other:?}"),
        }),
        refusal(Some("claude")),
        admin("policy-reload"),
    ];
    let row = |(seq, event): (u64, Event)| Row {
        seq,
        time: Time(1_795_459_985_000_000 + seq),
        session: event.session().map(|_| info.clone()),
        content: RowContent::Event(Box::new(event)),
    };
    let mut rows: Vec<Row> = (1..).zip(events).map(row).collect();
    rows.push(Row {
        seq: 10,
        time: Time::default(),
        session: None,
        content: RowContent::Unreadable("the hash of block 10 does not match its content".into()),
    });
    rows
}

fn denied(event: Event) -> Event {
    match event {
        Event::Request(request) => {
            Event::Request(Request { accesses: vec!["delete public.customers".into()], ..request })
        }
        other => other,
    }
}

/// Two columns, two rows with a NULL, and a tag.
fn answer() -> Vec<u8> {
    let description = b"\0\x02id\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0name\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
    let message = |tag: u8, body: &[u8]| {
        let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], &len[..], body].concat()
    };
    [
        message(b'T', description),
        message(b'D', b"\0\x02\0\0\0\x011\0\0\0\x05\x1b[2Jx"),
        message(b'D', b"\0\x02\0\0\0\x0222\xff\xff\xff\xff"),
        message(b'C', b"SELECT 2\0"),
        message(b'Z', b"I"),
    ]
    .concat()
}

fn text(out: Vec<u8>) -> String {
    let text = String::from_utf8(out).unwrap();
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    text
}

#[test]
fn a_session_is_shown_whole_and_harmless() {
    let mut out = Vec::new();
    let mut page = SessionPage::new(&mut out, RowLimit::First(1));
    rows().iter().for_each(|row| page.row(row).unwrap());
    page.finish().unwrap();
    insta::assert_snapshot!(text(out).replace(&"x".repeat(20_000), "(20000 x)"));
}

#[test]
fn the_log_is_a_line_an_event() {
    let mut out = Vec::new();
    let mut log = LogTable::new(&mut out, 60);
    rows().iter().for_each(|row| log.row(row).unwrap());
    log.finish().unwrap();
    insta::assert_snapshot!(text(out));
}

/// A session of a connection that observes: a denied statement that ran, one that was prepared, one refused all the same.
#[test]
fn what_was_denied_and_let_pass_is_shown_as_such() {
    let start = SessionStart { observes: true, ..start(ID, "claude") };
    let info = Arc::new(SessionInfo::from(&start));
    let observed = |number, kind| match request(ID, number, "DELETE FROM customers", false) {
        Event::Request(request) => {
            let denied = Some(Denied { observed: true, accesses: Vec::new() });
            Event::Request(Request { kind, decision: DecisionRecord { denied, ..request.decision }, ..request })
        }
        other => panic!("{other:?}"),
    };
    let Event::SessionEnd(end) = session_end(ID) else { panic!("an end") };
    let end = SessionEnd { observed: 2, refused: 1, ..end };
    let events = [
        Event::SessionStart(start.clone()),
        observed(1, RequestKind::Simple),
        outcome(ID, 1, 2),
        observed(2, RequestKind::Prepare),
        request(ID, 3, "ALTER ROLE CURRENT_USER PASSWORD 'x'", false),
        Event::SessionEnd(end.clone()),
    ];
    let (mut log_out, mut page_out) = (Vec::new(), Vec::new());
    let (mut log, mut page) = (LogTable::new(&mut log_out, 60), SessionPage::new(&mut page_out, RowLimit::First(1)));
    for (seq, event) in (1..).zip(events) {
        let content = RowContent::Event(Box::new(event));
        let row = Row { seq, time: Time(1_795_459_985_000_000 + seq), session: Some(info.clone()), content };
        log.row(&row).unwrap();
        page.row(&row).unwrap();
    }
    log.finish().unwrap();
    page.finish().unwrap();
    let (started, ended) = (Time(1_795_459_985_000_000), Some(Time(1_795_459_986_500_000)));
    let table = sessions(&[SessionSummary { start, started, end: Some(end), ended }]);
    let (log, page) = (text(log_out), text(page_out));
    let denied = "DELETE FROM customers  [read-only] LET PASS, though denied: nothing permits it";
    for (shown, promised) in [
        (&log, "; DENIALS ARE LET PASS (mode = observe)".to_owned()),
        (&log, format!("OBSERVE  {denied}  2 rows, 200 bytes, 1.2 ms\n")),
        (&log, format!("OBSERVE  {denied}\n")),
        (&log, "DENY     ALTER ROLE".to_owned()),
        (&log, "1 requests, 1 refused, 1 rows, 1 bytes, 2 DENIED AND LET PASS".to_owned()),
        (&page, "OBSERVE: what the policies deny is let pass".to_owned()),
        (&page, "query  LET PASS, though DENIED by read-only".to_owned()),
        (&page, "parse  LET PASS, though DENIED by read-only".to_owned()),
        (&page, "query  DENIED by read-only".to_owned()),
        (&table, "LET PASS".to_owned()),
    ] {
        assert!(shown.contains(&promised), "`{promised}` is not in\n{shown}");
    }
}

#[test]
fn sessions_are_a_table() {
    let Event::SessionEnd(end) = session_end(ID) else { panic!("an end") };
    let (started, ended) = (Time(1_795_459_985_000_000), Some(Time(1_795_459_986_500_000)));
    let closed = SessionSummary { start: start(ID, "claude"), started, end: Some(end), ended };
    let open = SessionSummary { start: start(SessionId(0x1235), "東京\u{200b}"), started, end: None, ended: None };
    insta::assert_snapshot!(text(sessions(&[closed, open]).into_bytes()));
}

#[test]
fn json_is_exact() {
    let lines: Vec<String> = rows().iter().map(|row| json(row).unwrap()).collect();
    for (line, row) in lines.iter().zip(rows()) {
        assert!(!line.contains(['\n', '\u{202e}', '\u{2066}']));
        assert_eq!(serde_json::from_str::<Row>(line).unwrap(), row);
    }
    let shown: Vec<&String> = lines.iter().filter(|line| line.len() < 5_000).collect();
    insta::assert_snapshot!(shown.iter().map(|line| line.as_str()).collect::<Vec<_>>().join("\n"));
}
