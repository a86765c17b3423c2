//! A `Content-Type`, a line break, and a manifest or an index.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oci_fetch::fuzzing::manifest(bytes));
