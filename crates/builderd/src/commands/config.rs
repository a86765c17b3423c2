//! `builderd config`.

use std::io::{self, Write as _};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::serve;
use crate::{
    config::{effective_settings, settings_json, settings_reference, settings_text},
    exit::{Exit, Failure},
};

pub(super) fn command() -> Command {
    let command = Command::new("config")
        .about("Print the effective settings and where each was said, or what is wrong with them")
        .long_about(
            "Print the settings that `builderd serve` would have with the same flags and the same environment, each with \
             its source: a flag, the environment, or a default. Secrets are shown as ***. What `serve` would refuse is \
             refused here in the same words, with exit code 64, and what was set and has no effect is named on standard \
             error; nothing is opened, made or connected to.",
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print JSON: an array of objects with variable, flag, value and source"),
        )
        .arg(
            Arg::new("markdown")
                .long("markdown")
                .action(ArgAction::SetTrue)
                .hide(true)
                .help("Print docs/operations/configuration.md"),
        );
    serve::with_settings(command)
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let text = if matches.get_flag("markdown") {
        settings_reference()
    } else {
        let (values, config) = serve::settings(matches)?;
        crate::daemon::check(&config).map_err(|error| serve::start_failure(&error))?;
        for idle in &config.idle {
            // Where this cannot be said, the settings are worth showing all the same.
            drop(writeln!(io::stderr(), "builderd: warning: {idle}"));
        }
        let settings = effective_settings(&values);
        match matches.get_flag("json") {
            true => format!("{:#}\n", settings_json(&settings)),
            false => settings_text(&settings),
        }
    };
    io::stdout().write_all(text.as_bytes()).map_err(|error| {
        Failure::new(
            Exit::CannotCreate,
            format!("standard output cannot be written: {error}"),
        )
    })
}
