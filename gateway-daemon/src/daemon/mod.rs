//! Puts the steps together: starts them in the order in which nothing is ever open, and keeps them running.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use secrecy::SecretString;
use tokio::net::TcpStream;

use crate::{
    accept::{Accepted, Incoming, ListenError, Listener, PortKeeping},
    config::{self, Config},
    identity::{
        self, Identity, Issuer, Registry, RegistryError, Run, TokenError,
        clock::{Clock, SystemClock},
    },
    launch::{Launcher, LauncherProcess, kill_cgroup},
    policy::{self, Known, LoadErrors, Policies, PolicySet},
    protocol::{
        postgres::{
            answer::{ErrorAnswer, NO_IDENTITY, UPSTREAM},
            opening,
            serve::{self, Admitted, Front, Target},
            tls::{CaError, HostCa},
        },
        sessions::Sessions,
    },
    record::{AdminEvent, Event, Recorder, StoreError},
    redirect::{
        self, Kernel, Protected, RedirectError,
        cgroup::{CgroupError, CgroupId, CgroupRoot},
    },
};

mod accounts;
mod assigns;
pub(crate) mod connection_test;
mod egress;
mod homes;
mod often;
mod parts;
mod refusals;
mod runs;
mod servers;
mod slices;
mod sockets;
mod targets;
mod verbs;
mod workers;

pub(crate) use accounts::pool_fault;
pub(crate) use egress::{allowed as egress_allowed, resolvers_now, unseen_of_closed};
pub use parts::StartError;
pub(crate) use slices::unit_name as slice_unit_name;
pub(crate) use sockets::{
    RUNTIME_SOCKETS, covered as covered_paths, may_connect, open_to_agents as sockets_open_to_agents,
};
pub(crate) use targets::{own_addresses, protected_by};
use workers::Workers;

/// Threads for all that is no session: accepting, people's requests, tokens, names.
const CONTROL_THREADS: usize = 2;
/// How long what still runs may take when the daemon ends.
const STOP: Duration = Duration::from_secs(2);

/// How long sessions may finish what they are doing when the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// The least time in which a refusal is told.
const TOLD: Duration = Duration::from_secs(1);
/// How often Unix sockets are looked at.
const SOCKETS: Duration = Duration::from_secs(30);
/// How long a run's processes may take to go once they are killed, before that is told.
const CGROUP_GONE: Duration = Duration::from_secs(10);
/// How often the cgroup of a run that was killed is looked at, until then.
const CGROUP_LOOK: Duration = Duration::from_millis(10);
/// And from then on.
const CGROUP_LATE: Duration = Duration::from_secs(1);

/// What the command line says beside the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether anything is recorded.
    pub recording: Recording,
    /// What keeps the listener's port.
    pub port: PortKeeping,
}

/// Whether anything is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recording {
    /// Everything.
    On,
    /// Nothing: `--unsafe-no-record`.
    UnsafeOff,
}

/// The daemon's parts, shared by all that it serves.
struct Weir {
    config: Arc<Config>,
    options: Options,
    started: SystemTime,
    cgroups: CgroupRoot,
    kernel: Arc<Kernel>,
    /// The protected addresses in force in the kernel.
    protected: Arc<ArcSwap<Vec<Protected>>>,
    recorder: Recorder,
    policies: Arc<Policies>,
    issuers: Vec<Arc<Issuer>>,
    registry: Arc<Registry>,
    sessions: Arc<Sessions>,
    ca: Arc<HostCa>,
    targets: Vec<Arc<Target>>,
    front: Arc<Front>,
    launcher: Launcher,
    homes: Arc<homes::Homes>,
    slices: slices::Slices,
    often: often::Often,
    /// Runs outlive an orderly stop: the next daemon finds them.
    stopping: AtomicBool,
}

/// Serves until it is told to stop. `launcher` was split off before anything was opened.
///
/// # Errors
/// What kept it from starting; nothing is open then that was not open before.
pub fn run(config: Config, options: Options, launcher: LauncherProcess) -> Result<(), StartError> {
    let failed = |source| StartError::Runtime { source };
    let workers = Arc::new(Workers::start(config.daemon.workers).map_err(failed)?);
    let runtime = workers::runtime(CONTROL_THREADS, "weir").map_err(failed)?;
    let outcome = runtime.block_on(serve(config, options, launcher, workers.clone()));
    runtime.shutdown_timeout(STOP);
    if let Some(workers) = Arc::into_inner(workers) {
        workers.stop(STOP);
    }
    outcome
}

