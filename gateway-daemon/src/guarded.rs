//! Whether files are out of reach of everybody but their owner: what root acts by, nobody else may change, nor lead to
//! another place.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
};

const WRITABLE_BY_GROUP: u32 = 0o020;
const WRITABLE_BY_OTHERS: u32 = 0o002;
const STICKY: u32 = 0o1000;
/// Links on the way, as the kernel has it (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What the sticky bit is worth: in a folder above, only owners replace entries; in the folder itself others could add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sticky {
    /// Of a folder above.
    Guards,
    /// Of the file or folder itself.
    Counts,
}

/// How others than `owner` and root can change a file or folder, if they can.
pub(crate) fn open_to_others(uid: u32, gid: u32, mode: u32, owner: u32, sticky: Sticky) -> Option<String> {
    if uid != owner && uid != 0 {
        return Some(format!("belongs to user {uid}"));
    }
    if sticky == Sticky::Guards && mode & STICKY != 0 {
        return None;
    }
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Some("can be written by everybody".to_owned());
    }
    (mode & WRITABLE_BY_GROUP != 0 && gid != 0).then(|| format!("can be written by group {gid}"))
}

/// Why a file is not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The system's words.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A folder or a link on the way.
    #[error("{} {found}, who could put another file in its place: chown root and chmod go-w it", .at.display())]
    Way {
        /// Which.
        at: PathBuf,
        /// Whose it is, or who can write it.
        found: String,
    },
}

/// Opens a file to read, where nobody but `owner` and root can lead its path elsewhere: every folder on the way is theirs and
/// written by nobody else, and so is every link that is followed. The file itself is the caller's to judge, by its
/// descriptor.
pub(crate) fn open(path: &Path, owner: u32) -> Result<File, OpenError> {
    // Whoever is on the way is trusted now, so nothing changes between the look and the opening.
    let at = follow(path, owner)?;
    // A pipe is not waited for.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    Ok(OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(at)?)
}

/// The path without links, dots and double dots.
fn follow(path: &Path, owner: u32) -> Result<PathBuf, OpenError> {
    let guarded = |at: &Path, uid, gid, mode| match open_to_others(uid, gid, mode, owner, Sticky::Guards) {
        Some(found) => Err(OpenError::Way { at: at.to_owned(), found }),
        None => Ok(()),
    };
    // What is still to be gone, the next at the end. A path that is not absolute begins where the process is.
    let mut ahead: Vec<OsString> = parts(&std::path::absolute(path)?).collect();
    ahead.reverse();
    let (mut at, mut links) = (PathBuf::from("/"), 0_usize);
    while let Some(part) = ahead.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        let folder = at.metadata()?;
        guarded(&at, folder.uid(), folder.gid(), folder.mode())?;
        let next = at.join(&part);
        let found = next.symlink_metadata()?;
        if !found.is_symlink() {
            at = next;
            continue;
        }
        // Its mode means nothing; whoever owns it may change it.
        guarded(&next, found.uid(), found.gid(), 0)?;
        links = links.saturating_add(1);
        if links > MAX_LINKS {
            return Err(io::Error::from(rustix::io::Errno::LOOP).into());
        }
        let target = next.read_link()?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        let mut more: Vec<OsString> = parts(&target).collect();
        more.reverse();
        ahead.append(&mut more);
    }
    Ok(at)
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read as _,
        os::unix::fs::{PermissionsExt as _, chown, lchown, symlink},
    };

    use super::*;

    /// Whoever runs the tests.
    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    #[test]
    fn a_file_is_found_behind_links_of_one_s_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("below")).unwrap();
        fs::write(path("below/file"), "text").unwrap();
        symlink("below/../below", path("link")).unwrap();
        symlink(path("link/file"), path("absolute")).unwrap();
        for name in ["below/file", "below/./file", "below/../below/file", "link/file", "absolute"] {
            let mut text = String::new();
            open(&path(name), me())
                .unwrap_or_else(|error| panic!("{name}: {error}"))
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, "text", "{name}");
        }
        symlink("round", path("round")).unwrap();
        assert!(matches!(open(&path("round"), me()), Err(OpenError::Io(_))));
        assert!(matches!(open(&path("none"), me()), Err(OpenError::Io(_))));
    }

    #[test]
    fn whoever_could_lead_the_path_elsewhere_keeps_it_from_being_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("loose")).unwrap();
        fs::create_dir(path("good")).unwrap();
        fs::write(path("good/file"), "text").unwrap();
        fs::write(path("loose/file"), "text").unwrap();
        symlink("../good/file", path("loose/link")).unwrap();
        symlink("loose/link", path("link")).unwrap();
        fs::set_permissions(path("loose"), fs::Permissions::from_mode(0o777)).unwrap();
        for name in ["loose/file", "loose/link", "link", "loose/../good/file"] {
            // Through a folder and out again: nothing in it was looked up but itself.
            let expected = name != "loose/../good/file";
            let told = open(&path(name), me()).err().map(|error| error.to_string());
            assert_eq!(told.is_some(), expected, "{name}");
            assert!(told.is_none_or(|told| told.contains("loose can be written by everybody")), "{name}");
        }
        // In a folder where each may remove only what is theirs, a link of root's stays, and somebody else's is refused.
        fs::set_permissions(path("loose"), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(open(&path("link"), me()).is_ok());
        if me() == 0 {
            lchown(path("loose/link"), Some(65534), None).unwrap();
            assert!(open(&path("link"), 0).unwrap_err().to_string().contains("link belongs to user 65534"));
            chown(path("good"), Some(65534), None).unwrap();
            assert!(open(&path("good/file"), 0).unwrap_err().to_string().contains("good belongs to user 65534"));
        }
    }
}
