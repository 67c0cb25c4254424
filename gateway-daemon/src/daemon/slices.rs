//! Agents that a service manager starts: everything below `weir.slice/weir-NAME.slice` is the agent's.
//!
//! The daemon makes those cgroups and enrols them in the kernel before anything runs in them, and makes them anew when they are
//! gone; `weir.slice` itself is a fence, below which nobody but an enrolled agent reaches a protected target. Who it is comes
//! from the agent's `token_file`, which is read when something in the slice connects first; until it is verified, everything
//! there is refused. The run ends with the slice's last process.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{Weir, accounts, assigns::Barred, runs};
use crate::{
    assign::{self, Namespaces, Process},
    config::{Agent, Config, RunsAs},
    identity::{
        self, Enrolment, Run, Uids,
        watch::{NamedBy, TokenFile},
    },
    redirect::{
        Kernel, RedirectError, UidRange,
        cgroup::{CgroupError, CgroupId, CgroupRoot},
    },
};

/// How often it is looked whether the slices' cgroups are the ones that the kernel knows, and whether anything lives there.
const LOOK: Duration = Duration::from_millis(500);
/// An identification that failed is not tried again for so long: it reads a token and looks at every process of the slice.
const FAILURE_KEPT: Duration = Duration::from_secs(1);

/// The slices of all agents that have a user.
pub(super) struct Slices {
    /// `weir.slice`.
    fence: String,
    slices: Vec<Slice>,
    /// Which is which in the kernel, now.
    by_cgroup: ArcSwap<HashMap<CgroupId, usize>>,
    /// The fence, now.
    fenced: Mutex<Option<CgroupId>>,
    /// Where tokens are verified: sessions' threads have other work.
    runtime: tokio::runtime::Handle,
}

struct Slice {
    agent: Agent,
    /// Its user's, subordinate ones included.
    uids: Vec<UidRange>,
    cgroup: String,
    /// One identification at a time; with how the last one failed, if it did.
    identifying: tokio::sync::Mutex<Option<(Instant, String)>>,
}

/// What keeps the slices from being what they should be.
#[derive(Debug, thiserror::Error)]
pub enum SliceError {
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The kernel's maps.
    #[error(transparent)]
    Kernel(#[from] RedirectError),
}

/// The unit's name of an agent's slice. A hyphen would say that it lies below another slice, so it is escaped as systemd does.
pub(crate) fn unit_name(agent: &str) -> String {
    format!("weir-{}.slice", agent.replace('-', "\\x2d"))
}

/// `weir.slice`, at the scope.
pub(super) fn fence(config: &Config) -> String {
    format!("{}/weir.slice", config.daemon.scope.trim_end_matches('/'))
}

impl Slices {
    /// Must be called within a tokio runtime.
    pub(super) fn of(config: &Config) -> Self {
        let fence = fence(config);
        let users = config.agents.iter().filter(|agent| matches!(agent.runs_as, RunsAs::User(_)));
        let slice = |agent: &Agent| Slice {
            cgroup: format!("{fence}/{}", unit_name(&agent.name)),
            uids: accounts::uids(agent).unwrap_or_default(),
            agent: agent.clone(),
            identifying: tokio::sync::Mutex::default(),
        };
        let slices = users.map(slice).collect();
        let runtime = tokio::runtime::Handle::current();
        Self { fence, slices, by_cgroup: ArcSwap::default(), fenced: Mutex::default(), runtime }
    }

