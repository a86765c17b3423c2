//! Starting a worker process.

use std::{
    ffi::OsString,
    fmt,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sandbox::{
    Calls, Child, Group, GroupLimits, Isolation, LaunchError, Layer, Level, Limits, Program, Sandbox,
    SealedProgram, Spec,
};

use crate::{build::BuildIsolation, error::BuildError};

/// The highest descriptor number that a launcher takes.
pub(crate) const MAX_DESCRIPTOR: i32 = 255;

/// Processes and threads of all workers of a build, and of one worker. Each has a few.
const BUILD_PROCESSES: u64 = 1024;
const WORKER_PROCESSES: u64 = 128;

/// A worker that does not use the CPU for so long waits for nothing that will still come: a registry that sends nothing
/// is given up much earlier.
const IDLE_TIME: Duration = Duration::from_secs(600);

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

/// What the workers of one build are shut in with.
#[derive(Clone, Debug, Default)]
pub struct BuildBox {
    /// Names the build on this machine: one component of a path.
    pub name: String,
    /// 1 to 3; `None` is the launcher's own. A lower one than that counts for nothing.
    pub level: Option<u8>,
    /// Bytes of memory of all workers together.
    pub memory_bytes: Option<u64>,
    /// Cores of all workers together.
    pub cpu_cores: Option<u32>,
}

/// Processes of a build of an earlier start that SIGKILL has not ended.
pub trait Survivor: fmt::Debug + Send + Sync {
    /// The [name](BuildBox::name) of the build.
    fn build(&self) -> &str;

    /// Whether nothing of them lives any more. May block for some milliseconds.
    fn is_gone(&self) -> bool;
}

impl Survivor for sandbox::Survivor {
    fn build(&self) -> &str {
        self.name()
    }

    fn is_gone(&self) -> bool {
        self.is_gone()
    }
}

/// Starts worker processes. The seam at which isolation comes in.
pub trait Launcher: fmt::Debug + Send + Sync {
    /// Whether a request may ask for a level of isolation from 1 to 3.
    ///
    /// # Errors
    /// Why not, for the tenant.
    fn offers(&self, _level: u8) -> Result<(), &'static str> {
        Err("this service runs without isolation: no level of it can be asked for")
    }

    /// The launcher for the workers of one build; `None` when this one is as good.
    ///
    /// # Errors
    /// When the box that is asked for cannot be had.
    fn for_build(&self, _build: &BuildBox) -> Result<Option<Arc<dyn Launcher>>, BuildError> {
        Ok(None)
    }

    /// What the workers are shut in with; `None` for nothing.
    fn isolation(&self) -> Option<BuildIsolation> {
        None
    }

    /// Whether boxes can still be made: makes one. `None` for a launcher without any. May block for some milliseconds.
    fn check(&self) -> Option<Result<(), String>> {
        None
    }

    /// Processes of builds of an earlier start that live on after SIGKILL. May block.
    fn survivors(&self) -> Vec<Box<dyn Survivor>> {
        Vec::new()
    }

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
        let mut spec = specification(self.program.as_path().into(), worker);
        spec.arguments.clone_from(&self.arguments);
        // For e2fsprogs, which Debian keeps in sbin.
        spec.environment = vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())];
        sandbox::launch(spec)
    }
}

/// Starts workers in boxes: a static program that sees nothing but its descriptors.
#[derive(Clone, Debug)]
pub struct BoxLauncher {
    sandbox: Sandbox,
    program: SealedProgram,
    level: Level,
    /// Whether a layer that this host does not offer is left out; otherwise nothing is launched.
    lenient: bool,
    build: Option<(String, Option<Arc<Group>>)>,
}

impl BoxLauncher {
    /// Workers are `program`, a static program whose main function is [`super::main`]. With `lenient`, layers that the
    /// host does not offer are left out: whoever asks for that says so to the user.
    #[must_use]
    pub const fn new(sandbox: Sandbox, program: SealedProgram, level: Level, lenient: bool) -> Self {
        Self {
            sandbox,
            program,
            level,
            lenient,
            build: None,
        }
    }

    fn layers(&self) -> Isolation {
        let mut isolation = self.level.isolation(Calls::Worker);
        if self.lenient {
            isolation.layers = isolation.layers.and(self.sandbox.available());
            isolation.own_user &= self.sandbox.own_users().is_ok();
        }
        isolation
    }

