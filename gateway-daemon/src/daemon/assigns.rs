//! `weir agent assign`, on the daemon's side: the token is verified, the tree examined and moved, the run enrolled.

use std::{net::SocketAddr, os::fd::OwnedFd, sync::Arc};

use super::{Weir, accounts, runs, sockets};
use crate::{
    assign::{Captured, Process, Rules},
    config::{Agent, RunsAs},
    identity::{
        Uids,
        watch::{NamedBy, TokenFile},
    },
    redirect::Protected,
};

/// What bars a process from being an agent's, gathered once for many.
pub(super) struct Barred {
    groups: Vec<(u32, String)>,
    sockets: Vec<std::path::PathBuf>,
    protected: Arc<Vec<Protected>>,
}

impl Barred {
    /// Blocks while names are looked up.
    pub(super) fn gather(weir: &Weir) -> Result<Self, String> {
        let mut barred = sockets::of_all(&weir.config);
        barred.extend(sockets::RUNTIME_SOCKETS.iter().map(Into::into));
        Ok(Self { groups: accounts::barred_groups()?, sockets: barred, protected: weir.protected.load_full() })
    }

    /// Calls `with` with the rules for processes of a user.
    pub(super) fn rules<T>(&self, uid: u32, with: impl FnOnce(&Rules<'_>) -> T) -> T {
        let protected = |address: SocketAddr| {
            self.protected.iter().any(|target| target.port == address.port() && target.network.contains(address.ip()))
        };
        with(&Rules { uid, barred_groups: &self.groups, barred_sockets: &self.sockets, protected: &protected })
    }
}

/// Makes the tree of a process an agent's. Says what was done.
pub(super) async fn assign(
    weir: &Arc<Weir>,
    uid: u32,
    name: &str,
    pid: u32,
    token_file: Option<std::path::PathBuf>,
    descriptors: Vec<OwnedFd>,
) -> Result<String, String> {
    let agent = weir.known_agent(name)?.clone();
    let file = match (token_file, &agent.token_file) {
        (Some(path), _) => TokenFile { path, named_by: NamedBy::Starter, starter: uid },
        (None, Some(path)) => TokenFile { path: path.clone(), named_by: NamedBy::Configuration, starter: uid },
        (None, None) => {
            return Err(format!("agent `{name}` has no token; name one with --token-file, or configure `token_file`"));
        }
    };
    let token =
        runs::first_token(descriptors.into_iter().next(), &file).await.map_err(|refused| refused.to_string())?;
    let identity = runs::verify(weir, &agent, &token).await.map_err(|refused| refused.to_string())?;
    let (its, its_agent, path) = (weir.clone(), agent.clone(), file.path.clone());
    // The tree stands still meanwhile, and /proc is read: not for a worker.
    let moved = tokio::task::spawn_blocking(move || {
        let root = find(pid)?;
        let user = user_of(&its, &its_agent, root)?;
        let barred = Barred::gather(&its)?;
        let begun = runs::begin(&its, &its_agent, Uids::One(user), identity, uid, path)
            .map_err(|refused| refused.to_string())?;
        let own = its.config.daemon.cgroup.clone();
        let moved =
            barred.rules(user, |rules| Captured::take(&its.cgroups, begun.cgroup(), &own, root, rules)?.settle(rules));
        let (processes, connections) = moved.map_err(|error| error.to_string())?;
        begun.run.note_pid(pid);
        Ok::<_, String>((begun.keep(), processes, connections))
    });
    let (run, processes, connections) = moved.await.map_err(|error| format!("the daemon failed: {error}"))??;
    runs::watch_token(weir, &agent, &run, file);
    tokio::spawn(runs::until_empty(weir.clone(), run.clone()));
    let detail =
        format!("{processes} processes from pid {pid} on, {connections} connections to protected targets destroyed");
    weir.record_admin(Some(uid), "agent-assign", format!("agent `{name}`, run {}: {detail}", run.id));
    Ok(format!("agent `{name}`, run {}: {detail}", run.id))
}

fn find(pid: u32) -> Result<Process, String> {
    let found = Process::find(pid).map_err(|error| format!("process {pid} cannot be looked at: {error}"))?;
    found.ok_or_else(|| format!("there is no process {pid}"))
}

/// The user that the tree must have: the agent's, or of a pool the process's own.
fn user_of(weir: &Weir, agent: &Agent, root: Process) -> Result<u32, String> {
    match &agent.runs_as {
        RunsAs::User(name) => Ok(accounts::of_user(agent, name)?.uid),
        RunsAs::Pool(pool) => {
            let uid = root.uid().map_err(|error| format!("process {} cannot be looked at: {error}", root.pid))?;
            if !pool.range().contains(&uid) {
                return Err(format!(
                    "process {} runs as uid {uid}, which is not of the agent's `uid_pool` ({pool})",
                    root.pid
                ));
            }
            let runs = [weir.registry.list(), weir.registry.ended()].concat();
            match runs.iter().find(|run| run.uid == uid) {
                Some(run) => Err(format!("uid {uid} is that of run {}; each run of a pool has one of its own", run.id)),
                None => Ok(uid),
            }
        }
    }
}
