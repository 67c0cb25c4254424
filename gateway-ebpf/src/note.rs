//! The note in a socket's storage.

use core::{ffi::c_void, ptr::from_ref};

use aya_ebpf::bindings::bpf_sock;
use gateway_common::Note;

use crate::{maps::NOTES, storage};

#[inline(always)]
fn notes() -> *mut c_void {
    from_ref(&NOTES).cast_mut().cast()
}

/// The socket's note, where it has one that wasn't cleared.
#[inline(always)]
pub fn read<'a>(socket: *mut bpf_sock) -> Option<&'a Note> {
    let note: &Note = storage::get(notes(), socket)?;
    if note.cgroup == 0 { None } else { Some(note) }
}

/// Writes the socket's note, over an older one as well.
#[inline(always)]
pub fn write(socket: *mut bpf_sock, note: &mut Note) -> Result<(), ()> {
    storage::set(notes(), socket, note)
}

/// Forgets what an earlier connect of the socket wrote.
#[inline(always)]
pub fn clear(socket: *mut bpf_sock) {
    if let Some(note) = storage::get::<Note>(notes(), socket) {
        note.cgroup = 0;
    }
}
