//! Worker processes.

use std::{fmt, process::ExitCode};

/// Starts worker processes.
pub trait Launcher: fmt::Debug + Send + Sync {}

/// The main function of a worker process: `builderd worker` calls it and exits with its code.
///
/// Reads the job from standard input and writes events to standard output; nothing else may use the two.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
