//! The sessions that are open: who may end them, and where a cancel request leads.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio::sync::watch;

use crate::{identity::RunId, record::SessionId};

/// What is known of an open session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionView {
    /// Its name.
    pub id: SessionId,
    /// The agent.
    pub agent: Arc<str>,
    /// The run it belongs to.
    pub run: RunId,
    /// The declared connection.
    pub connection: Arc<str>,
    /// The process that connected.
    pub pid: u32,
    /// The address that it asked for.
    pub origin: SocketAddr,
    /// When it was accepted.
    pub started: SystemTime,
}

/// All open sessions, with the limits on their number.
#[derive(Debug)]
pub struct Sessions {
    open: Mutex<HashMap<SessionId, Entry>>,
    limit: usize,
    limit_per_agent: usize,
}

#[derive(Debug)]
struct Entry {
    view: SessionView,
    end: watch::Sender<Option<Arc<str>>>,
}

/// A session's place among the open ones; dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    sessions: Arc<Sessions>,
    id: SessionId,
    /// Says why the session must end, once it must.
    pub end: watch::Receiver<Option<Arc<str>>>,
}

/// A limit on sessions that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// Of the host.
    #[error("this host has {limit} sessions open, the limit of limits.connections")]
    Host {
        /// The limit.
        limit: usize,
    },
    /// Of the agent.
    #[error("the agent has {limit} sessions open, the limit of limits.connections_per_agent")]
    Agent {
        /// The limit.
        limit: usize,
    },
}

impl Sessions {
    /// None yet.
    pub fn new(limit: usize, limit_per_agent: usize) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), limit, limit_per_agent })
    }

    /// Takes a place.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn enter(self: &Arc<Self>, view: SessionView) -> Result<Place, TooMany> {
        let (sender, end) = watch::channel(None);
        let mut open = self.lock();
        if open.len() >= self.limit {
            return Err(TooMany::Host { limit: self.limit });
        }
        if open.values().filter(|entry| entry.view.agent == view.agent).count() >= self.limit_per_agent {
            return Err(TooMany::Agent { limit: self.limit_per_agent });
        }
        let id = view.id;
        open.insert(id, Entry { view, end: sender });
        Ok(Place { sessions: self.clone(), id, end })
    }

    /// Tells one session to end; whether it was open.
    pub fn end(&self, id: SessionId, why: &str) -> bool {
        match self.lock().get(&id) {
            Some(entry) => {
                entry.end.send_replace(Some(why.into()));
                true
            }
            None => false,
        }
    }

    /// Tells all sessions to end.
    pub fn end_all(&self, why: &str) {
        for entry in self.lock().values() {
            entry.end.send_replace(Some(why.into()));
        }
    }

    /// All open sessions, oldest first.
    pub fn list(&self) -> Vec<SessionView> {
        let mut views: Vec<_> = self.lock().values().map(|entry| entry.view.clone()).collect();
        views.sort_by_key(|view| view.id);
        views
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, Entry>> {
        // Each change is one insertion or removal: a panic elsewhere leaves the table whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.id);
    }
}
