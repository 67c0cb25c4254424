//! The maps that the daemon writes. The kernel's copy is the only one: after an adoption it holds what the daemon before
//! left, and every change is made against what is there.
//!
//! What protects is added before what is no longer wanted goes; what allows goes before anything is added.

use std::collections::{HashMap as StdHashMap, HashSet};

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key};
use gateway_common::{CgroupKind, Config, Destination, Flow, NO_CONNECTION, Note, PORT_LISTENER, PORT_PROTECTED, maps};

use super::{
    RedirectError,
    cgroup::CgroupId,
    target::{Protected, TargetKey, UidRange},
};

/// The maps, typed.
pub(super) struct State {
    config: Array<MapData, Config>,
    ports: Array<MapData, u32>,
    targets: LpmTrie<MapData, Destination, u32>,
    cgroups: HashMap<MapData, u64, u32>,
    allowed_uids: HashMap<MapData, u32, u32>,
    agent_uids: LpmTrie<MapData, u32, u32>,
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
            pending: taken(ebpf, maps::PENDING)?,
            dropped: taken(ebpf, maps::DROPPED)?,
        })
    }

    /// Tells the programs the listener's port and the guard.
    pub(super) fn configure(&mut self, config: Config) -> Result<(), RedirectError> {
        if self.protected_ports()?.contains(&config.listener_port) {
            return Err(RedirectError::ListenerPortProtected { port: config.listener_port });
        }
        // The port of the daemon before; 0 in a map that was made now. The configuration comes last: whoever is
        // interrupted leaves what the next start puts right.
        let former = self.config.get(&0, 0).map_err(failed(maps::CONFIG))?.listener_port;
        self.ports.set(config.listener_port, PORT_LISTENER, 0).map_err(failed(maps::PORTS))?;
        if former != config.listener_port {
            self.ports.set(former, 0, 0).map_err(failed(maps::PORTS))?;
        }
        self.config.set(0, config, 0).map_err(failed(maps::CONFIG))
    }

    /// Adds targets; those that are there already get their new connection.
    pub(super) fn protect(&mut self, protected: &[Protected]) -> Result<(), RedirectError> {
        let wanted = self.checked(protected)?;
        for port in protected.iter().map(|protected| u32::from(protected.port)).collect::<HashSet<_>>() {
            self.ports.set(port, PORT_PROTECTED, 0).map_err(failed(maps::PORTS))?;
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
                self.ports.set(port, 0, 0).map_err(failed(maps::PORTS))?;
            }
        }
        Ok(())
    }

    fn checked(&self, protected: &[Protected]) -> Result<StdHashMap<TargetKey, u32>, RedirectError> {
        let listener = self.config.get(&0, 0).map_err(failed(maps::CONFIG))?.listener_port;
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

    /// Makes a cgroup an agent's.
    pub(super) fn enrol(&mut self, cgroup: CgroupId) -> Result<(), RedirectError> {
        if let Some(kind @ (CgroupKind::Daemon | CgroupKind::Allowed | CgroupKind::Fence)) = self.kind(cgroup)? {
            return Err(RedirectError::CgroupTaken { cgroup, kind });
        }
        self.insert_cgroup(cgroup, CgroupKind::Agent)
    }

    /// Makes an agent's cgroup nobody's.
    pub(super) fn unenrol(&mut self, cgroup: CgroupId) -> Result<(), RedirectError> {
        if self.kind(cgroup)? != Some(CgroupKind::Agent) {
            return Ok(());
        }
        gone(self.cgroups.remove(&cgroup.get())).map_err(failed(maps::CGROUPS))
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

    /// Events that found the ring full, since the maps were made.
    pub(super) fn dropped(&self) -> Result<u64, RedirectError> {
        let counts = self.dropped.get(&0, 0).map_err(failed(maps::DROPPED))?;
        Ok(counts.iter().sum())
    }
}

fn trie_key(key: &TargetKey) -> Key<Destination> {
    Key::new(key.bits, key.destination)
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
