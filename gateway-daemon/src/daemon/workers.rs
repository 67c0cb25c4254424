//! The threads that serve sessions.
//!
//! Each has a runtime of its own with one worker, and a session stays where it began. In one runtime for all, a worker
//! that finds two sessions ready wakes another for the second: on the way of a statement that wake-up costs more than
//! all that Weir does with it.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};

/// As many as the configuration says.
pub(super) struct Workers(Vec<Worker>);

struct Worker {
    runtime: Runtime,
    sessions: Arc<AtomicUsize>,
}

/// One session of a worker's.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let worker = |_| Ok(Worker { runtime: runtime(1, "weir-session")?, sessions: Arc::default() });
        (0..count).map(worker).collect::<io::Result<_>>().map(Self)
    }

    /// Runs a session to its end on the worker that has the fewest.
    pub(super) fn spawn(&self, session: impl Future<Output = ()> + Send + 'static) {
        let Some(worker) = self.0.iter().min_by_key(|worker| worker.sessions.load(Ordering::Relaxed)) else { return };
        worker.sessions.fetch_add(1, Ordering::Relaxed);
        let held = Held(worker.sessions.clone());
        worker.runtime.spawn(async move {
            session.await;
            drop(held);
        });
    }

    /// Stops all; what still runs is dropped. Blocks its thread.
    pub(super) fn stop(self, within: Duration) {
        for worker in self.0 {
            worker.runtime.shutdown_timeout(within);
        }
    }
}

/// A runtime whose threads may parse statements.
pub(super) fn runtime(threads: usize, name: &str) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        // Statements are parsed where they arrive; the parser's depth is bounded by this stack.
        .thread_stack_size(crate::sql::PARSE_STACK_BYTES)
        .thread_name(name)
        .enable_all()
        .build()
}
