//! The daemon's handle on the launcher process and on each run.

use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::process::{Signal, pidfd_send_signal};
use tokio::{
    net::UnixStream,
    sync::{oneshot, watch},
    task::AbortHandle,
    time::timeout,
};

use super::{Exit, Ground, Launch, LaunchError, Notice, Order, Report, RunSpec};
use crate::control::{FrameError, Incoming, Step, receive, send};

/// How long a process that could not become the command may take to be gone.
const REAP_DEADLINE: Duration = Duration::from_secs(1);

/// How long a command may take from the order until it is executed; file systems can be slow.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Splits off the launcher. To be called first of all in `weir daemon`, while there is one thread and nothing secret:
/// the binary is executed anew as `weir launcher`, with an empty environment and one socket as its descriptor 0.
/// (Forking alone would leave it the daemon's memory, and an address space laid out alike.)
///
/// # Errors
/// The system refuses a socket or a process.
pub fn split_off() -> io::Result<LauncherProcess> {
    split_off_from(Path::new("/proc/self/exe"))
}

/// As [`split_off`], from another `weir` binary than the running one.
///
/// # Errors
/// The system refuses a socket or a process.
pub fn split_off_from(weir: &Path) -> io::Result<LauncherProcess> {
    let (ours, theirs) = StdUnixStream::pair()?;
    let process =
        Command::new(weir).arg("launcher").env_clear().stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).spawn()?;
    Ok(LauncherProcess { process, socket: ours })
}

/// The launcher process before there is a runtime to speak to it from.
#[derive(Debug)]
pub struct LauncherProcess {
    process: Child,
    socket: StdUnixStream,
}

impl LauncherProcess {
    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Begins to speak with the launcher. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The system refuses to register the socket.
    pub fn connect(self) -> io::Result<Launcher> {
        self.socket.set_nonblocking(true)?;
        let socket = Arc::new(UnixStream::from_std(self.socket)?);
        let runs = Runs::open();
        let (gone, gone_seen) = watch::channel(());
        let reading = tokio::spawn(read_notices(Arc::clone(&socket), runs.clone(), gone));
        Ok(Launcher(Arc::new(Shared {
            orders: tokio::sync::Mutex::new(socket),
            runs,
            next: AtomicU64::new(0),
            gone: gone_seen,
            reading: reading.abort_handle(),
            process: Mutex::new(self.process),
        })))
    }
}

/// Starts commands. Cheap to clone; the launcher process ends with the last clone.
#[derive(Debug, Clone)]
pub struct Launcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// One order at a time, since each must go out whole.
    orders: tokio::sync::Mutex<Arc<UnixStream>>,
    runs: Runs,
    next: AtomicU64,
    gone: watch::Receiver<()>,
    reading: AbortHandle,
    process: Mutex<Child>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.reading.abort();
        // It ends by itself once the socket is closed; here it is only reaped if it has ended before.
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = process.try_wait();
    }
}

type Forked = io::Result<(i32, Option<OwnedFd>)>;

/// Who waits for what the launcher tells, by order; `None` once it is gone.
#[derive(Debug, Clone)]
struct Runs(Arc<Mutex<Option<HashMap<u64, Awaited>>>>);

#[derive(Debug)]
struct Awaited {
    forked: Option<oneshot::Sender<Forked>>,
    ended: oneshot::Sender<Exit>,
}

impl Runs {
    /// Nothing is awaited of a launcher that is gone.
    fn add(&self, id: u64, awaited: Awaited) -> Result<(), LaunchError> {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        runs.as_mut().ok_or(LaunchError::Gone)?.insert(id, awaited);
        Ok(())
    }

    fn open() -> Self {
        Self(Arc::new(Mutex::new(Some(HashMap::new()))))
    }

    /// Whoever waits sees their channel closed.
    fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn forked(&self, id: u64, forked: Forked) {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let awaited = runs.as_mut().and_then(|runs| runs.get_mut(&id));
        if let Some(waiting) = awaited.and_then(|awaited| awaited.forked.take()) {
            // Whoever gave up waiting closes the pidfd by that.
            let _ = waiting.send(forked);
        }
    }

    fn ended(&self, id: u64, exit: Exit) {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(awaited) = runs.as_mut().and_then(|runs| runs.remove(&id)) {
            let _ = awaited.ended.send(exit);
        }
    }
}

