//! Asks listeners whether they speak as PostgreSQL does, whatever their port and their process's name.
//!
//! First comes an SSLRequest, which a server answers with one letter ("`SSL` Session Encryption" in PostgreSQL's manual).
//! A letter is easily come by, so each is followed by a step that only such a server answers: `S` by a TLS handshake, `N`
//! by a start-up message.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

/// How many are asked at once.
const AT_ONCE: usize = 16;
/// How long one may take for all its answers. A server that is alive answers at once.
const PATIENCE: Duration = Duration::from_secs(2);

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// Protocol 3.0, and a user whom a server's log shows.
const STARTUP: &[u8] = b"\0\0\0\x1a\0\x03\0\0user\0weir_doctor\0\0";
const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// How a listener answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// As PostgreSQL does that offers TLS.
    WithTls,
    /// As PostgreSQL does that offers none.
    WithoutTls,
    /// As something else, or not at all.
    Other,
}

/// Asks all, a few at a time; gives the answers in the same order.
pub(super) fn ask_all(addresses: &[SocketAddr]) -> Vec<Answer> {
    let tls = client_config();
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(vec![Answer::Other; addresses.len()]);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(addresses.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&address) = addresses.get(number) else { return };
                    let answer = ask(address, tls.as_ref()).unwrap_or(Answer::Other);
                    if let Some(place) = answers.lock().unwrap_or_else(PoisonError::into_inner).get_mut(number) {
                        *place = answer;
                    }
                }
            });
        }
    });
    answers.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Trusts nobody: the handshake is never finished.
fn client_config() -> Option<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    Some(Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()))
}

fn ask(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> io::Result<Answer> {
    let mut asked = Asked { end: Instant::now() + PATIENCE, stream: TcpStream::connect_timeout(&address, PATIENCE)? };
    asked.write(&SSL_REQUEST)?;
    match asked.read::<1>()? {
        [b'S'] => {
            let hello = client_hello(tls)?;
            asked.write(&hello)?;
            let record = asked.read::<5>()?;
            Ok(if is_tls_record(record) { Answer::WithTls } else { Answer::Other })
        }
        [b'N'] => {
            asked.write(STARTUP)?;
            let answer = asked.read::<9>()?;
            // It may be gone: what was to be known is known.
            let _ = asked.write(TERMINATE);
            Ok(if is_startup_answer(answer) { Answer::WithoutTls } else { Answer::Other })
        }
        _ => Ok(Answer::Other),
    }
}

/// A connection, with the moment by which all must be said.
struct Asked {
    end: Instant,
    stream: TcpStream,
}

impl Asked {
    fn left(&self) -> io::Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write_all(bytes)
    }

    /// Byte by byte: one that trickles has no more time than one that is silent.
    fn read<const LENGTH: usize>(&mut self) -> io::Result<[u8; LENGTH]> {
        let mut bytes = [0; LENGTH];
        for byte in &mut bytes {
            self.stream.set_read_timeout(Some(self.left()?))?;
            self.stream.read_exact(std::slice::from_mut(byte))?;
        }
        Ok(bytes)
    }
}

fn client_hello(tls: Option<&Arc<ClientConfig>>) -> io::Result<Vec<u8>> {
    let tls = tls.ok_or(io::ErrorKind::Unsupported)?;
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let mut connection = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello)?;
    Ok(hello)
}

/// An alert or a handshake message (RFC 8446, 5.1), with a length that a record may have.
fn is_tls_record([kind, major, _, high, low]: [u8; 5]) -> bool {
    const MOST: u16 = 16_384 + 256;
    matches!(kind, 21 | 22) && major == 3 && (1..=MOST).contains(&u16::from_be_bytes([high, low]))
}

/// An authentication request with a number that exists, or an error that begins with its severity.
fn is_startup_answer([kind, a, b, c, d, e, f, g, h]: [u8; 9]) -> bool {
    const MOST: u32 = 30_000;
    const LAST_REQUEST: u32 = 13;
    let length = u32::from_be_bytes([a, b, c, d]);
    match kind {
        b'R' => (8..=MOST).contains(&length) && u32::from_be_bytes([e, f, g, h]) <= LAST_REQUEST,
        b'E' => (9..=MOST).contains(&length) && e == b'S' && f.is_ascii_uppercase(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Serves one connection: gives each answer when it was asked for once more.
    fn server(greeting: &'static [u8], answers: &'static [&'static [u8]]) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 4096];
            stream.write_all(greeting).unwrap();
            for answer in answers {
                if matches!(stream.read(&mut asked), Ok(0) | Err(_)) || stream.write_all(answer).is_err() {
                    return;
                }
            }
            // Until the other side goes.
            while matches!(stream.read(&mut asked), Ok(1..)) {}
        });
        address
    }

    #[test]
    fn a_server_is_known_by_two_answers_and_not_by_a_letter() {
        const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
        const SCRAM: &[u8] = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";
        const ERROR: &[u8] = b"E\0\0\0\x10SFATAL\0C28000\0\0";
        const HELLO: &[u8] = b"\x16\x03\x03\0\x7a";
        const ALERT: &[u8] = b"\x15\x03\x01\0\x02\x02\x28";
        type Case<'a> = (&'a [u8], &'a [&'a [u8]], Answer);
        let cases: [Case<'_>; 12] = [
            (b"", &[b"N", OK], Answer::WithoutTls),
            (b"", &[b"N", SCRAM], Answer::WithoutTls),
            (b"", &[b"N", ERROR], Answer::WithoutTls),
            (b"", &[b"S", HELLO], Answer::WithTls),
            (b"", &[b"S", ALERT], Answer::WithTls),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", &[], Answer::Other),
            (b"S\0\0\0\x0a8.0.36\0\0\0\0\0", &[], Answer::Other),
            (b"", &[b"NOT A COMMAND\r\n", b"NOT A COMMAND\r\n"], Answer::Other),
            (b"", &[b"N", b"R\0\0\0\x08\0\0\0\x2a"], Answer::Other),
            (b"", &[b"N", b"ERROR it\r\n"], Answer::Other),
            (b"", &[b"HTTP/1.1 400 Bad Request\r\n\r\n"], Answer::Other),
            // An echo.
            (b"", &[&SSL_REQUEST, STARTUP], Answer::Other),
        ];
        let addresses: Vec<SocketAddr> = cases.iter().map(|(greeting, answers, _)| server(greeting, answers)).collect();
        let expected: Vec<Answer> = cases.iter().map(|&(_, _, answer)| answer).collect();
        assert_eq!(ask_all(&addresses), expected);
    }

    #[test]
    fn whoever_says_nothing_is_waited_for_no_longer_than_it_was_said() {
        let silent: Vec<TcpListener> = (0..2 * AT_ONCE).map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap()).collect();
        let mut addresses: Vec<SocketAddr> = silent.iter().map(|listener| listener.local_addr().unwrap()).collect();
        addresses.push(server(b"", &[b"N", b"R\0\0\0\x08\0\0\0\0"]));
        let begun = Instant::now();
        let answers = ask_all(&addresses);
        assert!(begun.elapsed() < PATIENCE * 5, "{:?}", begun.elapsed());
        assert_eq!(answers.iter().filter(|&&answer| answer == Answer::WithoutTls).count(), 1);
        assert_eq!(answers.last(), Some(&Answer::WithoutTls));
    }

    #[test]
    fn the_startup_message_is_as_long_as_it_says() {
        let said = u32::from_be_bytes(*STARTUP.first_chunk().unwrap());
        assert_eq!(usize::try_from(said).unwrap(), STARTUP.len());
    }
}
