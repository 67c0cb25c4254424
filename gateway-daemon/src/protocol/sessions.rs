//! The sessions that are open: who may end them, and how many there may be.
//!
//! A connection takes a place as an [`Opening`] before its first byte is read, so that start-ups that never end count as
//! well. Openings have [`SURPLUS`] places beyond the limits on sessions: an agent at its limit is told so in its own
//! protocol, and its cancel requests, which come as openings, still pass.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio::sync::watch;

use crate::{identity::RunId, record::SessionId};

/// Openings that pass beyond a limit on sessions.
pub const SURPLUS: usize = 8;

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
    book: Mutex<Book>,
    limit: usize,
    limit_per_agent: usize,
}

#[derive(Debug, Default)]
struct Book {
    open: HashMap<SessionId, Entry>,
    /// By agent; none is 0.
    openings: HashMap<Arc<str>, usize>,
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

/// The place of a connection whose start-up runs; dropping it gives the place back.
#[derive(Debug)]
pub struct Opening {
    sessions: Arc<Sessions>,
    agent: Arc<str>,
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
        Arc::new(Self { book: Mutex::default(), limit, limit_per_agent })
    }

    /// Takes a place for a connection that was accepted, until it is a session or has ended.
    ///
    /// # Errors
    /// The limit that is reached, with the surplus.
    pub fn begin(self: &Arc<Self>, agent: &Arc<str>) -> Result<Opening, TooMany> {
        let mut book = self.lock();
        let all = book.open.len().saturating_add(book.openings.values().sum());
        if all >= self.limit.saturating_add(SURPLUS) {
            return Err(TooMany::Host { limit: self.limit });
        }
        let opening = book.openings.get(agent).copied().unwrap_or_default();
        if book.open_of(agent).saturating_add(opening) >= self.limit_per_agent.saturating_add(SURPLUS) {
            return Err(TooMany::Agent { limit: self.limit_per_agent });
        }
        book.openings.insert(agent.clone(), opening.saturating_add(1));
        Ok(Opening { sessions: self.clone(), agent: agent.clone() })
    }

    /// Takes a session's place.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn enter(self: &Arc<Self>, view: SessionView) -> Result<Place, TooMany> {
        let (sender, end) = watch::channel(None);
        let mut book = self.lock();
        if book.open.len() >= self.limit {
            return Err(TooMany::Host { limit: self.limit });
        }
        if book.open_of(&view.agent) >= self.limit_per_agent {
            return Err(TooMany::Agent { limit: self.limit_per_agent });
        }
        let id = view.id;
        book.open.insert(id, Entry { view, end: sender });
        Ok(Place { sessions: self.clone(), id, end })
    }

    /// Tells one session to end; whether it was open.
    pub fn end(&self, id: SessionId, why: &str) -> bool {
        match self.lock().open.get(&id) {
            Some(entry) => {
                entry.end.send_replace(Some(why.into()));
                true
            }
            None => false,
        }
    }

    /// Tells all sessions to end.
    pub fn end_all(&self, why: &str) {
        for entry in self.lock().open.values() {
            entry.end.send_replace(Some(why.into()));
        }
    }

    /// All open sessions, oldest first.
    pub fn list(&self) -> Vec<SessionView> {
        let mut views: Vec<_> = self.lock().open.values().map(|entry| entry.view.clone()).collect();
        views.sort_by_key(|view| view.id);
        views
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.lock().open.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Book> {
        // Each change is one insertion or removal: a panic elsewhere leaves the tables whole.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn open_of(&self, agent: &Arc<str>) -> usize {
        self.open.values().filter(|entry| entry.view.agent == *agent).count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.lock().open.remove(&self.id);
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut book = self.sessions.lock();
        let left = book.openings.get(&self.agent).copied().unwrap_or_default().saturating_sub(1);
        if left == 0 {
            book.openings.remove(&self.agent);
        } else {
            book.openings.insert(self.agent.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_ups_that_never_end_count_and_leave_room_for_a_cancel_request() {
        let sessions = Sessions::new(1000, 2);
        let (busy, other): (Arc<str>, Arc<str>) = ("busy".into(), "other".into());
        let mut openings: Vec<Opening> = (0..2 + SURPLUS).map(|_| sessions.begin(&busy).unwrap()).collect();
        assert_eq!(sessions.begin(&busy).unwrap_err(), TooMany::Agent { limit: 2 });
        sessions.begin(&other).unwrap();
        openings.pop();
        sessions.begin(&busy).unwrap();
        drop(openings);
        assert!(sessions.lock().openings.is_empty(), "every place came back");
    }

    #[test]
    fn the_host_has_a_limit_over_all_agents() {
        let sessions = Sessions::new(1, 100);
        let openings: Vec<Opening> =
            (0..=SURPLUS).map(|number| sessions.begin(&number.to_string().into()).unwrap()).collect();
        assert_eq!(sessions.begin(&"late".into()).unwrap_err(), TooMany::Host { limit: 1 });
        drop(openings);
    }
}
