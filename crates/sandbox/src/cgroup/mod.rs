//! Control groups: limits and figures of a whole tree of processes, and its end.
//!
//! One driver for the three ways in which a Linux host has them. A host gives every controller either in a hierarchy
//! of its own (version 1) or in the unified one (version 2); many hosts have version 1 for limits and mount the unified
//! hierarchy beside it (hybrid), whose `cgroup.kill` works there too. So the driver knows hierarchies, and which
//! controllers each of them has, and the version is only a word for messages.
//!
//! Source: `cgroups(7)`, the kernel's `admin-guide/cgroup-v2.rst` and `admin-guide/cgroup-v1/`.

mod detect;
mod group;
mod sweep;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::{
    detect::Version,
    group::{Group, GroupLimits, GroupUsage},
    sweep::Survivor,
};
use self::{
    detect::{Hierarchy, detect},
    group::write,
};

/// What control groups are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Controller {
    Memory,
    Processes,
    Cpu,
    /// CPU time; version 1 has a controller of its own for it.
    CpuTime,
}

/// Control groups cannot be had or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The host has no hierarchy with a controller that is needed.
    #[error("no control group hierarchy has the controller {controller}")]
    NoController {
        /// The kernel's name for it.
        controller: &'static str,
    },
    /// A file or directory could not be used.
    #[error("failed to {action} {}", path.display())]
    File {
        /// What was tried, as `write to`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A limit was written and something else is read.
    #[error("{} holds {found:?} after {written:?} was written", path.display())]
    NotKept {
        /// The file.
        path: PathBuf,
        /// What was written.
        written: String,
        /// What is there.
        found: String,
    },
    /// What was to be removed does not end.
    #[error("processes in {} live on after SIGKILL", path.display())]
    Unkillable {
        /// The group.
        path: PathBuf,
    },
}

/// The control groups of one launching process: a sub-tree of its own below the groups that it was started in.
#[derive(Clone, Debug)]
pub struct Groups {
    version: Version,
    base: Arc<Group>,
    survivors: Arc<[Survivor]>,
}

impl Controller {
    const NEEDED: [Self; 3] = [Self::Memory, Self::Processes, Self::Cpu];

    const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Processes => "pids",
            Self::Cpu => "cpu",
            Self::CpuTime => "cpuacct",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl GroupError {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

impl Groups {
    /// Makes the sub-tree `NAME-…` and tries it out: limits that are written are kept. What earlier processes of the
    /// same `name` left behind is ended and removed first.
    ///
    /// In the unified hierarchy a group with processes cannot have limited children. Unless it is the root, this
    /// process then moves itself into a child `NAME-daemon`.
    ///
    /// # Errors
    /// What is missing, and where.
    pub fn start(name: &str) -> Result<Self, GroupError> {
        let read = |path: &str| std::fs::read_to_string(path).map_err(GroupError::file("read", path));
        let host = detect(
            &read("/proc/self/mountinfo")?,
            &read("/proc/self/cgroup")?,
            |path| std::fs::read_to_string(path).ok(),
        );
        Self::below(&host, name)
    }

    fn below(host: &detect::Host, name: &str) -> Result<Self, GroupError> {
        for controller in Controller::NEEDED {
            if !host.hierarchies.iter().any(|hierarchy| hierarchy.has(controller)) {
                return Err(GroupError::NoController {
                    controller: controller.name(),
                });
            }
        }
        let tops: Vec<&Path> = host.hierarchies.iter().map(|hierarchy| &*hierarchy.top).collect();
        let survivors = sweep::sweep(&tops, name, sweep::PATIENCE);
        for hierarchy in &host.hierarchies {
            make_room(hierarchy, name)?;
        }
        let own_name = format!("{name}-{}", sweep::identity());
        let base = Group::create(&host.hierarchies, &own_name)?;
        let groups = Self {
            version: host.version,
            base: Arc::new(base),
            survivors: survivors.into(),
        };
        groups.try_out()?;
        Ok(groups)
    }

    /// A group with every limit set and read back.
    fn try_out(&self) -> Result<(), GroupError> {
        let limits = GroupLimits {
            memory_bytes: Some(64 << 20),
            cpu_millicores: Some(500),
            processes: Some(16),
        };
        let group = self.group("self-test", &limits)?;
        group.check_limits(&limits)?;
        group.remove()
    }

    /// How the host has its control groups.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// What of earlier processes of the same name was not gone ten seconds after SIGKILL, at the start of this one.
    #[must_use]
    pub fn survivors(&self) -> &[Survivor] {
        &self.survivors
    }

    /// A new group. Its name is one component of a path.
    ///
    /// # Errors
    /// When it exists, or a limit cannot be set; nothing is left then.
    pub fn group(&self, name: &str, limits: &GroupLimits) -> Result<Group, GroupError> {
        self.base.child(name, limits)
    }
}

/// Lets limits be set on children in the unified hierarchy.
fn make_room(hierarchy: &Hierarchy, name: &str) -> Result<(), GroupError> {
    if !hierarchy.unified {
        return Ok(());
    }
    let controllers = hierarchy.to_enable();
    if controllers.is_empty() {
        return Ok(());
    }
    let switch = hierarchy.directory.join("cgroup.subtree_control");
    match write(&switch, &controllers) {
        Err(GroupError::File { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            let leaf = hierarchy.directory.join(format!("{name}-daemon"));
            match std::fs::create_dir(&leaf) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(GroupError::file("create", &leaf)(error));
                }
                _ => {}
            }
            write(&leaf.join("cgroup.procs"), "0")?;
            write(&switch, &controllers)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests;
