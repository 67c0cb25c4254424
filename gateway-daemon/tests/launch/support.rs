//! A small daemon for the tests of `weir run`: the real launcher, control socket and cgroups, without policies.

use std::{
    fs,
    io::Read,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use gateway_daemon::{
    control::{Connection, Reply, Request, Server, Text},
    launch::{self, Exit, Launcher, RunSpec, Terminal},
};

/// An account of no one on any system.
pub(crate) const UID: u32 = 61_373;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Below it every test's cgroups lie.
pub(crate) fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("no v2 hierarchy");
    line.split(' ').nth(4).unwrap().into()
}

/// Asks until it is so.
pub(crate) fn eventually<T>(what: &str, mut is: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = is() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A daemon that starts whatever it is asked to, as [`UID`].
pub(crate) struct Daemon {
    runtime: Option<tokio::runtime::Runtime>,
    launcher: Option<Launcher>,
    pub(crate) launcher_pid: u32,
    pub(crate) folder: tempfile::TempDir,
    /// The cgroup of all its runs.
    pub(crate) cgroup: PathBuf,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::covering(Vec::new)
    }

    /// With paths to cover, made after the folder is there.
    pub(crate) fn covering(cover: impl FnOnce() -> Vec<PathBuf>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let weir = Path::new(env!("CARGO_BIN_EXE_weir"));
        let process = launch::split_off_from(weir).unwrap();
        let launcher_pid = process.pid();
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = hierarchy().join(format!("weir-launch-{}-{nth}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let entered = runtime.enter();
        let launcher = process.connect().unwrap();
        let server = Server::bind(&folder.path().join("run/control.sock"), 0o666).unwrap();
        drop(entered);
        let serving = Arc::new(Serving {
            launcher: launcher.clone(),
            cgroup: cgroup.clone(),
            cover: cover(),
            next: AtomicU64::new(0),
        });
        runtime.spawn(async move {
            loop {
                let connection = server.accept().await;
                tokio::spawn(Arc::clone(&serving).serve(connection));
            }
        });
        Self { runtime: Some(runtime), launcher: Some(launcher), launcher_pid, folder, cgroup }
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.folder.path().join("run/control.sock")
    }

    /// `weir run` of a command.
    pub(crate) fn run(&self, command: &[&str]) -> Command {
        let mut run = Command::new(env!("CARGO_BIN_EXE_weir"));
        run.args(["run", "--agent", "tester", "--control"]).arg(self.control()).arg("--");
        run.args(command).current_dir("/").env("PATH", "/usr/local/bin:/usr/bin:/bin");
        run
    }

    /// Runs a command to its end.
    pub(crate) fn output(&self, command: &[&str]) -> Output {
        self.run(command).output().unwrap()
    }

    /// What a command prints; it must succeed.
    pub(crate) fn prints(&self, command: &[&str]) -> String {
        let output = self.output(command);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {:?}, {errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a shell script prints; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.prints(&["sh", "-c", script])
    }

    pub(crate) fn launcher(&self) -> &Launcher {
        self.launcher.as_ref().unwrap()
    }

    /// Runs what the daemon itself would do.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    /// The processes of all runs.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for run in fs::read_dir(&self.cgroup).unwrap().flatten() {
            let procs = fs::read_to_string(run.path().join("cgroup.procs")).unwrap_or_default();
            found.extend(procs.lines().map(|pid| pid.parse::<i32>().unwrap()));
        }
        found
    }

    /// A cgroup for a command that a test starts by itself.
    pub(crate) fn own_cgroup(&self) -> PathBuf {
        let cgroup = self.cgroup.join("own");
        fs::create_dir(&cgroup).unwrap();
        cgroup
    }

    /// As if the daemon had died: its sockets close.
    pub(crate) fn die(&mut self) {
        self.launcher = None;
        self.runtime.take().unwrap().shutdown_timeout(PATIENCE);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = launch::kill_cgroup(&self.cgroup);
        let until = Instant::now() + PATIENCE;
        while !self.processes().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        for run in fs::read_dir(&self.cgroup).unwrap().flatten() {
            let _ = fs::remove_dir(run.path());
        }
        let _ = fs::remove_dir(&self.cgroup);
    }
}

struct Serving {
    launcher: Launcher,
    cgroup: PathBuf,
    cover: Vec<PathBuf>,
    next: AtomicU64,
}

impl Serving {
    async fn serve(self: Arc<Self>, mut connection: Connection) {
        let (Request::Run(request), mut descriptors) = connection.recv().await.unwrap() else { panic!("not a run") };
        descriptors.truncate(3);
        let nth = self.next.fetch_add(1, Ordering::Relaxed);
        let cgroup = self.cgroup.join(nth.to_string());
        fs::create_dir(&cgroup).unwrap();
        let owner = connection.peer.uid;
        let spec = RunSpec {
            terminal: request.terminal.map(|ground| Terminal { owner, ground }),
            argv: request.argv,
            env: request.env,
            cwd: request.cwd,
            cover: self.cover.clone(),
            ..spec(&cgroup, &[])
        };
        let stdio: [OwnedFd; 3] = descriptors.try_into().unwrap();
        match self.launcher.launch(spec, stdio).await {
            Err(error) => {
                let (message, exit_code) = (error.to_string(), error.exit_code());
                let _ = connection.send(&Reply::Failed { message, exit_code }).await;
            }
            Ok(mut running) => {
                let _ = connection.send(&Reply::Started { pid: running.pid }).await;
                let _: Exit = launch::attend(&mut connection, &mut running, &cgroup).await;
            }
        }
        let _ = launch::kill_cgroup(&cgroup);
    }
}

/// The plainest run.
pub(crate) fn spec(cgroup: &Path, argv: &[&str]) -> RunSpec {
    let text = |text: &str| Text::Utf8(text.to_owned());
    RunSpec {
        cgroup: cgroup.to_owned(),
        uid: UID,
        gid: UID,
        groups: Vec::new(),
        argv: argv.iter().copied().map(text).collect(),
        env: vec![(text("PATH"), text("/usr/bin:/bin"))],
        cwd: text("/"),
        terminal: None,
        cover: Vec::new(),
    }
}

/// Reads until the end, or until nobody can write any more.
pub(crate) fn read_all(mut from: impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = from.read_to_end(&mut all);
    all
}
