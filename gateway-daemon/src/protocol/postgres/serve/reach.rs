//! The way to one of a connection's servers: in the order in which they are configured, up to the first that answers and is
//! what is wanted.

use std::{fmt, sync::Arc};

use tokio::io::AsyncWriteExt;

use super::Target;
use crate::protocol::postgres::{
    answer,
    upstream::{self, SessionAttributes, StartupParameters, Upstream, UpstreamError, UpstreamSettings, kind_of},
};

/// One server of a connection.
#[derive(Debug)]
pub struct Server {
    /// Its port.
    pub port: u16,
    /// Its name, and how it is reached.
    pub settings: UpstreamSettings,
}

/// A session with the server that was taken.
#[derive(Debug)]
pub struct Reached {
    /// The session.
    pub upstream: Upstream,
    /// The server.
    pub server: Arc<Server>,
}

/// Why no server is reached: each one's fault.
#[derive(Debug)]
pub struct ConnectError {
    connection: Arc<str>,
    faults: Vec<ServerFault>,
}

/// Why one server is not taken.
#[derive(Debug)]
enum ServerFault {
    /// Its name leads nowhere.
    Lookup { host: Arc<str>, port: u16 },
    /// See there.
    Upstream(Box<UpstreamError>),
    /// It is not what is wanted.
    Misfit { host: Arc<str>, port: u16, wish: SessionAttributes, why: &'static str },
}

impl Target {
    /// Reaches the first server that is what is wanted, at whichever of its addresses answers first.
    ///
    /// # Errors
    /// Each server's fault.
    pub async fn connect(&self, parameters: &StartupParameters) -> Result<Reached, ConnectError> {
        let mut faults = Vec::new();
        for wish in self.attributes.wishes() {
            faults.clear();
            for server in &self.servers {
                match server.connect(*wish, parameters).await {
                    Ok(upstream) => return Ok(Reached { upstream, server: Arc::clone(server) }),
                    Err(fault) => {
                        let last = !fault.lets_try_next();
                        faults.push(fault);
                        if last {
                            return Err(ConnectError { connection: Arc::clone(&self.name), faults });
                        }
                    }
                }
            }
        }
        Err(ConnectError { connection: Arc::clone(&self.name), faults })
    }
}

impl Server {
    async fn connect(&self, wish: SessionAttributes, parameters: &StartupParameters) -> Result<Upstream, ServerFault> {
        let host = &self.settings.host;
        let lookup = || ServerFault::Lookup { host: Arc::clone(host), port: self.port };
        let addresses = tokio::net::lookup_host((&**host, self.port)).await.map_err(|_| lookup())?;
        let mut fault = lookup();
        for address in addresses {
            fault = match upstream::connect(&self.settings, address, parameters).await {
                Ok(upstream) => match self.fits(wish, upstream, parameters).await {
                    Ok(upstream) => return Ok(upstream),
                    Err(fault) => fault,
                },
                Err(error) => ServerFault::Upstream(Box::new(error)),
            };
            if !fault.lets_try_next() {
                break;
            }
        }
        Err(fault)
    }

    async fn fits(
        &self,
        wish: SessionAttributes,
        mut upstream: Upstream,
        parameters: &StartupParameters,
    ) -> Result<Upstream, ServerFault> {
        if wish == SessionAttributes::Any {
            return Ok(upstream);
        }
        let kind = kind_of(&mut upstream, parameters).await;
        let kind =
            kind.map_err(|failure| ServerFault::Upstream(Box::new(self.settings.error(upstream.address, failure))))?;
        let Some(why) = wish.misfit(kind) else { return Ok(upstream) };
        let mut goodbye = bytes::BytesMut::new();
        answer::terminate(&mut goodbye);
        // A server that is not wanted may break as it likes.
        let _ = upstream.stream.write_all(&goodbye).await;
        let _ = upstream.stream.shutdown().await;
        Err(ServerFault::Misfit { host: Arc::clone(&self.settings.host), port: self.port, wish, why })
    }
}

impl ServerFault {
    /// As libpq: a server that lets nobody in with these means says what the others would say, so they are not asked.
    fn lets_try_next(&self) -> bool {
        match self {
            Self::Lookup { .. } | Self::Misfit { .. } => true,
            Self::Upstream(error) => error.failure.is_absence(),
        }
    }
}

impl ConnectError {
    /// What to do about it, where that can be said.
    pub fn help(&self) -> &'static str {
        let mut helps = self.faults.iter().filter_map(|fault| match fault {
            ServerFault::Upstream(error) => error.failure.help(),
            ServerFault::Lookup { .. } => None,
            ServerFault::Misfit { .. } => Some("is `target_session_attrs` of the connection right, and its server up?"),
        });
        helps.next_back().unwrap_or_default()
    }

    /// All of it in one line for whoever runs Weir: causes too, which may name files of theirs.
    pub fn report(&self) -> String {
        let faults = self.faults.iter().map(|fault| match fault {
            ServerFault::Upstream(error) => error.report(),
            ServerFault::Lookup { .. } | ServerFault::Misfit { .. } => fault.to_string(),
        });
        faults.collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for ServerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup { host, port } => {
                write!(f, "the name `{host}` of the server (port {port}) leads to no address")
            }
            Self::Upstream(error) => write!(f, "server {}: {}", error.address, error.failure),
            Self::Misfit { host, port, wish, why } => {
                write!(f, "server `{host}` (port {port}): target_session_attrs is `{wish}`, and {why}")
            }
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection `{}`, ", self.connection)?;
        for (number, fault) in self.faults.iter().enumerate() {
            let between = if number == 0 { "" } else { "; " };
            write!(f, "{between}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConnectError {}
