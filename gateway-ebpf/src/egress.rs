//! What an agent may reach beside protected addresses: everything, everything but listed ports, or what is allowed to
//! it.

use core::ptr::addr_of;

use aya_ebpf::{bindings::bpf_sock_addr, btf_maps::lpm_trie::Key, helpers::generated::bpf_skc_to_mptcp_sock};
use gateway_common::{Destination, EGRESS_TARGET_HEAD_BITS, Egress, EgressMode, EgressTarget, Reason};

use crate::{
    context::{Family, load, socket},
    maps::{EGRESS, EGRESS_ALLOWED, config},
    target, task,
};

const IPPROTO_ICMP: u32 = 1;
const IPPROTO_ICMPV6: u32 = 58;

/// Whether the kernel has MPTCP: without it the verifier knows no such socket.
#[unsafe(no_mangle)]
static HAS_MPTCP: u32 = 0;

/// Judges a call on an address that is not protected. Costs nobody a look-up while the port isn't listed, no agent is
/// closed, and there is no fence.
#[inline(always)]
pub fn check(call: *mut bpf_sock_addr, family: Family, asked: &Destination, listed: bool) -> Result<(), Reason> {
    if !listed && !is_any_closed() {
        return Ok(());
    }
    let Some(agent) = task::agent_in_reach()? else { return Ok(()) };
    if is_multipath(call) {
        check_multipath(agent)?;
    }
    let address = target::meant(call, family, &asked.address);
    match load!((*call).protocol) {
        // What stands in the place of its port means nothing.
        IPPROTO_ICMP | IPPROTO_ICMPV6 => judge(agent, address, None, false),
        _ => judge(agent, address, Some(asked.port), listed),
    }
}

/// Refuses MPTCP to an agent that is closed: the kernel opens further connections by itself, to addresses that the other end
/// names, and no program is asked.
#[inline(always)]
pub fn check_multipath(agent: u64) -> Result<(), Reason> {
    match mode(rule(agent)) {
        Some(EgressMode::Open | EgressMode::Databases) => Ok(()),
        Some(EgressMode::Closed) | None => Err(Reason::Multipath),
    }
}

/// Whether a socket, made by whomever, belongs to one of MPTCP's.
#[inline(always)]
fn is_multipath(call: *mut bpf_sock_addr) -> bool {
    // SAFETY: a constant; volatile, since the daemon writes it before the programs are loaded.
    if unsafe { addr_of!(HAS_MPTCP).read_volatile() } == 0 {
        return false;
    }
    // SAFETY: the helper checks the socket.
    !unsafe { bpf_skc_to_mptcp_sock(socket(call).cast()) }.is_null()
}

/// Whether some agent's egress is closed, as it is below a fence; no configuration counts as yes.
#[inline(always)]
pub fn is_any_closed() -> bool {
    config().is_none_or(|config| config.closed != 0)
}

/// Judges by an agent's rule. No address is one that only routing knows.
#[inline(always)]
pub fn judge(agent: u64, address: Option<[u32; 4]>, port: Option<u32>, listed: bool) -> Result<(), Reason> {
    let rule = rule(agent);
    let reason = match mode(rule) {
        Some(EgressMode::Open) => return Ok(()),
        Some(EgressMode::Databases) if !listed => return Ok(()),
        Some(EgressMode::Databases) => Reason::PortListed,
        Some(EgressMode::Closed) | None => Reason::NotAllowed,
    };
    let (Some(rule), Some(address)) = (rule, address) else { return Err(reason) };
    if is_allowed(EgressTarget { agent: rule.agent, port: 0, address }) {
        return Ok(());
    }
    match port {
        Some(port) if port != 0 && is_allowed(EgressTarget { agent: rule.agent, port, address }) => Ok(()),
        _ => Err(reason),
    }
}

#[inline(always)]
fn rule(agent: u64) -> Option<Egress> {
    // SAFETY: copied at once.
    unsafe { EGRESS.get(agent) }.copied()
}

#[inline(always)]
fn mode(rule: Option<Egress>) -> Option<EgressMode> {
    EgressMode::from_wire(rule?.mode)
}

#[inline(always)]
fn is_allowed(target: EgressTarget) -> bool {
    EGRESS_ALLOWED.get(&Key::new(EGRESS_TARGET_HEAD_BITS + 128, target)).is_some_and(|allowed| *allowed == 1)
}
