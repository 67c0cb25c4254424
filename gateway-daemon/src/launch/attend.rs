//! The daemon's part while a run lasts: between its caller's connection and its command.

use std::{io, os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::time::timeout;

use super::{Event, Exit, FORWARDED, Running};
use crate::control::{Connection, Reply, RunInput};

/// How long a command may take to end after it was asked to, before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// How long the caller may take to read what an ended command has left in its pty.
const DRAIN_DEADLINE: Duration = Duration::from_secs(4);

/// Carries signals to the command and news of it to the caller, until it has ended; then the caller has been told.
///
/// A run ends with its caller: when `weir run` goes away, the command gets SIGHUP, SIGCONT and SIGTERM, and after five
/// seconds the whole cgroup is killed. (On a terminal the pty's end has sent SIGHUP already, as sudo's does.)
/// Processes that the command leaves behind when it ends are not touched here: [`kill_cgroup`] is for them.
pub async fn attend(connection: &mut Connection, running: &mut Running, cgroup: &Path) -> Exit {
    loop {
        let happened = tokio::select! {
            // What the command did comes before what the caller wants of it.
            biased;
            event = running.event() => Happened::Event(event),
            input = connection.recv::<RunInput>() => match input {
                Ok((input, _)) => Happened::Input(input),
                Err(_) => return end_run(running, cgroup).await,
            },
        };
        match happened {
            Happened::Event(Event::Ended(exit)) => {
                tell_end(connection, running, exit).await;
                return exit;
            }
            Happened::Event(Event::Stopped(signal)) => {
                if connection.send(&Reply::Stopped { signal }).await.is_err() {
                    return end_run(running, cgroup).await;
                }
            }
            Happened::Input(input) => obey(running, input).await,
        }
    }
}

enum Happened {
    Event(Event),
    Input(RunInput),
}

async fn obey(running: &mut Running, input: RunInput) {
    let done = match input {
        RunInput::Resume { ground } => running.resume(ground).await,
        RunInput::Signal { signal } => match FORWARDED.into_iter().find(|known| known.as_raw() == signal) {
            Some(signal) => running.signal(signal).await,
            None => Ok(()),
        },
        RunInput::Drained => Ok(()),
    };
    if let Err(error) = done {
        tracing::warn!(run.pid = running.pid, %error, "the run cannot be signalled");
    }
}

/// Tells the caller how it ended, and waits until they have read what it said last.
async fn tell_end(connection: &mut Connection, running: &Running, exit: Exit) {
    let reply = match exit {
        Exit::Code(code) => Reply::Exited { code },
        Exit::Signal(signal) => Reply::Killed { signal },
        Exit::Lost => Reply::Failed {
            message: "the launcher ended: what became of the command is not known".to_owned(),
            exit_code: 1,
        },
    };
    if connection.send(&reply).await.is_err() || !running.on_terminal() {
        return;
    }
    let drained = async {
        loop {
            match connection.recv::<RunInput>().await {
                Ok((RunInput::Drained, _)) | Err(_) => return,
                Ok((RunInput::Signal { .. } | RunInput::Resume { .. }, _)) => {}
            }
        }
    };
    // A caller that does not read loses the rest of the output, as at any terminal that is closed.
    let _ = timeout(DRAIN_DEADLINE, drained).await;
}

/// Ends a run whose caller is gone.
async fn end_run(running: &mut Running, cgroup: &Path) -> Exit {
    for signal in [Signal::HUP, Signal::CONT, Signal::TERM] {
        // One that has ended meanwhile is what is wanted.
        let _ = running.signal(signal).await;
    }
    if let Ok(exit) = timeout(GRACE, running.wait()).await {
        return exit;
    }
    if let Err(error) = kill_cgroup(cgroup) {
        tracing::error!(cgroup = %cgroup.display(), %error, "a run cannot be killed");
    }
    running.wait().await
}

/// Kills every process in a cgroup and below, at once (`cgroup.kill`, Linux 5.14).
///
/// The kernel gives that signal to each process's first thread alone: a process whose first thread has ended goes on by its others
/// (tried). So what is still in the cgroup gets it as a process, too.
///
/// # Errors
/// The cgroup is not there, or the system refuses.
pub fn kill_cgroup(cgroup: &Path) -> io::Result<()> {
    std::fs::write(cgroup.join("cgroup.kill"), "1")?;
    let members = || -> io::Result<Vec<Pid>> {
        let procs = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
        Ok(procs.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect())
    };
    let opened: Vec<(Pid, OwnedFd)> =
        members()?.into_iter().filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?))).collect();
    // One that was listed and has ended may have had its number taken by a stranger before it was opened.
    let still = members()?;
    for (_, pidfd) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
        match pidfd_send_signal(pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
