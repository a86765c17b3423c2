#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| builder_core::optimize::fuzzing::program(bytes));
