//! What any local user can bring about as often as they like, on the record: the first of its kind at once, what follows
//! soon after as a count. Nothing that the user chooses makes a kind, so that nobody fills the record by varying it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Weir;
use crate::record::{Event, KernelRefusal};

/// How long repetitions are gathered.
const FOLD: Duration = Duration::from_secs(10);
/// Kinds that are gathered at once; beyond, all go on the record early.
const KINDS: usize = 1024;
/// How much of a reason is kept, in characters: part of it may be the user's own words.
const REASON_CHARS: usize = 1000;

/// What makes two events alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// A run was not started.
    RunRefused {
        /// Who asked.
        uid: u32,
        /// For which agent; `None` for one that is not configured.
        agent: Option<String>,
    },
    /// Someone connected to the listener without a redirect.
    Straight,
}

/// The latest of its kind, and how often it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Happened {
    /// Why, or from where, in words.
    pub(super) reason: String,
    /// The other end of a connection.
    pub(super) peer: Option<SocketAddr>,
    /// How often.
    pub(super) count: u64,
}

#[derive(Debug)]
struct Folded {
    first: Instant,
    /// The repetitions alone; none has come when their count is 0.
    repeated: Happened,
}

/// What came lately.
#[derive(Debug, Default)]
pub(super) struct Often(Mutex<HashMap<Kind, Folded>>);

impl Often {
    /// Takes note; gives what is to be recorded now.
    fn note(&self, kind: Kind, reason: &str, peer: Option<SocketAddr>) -> Vec<(Kind, Happened)> {
        let reason: String = reason.chars().take(REASON_CHARS).collect();
        let mut gathered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folded) = gathered.get_mut(&kind) {
            let count = folded.repeated.count.saturating_add(1);
            folded.repeated = Happened { reason, peer, count };
            return Vec::new();
        }
        let mut now = if gathered.len() >= KINDS { take(&mut gathered, Duration::ZERO) } else { Vec::new() };
        let happened = Happened { reason, peer, count: 1 };
        let repeated = Happened { count: 0, ..happened.clone() };
        gathered.insert(kind.clone(), Folded { first: Instant::now(), repeated });
        now.push((kind, happened));
        now
    }

    /// Takes the repetitions that were gathered for `age`.
    fn ripe(&self, age: Duration) -> Vec<(Kind, Happened)> {
        take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), age)
    }
}

fn take(gathered: &mut HashMap<Kind, Folded>, age: Duration) -> Vec<(Kind, Happened)> {
    let ripe = gathered.extract_if(|_, folded| folded.first.elapsed() >= age);
    ripe.map(|(kind, folded)| (kind, folded.repeated)).filter(|(_, repeated)| repeated.count > 0).collect()
}

/// Records what was gathered, for as long as the daemon runs.
pub(super) async fn record(weir: Arc<Weir>) {
    loop {
        tokio::time::sleep(FOLD / 4).await;
        weir.record_repeated(FOLD);
        weir.front.record_gathered(FOLD);
    }
}

impl Weir {
    /// Records what a user can bring about often.
    pub(super) fn record_often(&self, kind: Kind, reason: &str, peer: Option<SocketAddr>) {
        for (kind, happened) in self.often.note(kind, reason, peer) {
            self.record_happened(kind, happened);
        }
    }

    /// Records the repetitions that were gathered for `age`.
    pub(super) fn record_repeated(&self, age: Duration) {
        for (kind, repeated) in self.often.ripe(age) {
            self.record_happened(kind, repeated);
        }
    }

    fn record_happened(&self, kind: Kind, happened: Happened) {
        let Happened { reason, peer, count } = happened;
        match kind {
            Kind::RunRefused { uid, agent } => {
                let agent = agent.map(|agent| format!("agent `{agent}`: ")).unwrap_or_default();
                let times = if count > 1 { format!(" ({count} times, this the last)") } else { String::new() };
                self.record_admin(Some(uid), "run-refused", format!("{agent}{reason}{times}"));
            }
            Kind::Straight => {
                let Some(peer) = peer else { return };
                let event = Event::Refused(KernelRefusal {
                    agent: None,
                    uid: u32::MAX,
                    pid: 0,
                    comm: String::new(),
                    cgroup: 0,
                    destination: SocketAddr::new(peer.ip(), self.config.daemon.listener_port),
                    what: reason,
                    count,
                });
                tracing::info!(%peer, count, "refused: connected straight to the listener");
                if let Err(error) = self.recorder.record(&event) {
                    tracing::error!(%error, "a refusal is not on the record");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(uid: u32) -> Kind {
        Kind::RunRefused { uid, agent: None }
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_as_a_count() {
        let often = Often::default();
        let first = often.note(refused(1000), "no agent `a`", None);
        assert_eq!(first.len(), 1);
        for name in 0..500 {
            assert_eq!(often.note(refused(1000), &format!("no agent `{name}`"), None), []);
        }
        assert_eq!(often.note(refused(1001), "no agent `a`", None).len(), 1, "another user's is another kind");
        assert_eq!(often.ripe(FOLD), [], "gathered on");
        let repeated = Happened { reason: "no agent `499`".to_owned(), peer: None, count: 500 };
        assert_eq!(often.ripe(Duration::ZERO), [(refused(1000), repeated)]);
        assert_eq!(often.note(refused(1000), "again", None).len(), 1);
    }

    #[test]
    fn what_is_gathered_and_kept_of_it_is_bounded() {
        let often = Often::default();
        for uid in 0..5000 {
            often.note(refused(uid), "x", None);
            assert!(often.0.lock().unwrap().len() <= KINDS);
        }
        let told = often.note(Kind::Straight, &"é".repeat(5000), None);
        assert!(told.iter().all(|(_, happened)| happened.reason.chars().count() <= REASON_CHARS));
    }
}
