//! What this machine has of what the redirect needs, for `weir doctor`: each check with what was seen and how to mend.
//! A check that could not be made is [`Verdict::Unknown`], never a guess.

use std::{fs, io, path::Path};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};

use gateway_common::{TaskFrom, TaskLayout};

use super::{cgroup::CgroupRoot, pins, types};

const BTF: &str = "/sys/kernel/btf/vmlinux";
const RELEASE: &str = "/proc/sys/kernel/osrelease";
const STATUS: &str = "/proc/self/status";
const FILE_SYSTEMS: &str = "/proc/filesystems";
const FIRST_UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

const MPTCP: &str = "/proc/sys/net/mptcp";

/// The oldest kernel that Weir was tried on.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Capabilities that the daemon needs, with their numbers in capability.h.
const CAPABILITIES: [(&str, u32); 5] =
    [("CAP_NET_BIND_SERVICE", 10), ("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Not as it should be.
    Failed,
    /// It could not be found out.
    Unknown,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What to do; empty when all is well.
    pub mend: &'static str,
}

/// Looks at this machine. Attaches nothing and changes nothing.
pub fn probe(pins: &Path, listener_port: u16) -> Vec<Check> {
    vec![
        check("kernel", kernel(), "boot Linux 6.1 or later"),
        check("kernel types (BTF)", btf(), "boot a kernel with CONFIG_DEBUG_INFO_BTF=y"),
        check("cgroup v2", cgroup2(), "mount it: `mount -t cgroup2 none /sys/fs/cgroup`"),
        check("bpffs", bpffs(pins), "boot a kernel with CONFIG_BPF_SYSCALL=y, or name a bpffs in `pins`"),
        check(
            "capabilities",
            capabilities(),
            "start the daemon as root, without a CapabilityBoundingSet that lacks these",
        ),
        check("programs on connect, bind and datagrams", program(ProgramType::CgroupSockAddr), BPF_MEND),
        check("programs on making sockets", program(ProgramType::CgroupSock), BPF_MEND),
        check("programs on socket options", program(ProgramType::CgroupSockopt), BPF_MEND),
        check("programs on packets", program(ProgramType::CgroupSkb), BPF_MEND),
        check("programs on TCP's states", program(ProgramType::SockOps), BPF_MEND),
        check("socket storage", map(MapType::SkStorage), BPF_MEND),
        check("prefix tries", map(MapType::LpmTrie), BPF_MEND),
        check("ring buffers", map(MapType::RingBuf), BPF_MEND),
        check(
            "listener's port",
            port(listener_port),
            "choose a `listener_port` below net.ipv4.ip_unprivileged_port_start, or raise that",
        ),
    ]
}

/// How programs on packets find the calling task, and where the kernel has what leads there. What cannot be found out counts
/// as not at all.
pub(super) fn task_from() -> (TaskFrom, TaskLayout) {
    let all = |helpers: &[BpfHelper]| {
        helpers
            .iter()
            .all(|&helper| is_helper_supported(ProgramType::CgroupSkb, helper).is_ok_and(|supported| supported))
    };
    if all(&[
        BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id,
        BpfHelper::BPF_FUNC_get_current_comm,
        BpfHelper::BPF_FUNC_get_current_pid_tgid,
        BpfHelper::BPF_FUNC_get_current_uid_gid,
    ]) {
        return (TaskFrom::Helper, TaskLayout::default());
    }
    match types::task_layout()
        .filter(|_| all(&[BpfHelper::BPF_FUNC_get_current_task, BpfHelper::BPF_FUNC_probe_read_kernel]))
    {
        Some(layout) => (TaskFrom::Memory, layout),
        None => (TaskFrom::Nothing, TaskLayout::default()),
    }
}

/// Whether the kernel was built with MPTCP, be it switched on or off.
pub(super) fn has_mptcp() -> bool {
    Path::new(MPTCP).exists()
}

/// Whether programs on packets find the calling task.
pub fn packets_know_task() -> bool {
    task_from().0 != TaskFrom::Nothing
}

const BPF_MEND: &str = "boot a kernel with CONFIG_CGROUP_BPF=y and CONFIG_BPF_SYSCALL=y, and run as root";

/// Well or not, and what was seen; an error is "cannot tell".
type Finding = Result<(bool, String), String>;

fn check(name: &'static str, finding: Finding, mend: &'static str) -> Check {
    match finding {
        Ok((true, seen)) => Check { name, verdict: Verdict::Ok, seen, mend: "" },
        Ok((false, seen)) => Check { name, verdict: Verdict::Failed, seen, mend },
        Err(seen) => Check { name, verdict: Verdict::Unknown, seen, mend },
    }
}

fn kernel() -> Finding {
    let release = read(RELEASE)?;
    let version = version(&release).ok_or_else(|| format!("`{release}` is not a version"))?;
    Ok((version >= OLDEST_KERNEL, release))
}

/// `6.1.0-28-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn btf() -> Finding {
    match fs::metadata(BTF) {
        Ok(_) => Ok((true, BTF.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((false, format!("no {BTF}"))),
        Err(error) => Err(format!("{BTF}: {error}")),
    }
}

fn cgroup2() -> Finding {
    match CgroupRoot::find() {
        Ok(root) => Ok((true, format!("mounted at {}", root.mount().display()))),
        Err(super::cgroup::CgroupError::NotMounted) => Ok((false, "not mounted".to_owned())),
        Err(error) => Err(error.to_string()),
    }
}

fn bpffs(pins: &Path) -> Finding {
    let existing = pins::existing(pins);
    match pins::is_bpffs(existing) {
        Ok(true) => Ok((true, format!("{} lies on one", pins.display()))),
        Ok(false) => {
            let known = read(FILE_SYSTEMS)?.lines().any(|line| line.split_whitespace().next_back() == Some("bpf"));
            let seen = if known { "not mounted yet: the daemon mounts it" } else { "not known to the kernel" };
            Ok((known, format!("{}: {seen}", existing.display())))
        }
        Err(error) => Err(format!("{}: {error}", existing.display())),
    }
}

fn capabilities() -> Finding {
    let status = read(STATUS)?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).ok_or("no CapEff")?;
    let effective = u64::from_str_radix(effective.trim(), 16).map_err(|error| error.to_string())?;
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|&&(_, number)| effective >> number & 1 == 0).map(|&(name, _)| name).collect();
    if missing.is_empty() {
        Ok((true, "all there".to_owned()))
    } else {
        Ok((false, format!("lacks {}", missing.join(", "))))
    }
}

