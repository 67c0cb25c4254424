//! The home folders of runs that have a uid of a pool: made for one run, and gone before its uid is another's.
//!
//! What lies in a home is its agent's doing: trees deeper than a stack, more folders than there are descriptors, links
//! anywhere. So a home is cleared without recursion: a folder that is not empty is moved up into the home itself before it is
//! looked into. Four descriptors are open at most, each name is looked up in an open folder, and no link is followed. One
//! home is cleared at a time, in steps, so that a huge one keeps nobody else's waiting.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::CStr,
    fs, io,
    ops::RangeInclusive,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, unlinkat},
    io::Errno,
};

use crate::{
    guarded::{Sticky, open_to_others},
    identity::RunId,
};

/// What others than root see of the folder of homes: they pass through, and do not list.
const MODE: u32 = 0o711;
/// Files and folders that are removed in one step.
const STEP: usize = 20_000;
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// How a folder is opened: itself, never what a link means.
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

/// The homes of a host's runs.
pub(super) struct Homes {
    folder: PathBuf,
    /// Held while a step is done; first come, first served.
    turn: tokio::sync::Mutex<()>,
    /// Homes of runs that have ended which are still there, and why.
    left: Mutex<BTreeMap<RunId, String>>,
}

impl Homes {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), turn: tokio::sync::Mutex::default(), left: Mutex::default() }
    }

    /// Makes the folder of all homes, and looks whether others than root could put something in a home's place.
    ///
    /// # Errors
    /// They could, or it cannot be made.
    pub(super) fn prepare(folder: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(MODE).create(folder)?;
        // Whatever the daemon's umask is.
        fs::set_permissions(folder, fs::Permissions::from_mode(MODE))?;
        let real = folder.canonicalize()?;
        for (above, step) in real.ancestors().enumerate() {
            let found = fs::metadata(step)?;
            let sticky = if above == 0 { Sticky::Counts } else { Sticky::Guards };
            if let Some(fault) = open_to_others(found.uid(), found.gid(), found.mode(), 0, sticky) {
                let message = format!("`{}` {fault}, so another could have an agent's home", step.display());
                return Err(io::Error::other(message));
            }
        }
        Ok(())
    }

    /// Makes the home of a run, for its uid alone.
    pub(super) fn make(&self, run: RunId, uid: u32) -> io::Result<PathBuf> {
        let home = self.home(run);
        fs::DirBuilder::new().mode(0o700).create(&home)?;
        chown(&home, Some(uid), Some(uid))?;
        Ok(home)
    }

    /// The uids of a range to which a home belongs that is there: nobody else's, even when no run is known to have them.
    pub(super) fn owners(&self, range: &RangeInclusive<u32>) -> io::Result<HashSet<u32>> {
        let mut owners = HashSet::new();
        for entry in fs::read_dir(&self.folder)? {
            match entry?.metadata() {
                Ok(metadata) => owners.extend(Some(metadata.uid()).filter(|uid| range.contains(uid))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(owners)
    }

    /// Homes that are left over, with what keeps them.
    pub(super) fn left(&self) -> Vec<(PathBuf, String)> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.iter().map(|(run, why)| (self.home(*run), why.clone())).collect()
    }

    /// Removes the home of a run that has ended, if it had one. Comes back when it is gone.
    pub(super) async fn remove(self: &Arc<Self>, run: RunId) {
        loop {
            let its = self.clone();
            let turn = self.turn.lock().await;
            let step = tokio::task::spawn_blocking(move || clear(&its.folder, &run.to_string(), STEP)).await;
            drop(turn);
            match step.map_err(io::Error::other).flatten() {
                Ok(Progress::Gone) => break,
                Ok(Progress::More) => self.note(run, "is being removed".to_owned()),
                Err(error) => {
                    let why = format!("cannot be removed: {error}");
                    if self.note(run, why) {
                        tracing::error!(home = %self.home(run).display(), %error, "a run's home is left over; its uid stays taken");
                    }
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
        }
        self.left.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
    }

    /// Begins to remove the homes of runs that nobody knows any more, as after a boot. No new run may have begun.
    pub(super) fn sweep(self: &Arc<Self>, known: &BTreeSet<RunId>) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let run = entry.file_name().to_str().and_then(|name| name.parse::<RunId>().ok());
            if let Some(run) = run.filter(|run| !known.contains(run)) {
                let its = self.clone();
                tokio::spawn(async move { its.remove(run).await });
            }
        }
    }

    /// Whether that is news.
    fn note(&self, run: RunId, why: String) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.insert(run, why.clone()).as_ref() != Some(&why)
    }

    fn home(&self, run: RunId) -> PathBuf {
        self.folder.join(run.to_string())
    }
}

