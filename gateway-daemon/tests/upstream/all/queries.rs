//! Statements of Weir's own, cancelling, and reading what is there.

use std::time::Duration;

use bytes::BytesMut;
use gateway_daemon::protocol::postgres::upstream::{
    BackendKey, Failure, RowLimits, TlsMode, Upstream, cancel, connect, simple_query_rows,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    certificates::Authority,
    server::{Server, roots, settings, start},
};

pub(super) const LIMITS: RowLimits = RowLimits { rows: 10, bytes: 64 * 1024, deadline: Duration::from_secs(60) };

async fn rows(upstream: &mut Upstream, sql: &str) -> Result<Vec<Vec<Option<String>>>, Failure> {
    simple_query_rows(upstream, sql, &LIMITS).await
}

#[tokio::test]
async fn rows_come_as_text_within_limits_and_a_refusal_leaves_the_connection_usable() {
    let ca = Authority::new("ca");
    let (_file, trusted) = roots(&ca.certificate.pem());
    let server = Server::start(&ca.issue(&["localhost"]));
    for mode in [TlsMode::Disable, TlsMode::VerifyFull] {
        let settings = settings(mode, &trusted, "localhost", "scram");
        let mut upstream = connect(&settings, server.address, &start("postgres")).await.unwrap();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            rows(&mut upstream, "select 1, null, 'ä'; select ''; ").await.unwrap(),
            [vec![some("1"), None, some("ä")], vec![some("")]]
        );
        let refused = rows(&mut upstream, "select 1/0").await.unwrap_err();
        assert!(matches!(&refused, Failure::Server { sqlstate, .. } if sqlstate == "22012"), "{refused}");
        assert_eq!(rows(&mut upstream, "").await.unwrap(), Vec::<Vec<_>>::new());
        assert_eq!(rows(&mut upstream, "select generate_series(1, 10)").await.unwrap().len(), 10);
        assert!(rows(&mut upstream, "select 1\0; drop").await.is_err());

        let fresh = || connect(&settings, server.address, &START);
        let too_many = rows(&mut fresh().await.unwrap(), "select generate_series(1, 11)").await.unwrap_err();
        assert!(matches!(too_many, Failure::AnswerLimit { unit: "rows", .. }), "{too_many}");
        let too_wide = rows(&mut fresh().await.unwrap(), "select repeat('x', 30000) from generate_series(1, 3)").await;
        assert!(matches!(too_wide, Err(Failure::AnswerLimit { unit: "bytes", .. })), "{too_wide:?}");
        let too_long = rows(&mut fresh().await.unwrap(), "select repeat('x', 100000)").await;
        assert!(matches!(too_long, Err(Failure::MessageLength { .. })), "{too_long:?}");
        let copy = rows(&mut fresh().await.unwrap(), "copy (select 1) to stdout").await;
        assert!(matches!(copy, Err(Failure::Unexpected { tag: 'H', .. })), "{copy:?}");
        let hurried = RowLimits { deadline: Duration::from_millis(100), ..LIMITS };
        let slow = simple_query_rows(&mut fresh().await.unwrap(), "select pg_sleep(60)", &hurried).await;
        assert!(matches!(slow, Err(Failure::Deadline { .. })), "{slow:?}");
    }
}

static START: std::sync::LazyLock<gateway_daemon::protocol::postgres::upstream::StartupParameters> =
    std::sync::LazyLock::new(|| start("postgres"));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_what_the_server_is_doing() {
    let ca = Authority::new("ca");
    let (_file, trusted) = roots(&ca.certificate.pem());
    let server = Server::start(&ca.issue(&["localhost"]));
    for mode in [TlsMode::Disable, TlsMode::VerifyFull] {
        let settings = settings(mode, &trusted, "localhost", "scram");
        let mut sleeper = connect(&settings, server.address, &START).await.unwrap();
        let key = sleeper.greeting.key.clone().unwrap();
        let sleeping = tokio::spawn(async move { rows(&mut sleeper, "select pg_sleep(60)").await });
        let mut watcher = connect(&settings, server.address, &START).await.unwrap();
        let active = format!("select 1 from pg_stat_activity where pid = {} and wait_event = 'PgSleep'", key.process);
        while rows(&mut watcher, &active).await.unwrap().is_empty() {}

        let stranger = BackendKey { secret: key.secret.iter().map(|byte| byte ^ 1).collect(), ..key };
        cancel(&settings, server.address, &stranger).await.unwrap();
        assert_eq!(rows(&mut watcher, &active).await.unwrap().len(), 1, "a wrong secret cancels nothing");
        cancel(&settings, server.address, &key).await.unwrap();
        let outcome = tokio::time::timeout(Duration::from_secs(30), sleeping).await.unwrap().unwrap();
        assert!(matches!(&outcome, Err(Failure::Server { sqlstate, .. }) if sqlstate == "57014"), "{outcome:?}");
    }
}

#[tokio::test]
async fn what_has_come_is_read_without_waiting() {
    let ca = Authority::new("ca");
    let (_file, trusted) = roots(&ca.certificate.pem());
    let server = Server::start(&ca.issue(&["localhost"]));
    for mode in [TlsMode::Disable, TlsMode::VerifyFull] {
        let settings = settings(mode, &trusted, "localhost", "scram");
        let mut upstream = connect(&settings, server.address, &START).await.unwrap();
        let mut buf = BytesMut::from("before");
        assert_eq!(upstream.stream.try_read_buf(&mut buf, 100).unwrap(), None);
        assert_eq!(&buf[..], b"before");
        upstream.stream.write_all(b"Q\0\0\0\x0dselect 7\0").await.unwrap();
        upstream.stream.flush().await.unwrap();
        // Waiting still works after a look that found nothing.
        upstream.stream.read_buf(&mut buf).await.unwrap();
        while !buf.ends_with(b"Z\0\0\0\x05I") {
            upstream.stream.try_read_buf(&mut buf, 100).unwrap();
            tokio::task::yield_now().await;
        }
        assert!(buf.starts_with(b"beforeT"));
        upstream.stream.write_all(b"X\0\0\0\x04").await.unwrap();
        upstream.stream.flush().await.unwrap();
        while upstream.stream.try_read_buf(&mut buf, 100).unwrap() != Some(0) {
            tokio::task::yield_now().await;
        }
    }
}
