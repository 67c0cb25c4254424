//! The maps that the daemon writes. The kernel's copy is the only one: after an adoption it holds what the daemon before
//! left, and every change is made against what is there.
//!
//! What protects is added before what is no longer wanted goes; what allows goes before anything is added.

use std::collections::{HashMap as StdHashMap, HashSet};

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key};
use gateway_common::{
    CgroupKind, Config, Destination, EgressMode, EgressTarget, Flow, Guard, NO_CONNECTION, Note, PORT_LISTED,
    PORT_LISTENER, PORT_PROTECTED, maps,
};

use super::{
    RedirectError,
    cgroup::CgroupId,
    egress::{self, AllowedKey, Egress, EgressAllowed, EgressSettings},
    target::{Protected, TargetKey, UidRange},
};

/// What a cgroup may reach; a mode that is not known is closed.
struct Reaches {
    mode: Option<EgressMode>,
    allowed: HashSet<(u32, EgressTarget)>,
}

impl Reaches {
    fn is_less_than(&self, before: &Self) -> bool {
        let narrower = match (self.mode, before.mode) {
            (Some(EgressMode::Open), _) => return false,
            (Some(EgressMode::Databases), Some(EgressMode::Open)) => true,
            (Some(EgressMode::Databases), Some(EgressMode::Databases | EgressMode::Closed) | None) => false,
            (Some(EgressMode::Closed) | None, Some(EgressMode::Open | EgressMode::Databases)) => true,
            (Some(EgressMode::Closed) | None, Some(EgressMode::Closed) | None) => false,
        };
        narrower || !before.allowed.is_subset(&self.allowed)
    }
}

/// The maps, typed.
pub(super) struct State {
    config: Array<MapData, Config>,
    ports: Array<MapData, u32>,
    targets: LpmTrie<MapData, Destination, u32>,
    cgroups: HashMap<MapData, u64, u32>,
    allowed_uids: HashMap<MapData, u32, u32>,
    agent_uids: LpmTrie<MapData, u32, u32>,
    egress: HashMap<MapData, u64, gateway_common::Egress>,
    egress_allowed: LpmTrie<MapData, EgressTarget, u32>,
    handshakes: Array<MapData, u64>,
    pending: HashMap<MapData, Flow, Note>,
    dropped: PerCpuArray<MapData, u64>,
}

impl State {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(ebpf: &mut aya::Ebpf) -> Result<Self, RedirectError> {
        fn taken<M>(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<M, RedirectError>
        where
            M: TryFrom<Map, Error = MapError>,
        {
            let map = ebpf.take_map(name).ok_or_else(|| RedirectError::Object { missing: name.to_owned() })?;
            M::try_from(map).map_err(failed(name))
        }
        Ok(Self {
            config: taken(ebpf, maps::CONFIG)?,
            ports: taken(ebpf, maps::PORTS)?,
            targets: taken(ebpf, maps::TARGETS)?,
            cgroups: taken(ebpf, maps::CGROUPS)?,
            allowed_uids: taken(ebpf, maps::ALLOWED_UIDS)?,
            agent_uids: taken(ebpf, maps::AGENT_UIDS)?,
            egress: taken(ebpf, maps::EGRESS)?,
            egress_allowed: taken(ebpf, maps::EGRESS_ALLOWED)?,
            handshakes: taken(ebpf, maps::HANDSHAKES)?,
            pending: taken(ebpf, maps::PENDING)?,
            dropped: taken(ebpf, maps::DROPPED)?,
        })
    }

    /// Tells the programs the listener's port and the guard, and which ports are listed.
    pub(super) fn configure(&mut self, listener_port: u16, guard: Guard) -> Result<(), RedirectError> {
        let before = self.config()?;
        let config = Config { listener_port: listener_port.into(), guard: guard.wire(), ..before };
        if self.protected_ports()?.contains(&config.listener_port) {
            return Err(RedirectError::ListenerPortProtected { port: config.listener_port });
        }
        // The port of the daemon before; 0 in a map that was made now. The configuration comes last: whoever is
        // interrupted leaves what the next start puts right.
        let former = before.listener_port;
        self.ports.set(config.listener_port, PORT_LISTENER, 0).map_err(failed(maps::PORTS))?;
        if former != config.listener_port {
            self.ports.set(former, listed_bit(former), 0).map_err(failed(maps::PORTS))?;
        }
        self.list_ports(config.listener_port)?;
        self.config.set(0, config, 0).map_err(failed(maps::CONFIG))
    }

