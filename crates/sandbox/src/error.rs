//! Why a child could not be started, or not be ended.

use std::{io, path::PathBuf, time::Duration};

use crate::{cgroup::GroupError, isolation::Layer};

/// A child could not be started. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[error("failed to start {}", program.display())]
pub struct LaunchError {
    /// The program that was to be started.
    pub program: PathBuf,
    #[source]
    kind: LaunchErrorKind,
}

/// What went wrong while starting a child.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchErrorKind {
    /// The [`Spec`](crate::Spec) cannot be carried out by anyone.
    #[error("invalid {field}: {reason}")]
    InvalidSpec {
        /// Field of the `Spec`.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A system call of the launching process failed.
    #[error("{call} failed")]
    Parent {
        /// The call.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// A step of the child, before the program's first instruction, failed.
    #[error("step \"{step}\" failed")]
    Step {
        /// The step in words, as `working directory /data`.
        step: String,
        /// The error of its system call.
        #[source]
        source: io::Error,
    },
    /// A layer was asked for that this host does not offer. Nothing was started.
    #[error("{layer} cannot be had here: {reason}")]
    Missing {
        /// Which one.
        layer: Layer,
        /// Why not.
        reason: String,
    },
    /// A control group could not be made.
    #[error("no control group")]
    Group(#[source] GroupError),
    /// The child ended between `fork` and `execve` without naming a step.
    #[error("the child ended before its program began")]
    Vanished,
}

/// The end of a child could not be brought about or observed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// A system call failed.
    #[error("{call} on process {process} failed")]
    Call {
        /// The call.
        call: &'static str,
        /// The leader of the group.
        process: u32,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// Processes survived SIGKILL, as one in uninterruptible sleep does: whoever waits should keep what it reserved
    /// for them and raise an alarm.
    #[error("process group {group} is still alive {waited:?} after SIGKILL")]
    Unkillable {
        /// The process group.
        group: u32,
        /// For how long was waited.
        waited: Duration,
    },
}

impl LaunchError {
    pub(crate) fn new(program: &std::path::Path, kind: LaunchErrorKind) -> Self {
        Self {
            program: program.to_owned(),
            kind,
        }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> &LaunchErrorKind {
        &self.kind
    }
}

impl LaunchErrorKind {
    pub(crate) fn parent(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Parent { call, source }
    }
}
