//! Measures builds: beside the floor (inflating, hashing and writing once), beside other tools, and the parts of a build
//! beside each other. `cargo xtask bench` builds what is needed and runs it; `docs/benchmarks.md` is what it writes.
//!
//! `builderd-bench run` is the whole of it. The other commands are its parts, run as processes of their own so that
//! their memory and CPU time are theirs alone.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line program talks to its terminal"
)]

mod chunks;
mod clock;
mod fetch;
mod fixture;
mod floor;
mod host;
mod interrupt;
mod layout;
mod network;
mod ours;
mod peers;
mod place;
mod plan;
mod process;
mod registry;
mod report;
mod results;
mod targets;
mod usage;
mod writer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures builds.
#[derive(Debug, Parser)]
#[command(name = "builderd-bench")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Measures and writes the page
    Run(plan::Options),
    /// The CPU time of what no build can do without
    Floor(floor::Arguments),
    /// The writer alone, on layers that were indexed before
    Write(writer::Arguments),
    /// Fetches all layers of an image into a blob cache
    Pull(fetch::Arguments),
    /// Makes an image out of code, as an OCI layout
    Make(fixture::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Run(options) => plan::run(&options),
        Verb::Floor(arguments) => floor::run(&arguments).map(|()| ExitCode::SUCCESS),
        Verb::Write(arguments) => writer::run(&arguments).map(|()| ExitCode::SUCCESS),
        Verb::Pull(arguments) => fetch::run(&arguments).map(|()| ExitCode::SUCCESS),
        Verb::Make(arguments) => fixture::run(&arguments).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