async fn serve(
    config: Config,
    options: Options,
    launcher: LauncherProcess,
    workers: Arc<Workers>,
) -> Result<(), StartError> {
    // Before anything is open: whoever stops the daemon from here on stops it in order.
    let mut signals = Signals::new().map_err(|source| StartError::Runtime { source })?;
    let (weir, resolved) = parts::assemble(config, options, launcher).await?;
    let listener = Listener::bind(&weir.kernel, options.port)?;
    let control = crate::control::Server::bind(&weir.config.control_socket(), 0o666)?;
    let events = weir.kernel.events()?;
    tokio::spawn(targets::keep_fresh(weir.config.clone(), weir.kernel.clone(), weir.protected.clone(), resolved));
    tokio::spawn(
        refusals::Refusals::new(weir.recorder.clone(), weir.registry.clone()).run(weir.kernel.clone(), events),
    );
    tokio::spawn(egress::keep_resolvers(weir.config.clone(), weir.kernel.clone()));
    tokio::spawn(watch_sockets(weir.clone()));
    tokio::spawn(often::record(weir.clone()));
    let its = weir.clone();
    let undone = tokio::task::spawn_blocking(move || {
        assigns::undo(&its);
        assigns::cut_refused(&its);
    });
    undone.await.map_err(|error| StartError::Runtime { source: io::Error::other(error) })?;
    runs::adopt(&weir);
    tokio::spawn(slices::keep(weir.clone()));
    tokio::spawn(verbs::serve(weir.clone(), control));
    let accepting = tokio::spawn(accept(weir.clone(), listener, workers));
    weir.record_admin(
        None,
        "daemon-start",
        format!("version {}, {}{}", env!("CARGO_PKG_VERSION"), weir.recording_words(), observing_words(&weir.config)),
    );
    tracing::info!(
        scope = %weir.config.daemon.scope, port = weir.config.daemon.listener_port,
        connections = weir.config.connections.len(), "ready"
    );
    while let Signal::Reload = signals.next().await {
        // What is wrong is logged and recorded there; the last policies stay in force.
        let weir = weir.clone();
        let reloaded = tokio::task::spawn_blocking(move || weir.reload_policies(None)).await;
        drop(reloaded);
    }
    tracing::info!(sessions = weir.sessions.count(), "stopping");
    weir.stopping.store(true, Ordering::Release);
    accepting.abort();
    weir.sessions.end_all("the daemon stops");
    let drained = async {
        while weir.sessions.count() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!(sessions = weir.sessions.count(), "sessions did not end in time");
    }
    weir.record_repeated(Duration::ZERO);
    weir.front.record_gathered(Duration::ZERO);
    weir.record_admin(None, "daemon-stop", "in order; the programs stay and refuse".to_owned());
    weir.recorder.close();
    Ok(())
}

/// Takes connections, for as long as the listening sockets live.
async fn accept(weir: Arc<Weir>, listener: Listener, workers: Arc<Workers>) {
    loop {
        match listener.accept().await {
            Ok(Incoming::Accepted(accepted)) => {
                let weir = weir.clone();
                workers.spawn(async move { weir.take(accepted).await });
            }
            Ok(Incoming::Straight { stream, peer }) => {
                let reason = format!("connection straight to Weir's listener from {peer}");
                weir.record_often(often::Kind::Straight, &reason, Some(peer));
                drop(stream);
            }
            Err(error) => {
                tracing::error!(%error, "the listener broke; every agent is refused until the daemon is restarted");
                return;
            }
        }
    }
}

/// Withholds connections whose server's Unix sockets an agent could open, and gives them back when that is mended.
async fn watch_sockets(weir: Arc<Weir>) {
    loop {
        let judged = weir.clone();
        let done = tokio::task::spawn_blocking(move || judged.judge_sockets()).await;
        if done.is_err() {
            tracing::error!("the Unix sockets could not be looked at");
        }
        tokio::time::sleep(SOCKETS).await;
    }
}

/// Which connections only observe, to stand behind other words.
fn observing_words(config: &Config) -> String {
    match config.observed().collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => none,
        names => format!(", ONLY OBSERVING on {names}"),
    }
}

