//! On a terminal: the leader of the agent's session.
//!
//! Without it the command itself would lead the session, and the kernel does not stop a session's leader that has no
//! parent there: Ctrl-Z would do nothing. So the small launcher, confined like the agent and with nothing that the
//! agent has not, stays between: it gives the command a process group, hands it the terminal, tells the daemon when it
//! stops and ends, and ends in the same way.

use std::{
    convert::Infallible,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, Signal, WaitOptions, WaitStatus, waitpid},
    termios::tcsetpgrp,
};

use super::{
    Exit, Ground, Order, Report, RunSpec, Step,
    child::{At, Failure, exec, report_failure, report_to, terminal},
    sys::{self, Fork, SignalSet},
};
use crate::control::{Incoming, Step as Read};

/// How long the session outlives its command at most, so that the last output can be read: its end hangs up the
/// terminal, and that discards what has not been.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Starts the command in a process group of its own and stays until it has ended.
pub(super) fn lead(spec: &RunSpec, channel: BorrowedFd<'_>, ground: Ground) -> Result<Infallible, Failure> {
    let name = spec.argv.first().map(|name| super::os(name).display().to_string());
    let name = name.unwrap_or_default();
    let (leader, executed) = prepare(spec, channel, ground).at(Step::Fork, name)?;
    // Closes when the command is executed, or when it has told the daemon why not.
    let _ = rustix::io::read(&executed, &mut [0_u8; 1]);
    drop(executed);
    report_to(channel, &Report::Running { pid: leader.command.as_raw_nonzero().get() });
    let exit = leader.attend();
    report_to(channel, &Report::Ended { exit });
    leader.linger();
    end_like(exit)
}

/// The session's leader and what it holds.
struct Leader<'fd> {
    channel: BorrowedFd<'fd>,
    terminal: OwnedFd,
    /// Readable when the command stopped or ended.
    children: OwnedFd,
    /// The command's process, which leads its group.
    command: Pid,
}

/// Forks the command. What comes back with the leader is the pipe that closes when it is executed.
fn prepare<'fd>(spec: &RunSpec, channel: BorrowedFd<'fd>, ground: Ground) -> io::Result<(Leader<'fd>, OwnedFd)> {
    let terminal = terminal().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTTY))?;
    let terminal = rustix::io::fcntl_dupfd_cloexec(terminal, 4)?;
    // Everything is blocked: keys and hang-ups are for the command, and a background group may set the foreground one
    // only while TTOU is blocked.
    SignalSet::all().block_only()?;
    let children = SignalSet::of(&[Signal::CHILD]).descriptor()?;
    let (executed, executing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match sys::fork()? {
        Fork::Child => {
            let group = own_group(terminal.as_fd(), ground).at(Step::Session, "the command");
            let Err(failure) = group.and_then(|()| exec(spec));
            report_failure(channel, &failure);
            std::process::exit(1)
        }
        Fork::Parent(command) => {
            drop(executing);
            let leader = Leader { channel, terminal, children, command };
            // Done on both sides, as in any shell: whoever comes second finds it done.
            let _ = rustix::process::setpgid(Some(command), Some(command));
            leader.let_go_of_stdio()?;
            Ok((leader, executed))
        }
    }
}

/// In the command's process: its own group, in the foreground if it is to be, and no signal blocked.
fn own_group(terminal: BorrowedFd<'_>, ground: Ground) -> io::Result<()> {
    rustix::process::setpgid(None, None)?;
    if ground.is_foreground() {
        tcsetpgrp(terminal, rustix::process::getpid())?;
    }
    SignalSet::of(&[]).block_only()
}

impl Leader<'_> {
    /// A pipe of the command's ends when the command lets go of it, not when its session does.
    fn let_go_of_stdio(&self) -> io::Result<()> {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(())
    }

    /// Until the command has ended.
    fn attend(&self) -> Exit {
        let mut incoming = Incoming::default();
        // A daemon that goes away takes no run with it.
        let mut daemon = Some(self.channel);
        loop {
            if let Some(exit) = self.look_at_command() {
                return exit;
            }
            let mut events = vec![PollFd::new(&self.children, PollFlags::IN)];
            events.extend(daemon.iter().map(|channel| PollFd::new(channel, PollFlags::IN)));
            if poll(&mut events, None).is_err() {
                continue;
            }
            let ordered = events.get(1).is_some_and(|event| !event.revents().is_empty());
            while let Ok(Some(_)) = sys::next_signal(self.children.as_fd()) {}
            if !ordered {
                continue;
            }
            match incoming.receive(self.channel) {
                Ok(Read::More) => {}
                Ok(Read::Message(message)) => {
                    if let Ok(order) = message.parse() {
                        self.obey(order);
                    }
                }
                Ok(Read::Closed) | Err(_) => daemon = None,
            }
        }
    }

    /// What became of the command since the last look.
    fn look_at_command(&self) -> Option<Exit> {
        loop {
            let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
            let status: WaitStatus = match waitpid(Some(self.command), options) {
                Ok(Some((_, status))) => status,
                Ok(None) => return None,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Some(Exit::Lost),
            };
            if let Some(signal) = status.stopping_signal() {
                report_to(self.channel, &Report::Stopped { signal });
            } else if let Some(exit) = Exit::of(status) {
                return Some(exit);
            }
        }
    }

    fn obey(&self, order: Order) {
        // A command that has just ended needs neither signal nor terminal, hence no error.
        match order {
            Order::Signal { signal } => {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    let _ = rustix::process::kill_process(self.command, signal);
                }
            }
            Order::Resume { ground } => {
                let group = match ground {
                    Ground::Foreground => self.command,
                    Ground::Background => rustix::process::getpgrp(),
                };
                let _ = tcsetpgrp(&self.terminal, group);
                let _ = rustix::process::kill_process_group(self.command, Signal::CONT);
            }
        }
    }

    /// Waits until the daemon lets go of the channel: the output is read.
    fn linger(&self) {
        // What the command left running in the background is not hung up as the foreground would be.
        let _ = tcsetpgrp(&self.terminal, rustix::process::getpgrp());
        let deadline = std::time::Instant::now() + DRAIN_DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let Ok(left) = rustix::event::Timespec::try_from(left) else { return };
            let mut events = [PollFd::new(&self.channel, PollFlags::IN)];
            match poll(&mut events, Some(&left)) {
                Ok(0) => return,
                Ok(_) => {}
                Err(_) => continue,
            }
            // Orders that come too late are read past.
            match rustix::io::read(self.channel, &mut [0_u8; 256]) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

/// Ends this process the way the command ended, so that the launcher has one way to tell.
fn end_like(exit: Exit) -> ! {
    let code = match exit {
        Exit::Code(code) => i32::from(code),
        Exit::Lost => 1,
        Exit::Signal(number) => {
            if let Some(signal) = Signal::from_named_raw(number) {
                let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
                let _ = SignalSet::of(&[signal]).unblock();
            }
            // Only a signal that does not end a process by default leads here, and no process ends by such a one.
            128_i32.saturating_add(number)
        }
    };
    std::process::exit(code)
}
