//! Starts a child process inside limits that are real, and ends it whole.
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
//! # What holds
//!
//! - The child inherits nothing that its [`Spec`] does not name: no environment variable, no open descriptor, no
//!   signal handler or mask, no controlling terminal, no umask.
//! - [`Limits`] are set before the program's first instruction, and it cannot raise them: hard limits equal soft
//!   ones (CPU time apart, see there) and `no_new_privs` is set.
//! - The child leads a session and a process group of its own. At the time limit, at [`Killer::kill`], and when the
//!   leader ends by itself, the whole group is killed; [`Child::wait`] returns when no living process is left in it.
//! - The child dies with the process that launched it, even when that is ended by SIGKILL.
//!
//! # How it is built
//!
//! A [`Spec`] says what is wanted. The plan made from it is an ordered list of steps, pure data that tests compare as
//! text. One module executes the steps between `fork` and `execve`; it is the only one with unsafe code. Namespaces,
//! cgroups and system call filters will be further steps of the plan and other launchers of it.
//!
//! # What it does not do
//!
//! A process that leaves the group by `setsid` or `setpgid` escapes the kill: that takes a pid namespace or a
//! cgroup. The child runs as the launching user and sees the whole file system and network. `RLIMIT_AS` bounds address
//! space, not resident memory.
//!
//! # Requirements
//!
//! Linux 5.11 (`CLOSE_RANGE_CLOEXEC`; pidfds are older) and a mounted `/proc`. There is no fallback: on an older kernel
//! [`launch()`] fails and says which step did.

mod child;
mod error;
mod group;
mod launch;
mod plan;
mod spec;
#[allow(unsafe_code)]
mod sys;

pub use child::{Child, Killer, Outcome};
pub use error::{LaunchError, LaunchErrorKind, WaitError};
pub use launch::launch;
pub use spec::{Limits, Spec};
