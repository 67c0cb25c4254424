//! A piece of the machine for one test of the redirect: a cgroup as scope, a bpffs for the pins, a privileged port and
//! loopback addresses that no other test has, also when several runs share the machine.

mod connector;
mod ends;
mod uring;

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use gateway_daemon::redirect::{
    self, EgressSettings, Guard, Kernel, Network, Protected, RedirectSettings,
    cgroup::{CgroupId, CgroupRoot},
};
use rustix::{
    fs::{FlockOperation, flock},
    mount::{UnmountFlags, unmount},
};
use serde::{Deserialize, Serialize};

pub use connector::{Connector, Running};
pub use ends::{Front, Server};
pub use uring::{Worker, ring, uring_connect, uring_send};

/// How long a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Where tests keep what must outlive them if they are killed: the next one with the same slot cleans up.
const FOLDER: &str = "/run/weir-tests";
/// Tests that can run at the same time on one machine.
const SLOTS: u8 = 100;
/// The protected port on 127.77.SLOT.x.
pub const PORT: u16 = 5432;

/// What a [`connector`](Field::connector) did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// The error's number.
    pub errno: Option<i32>,
    /// What getpeername gave.
    pub peer: Option<SocketAddr>,
    /// What the other end said; absent when it said nothing, or nothing that a test's server says.
    pub answer: Option<Answer>,
    /// The connector's process.
    pub own_pid: u32,
    /// Of many connects, those that were answered as they should be.
    pub good: usize,
    /// The others.
    pub bad: Vec<String>,
    /// How long many connects took.
    pub seconds: f64,
}

/// What the other end of a connection says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The server itself: somebody got around.
    Server,
    /// Weir's listener, to a connection without a note.
    Straight,
    /// Weir's listener, to a redirected connection.
    Accepted {
        /// See [`gateway_daemon::accept::Accepted`].
        origin: SocketAddr,
        /// See `origin`.
        connection: u32,
        /// See `origin`.
        cgroup: u64,
        /// See `origin`.
        pid: u32,
        /// See `origin`.
        uid: u32,
        /// See `origin`.
        peer: SocketAddr,
    },
}

impl Outcome {
    /// Whether it reached Weir, which knew the cgroup and the address, and getpeername shows the address.
    pub fn is_redirected(&self, agent: CgroupId, asked: SocketAddr) -> bool {
        self.is_noted(agent.get(), asked) && self.peer == Some(asked)
    }

    /// [`Self::is_redirected`] without getpeername. The listener's side must see who connected, not the address asked for.
    pub fn is_noted(&self, agent: u64, asked: SocketAddr) -> bool {
        let canonical = SocketAddr::new(asked.ip().to_canonical(), asked.port());
        matches!(self.answer, Some(Answer::Accepted { origin, cgroup, peer, .. })
            if origin == canonical && cgroup == agent && peer.ip().is_loopback() && peer != canonical)
    }

    /// [`Self::is_redirected`], and noted as the calling process'.
    pub fn is_own(&self, agent: u64, asked: SocketAddr) -> bool {
        let own = std::process::id();
        self.is_noted(agent, asked)
            && self.peer == Some(asked)
            && matches!(self.answer, Some(Answer::Accepted { pid, .. }) if pid == own)
    }

    /// Whether it failed with this error.
    pub fn failed_with(&self, errno: rustix::io::Errno) -> bool {
        self.errno == Some(errno.raw_os_error())
    }

    /// Whether the kernel refused it.
    pub fn is_refused(&self) -> bool {
        self.failed_with(rustix::io::Errno::PERM)
    }
}

/// See the module.
pub struct Field {
    slot: u8,
    folder: PathBuf,
    root: CgroupRoot,
    /// The scope, as /proc/PID/cgroup names it.
    scope: String,
    _lock: File,
    _alone: MutexGuard<'static, ()>,
}

/// A process can be in one cgroup only: tests that share one (nextest gives each its own) take turns.
static ALONE: Mutex<()> = Mutex::new(());

