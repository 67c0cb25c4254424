//! What programs keep with a socket, for as long as it lives.

use core::{
    ffi::c_void,
    ptr::{from_mut, null_mut},
};

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
};

/// What the map holds for the socket, if anything. aya-ebpf's own methods take the context of `sock_addr` programs alone.
#[inline(always)]
pub fn get<'a, T>(map: *mut c_void, socket: *mut bpf_sock) -> Option<&'a mut T> {
    // SAFETY: the helper checks the socket, and gives null or the storage, which lives as long as the socket does.
    unsafe { bpf_sk_storage_get(map, socket.cast(), null_mut(), 0).cast::<T>().as_mut() }
}

/// Keeps a value, in the place of an older one as well.
#[inline(always)]
pub fn set<T: Copy>(map: *mut c_void, socket: *mut bpf_sock, value: &mut T) -> Result<(), ()> {
    // The value given here fills a storage that is made now; one that stands already keeps its own.
    // SAFETY: as in `get`; the value lies on the stack across the call.
    let place = unsafe {
        bpf_sk_storage_get(map, socket.cast(), from_mut(value).cast(), BPF_SK_STORAGE_GET_F_CREATE.into())
            .cast::<T>()
            .as_mut()
    };
    match place {
        Some(place) => {
            *place = *value;
            Ok(())
        }
        None => Err(()),
    }
}
