//! What an agent's processes may not ask of the kernel.
//!
//! - Sockets of other families than unix, inet, inet6 and netlink: the redirect sees inet and inet6 alone (VSOCK, SMC,
//!   TIPC, RDS… would pass it by, and loading their modules is a risk of its own).
//! - `io_uring`: a ring makes sockets (`IORING_OP_SOCKET`) that no filter sees. The answer is EPERM, as where
//!   `kernel.io_uring_disabled` is set, and libraries fall back.
//! - Typing into a terminal for its reader: TIOCSTI, and TIOCLINUX, whose paste does the same. The kernel looks at the
//!   low 32 bits of an ioctl's command, and so does the filter.
//! - Files that give whoever executes them the rights of their owner or group (setuid, setgid): the uid of a pool's run is
//!   another's later, and who is bound by `no_new_privs` can hand such a file to who is not. openat2 has its mode where no
//!   filter sees it, so it does not exist, and libraries fall back to openat. A folder's setgid bit is the same bit: programs
//!   that would copy it are refused that as well. mkdir takes neither bit from its mode.
//! - System calls of other architectures (i386, x32), whose numbers would mean something else: i386 is killed, x32
//!   does not exist.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

const BITS: [u32; 2] = [libc::S_ISUID, libc::S_ISGID];
/// Flags of open(2) with which it makes a file, without O_TMPFILE's bit for a folder.
const MAKING: [u32; 2] = [libc::O_CREAT.unsigned_abs(), (libc::O_TMPFILE & !libc::O_DIRECTORY).unsigned_abs()];

const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// Bit 30 of the number marks a call of the x32 ABI, under x86-64's own architecture (asm/unistd.h).
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// The programs to install, in any order: the strictest answer wins (seccomp(2)).
pub(super) fn programs() -> Result<[BpfProgram; 3], BackendError> {
    let family_refused = SeccompRule::new(
        FAMILIES
            .into_iter()
            .map(|family| condition(0, SeccompCmpOp::Ne, u64::from(family.unsigned_abs())))
            .collect::<Result<_, _>>()?,
    )?;
    let families =
        [libc::SYS_socket, libc::SYS_socketpair].into_iter().map(|call| (call, vec![family_refused.clone()]));
    let mut others = BTreeMap::from([
        (libc::SYS_io_uring_setup, vec![]),
        (libc::SYS_io_uring_enter, vec![]),
        (libc::SYS_io_uring_register, vec![]),
    ]);
    let typing = [TIOCSTI, TIOCLINUX]
        .into_iter()
        .map(|command| SeccompRule::new(vec![condition(1, SeccompCmpOp::Eq, command)?]))
        .collect::<Result<_, _>>()?;
    others.insert(libc::SYS_ioctl, typing);
    others.extend(lasting_rights()?);
    let unseen = BTreeMap::from([(libc::SYS_openat2, vec![])]);
    Ok([
        program(families.collect(), libc::EAFNOSUPPORT)?,
        program(others, libc::EPERM)?,
        program(unseen, libc::ENOSYS)?,
    ])
}

/// Calls that give a file the setuid or setgid bit.
fn lasting_rights() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    // Which argument is the mode.
    let modes = [
        (libc::SYS_fchmod, 1),
        (libc::SYS_fchmodat, 2),
        (libc::SYS_fchmodat2, 2),
        (libc::SYS_mknodat, 2),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_chmod, 1),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_creat, 1),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_mknod, 1),
    ];
    // Which are the flags, and the mode behind them.
    let opens = [
        (libc::SYS_openat, 2),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, 1),
    ];
    let mut rules = BTreeMap::new();
    for (call, mode) in modes {
        let refused = BITS.into_iter().map(|bit| SeccompRule::new(vec![has(mode, bit)?]));
        rules.insert(call, refused.collect::<Result<_, _>>()?);
    }
    for (call, flags) in opens {
        // Without one of these flags the kernel does not look at the mode, and there may be anything.
        let refused = MAKING.into_iter().flat_map(|making| BITS.map(|bit| (making, bit)));
        let refused = refused.map(|(making, bit)| SeccompRule::new(vec![has(flags, making)?, has(flags + 1, bit)?]));
        rules.insert(call, refused.collect::<Result<_, _>>()?);
    }
    Ok(rules)
}

/// An argument has a bit.
fn has(argument: u8, bit: u32) -> Result<SeccompCondition, BackendError> {
    condition(argument, SeccompCmpOp::MaskedEq(bit.into()), bit.into())
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

/// Compiles rules of which each match is answered with `errno`.
fn program(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int) -> Result<BpfProgram, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
    let program = BpfProgram::try_from(filter)?;
    #[cfg(target_arch = "x86_64")]
    let program = without_x32(program);
    Ok(program)
}

/// Puts the refusal of x32's numbers before `program`; seccompiler compares the architecture only, which x32 shares.
#[cfg(target_arch = "x86_64")]
fn without_x32(program: BpfProgram) -> BpfProgram {
    use seccompiler::sock_filter;
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, at offset 0: seccomp_data.nr
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let no_such_call = u32::from(SeccompAction::Errno(libc::ENOSYS.unsigned_abs()));
    let mut whole = vec![
        sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: no_such_call },
    ];
    whole.extend(program);
    whole
}