/// How far a step came.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Gone,
    More,
}

/// Removes up to `most` files and folders of the folder `name` in `parent`, and at last itself. Blocks.
fn clear(parent: &Path, name: &str, most: usize) -> io::Result<Progress> {
    let parent = match openat(CWD, parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Progress::Gone),
        opened => opened?,
    };
    let top = match openat(&parent, name, FOLDER, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Progress::Gone),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            unlinkat(&parent, name, AtFlags::empty())?;
            return Ok(Progress::Gone);
        }
        opened => opened?,
    };
    let mut clearing = Clearing { top: top.as_fd(), left: most, next: fresh() };
    if clearing.empty_top()? == Progress::More {
        return Ok(Progress::More);
    }
    match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(Progress::Gone),
        // Somebody holds a folder in it open, and made something.
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Progress::More),
        Err(errno) => Err(errno.into()),
    }
}

/// Where the names begin that folders get which are moved up: elsewhere each time, since a step before may have left some.
fn fresh() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// A step.
struct Clearing<'a> {
    /// The folder that is to go, into which deeper ones are moved.
    top: BorrowedFd<'a>,
    /// What may still be removed.
    left: usize,
    next: u128,
}

impl Clearing<'_> {
    /// Removes all that is in the top folder.
    fn empty_top(&mut self) -> io::Result<Progress> {
        self.empty(self.top, |clearing, name| clearing.empty_child(name))
    }

    /// Removes a folder that lies in the top one and is not empty; folders in it that are not empty come up beside it.
    fn empty_child(&mut self, name: &CStr) -> io::Result<Progress> {
        let child: OwnedFd = match openat(self.top, name, FOLDER, Mode::empty()) {
            // Somebody who holds the top folder open put another thing there: it is met again.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Progress::Gone),
            opened => opened?,
        };
        let emptied = self.empty(child.as_fd(), |clearing, below| clearing.move_up(child.as_fd(), below))?;
        if emptied == Progress::Gone {
            is_removed(self.top, name)?;
        }
        Ok(emptied)
    }

    /// Removes all that is in a folder, but for folders that are not empty: those are left to `full`.
    fn empty(
        &mut self,
        folder: BorrowedFd<'_>,
        mut full: impl FnMut(&mut Self, &CStr) -> io::Result<Progress>,
    ) -> io::Result<Progress> {
        loop {
            let mut seen = false;
            // A name that comes while the folder is read may be passed over, so it is read until there is none.
            for entry in Dir::read_from(folder)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                seen = true;
                let Some(left) = self.left.checked_sub(1) else { return Ok(Progress::More) };
                self.left = left;
                if !is_removed(folder, name)? && full(self, name)? == Progress::More {
                    return Ok(Progress::More);
                }
            }
            if !seen {
                return Ok(Progress::Gone);
            }
        }
    }

    fn move_up(&mut self, from: BorrowedFd<'_>, name: &CStr) -> io::Result<Progress> {
        loop {
            let fresh = format!("{:x}", self.next);
            self.next = self.next.wrapping_add(1);
            match renameat(from, name, self.top, fresh.as_str()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(Progress::Gone),
                // The name is taken.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Removes a file, a link or an empty folder; whether it is gone. One that is not is a folder with something in it.
fn is_removed(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    let refused = match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(errno @ (Errno::ISDIR | Errno::PERM)) => errno,
        Err(errno) => return Err(errno.into()),
    };
    match unlinkat(folder, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(Errno::NOTDIR) => Err(refused.into()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;

    use super::*;

    const RUN: &str = "00000000000000aa";

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    /// Clears a folder step by step; how many there were.
    fn cleared(parent: &Path, most: usize) -> usize {
        let mut steps = 1;
        while clear(parent, RUN, most).unwrap() == Progress::More {
            steps += 1;
            assert!(steps < 100_000);
        }
        assert!(!parent.join(RUN).exists());
        steps
    }

    /// A chain of folders below one.
    fn deepen(folder: &Path, depth: usize) {
        let mut folder = openat(CWD, folder, FOLDER, Mode::empty()).unwrap();
        for _ in 0..depth {
            mkdirat(&folder, "d", Mode::RWXU).unwrap();
            folder = openat(&folder, "d", FOLDER, Mode::empty()).unwrap();
        }
    }

    #[tokio::test]
    async fn a_home_is_its_users_alone_and_goes_without_following_links() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, homes) = (folder.path().join("kept"), folder.path().join("homes"));
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        Homes::prepare(&homes).unwrap();
        let homes = Arc::new(Homes::new(&homes));
        let run: RunId = RUN.parse().unwrap();
        let uid = nix::unistd::getuid().as_raw();
        let own = homes.make(run, uid).unwrap();
        assert_eq!(mode(&own), 0o700);
        assert!(homes.make(run, uid).is_err(), "what is there already is another's");
        assert!(homes.owners(&(uid..=uid)).unwrap().contains(&uid));
        symlink(&kept, own.join("link")).unwrap();
        fs::create_dir(own.join("sub")).unwrap();
        symlink(&kept, own.join("sub/link")).unwrap();
        homes.remove(run).await;
        assert!(!own.exists() && kept.join("file").exists());
        assert_eq!((homes.left(), homes.owners(&(uid..=uid)).unwrap().len()), (vec![], 0));
        // One that never was is gone as well.
        homes.remove(run).await;
    }

    #[test]
    fn a_tree_deeper_than_any_stack_and_wider_than_a_step_is_cleared() {
        // In memory: a disk takes a millisecond for each.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let home = folder.path().join(RUN);
        fs::create_dir(&home).unwrap();
        deepen(&home, 70_000);
        for name in ["x", "y"] {
            fs::create_dir(home.join(name)).unwrap();
            deepen(&home.join(name), 100);
            for file in 0..500 {
                fs::write(home.join(name).join(file.to_string()), "").unwrap();
            }
        }
        assert!(cleared(folder.path(), 1_000) > 70);
    }

    #[test]
    fn names_that_a_moved_folder_would_get_may_be_taken() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join(RUN);
        fs::create_dir_all(home.join("a/b/c")).unwrap();
        fs::write(home.join("0"), "").unwrap();
        fs::create_dir_all(home.join("1/full")).unwrap();
        let top = openat(CWD, &home, FOLDER, Mode::empty()).unwrap();
        let a = openat(&top, "a", FOLDER, Mode::empty()).unwrap();
        let mut clearing = Clearing { top: top.as_fd(), left: 9, next: 0 };
        clearing.move_up(a.as_fd(), c"b").unwrap();
        assert!(home.join("2/c").exists() && home.join("0").exists() && home.join("1/full").exists());
        assert_eq!(cleared(folder.path(), 1_000), 1);
    }

    #[test]
    fn the_folder_of_homes_is_roots_and_passable_whatever_the_umask_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let homes = folder.path().join("homes");
        fs::create_dir(&homes).unwrap();
        fs::set_permissions(&homes, fs::Permissions::from_mode(0o777)).unwrap();
        Homes::prepare(&homes).unwrap();
        assert_eq!(mode(&homes), 0o711);
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let told = Homes::prepare(&homes).unwrap_err().to_string();
        assert!(told.contains("can be written by everybody"), "{told}");
    }
}
