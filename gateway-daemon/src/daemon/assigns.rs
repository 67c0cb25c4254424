//! `weir agent assign`, on the daemon's side: the token is verified, the tree examined and moved, the run enrolled.

use std::{
    fs,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Weir, accounts, egress, runs, slices, sockets};
use crate::{
    assign::{self, Captured, Journal, Namespaces, Process, Refusal, Rules},
    config::{Agent, RunsAs},
    identity::{
        Run, RunId, Uids,
        watch::{NamedBy, TokenFile},
    },
    redirect::{Egress, EgressAllowed, Protected, cgroup::CgroupId},
};

/// What bars a process from being an agent's, gathered once for many.
pub(super) struct Barred {
    groups: Vec<(u32, String)>,
    sockets: Vec<PathBuf>,
    protected: Arc<Vec<Protected>>,
    egress: Egress,
    allowed: Vec<EgressAllowed>,
    listener_port: u16,
    own: Vec<String>,
}

impl Barred {
    /// What bars one from being the agent of that name. Blocks while names are looked up.
    pub(super) fn gather(weir: &Weir, agent: &str) -> Result<Self, String> {
        let mut barred = sockets::of_all(&weir.config);
        barred.extend(sockets::RUNTIME_SOCKETS.iter().map(Into::into));
        Ok(Self {
            groups: accounts::barred_groups()?,
            sockets: barred,
            protected: weir.protected.load_full(),
            egress: egress::of_agent(&weir.config, agent),
            allowed: egress::allowed(&weir.config, &egress::resolvers_now()),
            listener_port: weir.config.daemon.listener_port,
            own: vec![weir.config.daemon.cgroup.clone(), slices::fence(&weir.config)],
        })
    }

    /// Calls `with` with the rules for processes of a user.
    pub(super) fn rules<T>(&self, uid: u32, namespaces: Namespaces, with: impl FnOnce(&Rules<'_>) -> T) -> T {
        let refused = |address: SocketAddr| self.refusal(address);
        with(&Rules {
            uid,
            barred_groups: &self.groups,
            barred_sockets: &self.sockets,
            refused: &refused,
            own: &self.own,
            namespaces,
        })
    }

    fn refusal(&self, address: SocketAddr) -> Option<Refusal> {
        let holds = |target: &Protected| target.port == address.port() && target.network.contains(address.ip());
        if self.protected.iter().any(holds) {
            return Some(Refusal::Protected);
        }
        // Where Weir itself serves what it led there; it sends away who came by themselves.
        let listener = address.ip().is_loopback() && address.port() == self.listener_port;
        (!listener && self.egress.refuses(address, &self.allowed)).then_some(Refusal::Egress)
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
        let barred = Barred::gather(&its, &its_agent.name)?;
        let begun = runs::begin(&its, &its_agent, Uids::One(user), identity, uid, path)
            .map_err(|refused| refused.to_string())?;
        let journal = Journal::begin(journals(&its).join(begun.run.id.to_string()));
        let journal = journal.map_err(|error| format!("the journal of the move cannot be made: {error}"))?;
        let moved = barred.rules(user, Namespaces::Host, |rules| {
            Captured::take(&its.cgroups, begun.cgroup(), root, rules, journal)?.settle(rules)
        });
        let (processes, connections) = moved.map_err(|error| error.to_string())?;
        begun.run.note_pid(pid);
        Ok::<_, String>((begun.keep(), processes, connections))
    });
    let (run, processes, connections) = moved.await.map_err(|error| format!("the daemon failed: {error}"))??;
    runs::watch_token(weir, &agent, &run, file);
    tokio::spawn(runs::until_empty(weir.clone(), run.clone()));
    let detail =
        format!("{processes} processes from pid {pid} on, {connections} connections that it may not have destroyed");
    weir.record_admin(Some(uid), "agent-assign", format!("agent `{name}`, run {}: {detail}", run.id));
    Ok(format!("agent `{name}`, run {}: {detail}", run.id))
}

/// Where the journals of moves lie that did not end yet.
fn journals(weir: &Weir) -> PathBuf {
    weir.config.daemon.state_dir.join("assigning")
}

/// Brings back the trees of an earlier daemon's assignments that never ended: nobody has judged them, so their runs end before
/// anything could give them an identity. Blocks.
pub(super) fn undo(weir: &Weir) {
    for entry in fs::read_dir(journals(weir)).into_iter().flatten().flatten() {
        let path = entry.path();
        let run = entry.file_name().to_str().and_then(|name| name.parse::<RunId>().ok());
        if let Err(error) = undo_one(weir, run, &path) {
            tracing::error!(error, journal = %path.display(), "an assignment that was cut off cannot be undone");
        }
    }
}

fn undo_one(weir: &Weir, run: Option<RunId>, journal: &Path) -> Result<(), String> {
    let Some(run) = run.and_then(|run| weir.registry.run(run)) else {
        // After a boot, or its run has ended: nothing of it is left.
        return fs::remove_file(journal).map_err(|error| error.to_string());
    };
    weir.registry.end(run.id).map_err(|error| error.to_string())?;
    let cgroup = format!("{}/agents/{}/{}", weir.config.daemon.cgroup, run.agent, run.id);
    assign::undo(&weir.cgroups, &cgroup, journal).map_err(|error| error.to_string())?;
    let what = format!("agent `{}`, run {}: the daemon ended before it was done", run.agent, run.id);
    weir.record_admin(None, "agent-assign-undone", what);
    Ok(())
}

/// Destroys the connections of runs whose egress is stricter than under the daemon before: the programs judge what is new.
/// Blocks.
pub(super) fn cut_refused(weir: &Weir) {
    let stricter = weir.kernel.stricter();
    let is_stricter = |run: &Run| CgroupId::new(run.cgroup.0).is_some_and(|cgroup| stricter.contains(&cgroup));
    for run in weir.registry.list().into_iter().filter(|run| is_stricter(run)) {
        match cut_of(weir, &run) {
            Ok(0) => {}
            Ok(cut) => {
                let what =
                    format!("agent `{}`, run {}: {cut} connections that it may not have any longer", run.agent, run.id);
                weir.record_admin(None, "egress-cut", what);
            }
            Err(error) => {
                tracing::error!(error, run = %run.id, "a run keeps connections that its egress refuses; end it");
                weir.record_admin(None, "egress-cut-failed", format!("agent `{}`, run {}: {error}", run.agent, run.id));
            }
        }
    }
}

fn cut_of(weir: &Weir, run: &Run) -> Result<usize, String> {
    let cgroup = CgroupId::new(run.cgroup.0).map(|id| weir.cgroups.path_of(id)).transpose();
    let Some(Some(cgroup)) = cgroup.map_err(|error| error.to_string())? else { return Ok(0) };
    let processes = slices::processes(weir.cgroups.path(&cgroup))?;
    let barred = Barred::gather(weir, &run.agent)?;
    let cut = barred.rules(run.uid, Namespaces::Own, |rules| assign::cut(&processes, rules));
    cut.map_err(|error| error.to_string())
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
