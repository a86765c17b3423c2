//! Every verb that a contributor or CI uses.
//!
//! `cargo xtask --help` lists them. The crate has no dependencies, so that it answers at once on a fresh machine.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program talks to its terminal"
)]

mod bench;
mod context;
mod debian;
mod demo;
mod lab;
mod steps;
mod test;

use std::process::ExitCode;

use context::Context;

const HELP: &str = "\
Usage: cargo xtask VERB

  demo [REF]      Builds builderd, starts `builderd serve --dev` with fresh state below the target directory, has it
                  build an image, checks the image, and boots it where QEMU and a kernel are there. Without REF the
                  image is a small one from a registry in the process; REF is any image reference.
  test [--quick]  Everything that CI runs: formatting, clippy, documentation, each crate alone, end to end. As root on
                  Debian it installs what is missing, otherwise it prints the line to run. --quick leaves out what
                  needs more than Rust and a C compiler.
  lab             Makes what the end-to-end tests use (a kernel, the images tiny, debian, nginx, systemd, clients for
                  Python and Node.js), once, below the target directory.
  bench [...]     Measures builds, beside the floor and beside other tools, and writes docs/benchmarks.md. As root on
                  Debian; `cargo xtask bench --help` has the options.
  help            This text.

CARGO_TARGET_DIR is honoured.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let context = Context::new();
    let done = match words.as_slice() {
        ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        ["demo"] => demo::demo(&context, None),
        ["demo", reference] if !reference.starts_with('-') => demo::demo(&context, Some(reference)),
        ["test"] => return test::test(&context, false),
        ["test", "--quick"] => return test::test(&context, true),
        ["lab"] => lab::make(&context),
        ["bench", arguments @ ..] => bench::bench(&context, arguments),
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