fn program(kind: ProgramType) -> Finding {
    match is_program_supported(kind) {
        Ok(supported) => Ok((supported, loadable(supported))),
        Err(error) => Err(with_causes(&error)),
    }
}

fn map(kind: MapType) -> Finding {
    match is_map_supported(kind) {
        Ok(supported) => Ok((supported, loadable(supported))),
        Err(error) => Err(with_causes(&error)),
    }
}

fn loadable(supported: bool) -> String {
    if supported { "can be loaded" } else { "not known to the kernel" }.to_owned()
}

fn port(port: u16) -> Finding {
    let text = read(FIRST_UNPRIVILEGED)?;
    let first: u32 = text.parse().map_err(|_| format!("{FIRST_UNPRIVILEGED}: `{text}`"))?;
    Ok((u32::from(port) < first, format!("{port}; every user may bind from {first} on")))
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|error| format!("{path}: {error}"))
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_version_is_its_first_two_numbers() {
        assert_eq!(version("6.1.0-28-amd64"), Some((6, 1)));
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("linux"), None);
    }

    #[test]
    fn what_cannot_be_found_out_is_neither_well_nor_failed() {
        let mend = "mend it";
        let verdict = |finding| check("x", finding, mend);
        assert_eq!(verdict(Ok((true, "seen".to_owned()))).mend, "");
        assert_eq!(verdict(Ok((false, "seen".to_owned()))).verdict, Verdict::Failed);
        assert_eq!(verdict(Err("denied".to_owned())).verdict, Verdict::Unknown);
    }
}
