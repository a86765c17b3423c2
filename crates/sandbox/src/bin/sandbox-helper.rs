//! The process between a launching process and a program in a box; see `sandbox::helper`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    sandbox::helper::main()
}
