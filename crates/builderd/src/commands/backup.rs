//! `builderd backup`: the database in one file, beside a running daemon.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::PathBuf,
};

use builder_core::backup::{BackupError, backup};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::chain;
use crate::{
    config::Values,
    exit::{Exit, Failure},
};

/// The command line of `backup`.
pub(super) fn command() -> Command {
    Command::new("backup")
        .about("Copy the database to a file, beside a running daemon")
        .long_about(
            "Copies the database (builds, logs, tenants) of DATABASE_DATA_DIR to FILE, as it is at one moment, while the \
             daemon goes on. FILE must not be there; it is for its owner alone. Images are not in it.\n\n\
             To restore: stop the daemon, put FILE in the place of builderd.db, remove builderd.db-wal and \
             builderd.db-shm, and start the daemon.",
        )
        .arg(
            Arg::new("file")
                .value_name("FILE")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("Where the copy goes; never replaced"),
        )
        .arg(
            Arg::new("database-data-dir")
                .long("database-data-dir")
                .value_name("DIR")
                .value_parser(value_parser!(OsString))
                .help("Where the database is [default: UNKEY_BUILDERD_DATABASE_DATA_DIR, or /opt/builderd/data]"),
        )
        .arg(
            Arg::new("dev")
                .long("dev")
                .action(ArgAction::SetTrue)
                .help("The database of `serve --dev`"),
        )
        .arg(
            Arg::new("state-dir")
                .long("state-dir")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .requires("dev")
                .help("Where --dev keeps its state [default: ./builderd-data]"),
        )
}

/// Takes the copy and says what is in it.
pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let Some(output) = matches.get_one::<PathBuf>("file") else {
        return Err(Failure::new(
            Exit::Usage,
            "no FILE given: see `builderd backup --help`",
        ));
    };
    let directory = match matches.get_one::<OsString>("database-data-dir") {
        Some(directory) => PathBuf::from(directory),
        None => configured(matches)?,
    };
    let report = backup(&directory, output).map_err(|error| {
        let exit = match &error {
            BackupError::Exists { .. } | BackupError::Write { .. } => Exit::CannotCreate,
            BackupError::NoDatabase { .. } | BackupError::Busy => Exit::Unavailable,
            _ => Exit::Internal,
        };
        Failure::new(exit, chain(&error))
    })?;
    let line = format!(
        "{}: {} builds, {} bytes, schema version {}\n",
        output.display(),
        report.builds,
        report.bytes,
        report.schema_version
    );
    io::stdout()
        .write_all(line.as_bytes())
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot write the report: {error}")))
}

/// Where the daemon of this configuration has its database.
fn configured(matches: &ArgMatches) -> Result<PathBuf, Failure> {
    let state = matches.get_flag("dev").then(|| {
        let given = matches.get_one::<PathBuf>("state-dir").cloned();
        given.unwrap_or_else(|| PathBuf::from(super::serve::DEFAULT_STATE_DIRECTORY))
    });
    let values = Values::collect(std::env::vars_os(), |_| None, state.as_deref()).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Usage, lines.join("\n"))
    })?;
    let directory = values
        .directories()
        .into_iter()
        .find(|(setting, _)| *setting == "DATABASE_DATA_DIR");
    directory.map(|(_, directory)| directory).ok_or_else(|| {
        Failure::new(
            Exit::Internal,
            "DATABASE_DATA_DIR is no directory of the settings",
        )
    })
}
