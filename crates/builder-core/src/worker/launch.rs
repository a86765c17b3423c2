//! Starting a worker process.

use std::{
    ffi::OsString,
    fmt,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use sandbox::{Child, LaunchError, Limits, Spec};

/// The highest descriptor number that a launcher takes.
pub(crate) const MAX_DESCRIPTOR: i32 = 255;

/// A worker to be started: its channels and its limits.
#[derive(Debug)]
pub struct WorkerSpec {
    /// Control lines.
    pub stdin: OwnedFd,
    /// Event lines.
    pub stdout: OwnedFd,
    /// Words of a crash.
    pub stderr: OwnedFd,
    /// Further descriptors by the number that they have in the worker.
    pub descriptors: Vec<(OwnedFd, i32)>,
    /// What it may use.
    pub limits: WorkerLimits,
}

/// What one worker may use; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Bytes of address space.
    pub address_space_bytes: Option<u64>,
    /// Size of any file that it writes, in bytes.
    pub file_size_bytes: Option<u64>,
    /// Time until it is killed.
    pub wall_time: Option<Duration>,
}

/// Starts worker processes. The seam at which isolation comes in.
pub trait Launcher: fmt::Debug + Send + Sync {
    /// Starts a worker. May block for some milliseconds.
    ///
    /// # Errors
    /// When the process cannot be started.
    fn launch(&self, spec: WorkerSpec) -> Result<Child, LaunchError>;
}

/// Starts workers as plain child processes with resource limits, as the same user.
#[derive(Clone, Debug)]
pub struct ProcessLauncher {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl ProcessLauncher {
    /// Workers are started as `program arguments…`, a program that calls [`super::main`]. The program is an absolute
    /// path; `/proc/self/exe` is the running program.
    #[must_use]
    pub fn new(program: impl AsRef<Path>, arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: arguments.into_iter().collect(),
        }
    }

    /// From a command line: program first.
    #[must_use]
    pub fn from_command(command: &[OsString]) -> Option<Self> {
        let (program, arguments) = command.split_first()?;
        Some(Self::new(Path::new(program), arguments.iter().cloned()))
    }
}

impl Launcher for ProcessLauncher {
    fn launch(&self, worker: WorkerSpec) -> Result<Child, LaunchError> {
        let mut spec = Spec::new(&self.program);
        spec.arguments.clone_from(&self.arguments);
        // For e2fsprogs, which Debian keeps in sbin.
        spec.environment = vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())];
        spec.stdin = Some(worker.stdin);
        spec.stdout = Some(worker.stdout);
        spec.stderr = Some(worker.stderr);
        spec.descriptors = worker.descriptors;
        spec.limits = Limits {
            file_size_bytes: worker.limits.file_size_bytes,
            address_space_bytes: worker.limits.address_space_bytes,
            wall_time: worker.limits.wall_time,
            open_files: Some(1024),
            ..Limits::default()
        };
        sandbox::launch(spec)
    }
}
