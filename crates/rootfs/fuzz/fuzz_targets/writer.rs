//! A tree to an image.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rootfs::ext4::fuzzing::writer(data));
