//! The calling task: whose it is, by its cgroup's ancestors first, then by its uid.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use gateway_common::{CgroupKind, DEEPEST_CGROUP, Guard, Reason};

use crate::maps::{AGENT_UIDS, ALLOWED_UIDS, CGROUPS, config};

/// What a protected address is to the calling task.
pub enum Standing {
    /// It lies in this enrolled cgroup.
    Agent(u64),
    /// It may pass.
    Free,
    /// It may not.
    Refused(Reason),
}

/// The kinds of cgroups that the task lies in.
struct Ancestors {
    agent: u64,
    daemon: bool,
    allowed: bool,
    fenced: bool,
    too_deep: bool,
}

/// Looks up the task's cgroup and all above it.
#[inline(always)]
fn ancestors() -> Ancestors {
    // SAFETY: a helper without pointers.
    ancestors_by(|level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

/// Looks up a cgroup and all above it; `id_at` gives the one at a level below the root, and 0 below the cgroup itself.
/// The deepest enrolled one counts.
#[inline(always)]
fn ancestors_by(id_at: impl Fn(i32) -> u64) -> Ancestors {
    let mut found = Ancestors { agent: 0, daemon: false, allowed: false, fenced: false, too_deep: false };
    let mut level = 0;
    while level <= DEEPEST_CGROUP {
        let id = id_at(level as i32);
        if id == 0 {
            return found; // the cgroup itself was the level before
        }
        // SAFETY: the value is read at once, before anything else touches the map.
        match unsafe { CGROUPS.get(id) }.copied().and_then(CgroupKind::from_wire) {
            Some(CgroupKind::Agent) => found.agent = id,
            Some(CgroupKind::Daemon) => found.daemon = true,
            Some(CgroupKind::Allowed) => found.allowed = true,
            Some(CgroupKind::Fence) => found.fenced = true,
            None => {}
        }
        level += 1;
    }
    found.too_deep = id_at(DEEPEST_CGROUP as i32 + 1) != 0;
    found
}

/// Judges the calling task. An agent's cgroup counts before everything, then a fence: allowing a uid or a cgroup around them
/// never takes anyone out.
#[inline(always)]
pub fn standing() -> Standing {
    let found = ancestors();
    if found.too_deep && (found.agent != 0 || guarded(uid())) {
        return Standing::Refused(Reason::TooDeep);
    }
    if found.agent != 0 {
        return Standing::Agent(found.agent);
    }
    if found.fenced {
        return Standing::Refused(Reason::Outside);
    }
    if found.daemon || found.allowed {
        return Standing::Free;
    }
    let uid = uid();
    // SAFETY: the value isn't read.
    if unsafe { ALLOWED_UIDS.get(uid) }.is_some() || !guarded(uid) {
        return Standing::Free;
    }
    Standing::Refused(Reason::Outside)
}

/// Whether a task of this uid is kept from protected addresses when it lies in no agent's cgroup.
#[inline(always)]
fn guarded(uid: u32) -> bool {
    match config().map(|config| Guard::from_wire(config.guard)) {
        Some(Some(Guard::Agents)) => AGENT_UIDS.get(&Key::new(u32::BITS, uid.to_be())).is_some(),
        // An unknown guard, or none, is the strict one.
        Some(Some(Guard::Host) | None) | None => true,
    }
}

/// Whether the task is the daemon's.
#[inline(always)]
pub fn is_daemon() -> bool {
    ancestors().daemon
}

/// The enrolled cgroup that the task lies in, for whom only an agent concerns; below a fence everybody is to be one.
#[inline(always)]
pub fn agent_in_reach() -> Result<Option<u64>, Reason> {
    in_reach(ancestors())
}

/// The enrolled cgroup that a cgroup lies in; `id_at` as in [`ancestors_by`].
#[inline(always)]
pub fn agent_above(id_at: impl Fn(i32) -> u64) -> Result<Option<u64>, Reason> {
    in_reach(ancestors_by(id_at))
}

#[inline(always)]
fn in_reach(found: Ancestors) -> Result<Option<u64>, Reason> {
    match found.agent {
        0 if found.fenced => Err(Reason::Fenced),
        0 => Ok(None),
        // Its own rules may lie deeper than was looked.
        _ if found.too_deep => Err(Reason::TooDeep),
        id => Ok(Some(id)),
    }
}

/// The enrolled cgroup that the task lies in.
#[inline(always)]
pub fn agent() -> Option<u64> {
    match ancestors().agent {
        0 => None,
        id => Some(id),
    }
}

#[inline(always)]
pub fn uid() -> u32 {
    bpf_get_current_uid_gid() as u32
}

#[inline(always)]
pub fn pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}