impl Weir {
    /// Leads an accepted connection to its session.
    async fn take(self: Arc<Self>, accepted: Accepted) {
        // What happens on it is told to the thread that serves it, without a detour by the one that accepted it.
        let accepted = match accepted.stream.into_std().and_then(TcpStream::from_std) {
            Ok(stream) => Accepted { stream, ..accepted },
            Err(error) => {
                tracing::error!(%error, "a connection cannot be served");
                return;
            }
        };
        // The kernel noted the index when the agent connected; the address must still be that connection's.
        let meant = redirect::connection_of(&self.protected.load(), accepted.origin);
        let index = meant.filter(|&index| index == accepted.connection).and_then(|index| usize::try_from(index).ok());
        let target = index.and_then(|index| self.targets.get(index)).cloned();
        // What comes from a slice has its place and its turn before it is identified, which takes more than a session's start.
        let admitted = match self.slices.agent_of(accepted.cgroup) {
            Some(agent) => match serve::admit(&self.front, agent, &accepted).await {
                Some(admitted) => Some(admitted),
                None => return,
            },
            None => None,
        };
        let until = admitted.as_ref().map_or_else(|| Instant::now() + self.config.limits.startup, Admitted::until);
        let identified = tokio::time::timeout_at(until.into(), slices::run_of(&self, accepted.cgroup, accepted.uid));
        let run = match identified.await {
            Ok(Some(Ok(run))) => Some(run),
            Ok(Some(Err(why))) => return self.refuse_in_slice(accepted, &why, until).await,
            Err(_) => {
                let why = "it was not identified within limits.startup";
                return self.refuse_in_slice(accepted, why, until).await;
            }
            Ok(None) => self.registry.by_cgroup(identity::CgroupId(accepted.cgroup.get())),
        };
        // Whoever has mended the server's sockets need not wait for the next look.
        if target.as_ref().is_some_and(|target| target.withheld.load().is_some()) {
            tokio::task::block_in_place(|| self.judge_sockets());
        }
        match (run, target) {
            (Some(run), Some(target)) => serve::serve(self.front.clone(), accepted, run, target, admitted).await,
            (None, _) => {
                let text = "Weir does not know this run: it was started under another daemon, or has ended";
                self.refuse(accepted, &ErrorAnswer::fatal(NO_IDENTITY, text), until).await;
            }
            (Some(_), None) => {
                let text = "Weir has no connection of that address any longer";
                self.refuse(accepted, &ErrorAnswer::fatal(UPSTREAM, text), until).await;
            }
        }
    }

    async fn refuse_in_slice(&self, accepted: Accepted, why: &str, until: Instant) {
        tracing::warn!(cgroup = accepted.cgroup.get(), pid = accepted.pid, "refused in an agent's slice: {why}");
        let answer = ErrorAnswer::fatal(NO_IDENTITY, format!("Weir refuses what runs in this slice: {why}"));
        self.refuse(accepted, &answer, until).await;
    }

    /// Records a refusal and tells it, which takes no longer than `until`, but for a moment at its end.
    async fn refuse(&self, accepted: Accepted, answer: &ErrorAnswer, until: Instant) {
        let refused = crate::record::KernelRefusal {
            agent: None,
            uid: accepted.uid,
            pid: accepted.pid,
            comm: String::new(),
            cgroup: accepted.cgroup.get(),
            destination: accepted.origin,
            what: answer.message.clone(),
            count: 1,
        };
        if let Err(error) = self.recorder.record(&Event::Refused(refused)) {
            tracing::error!(%error, "a refusal is not on the record");
        }
        let left = until.saturating_duration_since(Instant::now()).max(TOLD);
        opening::refuse(accepted.stream, answer, left).await;
    }

    fn issuer(&self, name: &str) -> Option<Arc<Issuer>> {
        self.issuers.iter().find(|issuer| issuer.name() == name).cloned()
    }

    /// Verifies a token for an agent.
    async fn verify(&self, agent: &config::Agent, token: &SecretString) -> Result<Identity, TokenError> {
        // The configuration's check saw to it that every agent has its issuer.
        let Some(issuer) = self.issuer(&agent.issuer) else {
            return Err(TokenError::OtherSubject { agent: agent.name.as_str().into() });
        };
        let verified = issuer.verify(token, SystemClock.now()).await?;
        verified.into_identity(agent.name.as_str().into(), agent.subject.as_deref())
    }

    /// Loads the policies anew, all or nothing; looks at the servers' sockets as well.
    fn reload_policies(&self, uid: Option<u32>) -> Result<policy::Reload, String> {
        self.judge_sockets();
        let dir = &self.config.daemon.policies;
        let reloaded = check_folder(dir)
            .and_then(|()| self.policies.reload(dir, Some(&known(&self.config))).map_err(|errors| errors.to_string()));
        match &reloaded {
            Ok(reload) => {
                tracing::info!(
                    added = reload.added.len(),
                    removed = reload.removed.len(),
                    changed = reload.changed.len(),
                    "the policies were reloaded"
                );
                let detail = format!("now {}, before {}", reload.now, reload.before);
                self.record_admin(uid, "policy-reload", detail);
            }
            Err(faults) => {
                tracing::error!("the policies were not reloaded, the last ones stay in force:\n{faults}");
                self.record_admin(uid, "policy-reload-refused", faults.clone());
            }
        }
        reloaded
    }

