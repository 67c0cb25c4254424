//! The maps. `gateway_common::maps` says what each holds; names and capacities come from there.
//!
//! None of them forgets by itself: a full map refuses what it cannot hold.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use gateway_common::{Config, Destination, Egress, EgressTarget, Flow, KernelEvent, Note, maps};

/// Entries are allocated as they come: most hosts need a few.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
pub static PORTS: Array<u32, 65_536> = Array::new();

#[btf_map]
pub static TARGETS: LpmTrie<Destination, u32, { maps::TARGETS_CAPACITY }> = LpmTrie::new();

#[btf_map]
pub static CGROUPS: HashMap<u64, u32, { maps::CGROUPS_CAPACITY }, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static ALLOWED_UIDS: HashMap<u32, u32, { maps::ALLOWED_UIDS_CAPACITY }, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static AGENT_UIDS: LpmTrie<u32, u32, { maps::AGENT_UIDS_CAPACITY }> = LpmTrie::new();

#[btf_map]
pub static EGRESS: HashMap<u64, Egress, { maps::CGROUPS_CAPACITY }, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static EGRESS_ALLOWED: LpmTrie<EgressTarget, u32, { maps::EGRESS_ALLOWED_CAPACITY }> = LpmTrie::new();

#[btf_map]
pub static HANDSHAKES: Array<u64, { maps::CGROUPS_CAPACITY }> = Array::new();

#[btf_map]
pub static COUNTED: SkStorage<u32> = SkStorage::new();

#[btf_map]
pub static PENDING: HashMap<Flow, Note, { maps::PENDING_CAPACITY }, ON_DEMAND> = HashMap::new();

#[btf_map]
pub static NOTES: SkStorage<Note> = SkStorage::new();

#[btf_map]
pub static ROUTES: SkStorage<u32> = SkStorage::new();

#[btf_map]
pub static EVENTS: RingBuf<KernelEvent, { maps::EVENTS_BYTES }> = RingBuf::new();

#[btf_map]
pub static DROPPED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The configuration; `None` cannot happen (the array has its one element), and is refused where it would matter.
#[inline(always)]
pub fn config() -> Option<Config> {
    CONFIG.get(0).copied()
}