/// Hands out what the launcher tells, until it is gone.
async fn read_notices(socket: Arc<UnixStream>, runs: Runs, gone: watch::Sender<()>) {
    let mut incoming = Incoming::default();
    loop {
        let message = match receive(&socket, &mut incoming).await {
            Ok(Step::More) => continue,
            Ok(Step::Message(message)) => message,
            Ok(Step::Closed) | Err(_) => break,
        };
        match message.parse() {
            Ok(Notice::Forked { id, pid }) => {
                runs.forked(id, Ok((pid, message.descriptors.into_iter().next())));
            }
            Ok(Notice::NotForked { id, errno }) => {
                runs.forked(id, Err(io::Error::from_raw_os_error(errno)));
                runs.ended(id, Exit::Lost);
            }
            Ok(Notice::Ended { id, exit }) => runs.ended(id, exit),
            Err(_) => break,
        }
    }
    tracing::error!("the launcher process is gone: no run can be started");
    runs.close();
    drop(gone);
}

impl Launcher {
    /// Starts the command of `spec` with `stdio` as its descriptors 0, 1 and 2. Comes back when it has been executed.
    ///
    /// Given up half-way, the command may still start: [`super::kill_cgroup`] on its cgroup makes sure.
    ///
    /// # Errors
    /// Names the step that failed; nothing of the agent has run then.
    pub async fn launch(&self, spec: RunSpec, stdio: [OwnedFd; 3]) -> Result<Running, LaunchError> {
        if spec.uid == 0 {
            return Err(LaunchError::Root);
        }
        if spec.argv.is_empty() {
            return Err(LaunchError::NoCommand);
        }
        let terminal = spec.terminal.is_some();
        let (pending, channel_end) = self.register()?;
        let sent = self.order(Launch { id: pending.id, spec }, &stdio, &channel_end).await;
        // From here on only the command's side holds them, so that ends are seen.
        drop((stdio, channel_end));
        sent?;
        pending.begin(terminal).await
    }

    /// Waits until the launcher process is gone, after which nothing can be started.
    pub async fn gone(&self) {
        let mut gone = self.0.gone.clone();
        while gone.changed().await.is_ok() {}
    }

    /// A new order's number, and what is waited for under it.
    fn register(&self) -> Result<(Pending, StdUnixStream), LaunchError> {
        let prepare = |source| LaunchError::Prepare { source };
        let (ours, theirs) = StdUnixStream::pair().map_err(prepare)?;
        ours.set_nonblocking(true).map_err(prepare)?;
        let channel = UnixStream::from_std(ours).map_err(prepare)?;
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (forked_sender, forked) = oneshot::channel();
        let (ended_sender, ended) = oneshot::channel();
        self.0.runs.add(id, Awaited { forked: Some(forked_sender), ended: ended_sender })?;
        Ok((Pending { id, channel, incoming: Incoming::default(), forked, ended }, theirs))
    }

    async fn order(&self, order: Launch, stdio: &[OwnedFd; 3], channel: &StdUnixStream) -> Result<(), LaunchError> {
        let [stdin, stdout, stderr] = stdio;
        let descriptors = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), channel.as_fd()];
        let socket = self.0.orders.lock().await;
        let sent = send(&socket, &order, &descriptors).await;
        sent.map_err(|source| {
            self.0.runs.ended(order.id, Exit::Lost);
            match source {
                FrameError::Io { .. } => LaunchError::Gone,
                source => LaunchError::Order { source },
            }
        })
    }
}

/// An order that is out.
struct Pending {
    id: u64,
    channel: UnixStream,
    incoming: Incoming,
    forked: oneshot::Receiver<Forked>,
    ended: oneshot::Receiver<Exit>,
}

impl Pending {
    /// Until the command is executed.
    async fn begin(self, terminal: bool) -> Result<Running, LaunchError> {
        let Self { channel, mut incoming, forked, ended, .. } = self;
        let limit = START_DEADLINE;
        let forked = timeout(limit, forked).await.map_err(|_| LaunchError::Deadline { limit })?;
        let (pid, pidfd) = match forked {
            Ok(Ok(forked)) => forked,
            Ok(Err(source)) => return Err(LaunchError::Prepare { source }),
            Err(_) => return Err(LaunchError::Gone),
        };
        match timeout(limit, executed(&channel, &mut incoming)).await {
            Err(_) => {
                if let Some(pidfd) = pidfd {
                    let _ = pidfd_send_signal(pidfd, Signal::KILL);
                }
                Err(LaunchError::Deadline { limit })
            }
            Ok(Err(error)) => {
                // So that the caller finds the cgroup empty.
                let _ = timeout(REAP_DEADLINE, ended).await;
                Err(error)
            }
            Ok(Ok(command)) => {
                let pid = command.unwrap_or(pid);
                let channel = terminal.then_some(channel);
                Ok(Running { pid, pidfd, channel, incoming, ended, exit: None })
            }
        }
    }
}

