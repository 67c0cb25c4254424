//! Runs that a daemon before this one started. They stay agents, without an identity until they are given a new one, for
//! as long as a process of theirs lives; then they are forgotten, so that their Unix user is free for others.

use std::{sync::Arc, time::Duration};

use super::Weir;
use crate::{
    identity::{Registry, Run},
    redirect::{
        Kernel, RedirectError,
        cgroup::{CgroupId, CgroupRoot},
    },
};

/// How often it is looked whether a process of theirs lives: nobody else tells of their end.
const INTERVAL: Duration = Duration::from_secs(2);

/// Forgets the runs whose processes are gone. To be called before any other run is enrolled.
pub(super) fn forget_ended(cgroups: &CgroupRoot, kernel: &Kernel, registry: &Registry) -> Result<(), RedirectError> {
    for id in kernel.enrolled()? {
        if !is_alive(cgroups, id) {
            forget_cgroup(cgroups, kernel, id)?;
        }
    }
    for run in registry.list() {
        if !CgroupId::new(run.cgroup.0).is_some_and(|id| is_alive(cgroups, id)) {
            end(registry, &run);
        }
    }
    Ok(())
}

/// Forgets each of `runs` when its last process is gone.
pub(super) async fn attend(weir: Arc<Weir>, mut runs: Vec<Arc<Run>>) {
    while !runs.is_empty() {
        tokio::time::sleep(INTERVAL).await;
        runs.retain(|run| {
            let id = CgroupId::new(run.cgroup.0);
            if id.is_some_and(|id| is_alive(&weir.cgroups, id)) {
                return true;
            }
            end(&weir.registry, run);
            if let Some(Err(error)) = id.map(|id| forget_cgroup(&weir.cgroups, &weir.kernel, id)) {
                tracing::warn!(%error, "the kernel keeps a run that ended");
            }
            weir.record_admin(None, "run-end", format!("agent `{}`, run {}: of an earlier daemon", run.agent, run.id));
            false
        });
    }
}

/// In doubt, it lives: what is forgotten too early would be an outsider.
fn is_alive(cgroups: &CgroupRoot, id: CgroupId) -> bool {
    cgroups.path_of(id).is_some_and(|path| cgroups.is_populated(&path).unwrap_or(true))
}

fn forget_cgroup(cgroups: &CgroupRoot, kernel: &Kernel, id: CgroupId) -> Result<(), RedirectError> {
    if let Some(path) = cgroups.path_of(id)
        && let Err(error) = cgroups.remove(&path)
    {
        tracing::warn!(%error, "the cgroup of a run that ended is left over");
    }
    kernel.unenrol(id)
}

fn end(registry: &Registry, run: &Run) {
    if let Err(error) = registry.end(run.id) {
        tracing::warn!(%error, "a run that ended is not forgotten on disk");
    }
}
