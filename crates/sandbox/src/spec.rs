//! What is to be run, with what, and within which limits.

use std::{ffi::OsString, os::fd::OwnedFd, path::PathBuf, time::Duration};

use crate::program::Program;

/// A process to be started: nothing that is not named here reaches it.
#[derive(Debug)]
pub struct Spec {
    /// The program; its path or name is also the child's `argv[0]`.
    pub program: Program,
    /// Arguments after `argv[0]`.
    pub arguments: Vec<OsString>,
    /// The whole environment, in this order. Names are not empty and hold no `=`.
    pub environment: Vec<(OsString, OsString)>,
    /// Absolute path of the working directory. In a box with a root of its own, only `/` is there.
    pub working_directory: PathBuf,
    /// Descriptor 0 of the child; `None` is `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Descriptor 1 of the child; `None` is `/dev/null`.
    pub stdout: Option<OwnedFd>,
    /// Descriptor 2 of the child; `None` is `/dev/null`.
    pub stderr: Option<OwnedFd>,
    /// Further descriptors, each with its number in the child: from 3 to 255, each number once.
    ///
    /// The numbers in the launching process do not matter, even when they collide with those in the child.
    pub descriptors: Vec<(OwnedFd, i32)>,
    /// What it may use.
    pub limits: Limits,
}

/// Upper bounds for one process (`wall_time`: for its whole group). `None` leaves the launching process's own.
///
/// Resource limits are inherited by descendants, but the kernel counts them per process. A limit above the hard limit
/// of the launching process is cut to that; no limit is ever loosened. Core dumps are always off.
///
/// Source: `getrlimit(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Largest size of a file that is written, in bytes (`RLIMIT_FSIZE`). Writing past it raises SIGXFSZ.
    pub file_size_bytes: Option<u64>,
    /// One more than the highest descriptor number that can be opened (`RLIMIT_NOFILE`).
    pub open_files: Option<u64>,
    /// Address space in bytes (`RLIMIT_AS`): mappings beyond it fail with ENOMEM.
    pub address_space_bytes: Option<u64>,
    /// CPU time in seconds (`RLIMIT_CPU`): SIGXCPU when used up, SIGKILL one second later.
    pub cpu_seconds: Option<u64>,
    /// Threads and processes of the child's user (`RLIMIT_NPROC`): only in a box with a user namespace, where no others
    /// are counted. Beyond it `clone` fails with EAGAIN.
    pub processes: Option<u64>,
    /// Time from launch until everything is killed.
    pub wall_time: Option<Duration>,
    /// Time without any use of the CPU until everything is killed. It is measured by the control group: without one it
    /// cannot be had, and [`Sandbox::launch`](crate::Sandbox::launch) says so.
    pub idle_time: Option<Duration>,
}

impl Spec {
    /// `program` without arguments, environment or further descriptors, working directory `/`, without limits.
    #[must_use]
    pub fn new(program: impl Into<Program>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            working_directory: PathBuf::from("/"),
            stdin: None,
            stdout: None,
            stderr: None,
            descriptors: Vec::new(),
            limits: Limits::default(),
        }
    }
}
