//! Commands, servers and steps: all that runs beside xtask ends with it.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};

/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(10);
/// A server that has not ended by then is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
static TERMINATED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on Ctrl-C and SIGTERM end the command that runs, and then this program in order: servers are stopped.
pub(crate) fn watch_signals() -> Result<()> {
    signal_hook::flag::register(SIGINT, Arc::clone(INTERRUPTED.get_or_init(Arc::default)))?;
    signal_hook::flag::register(SIGTERM, Arc::clone(TERMINATED.get_or_init(Arc::default)))?;
    Ok(())
}

fn raised(flag: &OnceLock<Arc<AtomicBool>>) -> bool {
    flag.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Fails once somebody asked this program to end.
pub(crate) fn check_signals() -> Result<()> {
    ensure!(!raised(&INTERRUPTED) && !raised(&TERMINATED), "interrupted");
    Ok(())
}

/// Runs `command` with this program's own output, and fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    check_signals()?;
    ensure!(status.success(), "{} ended with {status}", shown(command));
    Ok(())
}

/// Runs `command` with this program's own output.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    check_signals()?;
    let mut child = command.spawn().with_context(|| format!("cannot start {}", shown(command)))?;
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        // A terminal sends Ctrl-C to the child as well; SIGTERM comes to this process alone.
        if raised(&TERMINATED) && !told {
            signal(&child, Signal::TERM);
            told = true;
        }
        thread::sleep(POLL);
    }
}

/// Runs `command` and gives its standard output; what it said on standard error is in the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    check_signals()?;
    output_always(command)
}

/// The same for cleaning up, which goes on after Ctrl-C.
pub(crate) fn output_always(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", shown(command)))?;
    ensure!(
        output.status.success(),
        "{} ended with {}\n{}{}",
        shown(command),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command line as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Does `work`, saying what and how long it took.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    println!("== {name}");
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    println!("== {name}: {outcome} in {:.1} s", begin.elapsed().as_secs_f64());
    result
}

/// Polls until `ready` gives something, until it fails or until the deadline.
pub(crate) fn wait_for<T>(what: &str, deadline: Duration, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        check_signals()?;
        if let Some(value) = ready()? {
            return Ok(value);
        }
        ensure!(Instant::now() < end, "{what}: not within {} s", deadline.as_secs());
        thread::sleep(POLL);
    }
}

/// A process that serves until this value is dropped. It ends too when xtask is killed.
pub(crate) struct Server {
    name: String,
    child: Child,
    log: PathBuf,
    stop: Signal,
}

impl Server {
    /// Starts `program` with its output in `log`. `user`: the Unix user it runs as, this program's when `None`.
    /// `stop`: the signal by which it ends in order.
    pub(crate) fn start(program: &Path, args: &[&str], user: Option<&str>, log: PathBuf, stop: Signal) -> Result<Self> {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // setpriv asks the kernel to end the server with its parent, whatever happens to xtask.
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig").arg("KILL");
        if let Some(user) = user {
            command.args(["--reuid", user, "--regid", user, "--init-groups"]);
        }
        command.arg(program).args(args).current_dir(log.parent().unwrap_or(Path::new("/")));
        // A group of its own: Ctrl-C on the terminal must not take the servers away from under the tests.
        command.process_group(0).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name} (through setpriv)"))?;
        Ok(Self { name, child, log, stop })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Polls `ready` until it is true; fails at once, with the log, when the server has ended.
    pub(crate) fn wait_until(&mut self, deadline: Duration, mut ready: impl FnMut(&Self) -> bool) -> Result<()> {
        let name = format!("{} serves", self.name);
        let waited = wait_for(&name, deadline, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}", self.name);
            }
            Ok(ready(self).then_some(()))
        });
        waited.with_context(|| format!("log of {}:\n{}", self.name, self.log()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        signal(&self.child, self.stop);
        let end = Instant::now() + STOP_DEADLINE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                eprintln!("{} does not end, killed", self.name);
                drop(self.child.kill());
                drop(self.child.wait());
                return;
            }
            thread::sleep(POLL);
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended already.
        let _ = kill_process(pid, signal);
    }
}

/// A new folder in the system's temporary folder, open to read for all; removed when dropped.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    /// `/tmp/weir-NAME-PID`.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("weir-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// A random word of hexadecimal digits.
pub(crate) fn random_word() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A port of 127.0.0.1 that nobody uses now.
pub(crate) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
