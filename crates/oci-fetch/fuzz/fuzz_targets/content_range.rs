//! A `Content-Range` header.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oci_fetch::fuzzing::content_range(bytes));
