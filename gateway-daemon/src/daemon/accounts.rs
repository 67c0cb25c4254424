//! The Unix accounts that agents' processes have: a user that root made, or a uid of a pool for each run.
//!
//! A run of a pool has a uid and a group of the same number that nobody else has, no further groups, and a home folder that is
//! made for it ([`super::homes`]).

use std::{fs, io, ops::RangeInclusive, path::PathBuf};

use nix::unistd::{Gid, Group, Uid, User};

use crate::{
    config::{Agent, RunsAs, UidPool},
    redirect::UidRange,
};

/// Groups whose members may speak to a container runtime, and so reach everything.
pub(super) const RUNTIME_GROUPS: [&str; 6] = ["docker", "containerd", "podman", "lxd", "incus-admin", "libvirt"];

/// Where subordinate uids and gids are given out.
const SUBUID: &str = "/etc/subuid";
const SUBGID: &str = "/etc/subgid";

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// For people, and for USER.
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Without those that would reach a container runtime.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: PathBuf,
    pub(crate) shell: PathBuf,
}

/// The account of an agent that has a user.
pub(super) fn of_user(agent: &Agent, name: &str) -> Result<Account, String> {
    let user = User::from_name(name).ok().flatten().ok_or_else(|| {
        format!("agent `{}`: the user `{name}` does not exist; make it with `useradd -r`", agent.name)
    })?;
    if user.uid.is_root() {
        return Err(format!("agent `{}`: the user `{name}` is root", agent.name));
    }
    if let Some(why) = primary_group_fault(user.gid)? {
        return Err(format!(
            "agent `{}`: the primary group of the user `{name}` {why}; give it another: `usermod -g`",
            agent.name
        ));
    }
    Ok(Account {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: groups_of(&user)?,
        name: user.name,
        home: user.dir,
        shell: user.shell,
    })
}

/// The account of a run that has a uid of a pool.
pub(super) fn of_pool(agent: &Agent, uid: u32, home: PathBuf) -> Account {
    Account { name: agent.name.clone(), uid, gid: uid, groups: Vec::new(), home, shell: "/bin/sh".into() }
}

/// What is wrong with a group as an agent's primary one, which cannot be left out as supplementary ones are.
fn primary_group_fault(gid: Gid) -> Result<Option<String>, String> {
    if gid.as_raw() == 0 {
        return Ok(Some("is root's".to_owned()));
    }
    match Group::from_gid(gid) {
        Ok(Some(group)) if RUNTIME_GROUPS.contains(&group.name.as_str()) => {
            Ok(Some(format!("is `{}`, whose members may speak to a container runtime", group.name)))
        }
        Ok(Some(_) | None) => Ok(None),
        Err(error) => Err(format!("group {gid} cannot be looked up: {error}")),
    }
}

/// The user's supplementary groups, without those that would reach a container runtime.
fn groups_of(user: &User) -> Result<Vec<u32>, String> {
    let name =
        std::ffi::CString::new(user.name.as_str()).map_err(|_| "the user's name holds a zero byte".to_owned())?;
    let groups = nix::unistd::getgrouplist(&name, user.gid)
        .map_err(|error| format!("the groups of `{}` cannot be read: {error}", user.name))?;
    let mut kept = Vec::new();
    for gid in groups {
        match Group::from_gid(gid) {
            Ok(Some(group)) if RUNTIME_GROUPS.contains(&group.name.as_str()) => {}
            Ok(Some(_) | None) if gid.as_raw() != 0 => kept.push(gid.as_raw()),
            Ok(Some(_) | None) => {}
            Err(error) => return Err(format!("group {gid} cannot be looked up: {error}")),
        }
    }
    Ok(kept)
}

/// The groups that no agent's process may be in, by number: root's and the container runtimes'.
pub(super) fn barred_groups() -> Result<Vec<(u32, String)>, String> {
    let mut barred = vec![(0, "root".to_owned())];
    for name in RUNTIME_GROUPS {
        match Group::from_name(name) {
            Ok(Some(group)) => barred.push((group.gid.as_raw(), group.name)),
            Ok(None) => {}
            Err(error) => return Err(format!("group `{name}` cannot be looked up: {error}")),
        }
    }
    Ok(barred)
}

/// What is wrong with a uid of a pool now: it, or the group of its number, is somebody's or was given out to somebody.
pub(super) fn taken(uid: u32) -> Result<Option<String>, String> {
    if let Some(fault) = given_out(&(uid..=uid))? {
        return Ok(Some(fault));
    }
    named(uid)
}

fn named(uid: u32) -> Result<Option<String>, String> {
    match (User::from_uid(Uid::from_raw(uid)), Group::from_gid(Gid::from_raw(uid))) {
        (Ok(Some(user)), _) => Ok(Some(format!("uid {uid} is the user `{}`", user.name))),
        (_, Ok(Some(group))) => Ok(Some(format!("gid {uid} is the group `{}`", group.name))),
        (Ok(None), Ok(None)) => Ok(None),
        (Err(error), _) | (_, Err(error)) => Err(format!("uid {uid} cannot be looked up: {error}")),
    }
}

