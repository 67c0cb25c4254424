//! Step "redirect": the kernel leads an agent's connect to a protected address to Weir's listener, and refuses it to
//! everybody else who isn't allowed.
//!
//! In come settings that were checked, out go accepted sockets that carry a note (see [`crate::accept`]) and refusals as
//! [`KernelEvent`]s. The programs are in `gateway-ebpf`; what they share with this module is in `gateway-common`.
//!
//! What always holds:
//! - Programs are attached once, at the scope, and decide by the calling task. They stay when the daemon dies.
//! - A second start adopts the pinned maps and swaps the programs in the pinned links: no connect passes meanwhile.
//! - The maps are filled before the first link stands.

pub mod cgroup;
mod egress;
mod events;
mod pins;
mod probe;
mod state;
mod survey;
mod sys;
mod target;
mod types;

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError, RingBuf, SkStorage},
    programs::{Program, ProgramError},
};
use aya_log::EbpfLogger;
use gateway_common::{HAS_MPTCP, Note, PROGRAMS, TASK_FROM, TASK_LAYOUT, maps};

use self::{cgroup::CgroupId, events::ToTracing, pins::Pins, state::State};
pub use self::{
    egress::{
        AllowedPorts, Egress, EgressAllowed, EgressMode, EgressSettings, ListedPorts, NO_AGENT, PortKind, listed,
        listed_ports,
    },
    events::{KernelEvent, KernelEvents},
    pins::{detach, is_pinned},
    probe::{Check, Verdict, packets_know_task, probe},
    survey::AttachedProgram,
    target::{Network, NetworkError, Protected, UidRange, connection_of},
};
pub use gateway_common::{CgroupKind, Guard, LAYOUT, MOST_HANDSHAKES, Operation, Reason};
pub(crate) use target::to_socket_address;

/// The programs, as gateway-daemon's build script made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gateway-ebpf.o"));

/// What [`Kernel::start`] needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectSettings {
    /// The folder of the cgroup at which the programs are attached: the hierarchy's mount point, or one below it.
    pub scope: PathBuf,
    /// The folder on a bpffs in which links and maps are pinned; a bpffs is mounted at its parent where none is.
    pub pins: PathBuf,
    /// The listener's port.
    pub listener_port: u16,
    /// Who is refused outside of the agents' cgroups.
    pub guard: Guard,
    /// What is protected from the first moment on. What an earlier daemon protected stays until
    /// [`Kernel::set_protected`].
    pub protected: Vec<Protected>,
    /// The uids that may pass.
    pub allowed_uids: Vec<u32>,
    /// The cgroups that may pass.
    pub allowed_cgroups: Vec<CgroupId>,
    /// The agents' uids and subordinate uids, for the guard `agents`.
    pub agent_uids: Vec<UidRange>,
    /// The daemon's own cgroup: it connects upstream and binds the listener's port. Must lie below the scope.
    pub daemon_cgroup: CgroupId,
    /// What agents may reach beside protected addresses.
    pub egress: EgressSettings,
}

