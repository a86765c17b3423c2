//! The bytes of kept leaf hashes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rootfs::verity::fuzzing::leaf_hashes(data));
