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
}

#[derive(Debug, Default)]
struct Book {
    open: HashMap<SessionId, Entry>,
    openings: usize,
    /// By agent; none has nothing.
    agents: HashMap<Arc<str>, Held>,
}

/// What one agent holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Held {
    open: usize,
    openings: usize,
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
    #[error("the agent has {limit} sessions open, its limit `connections`; free again when one of them ends")]
    Agent {
        /// The limit.
        limit: u64,
    },
}

impl Sessions {
    /// None yet.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { book: Mutex::default(), limit })
    }

    /// Takes a place for a connection that was accepted, until it is a session or has ended. The agent may have `limit`
    /// sessions.
    ///
    /// # Errors
    /// The limit that is reached, with the surplus.
    pub fn begin(self: &Arc<Self>, agent: &Arc<str>, limit: u64) -> Result<Opening, TooMany> {
        let mut book = self.lock();
        // The agent's own limit first: it is the one that it can do something about.
        let held = book.agents.get(agent).copied().unwrap_or_default();
        if reaches(held.open.saturating_add(held.openings), limit.saturating_add(count(SURPLUS))) {
            return Err(TooMany::Agent { limit });
        }
        if book.open.len().saturating_add(book.openings) >= self.limit.saturating_add(SURPLUS) {
            return Err(TooMany::Host { limit: self.limit });
        }
        book.openings = book.openings.saturating_add(1);
        book.change(agent, |held| held.openings = held.openings.saturating_add(1));
        Ok(Opening { sessions: self.clone(), agent: agent.clone() })
    }

    /// Takes a session's place; its agent may have `limit` of them.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn enter(self: &Arc<Self>, view: SessionView, limit: u64) -> Result<Place, TooMany> {
        let (sender, end) = watch::channel(None);
        let mut book = self.lock();
        if reaches(book.agents.get(&view.agent).copied().unwrap_or_default().open, limit) {
            return Err(TooMany::Agent { limit });
        }
        if book.open.len() >= self.limit {
            return Err(TooMany::Host { limit: self.limit });
        }
        let id = view.id;
        book.change(&view.agent, |held| held.open = held.open.saturating_add(1));
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
    fn change(&mut self, agent: &Arc<str>, change: impl FnOnce(&mut Held)) {
        let held = self.agents.entry(agent.clone()).or_default();
        change(held);
        if *held == Held::default() {
            self.agents.remove(agent);
        }
    }
}

fn reaches(held: usize, limit: u64) -> bool {
    count(held) >= limit
}

fn count(held: usize) -> u64 {
    u64::try_from(held).unwrap_or(u64::MAX)
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut book = self.sessions.lock();
        if let Some(entry) = book.open.remove(&self.id) {
            book.change(&entry.view.agent, |held| held.open = held.open.saturating_sub(1));
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut book = self.sessions.lock();
        book.openings = book.openings.saturating_sub(1);
        book.change(&self.agent, |held| held.openings = held.openings.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_ups_that_never_end_count_and_leave_room_for_a_cancel_request() {
        let sessions = Sessions::new(1000);
        let (busy, other): (Arc<str>, Arc<str>) = ("busy".into(), "other".into());
        let mut openings: Vec<Opening> = (0..2 + SURPLUS).map(|_| sessions.begin(&busy, 2).unwrap()).collect();
        assert_eq!(sessions.begin(&busy, 2).unwrap_err(), TooMany::Agent { limit: 2 });
        sessions.begin(&other, 2).unwrap();
        openings.pop();
        sessions.begin(&busy, 2).unwrap();
        drop(openings);
        assert!(sessions.lock().agents.is_empty(), "every place came back");
    }

    #[test]
    fn the_host_has_a_limit_over_all_agents() {
        let sessions = Sessions::new(1);
        let openings: Vec<Opening> =
            (0..=SURPLUS).map(|number| sessions.begin(&number.to_string().into(), 100).unwrap()).collect();
        assert_eq!(sessions.begin(&"late".into(), 100).unwrap_err(), TooMany::Host { limit: 1 });
        drop(openings);
    }
}
