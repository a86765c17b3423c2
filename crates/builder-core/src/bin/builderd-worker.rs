//! The worker as a program of its own: linked statically, it runs where there is no file at all.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    builder_core::worker::main()
}
