//! Why a child could not be started, or not be ended.

use std::{io, path::PathBuf, time::Duration};

use crate::{cgroup::GroupError, child::Child, isolation::Layer};

/// A child could not be started. Nothing of it is left, but for a [survivor](Self::take_survivor).
#[derive(Debug, thiserror::Error)]
#[error("failed to start {}", program.display())]
pub struct LaunchError {
    /// The program that was to be started.
    pub program: PathBuf,
    #[source]
    kind: LaunchErrorKind,
    survivor: Option<Box<Child>>,
}

/// A launch that failed, of a program that has a name elsewhere.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: LaunchErrorKind,
    pub(crate) survivor: Option<Box<Child>>,
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
    /// The kernel killed what makes the box, because the memory limit of its control group, or of one above, was reached.
    #[error("the memory limit was reached before the program began")]
    OutOfMemory,
    /// The program has not begun in time. The child was killed.
    #[error("the program has not begun after {waited:.1?}")]
    TimedOut {
        /// For how long was waited.
        waited: Duration,
    },
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
    pub(crate) fn new(program: &std::path::Path, failure: Failure) -> Self {
        Self {
            program: program.to_owned(),
            kind: failure.kind,
            survivor: failure.survivor,
        }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> &LaunchErrorKind {
        &self.kind
    }

    /// What lives on ten seconds after SIGKILL, as a process in uninterruptible sleep does: to be
    /// [waited for](Child::wait_until_gone) by whoever has reserved something for it. Dropped, it is waited for ten
    /// seconds more; then its control group and user ids stay taken.
    pub fn take_survivor(&mut self) -> Option<Child> {
        self.survivor.take().map(|survivor| *survivor)
    }
}

impl From<LaunchErrorKind> for Failure {
    fn from(kind: LaunchErrorKind) -> Self {
        Self { kind, survivor: None }
    }
}

impl LaunchErrorKind {
    pub(crate) fn parent(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Parent { call, source }
    }
}