/// What went wrong with the redirect.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The scope's cgroup.
    #[error("the scope `{}` cannot be opened; it must be a folder of the cgroup v2 hierarchy", path.display())]
    Scope {
        /// Its folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file or folder of the pins.
    #[error("`{}` cannot be {attempt}", path.display())]
    Pin {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a participle.
        attempt: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No bpffs for the pins, and no place for one.
    #[error("`{}` lies on no bpffs, and none is mounted at its parent, which isn't empty; name a folder on a bpffs", path.display())]
    NoBpffs {
        /// The pins' folder.
        path: PathBuf,
    },
    /// The object as a whole.
    #[error("the eBPF programs cannot be loaded; `weir doctor` says what the kernel lacks")]
    Load {
        /// The cause.
        #[source]
        source: Box<EbpfError>,
    },
    /// One program of it.
    #[error("the eBPF program `{program}` cannot be loaded; `weir doctor` says what the kernel lacks")]
    Verify {
        /// The program.
        program: String,
        /// The cause, with the verifier's log.
        #[source]
        source: Box<ProgramError>,
    },
    /// The object lacks a part that this code knows.
    #[error("the eBPF object has no `{missing}`")]
    Object {
        /// The map or program.
        missing: String,
    },
    /// One program, at the scope.
    #[error("the eBPF program `{program}` cannot be attached")]
    Attach {
        /// The program.
        program: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A map.
    #[error("the kernel's map `{map}` cannot be used")]
    Map {
        /// Its name.
        map: &'static str,
        /// The cause.
        #[source]
        source: MapError,
    },
    /// More entries than a map takes.
    #[error("{entries} entries are more than the {capacity} that the kernel's map `{map}` takes")]
    TooMany {
        /// The map.
        map: &'static str,
        /// What was asked for.
        entries: usize,
        /// What there is room for.
        capacity: usize,
    },
    /// A target at the listener's own port.
    #[error("port {port} is the listener's and cannot be protected; give the listener another port")]
    ListenerPortProtected {
        /// The port.
        port: u32,
    },
    /// One target in two connections.
    #[error("{target} belongs to two connections")]
    TwoConnections {
        /// The target.
        target: Protected,
    },
    /// A connection's index that has a meaning of its own.
    #[error("{index} is not the index of a connection")]
    Connection {
        /// The index.
        index: u32,
    },
    /// A cgroup that is something else already.
    #[error("cgroup {cgroup} is registered as {kind:?} already")]
    CgroupTaken {
        /// The cgroup.
        cgroup: CgroupId,
        /// What it is.
        kind: CgroupKind,
    },
    /// A second reader of the events.
    #[error("the kernel's events have a reader already")]
    EventsTaken,
    /// The events' descriptor.
    #[error("the kernel's events cannot be read")]
    Events {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The programs at the scope.
    #[error("the programs at the scope cannot be listed")]
    Survey {
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The loaded, attached and pinned programs, and their maps. Dropping it takes nothing away: see [`detach`].
pub struct Kernel {
    pins: PathBuf,
    scope: File,
    listener_port: u16,
    state: Mutex<State>,
    sources: Mutex<Option<EventSources>>,
    retired: Vec<String>,
    stricter: Vec<CgroupId>,
}

/// What the events are read from, until someone does.
struct EventSources {
    ring: RingBuf<MapData>,
    logs: Option<EbpfLogger<ToTracing>>,
}

impl Kernel {
    /// Loads the programs, over pinned maps where an earlier daemon left some, and attaches them at the scope, or puts
    /// them into the links that stand there. Links of other versions' layouts go after this one's stand; agents' cgroups and
    /// the fence are taken over from them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a step. What stood before goes on standing.
    pub fn start(settings: &RedirectSettings) -> Result<Self, RedirectError> {
        let scope = File::open(&settings.scope)
            .map_err(|source| RedirectError::Scope { path: settings.scope.clone(), source })?;
        let pins = Pins::open(&settings.pins)?;
        let mut ebpf = load(&pins)?;
        let mut state = State::take(&mut ebpf)?;

        state.configure(settings.listener_port, settings.guard)?;
        state.protect(&settings.protected)?;
        state.set_agent_uids(&settings.agent_uids)?;
        state.set_cgroups(CgroupKind::Daemon, &[settings.daemon_cgroup])?;
        state.set_cgroups(CgroupKind::Allowed, &settings.allowed_cgroups)?;
        state.set_allowed_uids(&settings.allowed_uids)?;
        let mut stricter = state.start_egress(&settings.egress)?;
        stricter.extend(state.carry_over(&pins.cgroups_of_others()?, &settings.egress)?);

        for name in PROGRAMS {
            pins.install(name, descriptor(&ebpf, name)?, &scope)?;
        }
        let retired = pins.retire_others()?;

        let sources = EventSources { ring: take_ring(&mut ebpf)?, logs: logger(&mut ebpf) };
        Ok(Self {
            pins: settings.pins.clone(),
            scope,
            listener_port: settings.listener_port,
            state: Mutex::new(state),
            sources: Mutex::new(Some(sources)),
            retired,
            stricter,
        })
    }

    /// The agents' cgroups that may reach less since the start than under the daemon before. What they were connected to then
    /// they still are.
    pub fn stricter(&self) -> &[CgroupId] {
        &self.stricter
    }

    /// The listener's port.
    pub const fn listener_port(&self) -> u16 {
        self.listener_port
    }

    /// What the start took away of other versions' layouts, a line each.
    pub fn retired(&self) -> &[String] {
        &self.retired
    }

    /// Makes these the protected addresses, and no others; new ones are added before old ones go.
    ///
    /// # Errors
    ///
    /// When one is at the listener's port, belongs to two connections, or there are too many; nothing is changed then.
    /// When the kernel refuses a change; all that were protected before still are.
    pub fn set_protected(&self, protected: &[Protected]) -> Result<(), RedirectError> {
        self.state().set_protected(protected)
    }

    /// Makes a cgroup an agent's: from now on what runs in it or below it is redirected, and reaches beside protected
    /// addresses what `egress` says.
    ///
    /// # Errors
    ///
    /// When the cgroup is the daemon's or an allowed one, or too many are enrolled.
    pub fn enrol(&self, cgroup: CgroupId, egress: Egress) -> Result<(), RedirectError> {
        self.state().enrol(cgroup, egress)
    }

    /// Makes this what single agents may reach all the same, and nothing else; what is allowed no longer goes first.
    ///
    /// # Errors
    ///
    /// When there is too much of it; nothing is changed then.
    pub fn set_egress_allowed(&self, allowed: &[EgressAllowed]) -> Result<(), RedirectError> {
        self.state().set_egress_allowed(allowed)
    }

    /// Makes an agent's cgroup nobody's: from now on what runs in it is outside.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn unenrol(&self, cgroup: CgroupId) -> Result<(), RedirectError> {
        self.state().unenrol(cgroup)
    }

    /// The agents' cgroups, those that an earlier daemon enrolled included.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn enrolled(&self) -> Result<Vec<CgroupId>, RedirectError> {
        self.state().cgroups(CgroupKind::Agent)
    }

    /// Makes these the uids and cgroups that pass, and no others.
    ///
    /// # Errors
    ///
    /// When a cgroup is an agent's or the daemon's, or there are too many.
    pub fn set_allowed(&self, uids: &[u32], cgroups: &[CgroupId]) -> Result<(), RedirectError> {
        let mut state = self.state();
        state.set_cgroups(CgroupKind::Allowed, cgroups)?;
        state.set_allowed_uids(uids)
    }

    /// Makes these the agents' uids for the guard `agents`, and no others.
    ///
    /// # Errors
    ///
    /// When there are too many.
    pub fn set_agent_uids(&self, ranges: &[UidRange]) -> Result<(), RedirectError> {
        self.state().set_agent_uids(ranges)
    }

    /// Makes this the cgroup below which nobody reaches anything but who lies in an agent's.
    ///
    /// # Errors
    ///
    /// When it is something else already.
    pub fn set_fence(&self, cgroup: CgroupId) -> Result<(), RedirectError> {
        self.state().set_fence(cgroup)
    }

    /// Makes this the daemon's cgroup.
    ///
    /// # Errors
    ///
    /// When it is an agent's or an allowed one.
    pub fn set_daemon_cgroup(&self, cgroup: CgroupId) -> Result<(), RedirectError> {
        self.state().set_cgroups(CgroupKind::Daemon, &[cgroup])
    }

    /// The refusals, for one reader. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When they have a reader already.
    pub fn events(&self) -> Result<KernelEvents, RedirectError> {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner).take();
        let EventSources { ring, logs } = sources.ok_or(RedirectError::EventsTaken)?;
        KernelEvents::new(ring, logs).map_err(|source| RedirectError::Events { source })
    }

    /// Refusals that found the ring full, since the maps were made.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn dropped_events(&self) -> Result<u64, RedirectError> {
        self.state().dropped()
    }

    /// Connections to the listener whose handshake runs.
    pub fn pending_entries(&self) -> usize {
        self.state().pending()
    }

    /// How many handshakes the agents are counted for: those that run, and those of which the agent's side has not heard
    /// anything since. No more than [`MOST_HANDSHAKES`] of each.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn counted_handshakes(&self) -> Result<u64, RedirectError> {
        self.state().handshakes()
    }

    /// All programs attached at the scope, others' included.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn programs_at_scope(&self) -> Result<Vec<AttachedProgram>, RedirectError> {
        let ours = pins::pinned_programs(&self.pins);
        survey::attached(&self.scope, &ours).map_err(|source| RedirectError::Survey { source })
    }

    /// The notes of accepted sockets.
    pub(crate) fn notes(&self) -> Result<SkStorage<MapData, Note>, RedirectError> {
        let failed = |source| RedirectError::Map { map: maps::NOTES, source };
        let data = MapData::from_pin(pins::map_pin(&self.pins, maps::NOTES)).map_err(failed)?;
        SkStorage::try_from(Map::from_map_data(data).map_err(failed)?).map_err(failed)
    }

    /// A panic while the lock was held leaves maps that the kernel keeps consistent by itself.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads and verifies all programs, over the pinned maps; those that aren't there are made and pinned.
