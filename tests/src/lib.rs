//! End to end: the daemon as its users run it, with real registries, real clients and a real virtual machine.
//!
//! The package's tests need root and what `cargo xtask test` installs and builds; without it they say what is missing
//! and do nothing. Its program `demo` is what `cargo xtask demo` shows.

#![forbid(unsafe_code)]

pub mod api;
pub mod bench;
pub mod boxes;
pub mod check;
pub mod daemon;
pub mod demo_image;
pub mod docker_registry;
pub mod load;
pub mod pages;
pub mod parts;
