//! The native ext4 writer: what it writes is clean for e2fsck, and reads back as it was meant.

#![allow(missing_docs, reason = "tests")]

mod basics;
mod support;