    fn judge_sockets(&self) {
        for (connection, target) in self.config.connections.iter().zip(&self.targets) {
            let open = sockets::open_to_agents(&self.config, connection);
            let before = target.withheld.load_full();
            match (&before, &open) {
                (None, Some(why)) => tracing::error!(connection.id = %target.name, "withheld: {why}"),
                (Some(_), None) => tracing::info!(connection.id = %target.name, "served again"),
                (None, None) | (Some(_), Some(_)) => {}
            }
            target.withheld.store(open.map(Arc::new));
        }
    }

    fn record_admin(&self, uid: Option<u32>, what: &str, detail: String) {
        let event = Event::Admin(AdminEvent { uid, what: what.to_owned(), detail });
        if let Err(error) = self.recorder.record(&event) {
            tracing::error!(%error, what, "not on the record");
        }
    }

    const fn recording_words(&self) -> &'static str {
        match self.options.recording {
            Recording::On => "recording",
            Recording::UnsafeOff => "NOT RECORDING (--unsafe-no-record)",
        }
    }

    /// Adds to an agent's environment what makes its clients trust Weir's certificates.
    fn add_certificates(&self, env: &mut Vec<(OsString, OsString)>) {
        let folder = &self.config.daemon.runtime_dir;
        let (own, bundle) = (folder.join(CA_FILE), folder.join(BUNDLE_FILE));
        for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PGSSLROOTCERT"] {
            env.retain(|(key, _)| key != name);
            let path = if name == "PGSSLROOTCERT" { &own } else { &bundle };
            env.push((name.into(), path.into()));
        }
    }

    fn remove_cgroup(&self, cgroup: &str) {
        if let Err(error) = self.cgroups.remove(cgroup) {
            tracing::warn!(%error, "a run's cgroup is left over");
        }
    }

    /// Kills what lives in the cgroup of a run that has ended, and forgets the run once the cgroup is gone. Until then it is
    /// an agent's to the kernel, without an identity, and its uid is nobody else's.
    fn kill_and_remove(self: &Arc<Self>, cgroup: String, run: Arc<Run>) {
        let weir = self.clone();
        tokio::spawn(async move {
            let folder = weir.cgroups.path(&cgroup);
            let begun = Instant::now();
            let mut pause = CGROUP_LOOK;
            loop {
                // Again each time: a fork may have slipped in between.
                let killed = kill_cgroup(&folder);
                if weir.cgroups.remove_if_empty(&cgroup) {
                    break;
                }
                if pause == CGROUP_LOOK && begun.elapsed() > CGROUP_GONE {
                    tracing::error!(
                        error = killed.err().map(|error| error.to_string()),
                        cgroup,
                        "processes of a run that ended live on; they are refused"
                    );
                    pause = CGROUP_LATE;
                }
                tokio::time::sleep(pause).await;
            }
            weir.forget(&run).await;
        });
    }

    /// Forgets a run that has ended and whose cgroup is gone.
    async fn forget(self: &Arc<Self>, run: &Run) {
        if let Some(cgroup) = CgroupId::new(run.cgroup.0)
            && let Err(error) = self.kernel.unenrol(cgroup)
        {
            tracing::error!(%error, "the kernel keeps a run's cgroup");
        }
        let id = run.id;
        // Before the uid is free: what is in there is that uid's.
        self.homes.remove(id).await;
        if let Err(error) = self.change_registry(move |registry| registry.release(id)).await {
            tracing::error!(%error, "a run's uid stays taken");
        }
    }

    /// Changes the registry off the workers, for it waits for the disk.
    async fn change_registry<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Registry) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, String> {
        let registry = self.registry.clone();
        let changed = tokio::task::spawn_blocking(move || change(&registry)).await;
        changed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

/// Weir's own CA certificate, for libpq.
const CA_FILE: &str = "ca.pem";
/// The system's roots and Weir's.
const BUNDLE_FILE: &str = "ca-bundle.pem";

/// An issuer's keys, asked for now.
pub(crate) async fn provider_keys(issuer: &config::Issuer) -> Result<identity::token::KeySet, String> {
    let issuer = parts::issuer(issuer).map_err(|error| error.to_string())?;
    issuer.keys_now().await.map_err(|error| error.to_string())
}

/// What policies may speak of.
pub fn known(config: &Config) -> Known {
    Known {
        agents: config.agents.iter().map(|agent| agent.name.clone()).collect(),
        issuers: config.issuers.iter().map(|issuer| issuer.name.clone()).collect(),
        connections: config.connections.iter().map(|connection| connection.name.clone()).collect(),
    }
}

fn check_folder(dir: &Path) -> Result<(), String> {
    // Root alone decides who may do what.
    policy::check_guarded(dir, 0)
        .map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// What a signal asks for.
enum Signal {
    Reload,
    Stop,
}

struct Signals {
    hangup: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.terminate.recv() => Signal::Stop,
        }
    }
}
