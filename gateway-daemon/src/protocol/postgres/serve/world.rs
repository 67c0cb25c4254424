//! What a session waits for beside its bytes: to be told to end, and its database's catalogue.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{Server, Target};
use crate::{
    identity::{Run, Standing},
    protocol::postgres::{
        answer::{self, ErrorAnswer},
        catalogs::CatalogCell,
        judge::no_standing,
        pump::World,
        upstream::{self, BackendKey},
    },
};

/// Ready when the session must end: its identity ended, or someone said so.
async fn until_told(run: Arc<Run>, mut end: tokio::sync::watch::Receiver<Option<Arc<str>>>) -> ErrorAnswer {
    let mut standing = run.subscribe();
    loop {
        match run.standing_now() {
            Standing::Valid(_) => {}
            ended => return no_standing(&ended),
        }
        if let Some(why) = end.borrow_and_update().as_ref() {
            return ErrorAnswer::fatal(answer::SHUTDOWN, format!("Weir ended this session: {why}"));
        }
        tokio::select! {
            changed = standing.changed() => if changed.is_err() {
                return no_standing(&Standing::Ended);
            },
            changed = end.changed() => if changed.is_err() {
                return ErrorAnswer::fatal(answer::SHUTDOWN, "Weir ended this session: it is no longer known");
            },
        }
    }
}

/// What runs for a session on its server, as far as it can be cancelled.
pub(super) struct Running {
    pub(super) server: Arc<Server>,
    /// The server's address that the session has.
    pub(super) address: SocketAddr,
    /// The key of the session there, where the server gave one.
    pub(super) key: Option<BackendKey>,
}

/// What a session waits for beside its bytes.
pub(super) struct SessionWorld {
    told: Pin<Box<dyn Future<Output = ErrorAnswer> + Send>>,
    catalog: Arc<CatalogCell>,
    target: Arc<Target>,
    database: String,
    running: Running,
    cancel: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
    fetch: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl SessionWorld {
    /// Of a session of `run` in the database that `catalog` describes. `end` says why it must end, once it must; `running`
    /// is how the server can be told to stop.
    pub(super) fn new(
        run: Arc<Run>,
        end: tokio::sync::watch::Receiver<Option<Arc<str>>>,
        catalog: Arc<CatalogCell>,
        target: Arc<Target>,
        database: String,
        running: Running,
    ) -> Self {
        let told = Box::pin(until_told(run, end));
        Self { told, catalog, target, database, running, cancel: None, fetch: None }
    }
}

impl World for SessionWorld {
    fn poll_told(&mut self, cx: &mut Context<'_>) -> Poll<ErrorAnswer> {
        self.told.as_mut().poll(cx)
    }

    fn poll_fetched(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let fetch = self.fetch.get_or_insert_with(|| {
            let (catalog, target, database) = (self.catalog.clone(), self.target.clone(), self.database.clone());
            Box::pin(async move { catalog.fetch(&target, &database).await })
        });
        let done = fetch.as_mut().poll(cx);
        if done.is_ready() {
            self.fetch = None;
        }
        done
    }

    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(key) = &self.running.key else { return Poll::Ready(false) };
        let cancel = self.cancel.get_or_insert_with(|| {
            let (server, address, key) = (self.running.server.clone(), self.running.address, key.clone());
            Box::pin(async move {
                let cancelled = upstream::cancel(&server.settings, address, &key).await;
                if let Err(error) = &cancelled {
                    tracing::warn!(%error, "a statement whose answer is cut off could not be cancelled");
                }
                cancelled.is_ok()
            })
        });
        let done = cancel.as_mut().poll(cx);
        if done.is_ready() {
            self.cancel = None;
        }
        done
    }
}