    /// Makes the cgroups that are not there, and tells the kernel of those that it does not know. The fence comes first. Blocks.
    ///
    /// # Errors
    /// A cgroup cannot be made, or the kernel refuses.
    pub(super) fn prepare(&self, cgroups: &CgroupRoot, kernel: &Kernel, config: &Config) -> Result<(), SliceError> {
        let fence = cgroups.create(&self.fence)?;
        {
            let mut fenced = self.fenced.lock().unwrap_or_else(PoisonError::into_inner);
            if *fenced != Some(fence) {
                kernel.set_fence(fence)?;
                *fenced = Some(fence);
            }
        }
        let before = self.by_cgroup.load_full();
        let mut now = HashMap::new();
        for (index, slice) in self.slices.iter().enumerate() {
            let id = cgroups.create(&slice.cgroup)?;
            if !before.contains_key(&id) {
                kernel.enrol(id, super::egress::of_agent(config, &slice.agent.name))?;
            }
            now.insert(id, index);
        }
        if *before != now {
            self.by_cgroup.store(Arc::new(now.clone()));
        }
        for gone in before.keys().filter(|id| !now.contains_key(id)) {
            kernel.unenrol(*gone)?;
        }
        Ok(())
    }

    /// Whether a cgroup is a slice of an agent that is configured.
    pub(super) fn has(&self, cgroup: identity::CgroupId) -> bool {
        CgroupId::new(cgroup.0).is_some_and(|id| self.by_cgroup.load().contains_key(&id))
    }

    /// Whether a path is one of the slices, or the fence.
    pub(super) fn is_own(&self, path: &str) -> bool {
        path == self.fence || self.slices.iter().any(|slice| slice.cgroup == path)
    }

    /// Whose slice a cgroup is.
    pub(super) fn agent_of(&self, cgroup: CgroupId) -> Option<&str> {
        self.slice(cgroup).map(|slice| &*slice.agent.name)
    }

    fn slice(&self, cgroup: CgroupId) -> Option<&Slice> {
        self.slices.get(*self.by_cgroup.load().get(&cgroup)?)
    }
}

/// Looks after the cgroups, for as long as the daemon runs.
pub(super) async fn keep(weir: Arc<Weir>) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let its = weir.clone();
        let done =
            tokio::task::spawn_blocking(move || its.slices.prepare(&its.cgroups, &its.kernel, &its.config)).await;
        let error = match done {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if error != told && !error.is_empty() {
            tracing::error!(error, "an agent's slice cannot be kept; what is in it is refused");
        }
        told = error;
    }
}

/// The run of a slice from which somebody with this uid connects; made now if it is not there. `None` when the cgroup is no
/// slice.
///
/// # Errors
/// Why the agent is refused.
pub(super) async fn run_of(weir: &Arc<Weir>, cgroup: CgroupId, uid: u32) -> Option<Result<Arc<Run>, String>> {
    let slice = weir.slices.slice(cgroup)?;
    if !slice.uids.iter().any(|range| (range.first..=range.last).contains(&uid)) {
        let (agent, user) = (&slice.agent.name, &slice.agent.runs_as);
        return Some(Err(format!("a process in the slice of agent `{agent}` runs as uid {uid}, not as its {user}")));
    }
    if let Some(run) = weir.registry.by_cgroup(identity::CgroupId(cgroup.get())) {
        return Some(Ok(run));
    }
    let its = weir.clone();
    let identified = weir.slices.runtime.spawn(async move { identify(&its, cgroup).await });
    Some(identified.await.unwrap_or_else(|error| Err(format!("the daemon failed: {error}"))))
}

/// Identifies it, unless somebody has done so meanwhile, or has failed a moment ago.
async fn identify(weir: &Arc<Weir>, cgroup: CgroupId) -> Result<Arc<Run>, String> {
    let gone = || "the slice is gone".to_owned();
    let slice = weir.slices.slice(cgroup).ok_or_else(gone)?;
    let mut failed = slice.identifying.lock().await;
    let id = identity::CgroupId(cgroup.get());
    if let Some(run) = weir.registry.by_cgroup(id) {
        return Ok(run);
    }
    if let Some((_, why)) = failed.as_ref().filter(|(at, _)| at.elapsed() < FAILURE_KEPT) {
        return Err(why.clone());
    }
    let outcome = identify_slice(weir, slice, id).await;
    *failed = outcome.as_ref().err().map(|why| (Instant::now(), why.clone()));
    outcome
}