impl Field {
    /// Makes one, with the test's process in its `daemon` cgroup.
    ///
    /// # Errors
    ///
    /// With the reason, when this machine cannot run such tests.
    pub fn new() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "these tests attach eBPF programs: run them as root");
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let root = CgroupRoot::find()?;
        let (slot, lock) = free_slot()?;
        let field = Self {
            slot,
            folder: Path::new(FOLDER).join(format!("slot-{slot}")),
            root,
            scope: format!("/weir-test-{slot}"),
            _lock: lock,
            _alone: alone,
        };
        field.clean().context("clean up what a killed test left")?;
        fs::create_dir_all(field.folder.join("bpf"))?;
        field.root.create(&field.scope)?;
        field.root.create(&field.daemon())?;
        field.root.enter(&field.daemon())?;
        Ok(field)
    }

    /// Moves the place where the programs are attached to the hierarchy's root.
    pub fn at_root(mut settings: RedirectSettings) -> Result<RedirectSettings> {
        settings.scope = CgroupRoot::find()?.mount().to_owned();
        Ok(settings)
    }

    /// The daemon's cgroup.
    pub fn daemon(&self) -> String {
        format!("{}/daemon", self.scope)
    }

    /// The hierarchy.
    pub fn cgroups(&self) -> &CgroupRoot {
        &self.root
    }

    /// Makes a cgroup in the scope and gives its folder and id.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn cgroup(&self, name: &str) -> Result<(PathBuf, CgroupId)> {
        let cgroup = format!("{}/{name}", self.scope);
        let id = self.root.create(&cgroup)?;
        Ok((self.root.path(&cgroup), id))
    }

    /// The listener's port.
    pub fn listener_port(&self) -> u16 {
        600 + u16::from(self.slot)
    }

    /// 127.77.SLOT.`last`, at the protected port.
    pub fn v4(&self, last: u8) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(127, 77, self.slot, last), PORT))
    }

    /// The same, mapped.
    pub fn mapped(&self, last: u8) -> SocketAddr {
        let address = Ipv4Addr::new(127, 77, self.slot, last).to_ipv6_mapped();
        SocketAddr::from((address, PORT))
    }

    /// ::1, at a port of this test's own.
    pub fn v6(&self) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], self.own_port()))
    }

    /// A port of this test's own, on whatever address.
    pub fn own_port(&self) -> u16 {
        15_400 + u16::from(self.slot)
    }

    /// The folder of the pins.
    pub fn pins(&self) -> PathBuf {
        self.folder.join("bpf/weir")
    }

    /// A folder for whatever else.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Settings that protect [`Self::v4`] 1 and 2 and [`Self::v6`], as connections 1, 2 and 6.
    ///
    /// # Errors
    ///
    /// When the daemon's cgroup is gone.
    pub fn settings(&self) -> Result<RedirectSettings> {
        Ok(RedirectSettings {
            scope: self.root.path(&self.scope),
            pins: self.pins(),
            listener_port: self.listener_port(),
            guard: Guard::Host,
            protected: vec![protected(self.v4(1), 1), protected(self.v4(2), 2), protected(self.v6(), 6)],
            allowed_uids: Vec::new(),
            allowed_cgroups: Vec::new(),
            agent_uids: Vec::new(),
            daemon_cgroup: self.root.id(&self.daemon())?,
            egress: EgressSettings::default(),
        })
    }

    /// Starts the redirect with [`Self::settings`].
    ///
    /// # Errors
    ///
    /// With the reason, when the kernel refuses.
    pub fn start(&self) -> Result<Kernel> {
        Kernel::start(&self.settings()?).context("this machine cannot load or attach the eBPF programs")
    }

    /// A process that does one thing from a cgroup: see `src/bin/connector.rs`.
    pub fn connector(&self, cgroup: &Path, verb: &[&str]) -> Connector {
        Connector::new(cgroup, verb)
    }

    /// Runs a connector that connects by TCP.
    ///
    /// # Errors
    ///
    /// When it doesn't run.
    pub fn connect(&self, cgroup: &Path, address: SocketAddr) -> Result<Outcome> {
        self.connector(cgroup, &["tcp", &address.to_string()]).run()
    }

    fn clean(&self) -> Result<()> {
        if self.root.path(&self.scope).exists() {
            self.root.kill(&self.scope)?;
            poll("the killed processes to be gone", || Ok(self.root.remove(&self.scope).is_ok()))?;
        }
        let bpf = self.folder.join("bpf");
        if redirect::is_pinned(&self.pins()) {
            redirect::detach(&self.pins())?;
        }
        while unmount(&bpf, UnmountFlags::DETACH).is_ok() {}
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        let result = self.root.enter("/").map_err(anyhow::Error::from).and_then(|()| self.clean());
        if let Err(error) = result {
            eprintln!("the test's piece of the machine is left over: {error:#}");
        }
    }
}

/// An address that belongs to a connection.
pub fn protected(address: SocketAddr, connection: u32) -> Protected {
    Protected { network: Network::single(address.ip()), port: address.port(), connection: Some(connection) }
}

/// Takes the first free slot. The lock goes with the process.
fn free_slot() -> Result<(u8, File)> {
    fs::create_dir_all(FOLDER)?;
    for slot in 1..SLOTS {
        let lock = File::create(Path::new(FOLDER).join(format!("slot-{slot}.lock")))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok((slot, lock));
        }
    }
    bail!("{SLOTS} tests run at the same time already")
}

/// Waits until something holds.
///
/// # Errors
///
/// When it doesn't in time, or the look itself fails.
pub fn poll(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
