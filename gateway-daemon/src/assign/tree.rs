//! Finds the processes of a tree: children by their parents, and orphans by their cgroup.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    ops::RangeInclusive,
};

/// A process; its start tells it from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in ticks since the boot.
    pub(super) started: u64,
}

/// What /proc/PID/stat says, of a process or of one of its threads.
struct Stat {
    parent: u32,
    started: u64,
    ended: bool,
}

/// A user's process that lives where it should not.
pub(super) struct Stray {
    pub(super) process: Process,
    /// Its cgroup; unknown when that cannot be told.
    pub(super) cgroup: Option<String>,
}

impl Process {
    /// The process that has this number now; `None` when there is none, or only its remains.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn find(pid: u32) -> io::Result<Option<Self>> {
        Ok(stat(pid)?.filter(|stat| !stat.ended).map(|stat| Self { pid, started: stat.started }))
    }

    /// Whether it is still there. One of which that cannot be told is.
    pub(super) fn is_alive(&self) -> bool {
        Self::find(self.pid).map_or(true, |found| found.as_ref() == Some(self))
    }

    /// Its name, for people: its own choice.
    pub(super) fn name(&self) -> String {
        fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default().trim_end().to_owned()
    }

    /// Its real uid.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn uid(&self) -> io::Result<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        uids(&status).first().copied().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Its v2 cgroup.
    pub(super) fn cgroup(&self) -> Option<String> {
        let table = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).ok()?;
        table.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
    }

    /// Whether its first thread has ended while others run. Then most of what /proc says of it is empty.
    ///
    /// # Errors
    /// It cannot be told.
    pub(super) fn is_headless(&self) -> io::Result<bool> {
        Ok(read(&format!("/proc/{}/stat", self.pid))?.is_some_and(|stat| stat.ended && stat.started == self.started))
    }

    /// Its threads.
    pub(super) fn threads(&self) -> io::Result<Vec<u32>> {
        numbers(&format!("/proc/{}/task", self.pid))
    }
}

/// The tree below `root`: its descendants, and what of the same user lies in a cgroup of one of them, since a child whose
/// parent has ended is nobody's child any more; `cgroups` are those of members that were moved. Whatever lies in or below one
/// of `except` is left out.
///
/// # Errors
/// /proc cannot be read.
pub(super) fn tree<'a>(
    root: Process,
    uid: u32,
    except: &[String],
    cgroups: impl IntoIterator<Item = &'a String>,
) -> io::Result<BTreeSet<Process>> {
    let mut parents: HashMap<Process, u32> = HashMap::new();
    for pid in numbers("/proc")? {
        if let Some(stat) = stat(pid)?.filter(|stat| !stat.ended) {
            parents.insert(Process { pid, started: stat.started }, stat.parent);
        }
    }
    let mut found = BTreeSet::from([root]);
    let mut pids = HashSet::from([root.pid]);
    let mut cgroups: HashSet<String> = cgroups.into_iter().cloned().collect();
    loop {
        let before = found.len();
        cgroups.extend(found.iter().filter_map(Process::cgroup).filter(|cgroup| !lies_in_one(cgroup, except)));
        for (process, parent) in &parents {
            let orphan =
                || process.cgroup().is_some_and(|cgroup| cgroups.contains(&cgroup)) && has_uid(process.pid, uid);
            if !found.contains(process) && (pids.contains(parent) || orphan()) {
                found.insert(*process);
                pids.insert(process.pid);
            }
        }
        if found.len() == before {
            return Ok(found);
        }
    }
}

