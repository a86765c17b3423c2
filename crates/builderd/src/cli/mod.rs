//! `builderd-cli`: the service from another machine, for people and for scripts.
//!
//! Every method is a command. What a command prints on standard output is its result, as a table or with `--json` as
//! JSON; everything else goes to standard error. What the service says is shown without control characters: names and
//! log lines come from images, and images come from anybody.

mod commands;
mod connection;
mod create;
mod failure;
mod follow;
mod options;
pub(crate) mod output;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;

use self::{connection::Connection, failure::report, options::Options};
use crate::exit::{Exit, Failure};

/// What stands below the commands in `builderd-cli --help`.
const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  the build that was followed ended FAILED or CANCELLED
  64  the command line is wrong, or the service refused the request as such (INVALID_ARGUMENT, UNIMPLEMENTED)
  65  the build is in the wrong state for this (FAILED_PRECONDITION, ALREADY_EXISTS)
  66  there is no such build (NOT_FOUND)
  69  the service cannot be reached, or is shutting down (UNAVAILABLE)
  70  a fault of the service or of this program
  75  a limit is reached or time ran out: try later (RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED)
  77  a right or a token is missing (PERMISSION_DENIED, UNAUTHENTICATED)
 130  interrupted";

/// The remote client of builderd
#[derive(Debug, Parser)]
#[command(
    name = "builderd-cli",
    version,
    about = "Talks to a builderd service: creates builds, follows them, lists and removes them",
    after_help = EXIT_CODES,
    subcommand_required = true
)]
struct CommandLine {
    #[command(flatten)]
    options: Options,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build an image
    CreateBuild(Box<create::Arguments>),
    /// Show a build
    GetBuild(commands::BuildArguments),
    /// List builds, newest first
    ListBuilds(commands::ListArguments),
    /// End a build that waits or runs
    CancelBuild(commands::BuildArguments),
    /// Remove a build, its image and its log
    DeleteBuild(commands::DeleteArguments),
    /// Print a build's log
    StreamLogs(commands::LogArguments),
    /// Show what the tenant may use and uses
    GetQuotas,
    /// Show figures about the tenant's builds
    GetStats(commands::StatsArguments),
    /// Print completions for a shell, as `source <(builderd-cli completions bash)`
    Completions {
        /// For which shell
        shell: Shell,
    },
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let parsed = command_line()
        .try_get_matches()
        .and_then(|matches| CommandLine::from_arg_matches(&matches));
    let command_line = match parsed {
        Ok(command_line) => command_line,
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
    let json = command_line.options.json;
    match run(command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, json);
            failure.exit.into()
        }
    }
}

/// The whole command line, for the binary, its documentation and shell completions.
#[must_use]
pub fn command() -> Command {
    CommandLine::command()
}

/// An exported variable without a value is one that is not set.
fn command_line() -> Command {
    command().mut_args(|argument| {
        let variable = argument.get_env().and_then(std::env::var_os);
        if variable.is_some_and(|value| value.is_empty()) {
            argument.env(None::<&'static str>)
        } else {
            argument
        }
    })
}

fn run(command_line: CommandLine) -> Result<(), Failure> {
    let CommandLine { options, action } = command_line;
    if let Action::Completions { shell } = action {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command(), "builderd-cli", &mut script);
        return io::stdout().write_all(&script).map_err(|error| {
            Failure::new(
                Exit::CannotCreate,
                format!("standard output cannot be written: {error}"),
            )
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, format!("starting the runtime failed: {error}")))?;
    runtime.block_on(async {
        // What is wrong with the request is said before anybody is connected to.
        let prepared = match &action {
            Action::CreateBuild(arguments) => Some(arguments.request(&options)?),
            _ => None,
        };
        let connection = Connection::open(&options).await?;
        match action {
            Action::CreateBuild(arguments) => {
                let request = prepared.unwrap_or_default();
                create::run(&connection, &options, &arguments, request).await
            }
            Action::GetBuild(arguments) => commands::get_build(&connection, &options, &arguments).await,
            Action::ListBuilds(arguments) => commands::list_builds(&connection, &options, &arguments).await,
            Action::CancelBuild(arguments) => commands::cancel_build(&connection, &options, &arguments).await,
            Action::DeleteBuild(arguments) => commands::delete_build(&connection, &options, &arguments).await,
            Action::StreamLogs(arguments) => commands::stream_logs(&connection, &options, &arguments).await,
            Action::GetQuotas => commands::get_quotas(&connection, &options).await,
            Action::GetStats(arguments) => commands::get_stats(&connection, &options, &arguments).await,
            Action::Completions { .. } => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_well_formed() {
        super::command().debug_assert();
    }
}
