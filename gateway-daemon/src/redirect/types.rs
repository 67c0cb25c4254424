//! The kernel's own types (BTF): where its structures have what leads from a task to its cgroups.
//!
//! Layout: Linux's `Documentation/bpf/btf.rst`. Everything is bounded by the file: what does not fit is no answer.

use std::{collections::HashMap, fs};

use gateway_common::TaskLayout;

const KERNEL: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;

/// Where this kernel has it; `None` where its types do not say.
pub(super) fn task_layout() -> Option<TaskLayout> {
    parse(&fs::read(KERNEL).ok()?)
}

fn parse(file: &[u8]) -> Option<TaskLayout> {
    let types = Types::new(file)?;
    let wanted = [
        ("task_struct", "cgroups"),
        ("css_set", "dfl_cgrp"),
        ("cgroup", "level"),
        ("cgroup", "ancestors"),
        ("cgroup", "kn"),
        ("kernfs_node", "id"),
    ];
    let found = types.offsets(&wanted)?;
    let at = |member| found.get(&member).copied();
    let [sets, cgroup, level, ancestors, node, id] = wanted.map(at);
    Some(TaskLayout { sets: sets?, cgroup: cgroup?, level: level?, ancestors: ancestors?, node: node?, id: id? })
}

/// A structure and a member of it.
type Member = (&'static str, &'static str);

struct Types<'a> {
    types: &'a [u8],
    names: &'a [u8],
}

impl<'a> Types<'a> {
    fn new(file: &'a [u8]) -> Option<Self> {
        let magic = u16::from_ne_bytes(file.get(..2)?.try_into().ok()?);
        if magic != MAGIC {
            return None;
        }
        let body = file.get(usize::try_from(word(file, 4)?).ok()?..)?;
        let section = |at: usize| -> Option<&'a [u8]> {
            let start = usize::try_from(word(file, at)?).ok()?;
            body.get(start..start.checked_add(usize::try_from(word(file, at.checked_add(4)?)?).ok()?)?)
        };
        Some(Self { types: section(8)?, names: section(16)? })
    }

    /// The offsets of whole-byte members, of the first structure of each name.
    fn offsets(&self, wanted: &[Member]) -> Option<HashMap<Member, u32>> {
        let mut found = HashMap::new();
        let mut rest = self.types;
        while !rest.is_empty() {
            let (name, info) = (word(rest, 0)?, word(rest, 4)?);
            let (kind, count) = (info >> 24 & 0x1f, info & 0xffff);
            let (_, behind) = rest.split_at_checked(12)?;
            let (own, behind) =
                behind.split_at_checked(usize::try_from(count.checked_mul(size_of_part(kind)?)?).ok()?)?;
            let (_, behind) = behind.split_at_checked(size_beside_parts(kind))?;
            rest = behind;
            if kind != STRUCT {
                continue;
            }
            let name = self.name(name)?;
            for &(structure, member) in wanted.iter().filter(|(structure, _)| structure.as_bytes() == name) {
                let bits = self.member(own, member, info >> 31 == 1);
                if let Some(bits) = bits.filter(|bits| bits % 8 == 0) {
                    found.entry((structure, member)).or_insert(bits / 8);
                }
            }
        }
        Some(found)
    }

    /// Where a member stands, in bits.
    fn member(&self, members: &[u8], wanted: &str, has_bitfields: bool) -> Option<u32> {
        let of = |member: &[u8]| Some((word(member, 0)?, word(member, 8)?));
        let named = |&(name, _): &(u32, u32)| self.name(name) == Some(wanted.as_bytes());
        let (_, offset) = members.chunks_exact(12).filter_map(of).find(named)?;
        Some(if has_bitfields { offset & 0x00ff_ffff } else { offset })
    }

    fn name(&self, at: u32) -> Option<&'a [u8]> {
        self.names.get(usize::try_from(at).ok()?..)?.split(|&byte| byte == 0).next()
    }
}

/// Bytes of each of a type's parts, as many of which follow as its head says.
const fn size_of_part(kind: u32) -> Option<u32> {
    match kind {
        // Structures, unions, sections; 64-bit enums.
        4 | 5 | 15 | 19 => Some(12),
        // Enums, prototypes of functions.
        6 | 13 => Some(8),
        0..=19 => Some(0),
        _ => None,
    }
}

/// Bytes that follow whatever the head says.
const fn size_beside_parts(kind: u32) -> usize {
    match kind {
        // Numbers, variables, tags of declarations.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        _ => 0,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with a number, a structure of another name, and the four that count.
    fn file() -> Vec<u8> {
        let names = b"\0task_struct\0cgroups\0css_set\0dfl_cgrp\0cgroup\0level\0ancestors\0kn\0kernfs_node\0id\0";
        let name = |text: &str| {
            let needle = [b"\0", text.as_bytes(), b"\0"].concat();
            u32::try_from(names.windows(needle.len()).position(|window| window == needle).unwrap() + 1).unwrap()
        };
        let mut types: Vec<u32> = vec![0, 1 << 24, 4, 32];
        let mut structure = |own: &str, bitfields: u32, members: &[(&str, u32)]| {
            types.extend([name(own), bitfields << 31 | STRUCT << 24 | u32::try_from(members.len()).unwrap(), 64]);
            types.extend(members.iter().flat_map(|&(member, bits)| [name(member), 1, bits]));
        };
        structure("level", 0, &[("cgroups", 8)]);
        structure("task_struct", 0, &[("id", 0), ("cgroups", 64)]);
        structure("css_set", 1, &[("dfl_cgrp", 7 << 24 | 128)]);
        structure("cgroup", 0, &[("level", 32), ("ancestors", 640), ("kn", 192)]);
        structure("kernfs_node", 0, &[("id", 256)]);
        let size = u32::try_from(types.len() * 4).unwrap();
        let mut file = vec![];
        file.extend(MAGIC.to_ne_bytes());
        file.extend([1, 0]);
        for word in [24, 0, size, size, u32::try_from(names.len()).unwrap()] {
            file.extend(word.to_ne_bytes());
        }
        file.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        file.extend(names);
        file
    }

    #[test]
    fn offsets_are_found_by_structure_and_member() {
        let expected = TaskLayout { sets: 8, cgroup: 16, level: 4, ancestors: 80, node: 24, id: 32 };
        assert_eq!(parse(&file()), Some(expected));
    }

    #[test]
    fn a_file_that_is_cut_anywhere_or_lacks_a_member_gives_no_layout() {
        let file = file();
        for length in 0..file.len() {
            assert_eq!(parse(&file[..length]), None, "{length}");
        }
        let mut other = file.clone();
        let place = other.windows(9).position(|window| window == b"ancestors").unwrap();
        other[place] = b'A';
        assert_eq!(parse(&other), None);
    }

    #[test]
    fn this_kernel_has_the_layout() {
        let layout = task_layout().unwrap();
        assert!(layout.sets > 0 && layout.ancestors > layout.level, "{layout:?}");
    }
}
