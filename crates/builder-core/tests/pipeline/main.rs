//! Whole builds through real worker processes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/mod.rs"]
mod common;

mod ahead;
mod failures;
mod images;
mod limits;
mod packs;
mod reuse;
mod sharing;
mod stopping;
mod verity;