/// Verifies the agent's token and looks at all that lives in its slice.
async fn identify_slice(weir: &Arc<Weir>, slice: &Slice, id: identity::CgroupId) -> Result<Arc<Run>, String> {
    let agent = slice.agent.clone();
    let Some(path) = agent.token_file.clone() else {
        return Err(format!(
            "agent `{}` has no `token_file` in Weir's configuration, so nobody vouches for it",
            agent.name
        ));
    };
    let file = TokenFile { path: path.clone(), named_by: NamedBy::Configuration, starter: 0 };
    let token = runs::first_token(None, &file).await.map_err(|refused| refused.to_string())?;
    let identity = runs::verify(weir, &agent, &token).await.map_err(|refused| refused.to_string())?;
    let (its, its_agent, folder) = (weir.clone(), agent.clone(), weir.cgroups.path(&slice.cgroup));
    let enrolled = tokio::task::spawn_blocking(move || {
        let RunsAs::User(user) = &its_agent.runs_as else { return Err("the agent has no user".to_owned()) };
        let uid = accounts::of_user(&its_agent, user)?.uid;
        let processes = processes(folder)?;
        Barred::gather(&its, &its_agent.name)?
            .rules(uid, Namespaces::Own, |rules| assign::clean(&processes, rules))
            .map_err(|error| error.to_string())?;
        let enrolment = Enrolment {
            id: its.registry.next_run_id(),
            uids: Uids::One(uid),
            cgroup: id,
            starter: 0,
            token_file: Some(path),
            identity,
        };
        its.registry.enrol(enrolment).map_err(|error| error.to_string())
    });
    let run = enrolled.await.map_err(|error| format!("the daemon failed: {error}"))??;
    runs::watch_token(weir, &agent, &run, file);
    tokio::spawn(until_empty(weir.clone(), run.clone()));
    weir.record_admin(None, "slice-run-start", format!("agent `{}`, run {}, {}", agent.name, run.id, slice.cgroup));
    Ok(run)
}

/// The processes in a cgroup and below it. Blocks.
pub(super) fn processes(folder: PathBuf) -> Result<BTreeSet<Process>, String> {
    let failed = |error: std::io::Error| format!("the processes of the slice cannot be listed: {error}");
    let mut found = BTreeSet::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        let procs = std::fs::read_to_string(folder.join("cgroup.procs")).map_err(failed)?;
        for pid in procs.lines().filter_map(|line| line.parse().ok()) {
            found.extend(Process::find(pid).map_err(failed)?);
        }
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Ends a slice's run when its last process is gone, or the slice itself. The kernel goes on knowing the cgroup as the agent's.
pub(super) async fn until_empty(weir: Arc<Weir>, run: Arc<Run>) {
    loop {
        let lives = CgroupId::new(run.cgroup.0).and_then(|id| weir.slices.slice(id)).is_some_and(|slice| {
            // What cannot be told may live.
            weir.cgroups.is_populated(&slice.cgroup).unwrap_or(true)
        });
        if !lives {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    runs::end(&weir, &run).await;
    release(&weir, &run).await;
    weir.record_admin(None, "slice-run-end", format!("agent `{}`, run {}: its slice is empty", run.agent, run.id));
}

/// Gives a slice's run that has ended up. Its cgroup stays the agent's.
pub(super) async fn release(weir: &Weir, run: &Run) {
    let id = run.id;
    if let Err(error) = weir.change_registry(move |registry| registry.release(id)).await {
        tracing::error!(%error, "a run's uid stays taken");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_s_name_does_not_say_that_it_lies_below_another() {
        assert_eq!(unit_name("claude"), "weir-claude.slice");
        assert_eq!(unit_name("claude-code"), "weir-claude\\x2dcode.slice");
    }
}
