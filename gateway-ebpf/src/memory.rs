//! The calling task's cgroups, from the kernel's own structures: for programs that may not ask for them (those on packets,
//! before Linux 6.16). Where the structures have what is the daemon's to find out, from the kernel's types.

use core::{ffi::c_void, ptr::addr_of};

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel};
use gateway_common::TaskLayout;

/// Written by the daemon before the programs are loaded.
#[unsafe(no_mangle)]
static TASK_LAYOUT: TaskLayout = TaskLayout { sets: 0, cgroup: 0, level: 0, ancestors: 0, node: 0, id: 0 };

/// The cgroup of a task.
pub struct TaskCgroup {
    address: u64,
    level: u32,
}

impl TaskCgroup {
    /// The calling task's.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        let layout = layout();
        // SAFETY: a helper without pointers.
        let task = unsafe { bpf_get_current_task() };
        let sets: u64 = read(task, layout.sets)?;
        let address = read(sets, layout.cgroup)?;
        Some(Self { address, level: read(address, layout.level)? })
    }

    /// The id of the cgroup at a level, counted from the root; 0 below the cgroup itself, as the helper has it. What cannot
    /// be read is no cgroup's id.
    #[inline(always)]
    pub fn ancestor(&self, level: i32) -> u64 {
        if level as u32 > self.level {
            return 0;
        }
        let layout = layout();
        let id = || -> Option<u64> {
            let ancestor: u64 = read(self.address, layout.ancestors + level as u32 * 8)?;
            let node: u64 = read(ancestor, layout.node)?;
            read(node, layout.id)
        };
        id().unwrap_or(u64::MAX)
    }
}

#[inline(always)]
fn layout() -> TaskLayout {
    // SAFETY: a constant; volatile, since the daemon writes it before the programs are loaded.
    unsafe { addr_of!(TASK_LAYOUT).read_volatile() }
}

/// Reads what lies in the kernel's memory at an offset from an address.
#[inline(always)]
fn read<T: Default>(address: u64, offset: u32) -> Option<T> {
    let mut found = T::default();
    let from = (address + u64::from(offset)) as *const c_void;
    // SAFETY: the helper writes as many bytes as there is room for, and reads any address without harm.
    let result = unsafe { bpf_probe_read_kernel((&raw mut found).cast(), size_of::<T>() as u32, from) };
    if result == 0 { Some(found) } else { None }
}
