//! Keeps a run from the host's other processes, those of its own user included.
//!
//! A Landlock domain with the scopes of ABI 6 (Linux 6.12): whoever is in it signals, traces and reads (`/proc/PID/mem`,
//! `environ`, `fd`, …) processes of its own run alone, and connects to abstract Unix sockets that were made there. It handles
//! no file access, so mounts in a user namespace and renames stay as they were. Older kernels have no scopes: then the users
//! alone keep runs apart, and abstract sockets are open, as [`apartness`] says.

use std::{fs, io};

use landlock::{ABI, Access, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated, RulesetStatus, Scope};

/// What keeps a run's processes from those of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apartness {
    /// A domain of the run's own, beside the kernel's rules about users.
    Domain,
    /// The kernel's rules about users alone: it has no scopes, or Landlock is off.
    Users,
}

impl std::fmt::Display for Apartness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Domain => "by Landlock: no signal, trace, or abstract socket leads out of a run",
            Self::Users => {
                "by their users alone: runs of one user can signal and trace each other, and abstract Unix sockets of the \
                 host are open"
            }
        })
    }
}

/// What this kernel offers. Changes nothing.
///
/// # Errors
/// Landlock is there and refuses a ruleset.
pub fn apartness() -> io::Result<Apartness> {
    Ok(match ruleset()? {
        Some(_) => Apartness::Domain,
        None => Apartness::Users,
    })
}

/// Enters a domain of its own, where the kernel has them; for this thread and all that it starts. Wants `no_new_privs`.
pub(super) fn enter_domain() -> io::Result<()> {
    let Some(ruleset) = ruleset()? else { return Ok(()) };
    let status = ruleset.restrict_self().map_err(io::Error::other)?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => {
            Err(io::Error::other("the domain does not hold whole"))
        }
    }
}

/// Both scopes, or `None` where the kernel has not both.
fn ruleset() -> io::Result<Option<RulesetCreated>> {
    let asked = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).scope(Scope::from_all(ABI::V6));
    match asked {
        Ok(ruleset) => ruleset.create().map(Some).map_err(io::Error::other),
        // Nothing was asked of the kernel yet but its version.
        Err(_) => Ok(None),
    }
}

/// Sees to it that what dies leaves no memory behind, for others of its user to read. A limit of 1 byte is too small for a
/// file, and to a `core_pattern` with a pipe it means "none", where 0 is not looked at (Linux, fs/coredump.c). The filter
/// stands behind: it leaves every mapping out.
pub(super) fn leave_no_core() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) })?;
    match fs::write("/proc/self/coredump_filter", "0") {
        // A kernel that was built without core dumps.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
