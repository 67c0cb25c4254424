//! Step "speak": one front a protocol.

pub mod postgres;
pub mod sessions;
