//! What the command gets as descriptors 0, 1 and 2.

use std::{
    io::{Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::{Duration, Instant},
};

use super::{Doing, RunError, terminal::Screen};
use crate::launch::descriptors::{Kind, kind};

/// How long output that is relayed through a pipe is waited for after the command has ended: what it left running may
/// hold the pipe open.
const RELAY_DEADLINE: Duration = Duration::from_secs(2);

/// Bytes relayed at once.
const CHUNK: usize = 64 << 10;

/// The three descriptors for the command.
#[derive(Debug)]
pub(super) struct Stdio([OwnedFd; 3]);

impl Stdio {
    pub(super) fn borrow(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// Looks at the caller's descriptors and replaces what the command must not have. Threads begin here, so signals must
/// be blocked already.
pub(super) fn prepare() -> Result<(Stdio, Relays, Option<Screen>), RunError> {
    let own = [
        std::io::stdin().as_fd().try_clone_to_owned().doing("look at descriptor 0")?,
        std::io::stdout().as_fd().try_clone_to_owned().doing("look at descriptor 1")?,
        std::io::stderr().as_fd().try_clone_to_owned().doing("look at descriptor 2")?,
    ];
    let mut kinds = [Kind::Other; 3];
    for (found, descriptor) in kinds.iter_mut().zip(&own) {
        *found = kind(descriptor).doing("look at the descriptors 0 to 2")?;
    }
    let user = own.iter().zip(kinds).find_map(|(fd, kind)| (kind == Kind::Terminal).then_some(fd));
    let opened = user.map(|user| Screen::open(user.as_fd(), kinds)).transpose()?;
    let (screen, slave) = opened.unzip();
    let mut relays = Relays::new();
    let [stdin, stdout, stderr] = own;
    let [in_kind, out_kind, err_kind] = kinds;
    let place = |descriptor: OwnedFd, kind: Kind| match (kind, &slave) {
        (Kind::Bytes, _) => Ok(Given::Itself(descriptor)),
        (Kind::Terminal, Some(slave)) => slave.try_clone().map(Given::Itself),
        (Kind::Terminal, None) | (Kind::Other, _) => Ok(Given::Relayed(descriptor)),
    };
    let stdin = match place(stdin, in_kind).doing("pass the terminal")? {
        Given::Itself(descriptor) => descriptor,
        Given::Relayed(descriptor) => Relays::input(descriptor)?,
    };
    let mut output = |descriptor, kind| match place(descriptor, kind).doing("pass the terminal")? {
        Given::Itself(descriptor) => Ok(descriptor),
        Given::Relayed(descriptor) => relays.output(descriptor),
    };
    let stdio = Stdio([stdin, output(stdout, out_kind)?, output(stderr, err_kind)?]);
    Ok((stdio, relays, screen))
}

/// How one of the caller's descriptors reaches the command.
enum Given {
    Itself(OwnedFd),
    Relayed(OwnedFd),
}

/// Pipes that stand for the caller's sockets, each with a thread that copies.
#[derive(Debug)]
pub(super) struct Relays {
    outputs: usize,
    done: Sender<()>,
    all_done: Receiver<()>,
}

impl Relays {
    fn new() -> Self {
        let (done, all_done) = channel();
        Self { outputs: 0, done, all_done }
    }

    /// A pipe's reading end, fed from `source`. Nobody waits for it: a command need not read to the end.
    fn input(source: OwnedFd) -> Result<OwnedFd, RunError> {
        let (reader, writer) = pipe()?;
        std::thread::spawn(move || copy(source, writer));
        Ok(reader)
    }

    /// A pipe's writing end, read out to `target`.
    fn output(&mut self, target: OwnedFd) -> Result<OwnedFd, RunError> {
        let (reader, writer) = pipe()?;
        let done = self.done.clone();
        std::thread::spawn(move || {
            copy(reader, target);
            // Whoever stopped waiting has said so already.
            let _ = done.send(());
        });
        self.outputs += 1;
        Ok(writer)
    }

    /// Waits until all output has been passed on, though not for ever.
    pub(super) fn finish(self) {
        let deadline = Instant::now() + RELAY_DEADLINE;
        for _ in 0..self.outputs {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.all_done.recv_timeout(left) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), RunError> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing("make a pipe")
}

/// Copies until either side ends. Errors end it too: the command sees its pipe close.
fn copy(from: OwnedFd, to: OwnedFd) {
    let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if to.write_all(chunk.get(..read).unwrap_or_default()).is_err() {
                    return;
                }
            }
        }
    }
}
