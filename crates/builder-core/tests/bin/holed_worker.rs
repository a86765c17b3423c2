//! The worker with a planted hole in its parser: see `src/worker/hole.rs`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    builder_core::worker::main()
}
