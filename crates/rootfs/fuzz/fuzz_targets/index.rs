//! An index file's bytes to an index.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rootfs::layer::fuzzing::index(data));
