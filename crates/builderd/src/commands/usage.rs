//! `builderd usage`: the ledger for a billing system, and what it costs.

mod cost;
mod row;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use builder_core::admin::Database;
use clap::{Arg, ArgMatches, Command, value_parser};
use tenant::{
    TenantId,
    ledger::{LedgerQuery, LedgerRow},
};

use super::records::{failure, json_flag, open, parse_tenant, values, with_database};
use crate::{
    config::Values,
    exit::{Exit, Failure},
    prices::PriceTable,
};

/// Rows that are read at a time.
const PAGE: usize = 1_000;

/// The command line of `usage`.
pub(super) fn command() -> Command {
    let command = Command::new("usage")
        .about("Export what tenants have used, and say what it costs")
        .subcommand_required(true)
        .subcommand(with_selection(
            Command::new("export")
                .about("Write the ledger's rows as CSV or JSON lines")
                .long_about(
                    "Write the ledger's rows, oldest first: one for each build that ended, and one for each image and UTC day \
                     for which it was stored. Rows never change. `event_id` is unique and stays the same for ever, for a \
                     system that has to recognise what it has; `sequence` of the last row is what the next export gives to \
                     --after, so that none is left out and none comes twice.",
                )
                .arg(
                    Arg::new("after")
                        .long("after")
                        .value_name("SEQUENCE")
                        .value_parser(value_parser!(u64))
                        .help("Only rows after this one"),
                )
                .arg(
                    Arg::new("format")
                        .long("format")
                        .value_name("FORMAT")
                        .value_parser(["csv", "jsonl"])
                        .default_value("csv")
                        .help("csv with a line of names, or one JSON object a line"),
                ),
        ))
        .subcommand(with_selection(
            Command::new("cost")
                .about("Sum up what tenants or customers have used, and what it costs")
                .arg(
                    Arg::new("by")
                        .long("by")
                        .value_name("WHOM")
                        .value_parser(["tenant", "customer"])
                        .default_value("tenant")
                        .help("A line for each tenant, or for each customer of each tenant"),
                )
                .arg(json_flag()),
        ));
    with_database(command)
}

/// Adds the options that say which rows, and what they cost.
fn with_selection(command: Command) -> Command {
    let moment = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("TIME")
            .value_parser(parse_moment)
            .help(help)
    };
    command
        .arg(moment(
            "since",
            "Only what ended at this moment or later, as 2026-11-01 or 2026-11-01T12:00:00Z (UTC)",
        ))
        .arg(moment("until", "Only what ended before this moment"))
        .arg(
            Arg::new("tenant")
                .long("tenant")
                .value_name("TENANT")
                .value_parser(parse_tenant)
                .help("Only this tenant's"),
        )
        .arg(
            Arg::new("prices")
                .long("prices")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("What things cost [default: UNKEY_BUILDERD_PRICES_FILE; without, no cost is told]"),
        )
}

/// Runs the command.
pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("export", matches)) => export(matches),
        Some(("cost", matches)) => cost::run(matches),
        _ => Err(Failure::new(Exit::Usage, "see `builderd usage --help`")),
    }
}

fn export(matches: &ArgMatches) -> Result<(), Failure> {
    let values = values(matches)?;
    let prices = prices(&values, matches)?;
    let database = open(&values)?;
    let as_csv = matches
        .get_one::<String>("format")
        .is_none_or(|format| format == "csv");
    let mut output = io::BufWriter::new(io::stdout().lock());
    let mut result = Ok(());
    if as_csv {
        result = output.write_all(row::csv_header(prices.as_ref()).as_bytes());
    }
    each_row(&database, query(matches), |found| {
        if result.is_ok() {
            let line = match as_csv {
                true => row::csv(found, prices.as_ref()),
                false => row::json(found, prices.as_ref()),
            };
            result = output.write_all(line.as_bytes());
        }
        result.is_ok()
    })?;
    match result.and_then(|()| output.flush()) {
        // Whoever read it has enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::new(Exit::CannotCreate, "")),
        Err(error) => Err(Failure::new(
            Exit::CannotCreate,
            format!("standard output cannot be written: {error}"),
        )),
        Ok(()) => Ok(()),
    }
}

/// The rows that the command line asks for.
fn query(matches: &ArgMatches) -> LedgerQuery {
    LedgerQuery {
        after_sequence: matches
            .try_get_one::<u64>("after")
            .ok()
            .flatten()
            .copied()
            .unwrap_or(0),
        since: matches.get_one::<SystemTime>("since").copied(),
        until: matches.get_one::<SystemTime>("until").copied(),
        tenant: matches.get_one::<TenantId>("tenant").cloned(),
        limit: PAGE,
    }
}

/// Reads the rows page by page, while `take` wants more.
fn each_row(
    database: &Database,
    mut query: LedgerQuery,
    mut take: impl FnMut(&LedgerRow) -> bool,
) -> Result<(), Failure> {
    loop {
        let rows = database.ledger(&query).map_err(|error| failure(&error))?;
        for row in &rows {
            if !take(row) {
                return Ok(());
            }
        }
        match rows.last() {
            Some(last) if rows.len() == query.limit => query.after_sequence = last.sequence,
            _ => return Ok(()),
        }
    }
}

/// What things cost: the file of the command line, or that of the settings.
fn prices(values: &Values, matches: &ArgMatches) -> Result<Option<PriceTable>, Failure> {
    let given = matches.get_one::<PathBuf>("prices").cloned();
    let Some(path) = given.or_else(|| values.prices_file()) else {
        return Ok(None);
    };
    load(&path).map(Some)
}

fn load(path: &Path) -> Result<PriceTable, Failure> {
    PriceTable::load(path).map_err(|error| Failure::new(Exit::Usage, super::chain(&error)))
}

/// A moment in RFC 3339, or the beginning of a UTC day.
fn parse_moment(text: &str) -> Result<SystemTime, String> {
    const EXPECTED: &str = "expected a moment of 1970 or later, as 2026-11-01 or 2026-11-01T12:00:00Z";
    let full = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        _ => text.to_owned(),
    };
    let moment: prost_types::Timestamp = full.parse().map_err(|_| EXPECTED.to_owned())?;
    let moment = SystemTime::try_from(moment).map_err(|_| EXPECTED.to_owned())?;
    match moment >= SystemTime::UNIX_EPOCH {
        true => Ok(moment),
        false => Err(EXPECTED.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_days_or_rfc_3339() {
        let at = |seconds| Ok(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds));
        assert_eq!(parse_moment("1970-01-02"), at(86_400));
        assert_eq!(parse_moment("1970-01-01T01:00:00Z"), at(3_600));
        assert_eq!(parse_moment("1970-01-01T01:00:00+01:00"), at(0));
        for text in ["", "today", "2026-13-01", "2026-11-01 12", "1969-12-31", "1"] {
            assert!(parse_moment(text).is_err(), "{text:?}");
        }
    }
}