fn load(pins: &Pins) -> Result<Ebpf, RedirectError> {
    let (from, layout) = probe::task_from();
    let from = from.wire();
    let mut loader = EbpfLoader::new();
    for name in maps::ALL {
        // An existing pin is taken without comparing layouts: hence the folder's name.
        loader.map_pin_path(name, pins.map(name));
    }
    loader.override_global(TASK_FROM, &from, true);
    loader.override_global(TASK_LAYOUT, &layout, true);
    let has_mptcp = u32::from(probe::has_mptcp());
    loader.override_global(HAS_MPTCP, &has_mptcp, true);
    let mut ebpf = loader.load(OBJECT).map_err(|source| RedirectError::Load { source: Box::new(source) })?;
    for name in PROGRAMS {
        let result = match ebpf.program_mut(name) {
            Some(Program::CgroupSockAddr(program)) => program.load(),
            Some(Program::CgroupSock(program)) => program.load(),
            Some(Program::CgroupSkb(program)) => program.load(),
            Some(Program::CgroupSockopt(program)) => program.load(),
            Some(Program::SockOps(program)) => program.load(),
            _ => return Err(RedirectError::Object { missing: name.to_owned() }),
        };
        result.map_err(|source| RedirectError::Verify { program: name.to_owned(), source: Box::new(source) })?;
    }
    Ok(ebpf)
}

fn descriptor<'a>(ebpf: &'a Ebpf, name: &str) -> Result<std::os::fd::BorrowedFd<'a>, RedirectError> {
    let program = ebpf.program(name).ok_or_else(|| RedirectError::Object { missing: name.to_owned() })?;
    let fd =
        program.fd().map_err(|source| RedirectError::Verify { program: name.to_owned(), source: Box::new(source) })?;
    Ok(fd.as_fd())
}

fn take_ring(ebpf: &mut Ebpf) -> Result<RingBuf<MapData>, RedirectError> {
    let map = ebpf.take_map(maps::EVENTS).ok_or_else(|| RedirectError::Object { missing: maps::EVENTS.to_owned() })?;
    RingBuf::try_from(map).map_err(|source| RedirectError::Map { map: maps::EVENTS, source })
}

/// Without it the programs' own diagnostics are lost, and nothing else.
fn logger(ebpf: &mut Ebpf) -> Option<EbpfLogger<ToTracing>> {
    EbpfLogger::init_with_logger(ebpf, ToTracing)
        .inspect_err(|error| tracing::warn!(%error, "the eBPF programs' own log cannot be read"))
        .ok()
}
