//! The environment that an agent starts with.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::Path,
};

/// Names that change what code a program loads, or what a library opens, before it has read its arguments.
const LOADER: [&str; 6] = ["GCONV_PATH", "GLIBC_TUNABLES", "LOCPATH", "NLSPATH", "MALLOC_TRACE", "RESOLV_HOST_CONF"];

/// Names that lead to services or secrets of the caller's session, and those that mean the caller.
const CALLER: [&str; 14] = [
    "DBUS_SESSION_BUS_ADDRESS",
    "DOCKER_HOST",
    "CONTAINER_HOST",
    "GPG_AGENT_INFO",
    "HOME",
    "KRB5CCNAME",
    "LOGNAME",
    "MAIL",
    "SHELL",
    "SSH_AGENT_PID",
    "SSH_AUTH_SOCK",
    "USER",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
];

/// Where commands are looked for when the caller says nothing.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The account that an agent runs under, as the user database has it.
#[derive(Debug, Clone, Copy)]
pub struct Account<'a> {
    /// Its name.
    pub name: &'a OsStr,
    /// Its home folder.
    pub home: &'a Path,
    /// Its shell.
    pub shell: &'a Path,
}

/// The caller's environment made fit for `account`: `LD_*` and the like are gone, as are the caller's agents, buses and
/// tickets; HOME, USER, LOGNAME and SHELL are the account's. Everything else stays, so whoever starts an agent gives
/// it what their own environment holds.
#[must_use]
pub fn environment(
    caller: impl IntoIterator<Item = (OsString, OsString)>,
    account: Account<'_>,
) -> Vec<(OsString, OsString)> {
    let mut kept: Vec<_> = caller.into_iter().filter(|(name, _)| stays(name)).collect();
    if !kept.iter().any(|(name, _)| name == "PATH") {
        kept.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    kept.push(("HOME".into(), account.home.into()));
    kept.push(("USER".into(), account.name.into()));
    kept.push(("LOGNAME".into(), account.name.into()));
    kept.push(("SHELL".into(), account.shell.into()));
    kept
}

fn stays(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    // A name that is empty or holds `=` cannot be told from another one by who reads it.
    !bytes.is_empty()
        && !bytes.contains(&b'=')
        && !bytes.contains(&0)
        && !bytes.starts_with(b"LD_")
        && !LOADER.iter().chain(&CALLER).any(|gone| name == *gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_and_the_callers_session_are_left_behind() {
        let account = Account { name: OsStr::new("bot"), home: Path::new("/home/bot"), shell: Path::new("/bin/sh") };
        let caller = [
            ("LD_PRELOAD", "/tmp/x.so"),
            ("LD_LIBRARY_PATH", "/tmp"),
            ("SSH_AUTH_SOCK", "/tmp/s"),
            ("HOME", "/root"),
            ("TERM", "xterm"),
            ("PGHOST", "db"),
        ];
        let caller = caller.map(|(name, value)| (name.into(), value.into()));
        let mut got: Vec<String> = environment(caller, account)
            .into_iter()
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect();
        got.sort();
        assert_eq!(
            got,
            [
                "HOME=/home/bot",
                "LOGNAME=bot",
                "PATH=/usr/local/bin:/usr/bin:/bin",
                "PGHOST=db",
                "SHELL=/bin/sh",
                "TERM=xterm",
                "USER=bot"
            ]
        );
    }
}
