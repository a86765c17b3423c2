//! The native ext4 writer: what it writes is clean for e2fsck, and reads back as it was meant.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::type_complexity,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking, and tables of cases have long types"
)]

mod basics;
mod determinism;
mod directories;
mod expect;
mod faults;
mod files;
mod growth;
mod kernel;
mod machine;
mod random;
mod reader;
mod reflink;
mod sharing;
mod support;
mod verity;