/// Whether a cgroup is another one or lies below it.
pub(super) fn lies_in(cgroup: &str, other: &str) -> bool {
    cgroup.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a cgroup is one of others or lies below it.
pub(super) fn lies_in_one(cgroup: &str, others: &[String]) -> bool {
    others.iter().any(|other| lies_in(cgroup, other))
}

/// The processes of a user that are not among `known` and live in none of the cgroups `except`: helpers that have left the
/// tree, with which it could go on speaking.
///
/// # Errors
/// /proc cannot be read.
pub(super) fn strays(uid: u32, known: &BTreeSet<Process>, except: &[String]) -> io::Result<Vec<Stray>> {
    let mut strays = Vec::new();
    for pid in numbers("/proc")? {
        let of_user = match fs::read_to_string(format!("/proc/{pid}/status")) {
            Ok(status) => uids(&status).contains(&uid),
            Err(error) if is_gone(&error) => false,
            Err(error) => return Err(error),
        };
        if !of_user {
            continue;
        }
        let Some(process) = Process::find(pid)?.filter(|process| !known.contains(process)) else { continue };
        let cgroup = process.cgroup();
        if !cgroup.as_ref().is_some_and(|cgroup| lies_in_one(cgroup, except)) && process.is_alive() {
            strays.push(Stray { process, cgroup });
        }
    }
    Ok(strays)
}

fn has_uid(pid: u32, uid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    uids(&status).contains(&uid)
}

/// The four uids of a /proc/PID/status.
fn uids(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The uids of a range that some process has.
///
/// # Errors
/// A process cannot be looked at, so that it may have any.
pub fn living_uids(range: &RangeInclusive<u32>) -> io::Result<HashSet<u32>> {
    let mut living = HashSet::new();
    for pid in numbers("/proc")? {
        match fs::read_to_string(format!("/proc/{pid}/status")) {
            Ok(status) => living.extend(uids(&status).into_iter().filter(|uid| range.contains(uid))),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(living)
}

/// The folders of `path` that are numbers.
pub(super) fn numbers(path: &str) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(found)
}

/// What a look at a process that has just ended says.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// What a process is. One whose first thread has ended is a zombie to its stat file while the others run, so it has ended only
/// when all of them have.
fn stat(pid: u32) -> io::Result<Option<Stat>> {
    let Some(mut stat) = read(&format!("/proc/{pid}/stat"))? else { return Ok(None) };
    if stat.ended {
        stat.ended = !has_living_thread(pid)?;
    }
    Ok(Some(stat))
}

fn has_living_thread(pid: u32) -> io::Result<bool> {
    let threads = match numbers(&format!("/proc/{pid}/task")) {
        Err(error) if is_gone(&error) => return Ok(false),
        threads => threads?,
    };
    for thread in threads {
        if read(&format!("/proc/{pid}/task/{thread}/stat"))?.is_some_and(|stat| !stat.ended) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads a stat file; `None` when its process or thread is gone.
fn read(path: &str) -> io::Result<Option<Stat>> {
    match fs::read(path) {
        Ok(text) => match parse(&String::from_utf8_lossy(&text)) {
            Some(stat) => Ok(Some(stat)),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} is not understood"))),
        },
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// proc(5): the name is in brackets and may hold any character; the last bracket ends it.
fn parse(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    // Field 22; what is left begins with field 5.
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat { parent, started, ended })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pass_for_other_fields() {
        let stat = parse("7 (a) S 1 (b) R 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23").unwrap();
        assert_eq!((stat.parent, stat.started, stat.ended), (4, 22, false));
        assert!(parse("7 (a) Z").is_none());
    }

    #[test]
    fn a_cgroup_lies_in_itself_and_below_others_of_whole_names() {
        assert!(lies_in("/weir", "/weir") && lies_in("/weir/a", "/weir"));
        assert!(!lies_in("/weird", "/weir") && !lies_in("/", "/weir"));
    }

    #[test]
    fn a_child_and_its_child_are_of_the_tree() {
        let mut child = std::process::Command::new("sh").args(["-c", "sleep 1000 & wait"]).spawn().unwrap();
        let root = Process::find(child.id()).unwrap().unwrap();
        // Nobody has that user, so no orphan of another test's joins.
        let two = || tree(root, u32::MAX, &["/weir".to_owned()], []).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while two().len() < 2 {
            assert!(std::time::Instant::now() < until);
            std::thread::yield_now();
        }
        for process in two().into_iter().rev() {
            let pid = rustix::process::Pid::from_raw(process.pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        child.wait().unwrap();
        assert!(!root.is_alive());
    }

    /// Its first thread ends while another goes on, by the system call itself: what exits the interpreter ends both.
    const HEADLESS: &str = "import ctypes, threading, time
threading.Thread(target=lambda: time.sleep(1000)).start()
ctypes.CDLL(None).syscall(60 if __import__('platform').machine() == 'x86_64' else 93, 0)";

    #[test]
    fn a_process_lives_while_one_of_its_threads_does() {
        let mut child = std::process::Command::new("python3").args(["-c", HEADLESS]).spawn().unwrap();
        let pid = child.id();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !read(&format!("/proc/{pid}/stat")).unwrap().unwrap().ended {
            assert!(std::time::Instant::now() < until);
            std::thread::yield_now();
        }
        let process = Process::find(pid).unwrap().unwrap();
        let seen = (process.is_alive(), process.is_headless().unwrap(), stat(pid).unwrap().unwrap().ended);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, (true, true, false));
        assert!(!process.is_alive());
    }

    #[test]
    fn what_has_the_user_and_lives_elsewhere_is_a_stray() {
        let nobody = 2_000_999_999;
        let mut child = std::process::Command::new("setpriv")
            .args(["--reuid", &nobody.to_string(), "--clear-groups", "sleep", "1000"])
            .spawn()
            .unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !has_uid(child.id(), nobody) {
            assert!(std::time::Instant::now() < until);
            std::thread::yield_now();
        }
        let process = Process::find(child.id()).unwrap().unwrap();
        let found = |known: &[Process], except: &[&str]| {
            let except: Vec<String> = except.iter().map(|&cgroup| cgroup.to_owned()).collect();
            let found = strays(nobody, &known.iter().copied().collect(), &except).unwrap();
            found.into_iter().map(|stray| stray.process).collect::<Vec<_>>()
        };
        let seen = [found(&[], &[]), found(&[process], &[]), found(&[], &[process.cgroup().unwrap().as_str()])];
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, [vec![process], vec![], vec![]]);
    }
}
