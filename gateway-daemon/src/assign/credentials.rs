//! What a process may do, as /proc/PID/status says it of each of its threads.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
};

use super::{Namespaces, Process, Rules, Why, sys, tree::is_gone};

/// The status of a thread cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its status has no `{field}` that is understood")]
pub struct CredentialsError {
    field: &'static str,
}

/// What a thread may do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Credentials {
    /// Real, effective, saved, and of the file system.
    uids: Vec<u32>,
    gids: Vec<u32>,
    groups: Vec<u32>,
    /// Those that are not empty, by name. What bounds them is no right: without new privileges nothing is gained by it.
    capabilities: Vec<&'static str>,
    no_new_privs: bool,
    tracer: u32,
}

/// The sets that give rights, by their names in status and for people.
const SETS: [(&str, &str); 4] =
    [("CapPrm", "permitted"), ("CapEff", "effective"), ("CapInh", "inheritable"), ("CapAmb", "ambient")];

impl Credentials {
    fn parse(status: &str) -> Result<Self, CredentialsError> {
        let line = |field: &'static str| {
            let found = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            found.ok_or(CredentialsError { field })
        };
        let numbers = |field: &'static str| {
            let words = line(field)?.split_whitespace();
            words.map(|word| word.parse::<u32>().map_err(|_| CredentialsError { field })).collect::<Result<Vec<_>, _>>()
        };
        let four = |field: &'static str| {
            let found = numbers(field)?;
            if found.len() == 4 { Ok(found) } else { Err(CredentialsError { field }) }
        };
        let mut capabilities = Vec::new();
        for (field, name) in SETS {
            let set = u64::from_str_radix(line(field)?.trim(), 16).map_err(|_| CredentialsError { field })?;
            if set != 0 {
                capabilities.push(name);
            }
        }
        Ok(Self {
            uids: four("Uid")?,
            gids: four("Gid")?,
            groups: numbers("Groups")?,
            capabilities,
            no_new_privs: line("NoNewPrivs")?.trim() == "1",
            tracer: line("TracerPid")?.trim().parse().map_err(|_| CredentialsError { field: "TracerPid" })?,
        })
    }

    /// Those that matter for what a thread may do; who traces it may differ.
    fn rights(&self) -> (&[u32], &[u32], &[u32], &[&str], bool) {
        (&self.uids, &self.gids, &self.groups, &self.capabilities, self.no_new_privs)
    }
}

/// What is wrong with a process's credentials; `tree` are those that may trace it.
pub(super) fn whys(process: &Process, tree: &BTreeSet<Process>, rules: &Rules<'_>) -> Vec<Why> {
    let unknown = |what, source| vec![Why::Unknown { what, source }];
    let threads = match process.threads() {
        Ok(threads) => threads,
        Err(source) => return unknown("its threads", source),
    };
    let mut whys = Vec::new();
    let mut first: Option<Credentials> = None;
    for thread in threads {
        let folder = format!("/proc/{}/task/{thread}", process.pid);
        let found = match fs::read_to_string(format!("{folder}/status")) {
            Ok(status) => Credentials::parse(&status).map_err(io::Error::other),
            Err(error) if is_gone(&error) => continue,
            Err(error) => Err(error),
        };
        let found = match found {
            Ok(found) => found,
            Err(source) => return unknown("its rights", source),
        };
        if found.tracer != 0 && !tree.iter().any(|other| other.pid == found.tracer) {
            whys.push(Why::Traced { by: found.tracer });
        }
        let place = match place(&folder, rules.uid) {
            Ok(place) => place,
            Err(error) if is_gone(&error) => continue,
            Err(source) => return unknown("its user namespace", source),
        };
        match (place, rules.namespaces) {
            (Place::Host, _) | (Place::Own, Namespaces::Own) => {}
            (Place::Own, Namespaces::Host) | (Place::Other, _) => whys.push(Why::UserNamespace),
        }
        match &first {
            None => {
                whys.extend(judge(&found, place, rules));
                first = Some(found);
            }
            Some(first) if first.rights() != found.rights() => {
                whys.push(Why::Thread { thread, what: "rights" });
            }
            Some(_) => {}
        }
    }
    whys
}

fn judge(found: &Credentials, place: Place, rules: &Rules<'_>) -> Vec<Why> {
    let mut whys = Vec::new();
    if let Some(&uid) = found.uids.iter().find(|&&uid| uid != rules.uid) {
        whys.push(Why::User { found: uid, expected: rules.uid });
    }
    if !found.no_new_privs {
        whys.push(Why::NewPrivileges);
    }
    // Over a namespace of its own a process has them all, and none over what is outside.
    let harmless = place == Place::Own && rules.namespaces == Namespaces::Own;
    if !found.capabilities.is_empty() && !harmless {
        whys.push(Why::Capabilities { sets: found.capabilities.join(", ") });
    }
    let held: BTreeSet<u32> = found.gids.iter().chain(&found.groups).copied().collect();
    for gid in held {
        if let Some((_, name)) = rules.barred_groups.iter().find(|(barred, _)| *barred == gid) {
            whys.push(Why::Group { group: name.clone() });
        }
    }
    whys
}