    /// The control group in which all workers of a build are, where there are any.
    fn group(&self, build: &BuildBox) -> Result<Option<Arc<Group>>, BuildError> {
        let limits = GroupLimits {
            memory_bytes: build.memory_bytes,
            cpu_millicores: build.cpu_cores.map(|cores| cores.saturating_mul(1000)),
            processes: Some(BUILD_PROCESSES),
        };
        match self.sandbox.groups() {
            Some(groups) => match groups.group(&build.name, &limits) {
                Ok(group) => Ok(Some(Arc::new(group))),
                Err(error) => Err(BuildError::internal("limit what the build may use", error)),
            },
            None if self.lenient => Ok(None),
            None => Err(BuildError::internal(
                "limit what the build may use",
                "control groups cannot be had",
            )),
        }
    }
}

impl Launcher for BoxLauncher {
    fn offers(&self, level: u8) -> Result<(), &'static str> {
        let Some(level) = Level::from_number(level) else {
            return Err("expected 1, 2 or 3");
        };
        let missing = level.layers().missing_from(self.sandbox.available()).next();
        if missing.is_some() || (level == Level::Maximum && self.sandbox.own_users().is_err()) {
            return Err("this host does not offer that level");
        }
        Ok(())
    }

    fn for_build(&self, build: &BuildBox) -> Result<Option<Arc<dyn Launcher>>, BuildError> {
        let asked = build.level.and_then(Level::from_number).unwrap_or(self.level);
        let level = self.level.max(asked);
        let group = self.group(build)?;
        Ok(Some(Arc::new(Self {
            level,
            build: Some((build.name.clone(), group)),
            ..self.clone()
        })))
    }

    fn isolation(&self) -> Option<BuildIsolation> {
        let isolation = self.layers();
        let private = |has| String::from(if has { "private" } else { "host" });
        let namespaced = isolation.layers.has(Layer::Namespaces);
        let mut contexts = vec!["no_new_privs".to_owned()];
        if namespaced {
            contexts.extend(["user-namespace", "no-capabilities"].map(str::to_owned));
        }
        for layer in [Layer::Seccomp, Layer::Landlock] {
            if isolation.layers.has(layer) {
                contexts.push(layer.as_str().to_owned());
            }
        }
        if isolation.own_user && namespaced {
            contexts.push("own-user".to_owned());
        }
        let (name, group) = self.build.as_ref()?;
        // What was left out counts: a level is named only when all of it is there.
        let level = [Level::Maximum, Level::Strict, Level::Basic]
            .into_iter()
            .find(|level| {
                let full = level.isolation(Calls::Worker);
                *level <= self.level
                    && full.layers.missing_from(isolation.layers).next().is_none()
                    && (!full.own_user || isolation.own_user)
            });
        Some(BuildIsolation {
            sandbox_id: name.clone(),
            network_namespace: private(namespaced),
            filesystem_namespace: private(namespaced),
            security_contexts: contexts,
            // From this process's own group on: what lies above is the host's.
            cgroup_path: group
                .as_ref()
                .map(|group| group.own_path().to_string_lossy().into_owned())
                .unwrap_or_default(),
            sandbox_level: level.map_or(0, Level::number),
        })
    }

    fn check(&self) -> Option<Result<(), String>> {
        Some(self.sandbox.check(self.layers()))
    }

    fn survivors(&self) -> Vec<Box<dyn Survivor>> {
        let groups = self.sandbox.groups();
        let survivors = groups.map(|groups| groups.survivors()).unwrap_or_default();
        let boxed = survivors.iter().cloned().map(|survivor| Box::new(survivor) as _);
        boxed.collect()
    }

    fn launch(&self, worker: WorkerSpec) -> Result<Child, LaunchError> {
        let mut spec = specification(self.program.clone().into(), worker);
        spec.limits.processes = Some(WORKER_PROCESSES);
        let isolation = self.layers();
        if isolation.layers.has(Layer::ControlGroups) {
            spec.limits.idle_time = Some(IDLE_TIME);
        }
        let group = self.build.as_ref().and_then(|(_, group)| group.as_ref());
        self.sandbox
            .launch(spec, isolation, group, &GroupLimits::default())
    }
}

/// A worker with its descriptors and limits.
fn specification(program: Program, worker: WorkerSpec) -> Spec {
    let mut spec = Spec::new(program);
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
    spec
}
