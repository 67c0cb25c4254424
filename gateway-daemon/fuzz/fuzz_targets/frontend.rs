//! See `gateway_daemon::fuzzing::frontend`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_daemon::fuzzing::frontend(data));
