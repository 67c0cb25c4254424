//! See `gateway_daemon::fuzzing::upstream_answer`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_daemon::fuzzing::upstream_answer(data));
