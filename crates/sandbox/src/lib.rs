//! Opens hostile input in a child process that sees nothing, may do little, and ends whole.
//!
//! ```
//! use std::time::Duration;
//!
//! let mut spec = sandbox::Spec::new("/bin/sh");
//! spec.arguments = vec!["-c".into(), "exit 7".into()];
//! spec.limits.wall_time = Some(Duration::from_secs(10));
//! spec.limits.file_size_bytes = Some(1 << 20);
//!
//! let outcome = sandbox::launch(spec)?.wait()?;
//! assert_eq!(outcome.status.code(), Some(7));
//! assert!(!outcome.timed_out);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`launch()`] gives a process with limits. [`Sandbox::launch`] gives the same in a box:
//!
//! ```no_run
//! use sandbox::{Calls, GroupLimits, Level, Sandbox, SealedProgram, Settings, Spec};
//!
//! let helper = std::fs::read("sandbox-helper")?;
//! let sandbox = Sandbox::start(&Settings { name: "example", helper: &helper, lease_directory: None })?;
//! let program = SealedProgram::new("parser", &std::fs::read("static-parser")?)?;
//! let limits = GroupLimits { memory_bytes: Some(256 << 20), ..GroupLimits::default() };
//!
//! let child = sandbox.launch(Spec::new(program), Level::Strict.isolation(Calls::Worker), None, &limits)?;
//! assert!(!child.wait()?.out_of_memory);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What holds
//!
//! - The child inherits nothing that its [`Spec`] does not name: no environment variable, no open descriptor, no
//!   signal handler or mask, no controlling terminal, no umask.
//! - [`Limits`] are set before the program's first instruction, and it cannot raise them: hard limits equal soft
//!   ones (CPU time apart, see there) and `no_new_privs` is set.
//! - At a time limit, at [`Killer::kill`], and when the leader ends by itself, everything is killed; [`Child::wait`]
//!   returns when nothing lives any more: in the process group, and with a box in its pid namespace and control group.
//! - The child dies with the process that launched it, even when that is ended by SIGKILL.
//!
//! In a box also:
//!
//! - Its root is an empty, read-only file system; it has network, pid, IPC, UTS, user and control group namespaces of its
//!   own, another user id, and no capability ([`Layer::Namespaces`]).
//! - Memory, CPU and processes of the whole tree are bounded and counted ([`Layer::ControlGroups`]).
//! - It may make the system calls of a list, and no others ([`Layer::Seccomp`]).
//! - It can open no file, use no TCP port, and reach no abstract socket or process outside ([`Layer::Landlock`]).
//! - A layer that was asked for and cannot be had is an error, never left out.
//!
//! # How it is built
//!
//! A [`Spec`] says what is wanted. The plan made from it is an ordered list of steps, pure data that tests compare as
//! text. For a plain child one module executes the steps between `fork` and `execve`. For a box the forked child
//! executes a helper, a small static program with one thread that runs from sealed memory; it makes the box and stays
//! between the two. Unsafe code is in one module, `sys`.
//!
//! # What it does not do
//!
//! Without a box, a process that leaves the group by `setsid` or `setpgid` escapes the kill, and the child runs as the
//! launching user and sees the whole file system and network. A box shares the kernel with everyone: it makes the
//! kernel's surface small, not absent. What the README lists as not defended is not.
//!
//! # Requirements
//!
//! Linux 5.11 (`CLOSE_RANGE_CLOEXEC`; pidfds are older) and a mounted `/proc`. There is no fallback: on an older kernel
//! [`launch()`] fails and says which step did. [`Sandbox::missing`] says which layers of a box this host does not offer.

mod cgroup;
mod child;
mod descriptor;
mod error;
mod group;
#[doc(hidden)]
pub mod helper;
mod isolation;
mod launch;
mod lease;
mod message;
mod plan;
mod program;
mod sandbox;
mod seccomp;
mod spec;
#[allow(unsafe_code)]
mod sys;

pub use cgroup::{Group, GroupError, GroupLimits, GroupUsage, Groups, Survivor, Version as GroupVersion};
pub use child::{Child, Killer, Outcome};
pub use descriptor::{data_memory, take_descriptor};
pub use error::{LaunchError, LaunchErrorKind, WaitError};
pub use isolation::{Isolation, Layer, Layers, Level};
pub use launch::launch;
pub use program::{Program, SealedProgram};
pub use sandbox::{Missing, Sandbox, Settings};
pub use seccomp::Calls;
pub use spec::{Limits, Spec};
