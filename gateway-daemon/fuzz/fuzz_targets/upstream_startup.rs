//! See `gateway_daemon::fuzzing::upstream_startup`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_daemon::fuzzing::upstream_startup(data));
