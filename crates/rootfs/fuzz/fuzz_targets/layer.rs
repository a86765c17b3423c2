//! A layer's bytes, compressed or not, to an index.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rootfs::layer::fuzzing::layer(data));
