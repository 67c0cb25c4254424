//! See `gateway_daemon::fuzzing::backend`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_daemon::fuzzing::backend(data));
