//! See `builderd --help`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    builderd::commands::main()
}
