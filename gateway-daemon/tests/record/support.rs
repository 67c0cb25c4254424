//! Events for tests of the record.

use std::time::Duration;

use gateway_daemon::record::{
    AdminEvent, DecisionRecord, Event, KernelRefusal, Outcome, Request, RequestKind, SessionEnd, SessionId,
    SessionStart,
};

/// Runs a future to its end, with a deadline.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("in a minute") })
}

pub(crate) fn start(session: SessionId, agent: &str) -> SessionStart {
    SessionStart {
        session,
        agent: agent.into(),
        run: "run-1".into(),
        issuer: "https://idp.example".into(),
        subject: format!("{agent}@example"),
        groups: vec!["corp/developers".into()],
        token_id: Some("jti-1".into()),
        actor: None,
        token_sha256: [7; 32],
        cgroup: 4711,
        pid: 100,
        uid: 1001,
        executable: "/usr/bin/psql".into(),
        connection: "orders".into(),
        origin: "10.0.0.5:5432".parse().unwrap(),
        upstream: Some("[::1]:5432".parse().unwrap()),
        asked_user: "me".into(),
        asked_database: "orders".into(),
        user: "weir_orders".into(),
        database: "orders".into(),
        application: "psql".into(),
        tls: true,
        observes: false,
    }
}

pub(crate) fn request(session: SessionId, request: u64, sql: &str, allowed: bool) -> Event {
    let action = sql.split(' ').next().unwrap_or("").to_ascii_lowercase();
    Event::Request(Request {
        session,
        request,
        kind: RequestKind::Simple,
        sql: sql.into(),
        parameters: vec![Some(b"7".to_vec()), None, Some(vec![0xff, 0])],
        formats: vec![0, 0, 1],
        types: vec![23, 0, 17],
        accesses: vec![format!("{action} public.customers (id, name)")],
        decision: DecisionRecord {
            allowed,
            policies: vec!["read-only".into()],
            set: [9; 32],
            reason: if allowed { String::new() } else { "nothing permits it".into() },
            denied: None,
        },
        runs: None,
    })
}

pub(crate) fn outcome(session: SessionId, request: u64, rows: u64) -> Event {
    Event::Outcome(Outcome {
        session,
        request,
        tags: vec![format!("SELECT {rows}")],
        rows,
        bytes: 100 * rows,
        digest: [3; 32],
        truncated: false,
        error: None,
        duration: Duration::from_micros(1234),
    })
}

pub(crate) fn admin(what: &str) -> Event {
    Event::Admin(AdminEvent { uid: Some(0), what: what.into(), detail: "detail".into() })
}

/// A `DataRow` with one column of `len` bytes.
pub(crate) fn answer_message(len: usize, fill: u8) -> Vec<u8> {
    let mut message = vec![b'D'];
    message.extend_from_slice(&u32::try_from(len + 10).unwrap().to_be_bytes());
    message.extend_from_slice(&1u16.to_be_bytes());
    message.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
    message.resize(message.len() + len, fill);
    message
}

pub(crate) fn session_end(session: SessionId) -> Event {
    let reason = "closed by the agent".into();
    Event::SessionEnd(SessionEnd { session, reason, requests: 1, refused: 0, rows: 1, bytes: 1, observed: 0 })
}

pub(crate) fn refusal(agent: Option<&str>) -> Event {
    Event::Refused(KernelRefusal {
        agent: agent.map(str::to_owned),
        uid: 1001,
        pid: 4,
        comm: "psql".into(),
        cgroup: 9,
        destination: "10.0.0.5:5432".parse().unwrap(),
        what: "udp to a protected target".into(),
        count: 1,
    })
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}
