//! The first process of the microVM: prepares the guest, runs the command of the image, ends the machine.
//!
//! The crate is two programs. `guest-init` is process 1 of every image that builderd makes (`/usr/bin/metald-init`);
//! `guest-hello` is a small program to be run by it, with which images are tried out. Both are built static, against
//! the C library of the host. This library is what they share, so that tests reach it.
//!
//! # The life of a guest
//!
//! ```text
//! mounts ─ kernel arguments ─ name, network ─ /container.* ─ user, groups, directory, PATH ─ command
//!                                                                                             │ signals in
//! reboot ─ read-only remount ─ sync ─ SIGKILL ─ grace ─ SIGTERM to the rest ─ exit code <─────┘ zombies reaped
//! ```
//!
//! With the strategy `direct` the upper line is all: process 1 becomes the command.
//!
//! Whatever fails, fails with one line on the console that begins with `guest-init: `, and the machine still goes the
//! way of the lower line: process 1 never ends, since that would be a kernel panic.
//!
//! # Architecture
//!
//! What can be decided without a system call is in modules that are pure functions of bytes: [`cmdline`],
//! [`container`], [`network`], [`users`], [`program`], [`signals`], [`stop`]. All unsafe code is in `sys`. Reads of files that the
//! image controls are bounded, and never block (`files`).

pub mod boot;
pub mod cmdline;
mod console;
pub mod container;
mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod mounts;
mod names;
pub mod network;
pub mod program;
pub mod signals;
pub mod stop;
#[allow(unsafe_code)]
pub mod sys;
pub mod users;

/// Where the image keeps this program; the kernel is told by `init=`.
pub const INSTALLED_AT: &str = "/usr/bin/metald-init";
