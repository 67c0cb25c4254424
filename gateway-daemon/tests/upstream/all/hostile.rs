//! Servers that mean no good: a TCP server that plays a script.

use std::{net::Ipv4Addr, time::Duration};

use gateway_daemon::protocol::postgres::upstream::{
    BackendKey, Failure, Phase, Roots, TlsMode, UpstreamError, cancel, connect,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    certificates::Authority,
    server::{roots, settings, start},
};

/// What the server does, one after the other.
#[derive(Clone)]
enum Act {
    /// Waits for some bytes.
    Read,
    /// Sends.
    Say(Vec<u8>),
    /// Sends this until the other side goes away.
    Repeat(Vec<u8>),
    /// Says no more, but stays.
    Stay,
}

/// Room for a busy machine.
const DEADLINE: Duration = Duration::from_secs(3);

async fn play(mut stream: TcpStream, script: Vec<Act>) {
    let mut buf = [0; 4096];
    for act in script {
        match act {
            Act::Read => drop(stream.read(&mut buf).await),
            Act::Say(bytes) => drop(stream.write_all(&bytes).await),
            Act::Repeat(bytes) => while stream.write_all(&bytes).await.is_ok() {},
            Act::Stay => while !matches!(stream.read(&mut buf).await, Ok(0) | Err(_)) {},
        }
    }
}

async fn meet(mode: TlsMode, roots: &Roots, script: &[Act]) -> UpstreamError {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let script = script.to_vec();
    let server = tokio::spawn(async move { play(listener.accept().await.unwrap().0, script).await });
    let mut settings = settings(mode, roots, "localhost", "scram");
    settings.deadline = DEADLINE;
    let error = connect(&settings, address, &start("postgres")).await.expect_err("a hostile server");
    server.await.unwrap();
    error
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag][..], &length, body].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_server_is_refused_in_time_and_by_name() {
    use Act::{Read, Repeat, Say, Stay};
    let ca = Authority::new("ca");
    let (_file, trusted) = roots(&ca.certificate.pem());
    let say = |text: &[u8]| Say(text.to_vec());
    let trust = message(b'R', &[0; 4]);
    let refusal = b"SFATAL\0C28000\0MI am your database, honest\0\0";
    let rows: Vec<(&str, TlsMode, Vec<Act>, &str)> = vec![
        ("bytes behind S", TlsMode::VerifyFull, vec![Read, say(b"SR\0\0\0\x08\0\0\0\0"), Stay], "9 bytes in the clear"),
        ("no TLS", TlsMode::Require, vec![Read, say(b"N"), Stay], "does not offer TLS"),
        ("an error for TLS", TlsMode::VerifyFull, vec![Read, Say(message(b'E', refusal)), Stay], "byte 0x45"),
        ("no PostgreSQL", TlsMode::VerifyFull, vec![Read, say(b"SSH-2.0-OpenSSH_9.2\r\n"), Stay], "bytes in the clear"),
        (
            "garbage for TLS",
            TlsMode::VerifyFull,
            vec![Read, say(b"S"), Read, say(b"garbage garbage"), Stay],
            "TLS failed",
        ),
        ("end for TLS", TlsMode::VerifyFull, vec![Read, say(b"S"), Read], "TLS failed"),
        ("silence at once", TlsMode::VerifyFull, vec![Stay], "no answer within 3s after the request for TLS"),
        (
            "silence in TLS",
            TlsMode::VerifyFull,
            vec![Read, say(b"S"), Stay],
            "no answer within 3s in the TLS handshake",
        ),
        ("silence", TlsMode::Disable, vec![Stay], "no answer within 3s while authenticating"),
        ("silence later", TlsMode::Disable, vec![Read, Say(trust.clone()), Stay], "3s before ReadyForQuery"),
        ("end", TlsMode::Disable, vec![Read], "closed the connection while authenticating"),
        ("end later", TlsMode::Disable, vec![Read, Say(trust.clone())], "closed the connection before ReadyForQuery"),
        ("garbage", TlsMode::Disable, vec![Read, say(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Stay], "message `H` claims"),
        (
            "huge",
            TlsMode::Disable,
            vec![Read, say(b"R\x7f\xff\xff\xff"), Repeat(vec![0; 65536])],
            "claims 2147483647 bytes",
        ),
        (
            "notices without end",
            TlsMode::Disable,
            vec![Read, Say(trust.clone()), Repeat(message(b'N', b"\0").repeat(1000))],
            "more than 512 messages",
        ),
        (
            "a message of zeros",
            TlsMode::Disable,
            vec![Read, Say(trust), say(b"N\0\0\xff\xff"), Repeat(vec![0])],
            "claims 0 bytes",
        ),
    ];
    let begun = std::time::Instant::now();
    let meetings: Vec<_> = rows
        .into_iter()
        .map(|(case, mode, script, fault)| {
            let roots = trusted.clone();
            (case, fault, tokio::spawn(async move { meet(mode, &roots, &script).await.report() }))
        })
        .collect();
    for (case, fault, meeting) in meetings {
        let report = meeting.await.unwrap();
        assert!(report.contains(fault), "{case}: {report}");
        assert!(!report.contains("honest"), "{case}: nobody vouches for this text: {report}");
    }
    assert!(begun.elapsed() < DEADLINE * 5, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_cancel_that_nobody_answers_ends_at_its_deadline() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut settings = settings(TlsMode::Disable, &Roots::System, "localhost", "scram");
    settings.deadline = Duration::from_millis(300);
    let key = BackendKey { process: 7, secret: b"\xff\xff\xff\xfe".as_slice().into() };
    let error = cancel(&settings, address, &key).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Deadline { phase: Phase::Cancel, .. }), "{error}");
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut sent = Vec::new();
    stream.read_to_end(&mut sent).await.unwrap();
    assert_eq!(sent, b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07\xff\xff\xff\xfe");
}

#[tokio::test]
async fn a_closed_port_is_said_to_be_closed() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let settings = settings(TlsMode::Disable, &Roots::System, "localhost", "scram");
    let error = connect(&settings, address, &start("postgres")).await.unwrap_err();
    assert_eq!(
        error.report(),
        format!(
            "connection `orders`, server {address}: cannot connect: Connection refused (os error 111) \
             (is the server running, and are host and port right?)"
        )
    );
}
