//! The kernel's refusals on the record. What is alike is folded, so that a loop of refused connects is one line a second
//! and not the end of the record.

use std::{
    borrow::Cow,
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    identity::{self, Registry},
    record::{Event, KernelRefusal, Recorder},
    redirect::{self, Kernel, KernelEvent, KernelEvents, Reason},
};

/// How long refusals that are alike are gathered.
const FOLD: Duration = Duration::from_secs(1);
/// Kinds that are gathered at once; beyond, the oldest goes on the record early.
const KINDS: usize = 1024;

/// What makes two refusals alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    cgroup: u64,
    uid: u32,
    comm: String,
    destination: SocketAddr,
    what: &'static str,
    reason: Reason,
}

impl Kind {
    /// What was refused, for people: of a listed port also what is expected there.
    fn told(&self) -> Cow<'static, str> {
        match (self.reason, redirect::listed(self.destination.port())) {
            (Reason::PortListed, Some(ports)) => {
                format!("{}: {} ({})", self.what, self.destination.port(), ports.what).into()
            }
            _ => self.what.into(),
        }
    }
}

#[derive(Debug)]
struct Folded {
    first: Instant,
    pid: u32,
    count: u64,
}

/// Puts refusals on the record.
pub(super) struct Refusals {
    recorder: Recorder,
    registry: Arc<Registry>,
    gathered: HashMap<Kind, Folded>,
    dropped: u64,
}

impl Refusals {
    pub(super) fn new(recorder: Recorder, registry: Arc<Registry>) -> Self {
        Self { recorder, registry, gathered: HashMap::new(), dropped: 0 }
    }

    /// Runs until the runtime ends.
    pub(super) async fn run(mut self, kernel: Arc<Kernel>, mut events: KernelEvents) {
        let mut tick = tokio::time::interval(FOLD / 4);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Ok(event) => self.gather(&event),
                    Err(error) => {
                        tracing::error!(%error, "the kernel's events cannot be read any more");
                        return;
                    }
                },
                _ = tick.tick() => {
                    self.flush(FOLD);
                    self.count_dropped(&kernel);
                }
            }
        }
    }

    fn gather(&mut self, event: &KernelEvent) {
        let kind = Kind {
            cgroup: event.cgroup.map_or(0, |cgroup| cgroup.get()),
            uid: event.uid,
            comm: event.comm.clone(),
            destination: event.destination,
            what: event.what(),
            reason: event.reason,
        };
        if let Some(folded) = self.gathered.get_mut(&kind) {
            folded.count += 1;
            return;
        }
        if self.gathered.len() >= KINDS {
            self.flush(Duration::ZERO);
        }
        // The first of a kind is told at once; only its repetitions wait.
        self.record(&kind, event.pid, 1);
        self.gathered.insert(kind, Folded { first: Instant::now(), pid: event.pid, count: 0 });
    }

    fn flush(&mut self, age: Duration) {
        let old: Vec<Kind> = self
            .gathered
            .iter()
            .filter(|(_, folded)| folded.first.elapsed() >= age)
            .map(|(kind, _)| kind.clone())
            .collect();
        for kind in old {
            if let Some(folded) = self.gathered.remove(&kind)
                && folded.count > 0
            {
                self.record(&kind, folded.pid, folded.count);
            }
        }
    }

    fn count_dropped(&mut self, kernel: &Kernel) {
        let Ok(dropped) = kernel.dropped_events() else { return };
        if dropped > self.dropped {
            tracing::warn!(count = dropped - self.dropped, "refusals came faster than they could be read");
            self.dropped = dropped;
        }
    }

    fn record(&self, kind: &Kind, pid: u32, count: u64) {
        let run = self.registry.by_cgroup(identity::CgroupId(kind.cgroup));
        let agent = run.map(|run| run.agent.to_string());
        tracing::info!(
            agent.id = agent.as_deref().unwrap_or_default(),
            uid = kind.uid,
            pid,
            what = kind.what,
            count,
            "refused by the kernel"
        );
        let event = Event::Refused(KernelRefusal {
            agent,
            uid: kind.uid,
            pid,
            comm: kind.comm.clone(),
            cgroup: kind.cgroup,
            destination: kind.destination,
            what: kind.told().into_owned(),
            count,
        });
        if let Err(error) = self.recorder.record(&event) {
            tracing::error!(%error, "a refusal is not on the record");
        }
    }
}
