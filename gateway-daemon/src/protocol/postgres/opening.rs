//! What comes before a session: requests for encryption, a cancel request, the start-up message.

use std::{net::SocketAddr, time::Duration};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    answer::{ErrorAnswer, PROTOCOL_VIOLATION},
    serve::{Front, Target},
    startup::{self, CancelKey, MAX_STARTUP_BYTES, Opening, Startup, StartupError},
    tls::{AgentStream, HostCa, ServerNameEntry, TlsStart, accept_tls},
    upstream,
};
use crate::identity::Run;

/// A connection that ends before there is a session.
#[derive(Debug)]
pub(super) enum NoSession {
    /// The agent went away, broke the start-up or was too slow: nobody to tell.
    Silent(String),
    /// The agent is told.
    Told(ErrorAnswer),
    /// A cancel request was served.
    Cancelled,
}

/// Tells an agent that there is no session, in its own protocol: after its start-up message, without TLS, and for no
/// longer than `deadline`.
pub async fn refuse(mut stream: TcpStream, answer: &ErrorAnswer, deadline: Duration) {
    let tell = async {
        let mut read = BytesMut::new();
        loop {
            match next_opening(&mut stream, &mut read).await {
                Ok(Opening::TlsRequest | Opening::GssRequest) => stream.write_all(b"N").await?,
                Ok(Opening::Startup(_)) => break,
                Ok(Opening::Cancel(_) | Opening::DirectTls) | Err(_) => return Ok(()),
            }
        }
        stream.write_all(&answer.to_bytes()).await?;
        stream.shutdown().await
    };
    // Whether it was heard is the agent's own affair.
    let _: Result<std::io::Result<()>, _> = tokio::time::timeout(deadline, tell).await;
}

/// Reads the agent's openings up to the start-up message; the stream is left in `opened`, under TLS if it was asked for.
pub(super) async fn open(
    front: &Front,
    mut stream: TcpStream,
    run: &Run,
    target: &Target,
    origin: SocketAddr,
    opened: &mut Option<AgentStream>,
) -> Result<Startup, NoSession> {
    let mut read = BytesMut::new();
    loop {
        match next_opening(&mut stream, &mut read).await {
            Ok(Opening::GssRequest) => stream.write_all(b"N").await.map_err(broke)?,
            Ok(opening @ (Opening::TlsRequest | Opening::DirectTls)) => {
                let start = if opening == Opening::DirectTls {
                    TlsStart::Direct
                } else {
                    stream.write_all(b"S").await.map_err(broke)?;
                    TlsStart::Requested
                };
                let config = front.ca.server_config(&names_of(&front.ca, target, origin));
                let config = config.map_err(|error| NoSession::Silent(error.to_string()))?;
                let rest = std::mem::take(&mut read).freeze();
                let tls = accept_tls(stream, config, rest, start, front.startup_deadline).await;
                let mut tls = tls.map_err(|error| NoSession::Silent(error.to_string()))?;
                let startup = startup_under_tls(front, &mut tls, run).await;
                *opened = Some(tls);
                return startup;
            }
            Ok(Opening::Cancel(key)) => return cancel(front, run, &key).await,
            Ok(Opening::Startup(startup)) => {
                *opened = Some(AgentStream::Plain(stream));
                return early(startup, &read);
            }
            Err(error) => {
                *opened = Some(AgentStream::Plain(stream));
                return Err(error);
            }
        }
    }
}

async fn startup_under_tls(front: &Front, tls: &mut AgentStream, run: &Run) -> Result<Startup, NoSession> {
    let mut read = BytesMut::new();
    match next_opening(tls, &mut read).await? {
        Opening::Startup(startup) => early(startup, &read),
        Opening::Cancel(key) => cancel(front, run, &key).await,
        Opening::TlsRequest | Opening::DirectTls | Opening::GssRequest => {
            Err(told(ErrorAnswer::fatal(PROTOCOL_VIOLATION, "encryption was asked for under encryption")))
        }
    }
}

/// No agent sends a message before it was let in; one that does may mean to have it read elsewhere.
fn early(startup: Startup, read: &[u8]) -> Result<Startup, NoSession> {
    if read.is_empty() {
        return Ok(startup);
    }
    Err(told(ErrorAnswer::fatal(PROTOCOL_VIOLATION, "bytes followed the start-up message before it was answered")))
}

async fn next_opening<S>(stream: &mut S, read: &mut BytesMut) -> Result<Opening, NoSession>
where
    S: tokio::io::AsyncRead + Unpin,
{
    loop {
        match startup::decode(read) {
            Ok(Some((opening, used))) => {
                read.advance(used);
                return Ok(opening);
            }
            Ok(None) => {}
            Err(error) => return Err(told(startup_answer(&error))),
        }
        // `decode` refuses longer packets, so this is all that is ever read here.
        read.reserve(MAX_STARTUP_BYTES);
        if stream.read_buf(read).await.map_err(broke)? == 0 {
            return Err(NoSession::Silent("closed by the agent before its start-up".into()));
        }
    }
}

fn startup_answer(error: &StartupError) -> ErrorAnswer {
    ErrorAnswer::fatal(PROTOCOL_VIOLATION, format!("Weir refused this connection: {error}"))
}

fn broke(error: std::io::Error) -> NoSession {
    NoSession::Silent(format!("the agent's connection broke: {error}"))
}

pub(super) const fn told(answer: ErrorAnswer) -> NoSession {
    NoSession::Told(answer)
}

/// The names that an agent may verify: the configured hosts, and the address that it asked for where that is declared. An
/// address that a name led to is not: whoever connects by name verifies the name.
fn names_of(ca: &HostCa, target: &Target, origin: SocketAddr) -> Vec<ServerNameEntry> {
    let mut names = vec![ServerNameEntry::Ip(origin.ip())];
    names.extend(target.servers.iter().filter_map(|server| server.settings.host.parse::<ServerNameEntry>().ok()));
    names.retain(|name| ca.declares(name));
    names
}

/// Serves a cancel request: only for sessions of the same run's agent.
async fn cancel(front: &Front, run: &Run, key: &CancelKey) -> Result<Startup, NoSession> {
    if let Some(cancel) = front.cancels.find(key, &run.agent)
        && let Err(error) = upstream::cancel(&cancel.server.settings, cancel.address, &cancel.key).await
    {
        tracing::warn!(%error, "a cancel request could not be passed on");
    }
    Err(NoSession::Cancelled)
}
