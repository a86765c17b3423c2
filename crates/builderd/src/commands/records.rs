//! What `builderd tenant` and `builderd usage` share: where the database is, and what goes wrong with it.

use std::path::PathBuf;

use builder_core::admin::{AdminError, Database};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use tenant::{RecordError, TenantId};

use super::{chain, serve};
use crate::{
    config::Values,
    exit::{Exit, Failure},
};

/// Adds the options that say where the database is.
pub(super) fn with_database(command: Command) -> Command {
    command
        .arg(
            Arg::new("data-dir")
                .long("data-dir")
                .value_name("DIR")
                .global(true)
                .help(
                    "Where the database is [default: UNKEY_BUILDERD_DATABASE_DATA_DIR, /opt/builderd/data]",
                ),
        )
        .arg(
            Arg::new("dev")
                .long("dev")
                .action(ArgAction::SetTrue)
                .global(true)
                .help("Use the database of `serve --dev`"),
        )
        .arg(
            Arg::new("state-dir")
                .long("state-dir")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .requires("dev")
                .global(true)
                .help(format!(
                    "Where --dev keeps its state [default: {}]",
                    serve::DEFAULT_STATE_DIRECTORY
                )),
        )
}

/// `--json`.
pub(super) fn json_flag() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print JSON")
}

/// The settings of the service whose database it is.
pub(super) fn values(matches: &ArgMatches) -> Result<Values, Failure> {
    let state = matches.get_flag("dev").then(|| {
        let given = matches.get_one::<PathBuf>("state-dir").cloned();
        given.unwrap_or_else(|| PathBuf::from(serve::DEFAULT_STATE_DIRECTORY))
    });
    let flag = |setting: &crate::config::Setting| match setting.name {
        "DATABASE_DATA_DIR" => matches.get_one::<String>("data-dir").cloned(),
        _ => None,
    };
    Values::collect(std::env::vars_os(), flag, state.as_deref()).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Usage, lines.join("\n"))
    })
}

/// Opens the database that the settings name.
pub(super) fn open(values: &Values) -> Result<Database, Failure> {
    let [(_, directory), ..] = values.directories();
    Database::open(&directory).map_err(|error| failure(&error))
}

/// A failure with its cause.
pub(super) fn failure(error: &AdminError) -> Failure {
    let message = chain(error);
    match error {
        AdminError::NoDatabase { .. } => Failure::new(
            Exit::Unavailable,
            format!("{message}: name its directory with --data-dir, or with --dev and --state-dir"),
        ),
        AdminError::Version { .. } => Failure::new(Exit::Unavailable, message),
        AdminError::Record(RecordError::Unknown { .. }) => Failure::new(
            Exit::NotFound,
            format!("{message}: it is made by its first build, or now with --create"),
        ),
        AdminError::Record(RecordError::Changed { .. }) => {
            Failure::new(Exit::Later, format!("{message}: look at it again"))
        }
        AdminError::Record(RecordError::Weight { .. }) => Failure::new(Exit::Usage, message),
        _ => Failure::new(Exit::Internal, message),
    }
}

/// A tenant's name on the command line.
pub(super) fn tenant_argument() -> Arg {
    Arg::new("tenant")
        .value_name("TENANT")
        .required(true)
        .value_parser(parse_tenant)
        .help("The tenant")
}

/// Reads a tenant's name.
pub(super) fn parse_tenant(text: &str) -> Result<TenantId, String> {
    text.parse()
        .map_err(|error: tenant::InvalidTenantId| error.to_string())
}
