//! The note in a socket's storage.

use core::{
    ffi::c_void,
    ptr::{from_mut, from_ref, null_mut},
};

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
};
use gateway_common::Note;

use crate::maps::NOTES;

/// The map as the helper wants it. aya-ebpf's own methods take the context of `sock_addr` programs alone.
#[inline(always)]
fn notes() -> *mut c_void {
    from_ref(&NOTES).cast_mut().cast()
}

/// The socket's note, where it has one that wasn't cleared.
#[inline(always)]
pub fn read<'a>(socket: *mut bpf_sock) -> Option<&'a Note> {
    // SAFETY: the helper checks the socket, and gives null or the storage, which lives as long as the socket does.
    let note = unsafe { bpf_sk_storage_get(notes(), socket.cast(), null_mut(), 0).cast::<Note>().as_ref() }?;
    if note.cgroup == 0 { None } else { Some(note) }
}

/// Writes the socket's note, over an older one as well.
#[inline(always)]
pub fn write(socket: *mut bpf_sock, note: &mut Note) -> Result<(), ()> {
    // The value given here fills a storage that is made now; one that stands already keeps its own.
    // SAFETY: as in `read`; the note lies on the stack across the call.
    let place = unsafe {
        bpf_sk_storage_get(notes(), socket.cast(), from_mut(note).cast(), BPF_SK_STORAGE_GET_F_CREATE.into())
            .cast::<Note>()
            .as_mut()
    };
    match place {
        Some(place) => {
            *place = *note;
            Ok(())
        }
        None => Err(()),
    }
}

/// Forgets what an earlier connect of the socket wrote.
#[inline(always)]
pub fn clear(socket: *mut bpf_sock) {
    // SAFETY: as in `read`.
    if let Some(note) = unsafe { bpf_sk_storage_get(notes(), socket.cast(), null_mut(), 0).cast::<Note>().as_mut() } {
        note.cgroup = 0;
    }
}
