//! What a server says to Weir itself: start-up, authentication, and answers to look-ups.

use std::time::Duration;

use bytes::BytesMut;

use super::{
    super::version::{MIN_SECRET, ProtocolVersion},
    AuthKind, ChannelBinding, RowLimits, StartupParameters,
    query::Answer,
    roots::TlsMode,
    startup::{MAX_STARTUP_PACKET, Means, Progress, Startup, Transport},
};
use crate::sql::Catalog;

const PASSWORD: &str = "hunter2-hunter2";

/// The conversation up to ReadyForQuery, in pieces: the password leaves in the clear only under verified TLS, and channel
/// binding that is required is never done without.
pub fn startup(data: &[u8]) {
    let Some((&[transport, binding, cut], said)) = data.split_first_chunk::<3>() else { return };
    let end_point = (transport & 4 != 0).then(|| vec![7; 32]);
    let (verified, transport) = match transport % 4 {
        0 => (false, Transport::Plain),
        1 => (false, Transport::Tls { mode: TlsMode::Require, end_point }),
        2 => (true, Transport::Tls { mode: TlsMode::VerifyCa, end_point }),
        _ => (true, Transport::Tls { mode: TlsMode::VerifyFull, end_point }),
    };
    let required = binding % 2 == 1;
    let channel_binding = if required { ChannelBinding::Require } else { ChannelBinding::Prefer };
    let means = Means { user: "weir".into(), password: Some(PASSWORD.into()), transport, channel_binding };
    let parameters = StartupParameters {
        database: "orders".to_owned(),
        application_name: "weir:claude:1".to_owned(),
        settings: Vec::new(),
    };
    let version = ProtocolVersion::at_most(if binding & 2 == 0 { 2 } else { 0 });
    let Ok((mut startup, packet)) = Startup::new(means, &parameters, version) else {
        unreachable!("the parameters hold")
    };
    assert!(packet.len() <= MAX_STARTUP_PACKET);
    let mut buf = BytesMut::new();
    for piece in said.chunks(usize::from(cut) + 1) {
        buf.extend_from_slice(piece);
        loop {
            match startup.receive(&mut buf) {
                Ok(Progress::More) => break,
                Ok(Progress::Send(bytes)) => {
                    let clear = bytes.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes());
                    assert!(!clear || (verified && !required), "the password leaves in the clear");
                }
                Ok(Progress::Ready(kind, greeting)) => {
                    assert!(!required || kind == AuthKind::ScramPlus, "let in by {kind:?}");
                    assert!(
                        !matches!(kind, AuthKind::Scram | AuthKind::ScramPlus),
                        "nobody but the server can prove it"
                    );
                    let secret = greeting.key.as_ref().map_or(MIN_SECRET, |key| key.secret.len());
                    assert!(version.takes_secret_of(secret), "a key of {secret} bytes");
                    let frames = greeting.parameter_frames.len() + greeting.notice_frames.len();
                    assert!(frames <= said.len());
                    return;
                }
                Err(_) => {
                    let after = startup.receive(&mut buf);
                    assert!(matches!(after, Ok(Progress::More) | Err(_)), "an error stays");
                    return;
                }
            }
        }
    }
}

/// An answer to a look-up, and what becomes of it as the catalogue.
pub fn answer(data: &[u8]) {
    let limits = RowLimits { rows: 64, bytes: 1 << 14, deadline: Duration::from_secs(1) };
    let Some((&cut, said)) = data.split_first() else { return };
    let (whole, pieces) = (receive(said, said.len(), limits), receive(said, usize::from(cut), limits));
    assert_eq!(whole, pieces, "the rows depend on how the bytes were cut");
    if let Some(rows) = whole {
        assert!(rows.len() <= limits.rows);
        assert!(rows.iter().flatten().flatten().map(String::len).sum::<usize>() <= said.len());
        // Every look-up's rows have a shape of their own: whatever comes in their place is refused.
        let _ = Catalog::from_rows(vec![rows; Catalog::QUERIES.len()]);
    }
}

type Rows = Vec<Vec<Option<String>>>;

fn receive(said: &[u8], cut: usize, limits: RowLimits) -> Option<Rows> {
    let (mut answer, mut buf) = (Answer::new(limits), BytesMut::new());
    for piece in said.chunks(cut.max(1)) {
        buf.extend_from_slice(piece);
        match answer.receive(&mut buf) {
            Ok(true) => return answer.finish().ok(),
            Ok(false) => {}
            Err(_) => return None,
        }
    }
    None
}