/// In which user namespace a thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The daemon's.
    Host,
    /// One that the agent made, or that was made in such a one.
    Own,
    /// Another.
    Other,
}

/// The kernel's own limit on how deep they lie (user_namespaces(7)).
const NESTING: usize = 32;

fn place(folder: &str, uid: u32) -> io::Result<Place> {
    let number = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let host = number(fs::metadata("/proc/self/ns/user")?);
    let mut namespace = File::open(format!("{folder}/ns/user"))?;
    if number(namespace.metadata()?) == host {
        return Ok(Place::Host);
    }
    for _ in 0..NESTING {
        if sys::owner(&namespace)? != uid {
            return Ok(Place::Other);
        }
        namespace = match sys::parent(&namespace) {
            // Not below the daemon's.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(Place::Other),
            parent => parent?,
        };
        if number(namespace.metadata()?) == host {
            return Ok(Place::Own);
        }
    }
    Ok(Place::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Name:\tx\nTracerPid:\t0\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t8 9 \nCapInh:\t0000000000000000\n\
                        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n\
                        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\n";

    fn told(status: &str) -> Vec<String> {
        let groups = [(0, "root".to_owned()), (5, "docker".to_owned())];
        let rules = super::super::rules_of(7, &groups, &[]);
        judge(&Credentials::parse(status).unwrap(), Place::Host, &rules).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_namespace_is_the_agents_own_when_the_agent_made_all_that_lie_between() {
        let started = |words: &[&str]| {
            let child = std::process::Command::new("setpriv").args(words).args(["sleep", "1000"]).spawn().unwrap();
            let comm = format!("/proc/{}/comm", child.id());
            let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while fs::read_to_string(&comm).unwrap() != "sleep\n" {
                assert!(std::time::Instant::now() < until);
                std::thread::yield_now();
            }
            child
        };
        let agent = ["--reuid", "2000999998", "--clear-groups"];
        let nested = [&agent[..], &["unshare", "--user", "--map-root-user", "unshare", "--user"]].concat();
        let roots = ["unshare", "--user", "setpriv", "--no-new-privs"];
        let mut children = [started(&agent), started(&nested), started(&roots)];
        let seen: Vec<Place> =
            children.iter().map(|child| place(&format!("/proc/{}", child.id()), 2_000_999_998).unwrap()).collect();
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(seen, [Place::Host, Place::Own, Place::Other]);
    }

    #[test]
    fn capabilities_are_harmless_in_a_namespace_of_the_agents_own_alone() {
        let status = Credentials::parse(&GOOD.replace("CapEff:\t0", "CapEff:\t1")).unwrap();
        let rules = |namespaces| Rules { namespaces, ..super::super::rules_of(7, &[], &[]) };
        let told = |place, namespaces| judge(&status, place, &rules(namespaces)).len();
        assert_eq!(told(Place::Own, Namespaces::Own), 0);
        for (place, namespaces) in [
            (Place::Host, Namespaces::Own),
            (Place::Other, Namespaces::Own),
            (Place::Own, Namespaces::Host),
            (Place::Host, Namespaces::Host),
        ] {
            assert_eq!(told(place, namespaces), 1);
        }
    }

    #[test]
    fn every_right_that_an_agent_may_not_have_is_told() {
        assert_eq!(told(GOOD), [""; 0]);
        let one = |from: &str, to: &str| {
            let [why] = told(&GOOD.replace(from, to)).try_into().unwrap();
            why
        };
        assert!(one("NoNewPrivs:\t1", "NoNewPrivs:\t0").starts_with("lacks no_new_privs"));
        for set in ["Inh", "Prm", "Eff", "Amb"] {
            let held = one(&format!("Cap{set}:\t0"), &format!("Cap{set}:\t1"));
            assert!(held.starts_with("holds capabilities"), "{held}");
        }
        for ids in ["6\t7\t7\t7", "7\t6\t7\t7", "7\t7\t6\t7", "7\t7\t7\t6"] {
            assert!(one("7\t7\t7\t7", ids).contains("uid 6, not as uid 7"));
        }
        assert!(one("Groups:\t8 9 ", "Groups:\t8 5 ").contains("`docker`"));
        assert!(one("8\t8\t8\t8", "8\t0\t8\t8").contains("`root`"));
        assert_eq!(told(&GOOD.replace("Uid:\t7", "Uid:\t6").replace("NoNewPrivs:\t1", "NoNewPrivs:\t0")).len(), 2);
    }

    #[test]
    fn a_status_without_a_field_is_an_error_not_a_pass() {
        for field in ["Uid", "Gid", "Groups", "CapInh", "CapAmb", "NoNewPrivs", "TracerPid"] {
            assert!(Credentials::parse(&GOOD.replace(field, "Other")).is_err(), "{field}");
        }
        assert!(Credentials::parse(&GOOD.replace("7\t7\t7\t7", "7")).is_err());
    }
}