/// Who was given some number of a range as a subordinate one.
fn given_out(uids: &RangeInclusive<u32>) -> Result<Option<String>, String> {
    for path in [SUBUID, SUBGID] {
        let table = match fs::read_to_string(path) {
            Ok(table) => table,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{path} cannot be read: {error}")),
        };
        if let Some(fault) = given_out_by(path, &table, uids) {
            return Ok(Some(fault));
        }
    }
    Ok(None)
}

fn given_out_by(path: &str, table: &str, uids: &RangeInclusive<u32>) -> Option<String> {
    let overlaps = |range: &UidRange| *uids.start() <= range.last && range.first <= *uids.end();
    let (owner, range) = ranges(table).into_iter().find(|(_, range)| overlaps(range))?;
    Some(format!("{path} gives {}-{} to `{owner}`", range.first, range.last))
}

/// What is wrong with a pool on this host: every uid and gid must be nobody's, nor given out as subordinate to somebody.
pub(crate) fn pool_fault(pool: &UidPool) -> Option<String> {
    let fault = |found: Result<Option<String>, String>| match found {
        Ok(None) => None,
        Ok(Some(fault)) => Some(format!("{fault}; take others")),
        Err(fault) => Some(fault),
    };
    fault(given_out(&pool.range())).or_else(|| pool.range().find_map(|uid| fault(named(uid))))
}

/// The lines of an /etc/subuid or /etc/subgid: whose, and which. A line that means nothing gives nothing to anyone.
fn ranges(table: &str) -> Vec<(&str, UidRange)> {
    let range = |line| {
        let mut fields = str::split(line, ':');
        let owner = fields.next()?;
        let (first, count) = (fields.next()?.parse::<u32>().ok()?, fields.next()?.parse::<u32>().ok()?);
        Some((owner, UidRange { first, last: first.checked_add(count.checked_sub(1)?)? }))
    };
    table.lines().filter_map(range).collect()
}

/// Subordinate uids of a user: what the kernel sees of its processes in user namespaces.
pub(super) fn subordinate(name: &str, uid: u32) -> Vec<UidRange> {
    let table = fs::read_to_string(SUBUID).unwrap_or_default();
    let number = uid.to_string();
    let own = ranges(&table).into_iter().filter(|(owner, _)| *owner == name || *owner == number);
    own.map(|(_, range)| range).collect()
}

/// The uids of an agent's processes, those of its user namespaces included; `None` when its user does not exist.
pub(super) fn uids(agent: &Agent) -> Option<Vec<UidRange>> {
    match &agent.runs_as {
        RunsAs::Pool(pool) => {
            let range = pool.range();
            Some(vec![UidRange { first: *range.start(), last: *range.end() }])
        }
        RunsAs::User(name) => {
            let user = User::from_name(name).ok().flatten()?;
            let mut uids = vec![UidRange { first: user.uid.as_raw(), last: user.uid.as_raw() }];
            uids.extend(subordinate(&user.name, user.uid.as_raw()));
            Some(uids)
        }
    }
}

/// Who may open what: an agent's uid with its groups. Of a pool, its first uid: they all have the same rights, none but
/// everybody's.
pub(crate) fn rights(agent: &Agent) -> Option<(u32, Vec<u32>)> {
    match &agent.runs_as {
        RunsAs::Pool(pool) => Some((*pool.range().start(), vec![*pool.range().start()])),
        RunsAs::User(name) => {
            let user = User::from_name(name).ok().flatten()?;
            let name = std::ffi::CString::new(user.name.as_str()).ok()?;
            let groups = nix::unistd::getgrouplist(&name, user.gid);
            let groups = groups.map(|groups| groups.into_iter().map(Gid::as_raw).collect());
            Some((user.uid.as_raw(), groups.unwrap_or_else(|_| vec![user.gid.as_raw()])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_primary_group_is_not_roots() {
        assert!(primary_group_fault(Gid::from_raw(0)).unwrap().is_some());
        assert!(primary_group_fault(Gid::from_raw(54_321)).unwrap().is_none());
    }

    #[test]
    fn subordinate_ranges_are_read_with_their_owners() {
        let table = "alice:100000:65536\n1001:200000:10\nnonsense\nbob:4294967295:10\nnone:5:0\n";
        let found: Vec<_> = ranges(table).into_iter().map(|(owner, range)| (owner, range.first, range.last)).collect();
        assert_eq!(found, [("alice", 100_000, 165_535), ("1001", 200_000, 200_009)]);
    }

    #[test]
    fn a_uid_that_was_given_out_is_told() {
        let told = |uid| given_out_by(SUBGID, "alice:100000:65536\n", &(uid..=uid));
        assert_eq!(told(165_535).unwrap(), "/etc/subgid gives 100000-165535 to `alice`");
        assert_eq!((told(99_999), told(165_536)), (None, None));
        assert!(given_out_by(SUBUID, "alice:100000:65536\n", &(1..=4_000_000_000)).is_some());
    }

    #[test]
    fn a_uid_that_is_somebodys_is_told() {
        assert_eq!(taken(0).unwrap().unwrap(), "uid 0 is the user `root`");
        assert_eq!(taken(3_000_000_001).unwrap(), None);
        let pool: UidPool = "3000000001-3000000010".parse().unwrap();
        assert_eq!(pool_fault(&pool), None);
    }
}