    /// Marks the listed ports, and takes the mark from those that an earlier version listed.
    fn list_ports(&mut self, listener: u32) -> Result<(), RedirectError> {
        for port in (0..=u32::from(u16::MAX)).filter(|&port| port != listener) {
            let before = self.ports.get(&port, 0).map_err(failed(maps::PORTS))?;
            let wanted = before & !PORT_LISTED | listed_bit(port);
            if before != wanted {
                self.ports.set(port, wanted, 0).map_err(failed(maps::PORTS))?;
            }
        }
        Ok(())
    }

    fn config(&self) -> Result<Config, RedirectError> {
        self.config.get(&0, 0).map_err(failed(maps::CONFIG))
    }

    /// Adds targets; those that are there already get their new connection.
    pub(super) fn protect(&mut self, protected: &[Protected]) -> Result<(), RedirectError> {
        let wanted = self.checked(protected)?;
        for port in protected.iter().map(|protected| u32::from(protected.port)).collect::<HashSet<_>>() {
            self.ports.set(port, PORT_PROTECTED | listed_bit(port), 0).map_err(failed(maps::PORTS))?;
        }
        for (key, connection) in &wanted {
            self.targets.insert(&trie_key(key), connection, 0).map_err(failed(maps::TARGETS))?;
        }
        Ok(())
    }

    /// Makes these the targets, and no others.
    pub(super) fn set_protected(&mut self, protected: &[Protected]) -> Result<(), RedirectError> {
        let wanted = self.checked(protected)?;
        let ports_before = self.protected_ports()?;
        self.protect(protected)?;
        for key in self.targets()? {
            if !wanted.contains_key(&key) {
                gone(self.targets.remove(&trie_key(&key))).map_err(failed(maps::TARGETS))?;
            }
        }
        for port in ports_before {
            if !protected.iter().any(|protected| u32::from(protected.port) == port) {
                self.ports.set(port, listed_bit(port), 0).map_err(failed(maps::PORTS))?;
            }
        }
        Ok(())
    }

    fn checked(&self, protected: &[Protected]) -> Result<StdHashMap<TargetKey, u32>, RedirectError> {
        let listener = self.config()?.listener_port;
        let mut wanted: StdHashMap<TargetKey, u32> = StdHashMap::new();
        for target in protected {
            if u32::from(target.port) == listener {
                return Err(RedirectError::ListenerPortProtected { port: listener });
            }
            let connection = match target.connection {
                Some(NO_CONNECTION) => return Err(RedirectError::Connection { index: NO_CONNECTION }),
                Some(connection) => connection,
                None => NO_CONNECTION,
            };
            if wanted.insert(target.into(), connection).is_some_and(|other| other != connection) {
                return Err(RedirectError::TwoConnections { target: *target });
            }
        }
        room(maps::TARGETS, wanted.len(), maps::TARGETS_CAPACITY)?;
        Ok(wanted)
    }

    fn targets(&self) -> Result<HashSet<TargetKey>, RedirectError> {
        let keys =
            self.targets.keys().map(|key| key.map(|key| TargetKey { bits: key.prefix_len(), destination: key.data() }));
        keys.collect::<Result<_, _>>().map_err(failed(maps::TARGETS))
    }

    fn protected_ports(&self) -> Result<HashSet<u32>, RedirectError> {
        let ports = self.targets()?.into_iter().map(|key| super::target::to_socket_address(&key.destination).port());
        Ok(ports.map(u32::from).collect())
    }

    /// Makes a cgroup an agent's; what it may reach stands before it is one.
    pub(super) fn enrol(&mut self, cgroup: CgroupId, egress: Egress) -> Result<(), RedirectError> {
        if let Some(kind @ (CgroupKind::Daemon | CgroupKind::Allowed | CgroupKind::Fence)) = self.kind(cgroup)? {
            return Err(RedirectError::CgroupTaken { cgroup, kind });
        }
        self.set_egress(cgroup, egress)?;
        self.insert_cgroup(cgroup, CgroupKind::Agent)
    }

    /// Makes an agent's cgroup nobody's.
    pub(super) fn unenrol(&mut self, cgroup: CgroupId) -> Result<(), RedirectError> {
        if self.kind(cgroup)? != Some(CgroupKind::Agent) {
            return Ok(());
        }
        gone(self.cgroups.remove(&cgroup.get())).map_err(failed(maps::CGROUPS))?;
        gone(self.egress.remove(&cgroup.get())).map_err(failed(maps::EGRESS))?;
        self.note_closed()
    }

