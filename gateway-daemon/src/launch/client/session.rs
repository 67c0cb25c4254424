//! The loop of `weir run` while its command runs.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::Signal,
};

use super::{Doing, RunError, terminal::Screen};
use crate::{
    control::{Client, ClientStep, Reply, RunInput},
    launch::{
        FORWARDED, Ground,
        sys::{self, SignalSet},
    },
};

/// The signals that arrive as bytes instead of ending or stopping `weir run`.
#[derive(Debug)]
pub(super) struct Signals(OwnedFd);

impl Signals {
    /// Blocks them in this thread and those it starts. STOP cannot be caught, and CONT has done its work by itself.
    pub(super) fn catch() -> io::Result<Self> {
        let caught: Vec<Signal> = FORWARDED
            .into_iter()
            .filter(|signal| ![Signal::STOP, Signal::CONT].contains(signal))
            .chain([Signal::WINCH, Signal::TTOU])
            .collect();
        let set = SignalSet::of(&caught);
        set.block_only()?;
        // TTOU stays blocked and unread: then the terminal can be restored from the background as well.
        let read: Vec<Signal> = caught.into_iter().filter(|signal| *signal != Signal::TTOU).collect();
        SignalSet::of(&read).descriptor().map(Self)
    }
}

/// Relays until the command has ended; gives the status to exit with.
pub(super) fn attend(client: Client, signals: &Signals, screen: Option<Screen>) -> Result<u8, RunError> {
    let mut session = Session { client, screen };
    session.begin();
    loop {
        let [daemon, signalled] = session.wait(signals).doing("wait for the command")?;
        while signalled && let Some(signal) = next(signals)? {
            session.on_signal(signal)?;
        }
        if let Some(screen) = &mut session.screen {
            screen.relay();
        }
        if !daemon {
            continue;
        }
        match session.client.step()? {
            ClientStep::More => {}
            ClientStep::Closed => return Err(RunError::DaemonGone),
            ClientStep::Reply(reply) => {
                if let Some(code) = session.on_reply(reply)? {
                    return Ok(code);
                }
            }
        }
    }
}

fn next(signals: &Signals) -> Result<Option<i32>, RunError> {
    sys::next_signal(signals.0.as_fd()).doing("read a signal")
}

struct Session {
    client: Client,
    screen: Option<Screen>,
}

impl Session {
    /// Takes the terminal if the command was started in its foreground.
    fn begin(&mut self) {
        if let Some(screen) = &mut self.screen
            && screen.ground().is_foreground()
        {
            screen.take();
        }
    }

    /// Waits until there is something to do: whether the daemon spoke, and whether a signal came.
    fn wait(&self, signals: &Signals) -> io::Result<[bool; 2]> {
        let mut events = vec![PollFd::new(&self.client, PollFlags::IN), PollFd::new(&signals.0, PollFlags::IN)];
        events.extend(self.screen.iter().flat_map(Screen::wants));
        match poll(&mut events, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let seen = |nth: usize| events.get(nth).is_some_and(|event| !event.revents().is_empty());
        Ok([seen(0), seen(1)])
    }

    fn on_signal(&mut self, signal: i32) -> Result<(), RunError> {
        if signal == Signal::WINCH.as_raw() {
            if let Some(screen) = &self.screen {
                screen.resize();
            }
            return Ok(());
        }
        if signal == Signal::TSTP.as_raw() && self.screen.is_none() {
            // Without a terminal of its own no one tells the command to stop but us, and it cannot by itself.
            self.say(RunInput::Signal { signal: Signal::STOP.as_raw() })?;
            stop_by(Signal::TSTP).doing("stop")?;
            return self.say(RunInput::Signal { signal: Signal::CONT.as_raw() });
        }
        self.say(RunInput::Signal { signal })
    }

    fn say(&mut self, input: RunInput) -> Result<(), RunError> {
        Ok(self.client.send(&input, &[])?)
    }

    /// The status to exit with, once the command has ended.
    fn on_reply(&mut self, reply: Reply) -> Result<Option<u8>, RunError> {
        let code = match reply {
            Reply::Stopped { signal } => {
                self.on_stop(signal)?;
                return Ok(None);
            }
            Reply::Exited { code } => code,
            Reply::Killed { signal } => u8::try_from(signal).unwrap_or(u8::MAX).saturating_add(128),
            Reply::Failed { message, exit_code } => {
                return Err(RunError::Refused { message, exit_code });
            }
            Reply::Started { .. } => return Err(RunError::Unexpected),
        };
        if let Some(screen) = &mut self.screen {
            screen.drain();
            screen.restore();
            self.say(RunInput::Drained)?;
        }
        Ok(Some(code))
    }

    /// The command has stopped: because it wants the terminal, or with us and the rest of our job.
    fn on_stop(&mut self, signal: i32) -> Result<(), RunError> {
        let Some(screen) = &mut self.screen else { return Ok(()) };
        let asks = [Signal::TTIN.as_raw(), Signal::TTOU.as_raw()].contains(&signal);
        let mut ground = if asks { screen.take() } else { Ground::Background };
        if !ground.is_foreground() {
            screen.drain();
            screen.restore();
            let stopped = stop_by(if asks { Signal::TTIN } else { Signal::TSTP }).doing("stop")?;
            ground = screen.take();
            if !stopped {
                // Nobody could wake us again. The command waits for keys then, rather than stop over and over.
                ground = Ground::Foreground;
            }
        }
        self.say(RunInput::Resume { ground })
    }
}

/// Stops our whole job until someone continues it, and says whether it did: a group that no shell looks after
/// (orphaned) is not stopped by the kernel.
fn stop_by(signal: Signal) -> io::Result<bool> {
    let (stop, wake) = (SignalSet::of(&[signal]), SignalSet::of(&[Signal::CONT]));
    wake.block()?;
    let woken = wake.descriptor()?;
    rustix::process::kill_current_process_group(signal)?;
    stop.unblock()?;
    stop.block()?;
    let stopped = sys::next_signal(woken.as_fd())?.is_some();
    wake.unblock()?;
    Ok(stopped)
}
