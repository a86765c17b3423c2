//! A stack of layers to a tree, in both modes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rootfs::fold::fuzzing::fold(data));