    /// The cgroups of a kind.
    pub(super) fn cgroups(&self, kind: CgroupKind) -> Result<Vec<CgroupId>, RedirectError> {
        let mut found = Vec::new();
        for entry in self.cgroups.iter() {
            let (id, number) = entry.map_err(failed(maps::CGROUPS))?;
            if CgroupKind::from_wire(number) == Some(kind) {
                found.extend(CgroupId::new(id));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Makes these the cgroups of a kind, and no others. An agent's stays an agent's.
    pub(super) fn set_cgroups(&mut self, kind: CgroupKind, wanted: &[CgroupId]) -> Result<(), RedirectError> {
        for &cgroup in wanted {
            if let Some(other) = self.kind(cgroup)?.filter(|&other| other != kind) {
                return Err(RedirectError::CgroupTaken { cgroup, kind: other });
            }
        }
        for cgroup in self.cgroups(kind)? {
            if !wanted.contains(&cgroup) {
                gone(self.cgroups.remove(&cgroup.get())).map_err(failed(maps::CGROUPS))?;
            }
        }
        wanted.iter().try_for_each(|&cgroup| self.insert_cgroup(cgroup, kind))
    }

    /// Makes this the fence, and nothing else: what is below is closed, so the programs must look before it stands.
    pub(super) fn set_fence(&mut self, cgroup: CgroupId) -> Result<(), RedirectError> {
        self.set_closed(true)?;
        self.set_cgroups(CgroupKind::Fence, &[cgroup])
    }

    fn insert_cgroup(&mut self, cgroup: CgroupId, kind: CgroupKind) -> Result<(), RedirectError> {
        self.cgroups.insert(cgroup.get(), kind.wire(), 0).map_err(failed(maps::CGROUPS))
    }

    fn kind(&self, cgroup: CgroupId) -> Result<Option<CgroupKind>, RedirectError> {
        match self.cgroups.get(&cgroup.get(), 0) {
            Ok(kind) => Ok(CgroupKind::from_wire(kind)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(maps::CGROUPS)(error)),
        }
    }

    /// Puts in force what agents may reach: first goes what is allowed no longer, then come the rules of cgroups that are
    /// enrolled already, and last what is newly allowed. Gives the cgroups that may reach less than before.
    pub(super) fn start_egress(&mut self, settings: &EgressSettings) -> Result<Vec<CgroupId>, RedirectError> {
        let wanted = checked_entries(&settings.allowed)?;
        let before = self.reaches()?;
        self.forbid_others(&wanted)?;
        let rules: StdHashMap<CgroupId, Egress> = settings.enrolled.iter().copied().collect();
        let enrolled = self.cgroups(CgroupKind::Agent)?;
        for &cgroup in &enrolled {
            self.set_egress(cgroup, rules.get(&cgroup).copied().unwrap_or(Egress::NOTHING))?;
        }
        let stale: Vec<u64> = self.egress.keys().collect::<Result<_, _>>().map_err(failed(maps::EGRESS))?;
        for id in stale.iter().filter(|&&id| !enrolled.iter().any(|cgroup| cgroup.get() == id)) {
            gone(self.egress.remove(id)).map_err(failed(maps::EGRESS))?;
        }
        self.allow(&wanted)?;
        self.note_closed()?;
        let now = self.reaches()?;
        let less = |cgroup: &CgroupId| match (before.get(&cgroup.get()), now.get(&cgroup.get())) {
            (Some(before), Some(now)) => now.is_less_than(before),
            (None, _) | (_, None) => true,
        };
        Ok(enrolled.into_iter().filter(less).collect())
    }

    /// What each cgroup with a rule may reach.
    fn reaches(&self) -> Result<StdHashMap<u64, Reaches>, RedirectError> {
        let allowed: Vec<_> =
            self.egress_allowed.iter().collect::<Result<_, _>>().map_err(failed(maps::EGRESS_ALLOWED))?;
        let rules: Vec<_> = self.egress.iter().collect::<Result<_, _>>().map_err(failed(maps::EGRESS))?;
        let reaches = |rule: gateway_common::Egress| {
            // By where it leads: an agent's number is another one when the configuration has them in another order.
            let own = allowed.iter().filter(|(key, allows)| *allows == 1 && key.data().agent == rule.agent);
            let targets = own.map(|(key, _)| (key.prefix_len(), EgressTarget { agent: 0, ..key.data() }));
            Reaches { mode: EgressMode::from_wire(rule.mode), allowed: targets.collect() }
        };
        Ok(rules.into_iter().map(|(cgroup, rule)| (cgroup, reaches(rule))).collect())
    }

    /// Makes agents and fence of what they were to programs of another layout. One whose egress is not known reaches
    /// nothing. Gives the agents: what they could reach before cannot be told.
    pub(super) fn carry_over(
        &mut self,
        cgroups: &[(CgroupId, CgroupKind)],
        settings: &EgressSettings,
    ) -> Result<Vec<CgroupId>, RedirectError> {
        let mut agents = Vec::new();
        for &(cgroup, kind) in cgroups {
            match kind {
                _ if self.kind(cgroup)?.is_some() => {}
                CgroupKind::Agent => {
                    let rule = settings.enrolled.iter().find(|(enrolled, _)| *enrolled == cgroup);
                    self.enrol(cgroup, rule.map_or(Egress::NOTHING, |&(_, egress)| egress))?;
                    agents.push(cgroup);
                }
                CgroupKind::Fence => self.set_fence(cgroup)?,
                CgroupKind::Daemon | CgroupKind::Allowed => {}
            }
        }
        Ok(agents)
    }

    /// Makes this what agents may reach all the same, and nothing else.
    pub(super) fn set_egress_allowed(&mut self, allowed: &[EgressAllowed]) -> Result<(), RedirectError> {
        let wanted = checked_entries(allowed)?;
        self.forbid_others(&wanted)?;
        self.allow(&wanted)
    }

    /// Entries that take a part out of a wider one stand before it comes, and go after it is gone.
    fn forbid_others(&mut self, wanted: &StdHashMap<AllowedKey, bool>) -> Result<(), RedirectError> {
        for (key, _) in wanted.iter().filter(|&(_, allows)| !allows) {
            self.egress_allowed.insert(&allowed_key(key), 0, 0).map_err(failed(maps::EGRESS_ALLOWED))?;
        }
        let present: Vec<_> =
            self.egress_allowed.iter().collect::<Result<_, _>>().map_err(failed(maps::EGRESS_ALLOWED))?;
        for value in [1, 0] {
            for (key, _) in present.iter().filter(|&&(_, present)| (present == 1) == (value == 1)) {
                if !wanted.contains_key(&AllowedKey { bits: key.prefix_len(), target: key.data() }) {
                    gone(self.egress_allowed.remove(key)).map_err(failed(maps::EGRESS_ALLOWED))?;
                }
            }
        }
        Ok(())
    }

    fn allow(&mut self, wanted: &StdHashMap<AllowedKey, bool>) -> Result<(), RedirectError> {
        for (key, _) in wanted.iter().filter(|&(_, allows)| *allows) {
            self.egress_allowed.insert(&allowed_key(key), 1, 0).map_err(failed(maps::EGRESS_ALLOWED))?;
        }
        Ok(())
    }

    /// While one is closed the programs look at every connect: they must do so before the rule stands.
    fn set_egress(&mut self, cgroup: CgroupId, egress: Egress) -> Result<(), RedirectError> {
        if egress.mode == EgressMode::Closed {
            self.set_closed(true)?;
        }
        let slot = self.slot(cgroup)?;
        let rule = gateway_common::Egress { mode: egress.mode.wire(), agent: egress.agent, slot };
        self.egress.insert(cgroup.get(), rule, 0).map_err(failed(maps::EGRESS))
    }

    /// The place where a cgroup's handshakes are counted: the one that it has, else one that is nobody's. Best one where
    /// nothing is counted: somebody else may hold sockets of the one before.
    fn slot(&self, cgroup: CgroupId) -> Result<u32, RedirectError> {
        let mut taken = HashSet::new();
        for entry in self.egress.iter() {
            let (id, rule) = entry.map_err(failed(maps::EGRESS))?;
            if id == cgroup.get() {
                return Ok(rule.slot);
            }
            taken.insert(rule.slot);
        }
        let mut best = None;
        for slot in (0..self.handshakes.len()).filter(|slot| !taken.contains(slot)) {
            let count = self.handshakes.get(&slot, 0).map_err(failed(maps::HANDSHAKES))?;
            if count == 0 {
                return Ok(slot);
            }
            if best.is_none_or(|(least, _)| count < least) {
                best = Some((count, slot));
            }
        }
        let full = RedirectError::TooMany {
            map: maps::EGRESS,
            entries: maps::CGROUPS_CAPACITY.saturating_add(1),
            capacity: maps::CGROUPS_CAPACITY,
        };
        best.map(|(_, slot)| slot).ok_or(full)
    }

    /// Whether some rule is closed, or there is a fence, for the programs.
    fn note_closed(&mut self) -> Result<(), RedirectError> {
        let rules: Vec<_> = self.egress.iter().collect::<Result<_, _>>().map_err(failed(maps::EGRESS))?;
        let closes = |mode| match EgressMode::from_wire(mode) {
            Some(EgressMode::Open | EgressMode::Databases) => false,
            Some(EgressMode::Closed) | None => true,
        };
        let fenced = !self.cgroups(CgroupKind::Fence)?.is_empty();
        self.set_closed(fenced || rules.iter().any(|(_, rule)| closes(rule.mode)))
    }

    fn set_closed(&mut self, closed: bool) -> Result<(), RedirectError> {
        let config = self.config()?;
        if (config.closed != 0) == closed {
            return Ok(());
        }
        self.config.set(0, Config { closed: closed.into(), ..config }, 0).map_err(failed(maps::CONFIG))
    }

    /// Makes these the uids that pass, and no others.
    pub(super) fn set_allowed_uids(&mut self, wanted: &[u32]) -> Result<(), RedirectError> {
        room(maps::ALLOWED_UIDS, wanted.len(), maps::ALLOWED_UIDS_CAPACITY)?;
        let present: Vec<u32> =
            self.allowed_uids.keys().collect::<Result<_, _>>().map_err(failed(maps::ALLOWED_UIDS))?;
        for uid in present.iter().filter(|uid| !wanted.contains(uid)) {
            gone(self.allowed_uids.remove(uid)).map_err(failed(maps::ALLOWED_UIDS))?;
        }
        for uid in wanted {
            self.allowed_uids.insert(uid, 1, 0).map_err(failed(maps::ALLOWED_UIDS))?;
        }
        Ok(())
    }

    /// Makes these the agents' uids, and no others.
    pub(super) fn set_agent_uids(&mut self, ranges: &[UidRange]) -> Result<(), RedirectError> {
        let wanted: HashSet<(u32, u32)> = ranges.iter().flat_map(|range| range.prefixes()).collect();
        room(maps::AGENT_UIDS, wanted.len(), maps::AGENT_UIDS_CAPACITY)?;
        for &(uid, bits) in &wanted {
            self.agent_uids.insert(&Key::new(bits, uid.to_be()), 1, 0).map_err(failed(maps::AGENT_UIDS))?;
        }
        let present: Vec<Key<u32>> =
            self.agent_uids.keys().collect::<Result<_, _>>().map_err(failed(maps::AGENT_UIDS))?;
        for key in present.iter().filter(|key| !wanted.contains(&(u32::from_be(key.data()), key.prefix_len()))) {
            gone(self.agent_uids.remove(key)).map_err(failed(maps::AGENT_UIDS))?;
        }
        Ok(())
    }

    /// Entries of connections whose handshake runs.
    pub(super) fn pending(&self) -> usize {
        self.pending.keys().filter(Result::is_ok).count()
    }

    /// Handshakes that are counted, of all agents.
    pub(super) fn handshakes(&self) -> Result<u64, RedirectError> {
        self.handshakes.iter().sum::<Result<_, _>>().map_err(failed(maps::HANDSHAKES))
    }

    /// Events that found the ring full, since the maps were made.
    pub(super) fn dropped(&self) -> Result<u64, RedirectError> {
        let counts = self.dropped.get(&0, 0).map_err(failed(maps::DROPPED))?;
        Ok(counts.iter().sum())
    }
}

fn trie_key(key: &TargetKey) -> Key<Destination> {
    Key::new(key.bits, key.destination)
}

fn allowed_key(key: &AllowedKey) -> Key<EgressTarget> {
    Key::new(key.bits, key.target)
}

fn checked_entries(allowed: &[EgressAllowed]) -> Result<StdHashMap<AllowedKey, bool>, RedirectError> {
    let entries = egress::entries(allowed);
    room(maps::EGRESS_ALLOWED, entries.len(), maps::EGRESS_ALLOWED_CAPACITY).map(|()| entries)
}

fn listed_bit(port: u32) -> u32 {
    let listed = u16::try_from(port).is_ok_and(|port| egress::listed(port).is_some());
    if listed { PORT_LISTED } else { 0 }
}

/// A removal of what isn't there any more is done.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn room(map: &'static str, entries: usize, capacity: usize) -> Result<(), RedirectError> {
    if entries > capacity { Err(RedirectError::TooMany { map, entries, capacity }) } else { Ok(()) }
}

fn failed(map: &'static str) -> impl FnOnce(MapError) -> RedirectError {
    move |source| RedirectError::Map { map, source }
}
