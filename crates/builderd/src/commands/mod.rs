//! What `builderd` can be asked to do.

mod backup;
mod build;
mod config;
mod doctor;
mod image;
mod records;
mod serve;
mod tenant;
mod usage;

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{ArgMatches, Command};

use crate::exit::{Exit, Failure};

/// What stands below the commands in `builderd --help`.
const EXIT_CODES: &str = "\
Without a command, `serve` is run.

Exit codes:
   0  done
  64  the command line or a setting is wrong
  65  the image is not what it should be
  66  there is no such tenant
  69  something needed is not there or cannot be reached
  70  a fault of builderd itself
  73  the output cannot be written
  75  somebody else was faster: look again
  77  a right or a credential is missing
 130  interrupted";

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().collect();
    // A worker is started for every layer: nothing else happens before it.
    if arguments.get(1).is_some_and(|argument| argument == "worker") {
        return builder_core::worker::main();
    }
    let matches = match command().try_get_matches_from(with_default_command(arguments)) {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version are errors to clap, and no failures.
            let code = if error.use_stderr() {
                Exit::Usage.into()
            } else {
                ExitCode::SUCCESS
            };
            return if error.print().is_ok() {
                code
            } else {
                Exit::Internal.into()
            };
        }
    };
    match run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.message.lines() {
                // Where this cannot be said, the exit code has to do.
                drop(writeln!(io::stderr(), "builderd: {line}"));
            }
            failure.exit.into()
        }
    }
}

/// The whole command line, for the binary, its documentation and shell completions.
#[must_use]
pub fn command() -> Command {
    Command::new("builderd")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Turns container images into bootable ext4 root file systems for Firecracker microVMs")
        .after_help(EXIT_CODES)
        .override_usage("builderd [COMMAND] [OPTIONS]")
        .subcommand_required(true)
        .subcommand(serve::command())
        .subcommand(build::command())
        .subcommand(image::command())
        .subcommand(config::command())
        .subcommand(doctor::command())
        .subcommand(tenant::command())
        .subcommand(usage::command())
        .subcommand(backup::command())
        .subcommand(
            Command::new("worker")
                .about("Parses layers and writes images for a build; started by the other commands")
                .hide(true),
        )
}

fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("serve", matches)) => serve::run(matches),
        Some(("build", matches)) => build::run(matches),
        Some(("image", matches)) => image::run(matches),
        Some(("config", matches)) => config::run(matches),
        Some(("doctor", matches)) => doctor::run(matches),
        Some(("tenant", matches)) => tenant::run(matches),
        Some(("usage", matches)) => usage::run(matches),
        Some(("backup", matches)) => backup::run(matches),
        _ => Err(Failure::new(
            Exit::Usage,
            "no command given: see `builderd --help`",
        )),
    }
}

/// Plain `builderd`, with or without flags, serves.
fn with_default_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let first = arguments
        .get(1)
        .map(|argument| argument.to_string_lossy().into_owned());
    let serves = match first.as_deref() {
        None => true,
        Some("-h" | "--help" | "-V" | "--version") => false,
        Some(other) => other.starts_with('-'),
    };
    if serves {
        let at = arguments.len().min(1);
        arguments.insert(at, OsString::from("serve"));
    }
    arguments
}

/// A runtime for a command that waits for many things.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, format!("starting the runtime failed: {error}")))
}

/// An error and what lies behind it, in one line; a cause that has been said already is not said again.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// The number of the user whom this process runs as.
fn own_user() -> u32 {
    // What the kernel shows of this process belongs to its effective user.
    std::os::unix::fs::MetadataExt::uid(&match std::fs::metadata("/proc/self") {
        Ok(metadata) => metadata,
        Err(_) => return u32::MAX,
    })
}

/// Whether a connection failed because the other side answered a greeting of TLS with something else. rustls says it in
/// these words, and the types of its errors do not come through.
pub(crate) fn speaks_no_tls(cause: &str) -> bool {
    cause.contains("received corrupt message of type InvalidContentType")
}

/// How a worker is started: this very program, even when the file has been replaced meanwhile.
fn worker_command() -> Vec<OsString> {
    vec![OsString::from("/proc/self/exe"), OsString::from("worker")]
}
