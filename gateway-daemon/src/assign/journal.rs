//! Where the processes of a tree were before they were moved, on the disk: a daemon that is killed in between leaves them frozen
//! in a run's cgroup, unjudged, and the next one brings them back.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{Process, tree::lies_in};
use crate::redirect::cgroup::{CgroupError, CgroupRoot};

/// The journal of one move: a line a process, written before the process is moved. It is not synced: what a crash of the host
/// loses the host has ended.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Begins one, in a file that is not there yet.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn begin(path: PathBuf) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = File::options().write(true).create_new(true).open(&path)?;
        Ok(Self { path, file })
    }

    pub(super) fn note(&mut self, process: Process, cgroup: &str) -> io::Result<()> {
        // As JSON, since a cgroup may be called anything.
        let line = serde_json::to_string(&(process.pid, process.started, cgroup))?;
        self.file.write_all(format!("{line}\n").as_bytes())
    }

    /// The move is over, either way.
    pub(super) fn end(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// Brings back what a move that never ended has left in `cgroup`, lets it run, and removes the journal. The run must have no
/// identity any more.
///
/// # Errors
/// The journal cannot be read or removed, or the cgroup not be thawed.
pub fn undo(cgroups: &CgroupRoot, cgroup: &str, journal: &Path) -> Result<(), CgroupError> {
    let failed = |attempt| {
        let path = journal.to_owned();
        move |source| CgroupError::Io { path, attempt, source }
    };
    let noted = fs::read_to_string(journal).map_err(failed("read"))?;
    // The last line may be cut off: its process was not moved yet.
    let noted: Vec<(Process, String)> = noted.lines().filter_map(parse).collect();
    for (process, before) in &noted {
        if process.cgroup().is_some_and(|now| lies_in(&now, cgroup)) {
            process.go_back(cgroups, before);
        }
    }
    // Born of one that ran on for a moment.
    let first = noted.first().map_or("/", |(_, before)| before.as_str());
    for pid in fs::read_to_string(cgroups.path(cgroup).join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(process) = pid.parse().ok().and_then(|pid| Process::find(pid).ok().flatten()) {
            process.go_back(cgroups, first);
        }
    }
    match fs::write(cgroups.path(cgroup).join("cgroup.freeze"), "0") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("thawed")(error)),
        _ => {}
    }
    fs::remove_file(journal).map_err(failed("removed"))
}

fn parse(line: &str) -> Option<(Process, String)> {
    let (pid, started, cgroup) = serde_json::from_str(line).ok()?;
    Some((Process { pid, started }, cgroup))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_back_and_a_line_that_was_cut_off_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("assigning/1");
        let mut journal = Journal::begin(path.clone()).unwrap();
        assert!(Journal::begin(path.clone()).is_err(), "one move has one");
        let (one, two) = (Process { pid: 7, started: 8 }, Process { pid: 9, started: 10 });
        journal.note(one, "/a").unwrap();
        journal.note(two, "/new\nline \"b\"").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let read: Vec<_> = text.lines().filter_map(parse).collect();
        assert_eq!(read, [(one, "/a".to_owned()), (two, "/new\nline \"b\"".to_owned())]);
        let (_, last) = text.trim_end().rsplit_once('\n').unwrap();
        for cut in 0..last.len() {
            assert!(parse(&last[..cut]).is_none(), "{cut}");
        }
        journal.end().unwrap();
        assert!(!path.exists());
    }
}
