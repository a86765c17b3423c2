//! See `builderd-cli --help`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    builderd::cli::main()
}