/// Reads the channel until it says that the command runs; gives its process where that is another one than was forked.
async fn executed(channel: &UnixStream, incoming: &mut Incoming) -> Result<Option<i32>, LaunchError> {
    let mut ready = false;
    loop {
        match receive(channel, incoming).await {
            Ok(Step::More) => {}
            Ok(Step::Message(message)) => match message.parse() {
                Ok(Report::Failed { step, subject, errno }) => {
                    let source = io::Error::from_raw_os_error(errno);
                    return Err(LaunchError::Step { step, subject, source });
                }
                Ok(Report::Ready) => ready = true,
                Ok(Report::Running { pid }) => return Ok(Some(pid)),
                Ok(Report::Stopped { .. } | Report::Ended { .. }) | Err(_) => {
                    return Err(LaunchError::Died);
                }
            },
            Ok(Step::Closed) if ready => return Ok(None),
            Ok(Step::Closed) | Err(_) => return Err(LaunchError::Died),
        }
    }
}

/// What happened to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It was stopped by this signal and waits for [`Running::resume`]. Told of commands on a terminal alone.
    Stopped(i32),
    /// It ended.
    Ended(Exit),
}

/// A command that was started. Dropping it leaves the command running; on a terminal the session ends when the command
/// has ended and this is dropped.
#[derive(Debug)]
pub struct Running {
    /// The command's process.
    pub pid: i32,
    /// The process that the launcher forked: the command, or on a terminal the leader of its session.
    pub pidfd: Option<OwnedFd>,
    /// To the session's leader, on a terminal.
    channel: Option<UnixStream>,
    incoming: Incoming,
    ended: oneshot::Receiver<Exit>,
    exit: Option<Exit>,
}

impl Running {
    /// The next thing that happens to the command; its end is told again and again. Cancel safe.
    pub async fn event(&mut self) -> Event {
        loop {
            if let Some(exit) = self.exit {
                return Event::Ended(exit);
            }
            // The leader's word first: it knows the command, the launcher only the leader.
            tokio::select! {
                biased;
                report = next_report(self.channel.as_ref(), &mut self.incoming) => match report {
                    Some(Report::Stopped { signal }) => return Event::Stopped(signal),
                    Some(Report::Ended { exit }) => self.exit = Some(exit),
                    Some(Report::Failed { .. } | Report::Ready | Report::Running { .. }) => {}
                    None => self.channel = None,
                },
                exit = &mut self.ended => self.exit = Some(exit.unwrap_or(Exit::Lost)),
            }
        }
    }

    /// Waits until the command has ended. Cancel safe.
    pub async fn wait(&mut self) -> Exit {
        loop {
            if let Event::Ended(exit) = self.event().await {
                return exit;
            }
        }
    }

    /// Sends a signal to the command's process.
    ///
    /// # Errors
    /// The system refuses; a command that has ended is no error.
    pub async fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if let Some(channel) = &self.channel {
            return order(channel, Order::Signal { signal: signal.as_raw() }).await;
        }
        match self.pidfd.as_ref().map(|pidfd| pidfd_send_signal(pidfd, signal)) {
            None | Some(Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
            Some(Err(errno)) => Err(errno.into()),
        }
    }

    /// Lets a stopped command on a terminal go on, or moves it between foreground and background.
    ///
    /// # Errors
    /// The system refuses; a command that has ended is no error.
    pub async fn resume(&mut self, ground: Ground) -> io::Result<()> {
        match &self.channel {
            Some(channel) => order(channel, Order::Resume { ground }).await,
            None => self.signal(Signal::CONT).await,
        }
    }

    /// Whether the command has a terminal, and so a last output that is to be read before its session ends.
    #[must_use]
    pub fn on_terminal(&self) -> bool {
        self.channel.is_some()
    }
}

/// What the leader says next; `None` when it is gone. Without a leader, forever.
async fn next_report(channel: Option<&UnixStream>, incoming: &mut Incoming) -> Option<Report> {
    let Some(channel) = channel else { return std::future::pending().await };
    loop {
        match receive(channel, incoming).await {
            Ok(Step::More) => {}
            Ok(Step::Message(message)) => return message.parse().ok(),
            Ok(Step::Closed) | Err(_) => return None,
        }
    }
}

/// Tells the leader something. It may have ended just now, which is told as an end, not as an error.
async fn order(channel: &UnixStream, order: Order) -> io::Result<()> {
    match send(channel, &order, &[]).await {
        Err(FrameError::Io { source })
            if !matches!(source.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
        {
            Err(source)
        }
        _ => Ok(()),
    }
}
