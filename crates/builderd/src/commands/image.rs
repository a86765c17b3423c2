//! `builderd image`: what finished images are like.

mod chunks;

use clap::{ArgMatches, Command};

use crate::exit::{Exit, Failure};

/// The command line of `image`.
pub(super) fn command() -> Command {
    Command::new("image")
        .about("Look at finished images")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(chunks::command())
}

/// Runs the verb that was given.
pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("chunks", matches)) => chunks::run(matches),
        _ => Err(Failure::new(
            Exit::Usage,
            "no verb given: see `builderd image --help`",
        )),
    }
}
