//! `sock_ops`: carries the note from the client's socket to the accepted one.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, bpf_sock,
    },
    helpers::generated::bpf_get_netns_cookie,
    macros::sock_ops,
    programs::SockOpsContext,
};
use aya_log_ebpf::warn;
use gateway_common::{Flow, MAPPED, Note, Reason};

use crate::{
    context::load,
    event, handshakes,
    maps::{PENDING, config},
    note,
};

const AF_INET: u32 = 2;

/// Not named `sockops`: a symbol named like its section breaks the link. The kernel ignores what it returns here.
#[sock_ops]
pub fn carry_note(ctx: SockOpsContext) -> u32 {
    let Some(config) = config() else { return 1 };
    let ops = ctx.ops;
    let local_port = load!((*ops).local_port); // host order
    let remote_port = u32::from_be(load!((*ops).remote_port)); // network order, in the upper half
    match load!((*ops).op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB if remote_port == config.listener_port => {
            let Some((socket, flow)) = as_client(&ctx, local_port, remote_port) else { return 1 };
            hand_over(&ctx, socket, &flow);
        }
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB if local_port == config.listener_port => {
            let Some((socket, flow)) = as_listener(&ctx, local_port, remote_port) else { return 1 };
            take_over(&ctx, socket, &flow);
        }
        // args: the old state, the new one.
        BPF_SOCK_OPS_STATE_CB if remote_port == config.listener_port => {
            if load!((*ops).__bindgen_anon_1.args[1]) != BPF_TCP_CLOSE {
                return 1;
            }
            let Some((socket, flow)) = as_client(&ctx, local_port, remote_port) else { return 1 };
            // The connect came to nothing, or was taken over already. What stayed would speak for whoever connects
            // from this port next.
            let _ = PENDING.remove(flow);
            handshakes::end(socket);
        }
        // The other end has answered.
        BPF_SOCK_OPS_RTT_CB if remote_port == config.listener_port => {
            let Some((socket, flow)) = as_client(&ctx, local_port, remote_port) else { return 1 };
            // SAFETY: the entry isn't read.
            if unsafe { PENDING.get(flow) }.is_none() {
                handshakes::end(socket);
                let flags = load!((*ops).bpf_sock_ops_cb_flags) & !BPF_SOCK_OPS_RTT_CB_FLAG;
                // Otherwise it is only asked again.
                let _ = ctx.set_cb_flags(flags as i32);
            }
        }
        _ => {}
    }
    1
}

/// Before the SYN leaves.
#[inline(always)]
fn hand_over(ctx: &SockOpsContext, socket: *mut bpf_sock, flow: &Flow) {
    let Some(note) = note::read(socket) else {
        // Straight to the listener: nothing may wait for this flow.
        let _ = PENDING.remove(flow);
        return;
    };
    if let Err(reason) = enter(ctx, socket, flow, note) {
        // The listener will find no note and refuse the connection.
        let _ = PENDING.remove(flow);
        handshakes::end(socket);
        event::not_carried(note, reason);
        warn!(ctx, "the note of a connection from port {} is not carried", flow.from_port);
    }
}

/// First the count and the callbacks that clean up, then the entry. The call sets all flags: others' stay.
#[inline(always)]
fn enter(ctx: &SockOpsContext, socket: *mut bpf_sock, flow: &Flow, note: &Note) -> Result<(), Reason> {
    handshakes::begin(socket, note.cgroup)?;
    let flags = load!((*ctx.ops).bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG;
    ctx.set_cb_flags(flags as i32).map_err(|_| Reason::NoteLost)?;
    PENDING.insert(flow, note, 0).map_err(|_| Reason::NoteLost)
}

/// The handshake is done, on the listener's side.
#[inline(always)]
fn take_over(ctx: &SockOpsContext, socket: *mut bpf_sock, flow: &Flow) {
    // SAFETY: copied at once. The entry is this flow's own: nobody writes it before the client's port is free again.
    let Some(mut note) = unsafe { PENDING.get(flow) }.copied() else { return };
    if note::write(socket, &mut note).is_err() {
        event::not_carried(&note, Reason::NoteLost);
        warn!(ctx, "no storage for the note of a connection from port {}", flow.from_port);
    }
    let _ = PENDING.remove(flow);
}

/// The flow, for a program that runs on the client's socket.
#[inline(always)]
fn as_client(ctx: &SockOpsContext, local_port: u32, remote_port: u32) -> Option<(*mut bpf_sock, Flow)> {
    let socket = socket(ctx)?;
    let (local, remote) = addresses(ctx);
    Some((socket, Flow { netns: netns(ctx), from: local, to: remote, from_port: local_port, to_port: remote_port }))
}

/// The flow, for a program that runs on the accepted socket.
#[inline(always)]
fn as_listener(ctx: &SockOpsContext, local_port: u32, remote_port: u32) -> Option<(*mut bpf_sock, Flow)> {
    let socket = socket(ctx)?;
    let (local, remote) = addresses(ctx);
    Some((socket, Flow { netns: netns(ctx), from: remote, to: local, from_port: remote_port, to_port: local_port }))
}

/// The verifier wants this one checked for null before a helper gets it.
#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: the union holds nothing but this pointer.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() { None } else { Some(socket) }
}

#[inline(always)]
fn netns(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context of this program.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The socket's own address and its peer's, IPv4 mapped.
#[inline(always)]
fn addresses(ctx: &SockOpsContext) -> ([u32; 4], [u32; 4]) {
    let ops = ctx.ops;
    let remote = [
        load!((*ops).remote_ip6[0]),
        load!((*ops).remote_ip6[1]),
        load!((*ops).remote_ip6[2]),
        load!((*ops).remote_ip6[3]),
    ];
    let mapped = remote[2] == MAPPED && remote[0] | remote[1] == 0;
    if load!((*ops).family) == AF_INET || mapped {
        return ([0, 0, MAPPED, load!((*ops).local_ip4)], [0, 0, MAPPED, load!((*ops).remote_ip4)]);
    }
    let local = [
        load!((*ops).local_ip6[0]),
        load!((*ops).local_ip6[1]),
        load!((*ops).local_ip6[2]),
        load!((*ops).local_ip6[3]),
    ];
    (local, remote)
}
