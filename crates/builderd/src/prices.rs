//! What things cost (`PRICES_FILE`): a table by tier, and what a row of the ledger costs by it.
//!
//! ```json
//! {
//!   "currency": "EUR",
//!   "default": { "build": "0.001", "cpu_minute": "0.002", "gib_pulled": "0.01", "gib_day_stored": "0.0005" },
//!   "tiers": { "free": {}, "enterprise": { "cpu_minute": "0.0015" } }
//! }
//! ```
//!
//! A price is a decimal text with up to nine places, so that no float rounds it; one that is not named costs nothing. A
//! tier that is listed has its own prices alone, and any other those of `default`. Costs are whole billionths of the
//! currency: each part of a row is rounded half up, so that a sum over rows is exact.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use tenant::{
    Tier,
    ledger::{LedgerKind, LedgerRow},
};

/// Billionths of the currency.
type Nanos = i128;

/// Nine places behind the point.
const NANOS: Nanos = 1_000_000_000;

/// Digits before the point.
const LARGEST_DIGITS: usize = 12;

/// A table of prices.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceTable {
    currency: String,
    #[serde(default)]
    default: Prices,
    #[serde(default)]
    tiers: BTreeMap<Tier, Prices>,
}

/// The prices of a tier, in billionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Prices {
    /// A build, whatever it takes.
    build: Price,
    /// A minute for which it ran.
    wall_minute: Price,
    /// A minute of a CPU.
    cpu_minute: Price,
    /// 2^30 bytes that it pulled.
    gib_pulled: Price,
    /// 2^30 bytes that were stored for a day.
    gib_day_stored: Price,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Price(Nanos);

/// The table cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PricesError {
    /// The file cannot be read.
    #[error("the prices {path} cannot be read", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no table of prices.
    #[error("{path} is not a table of prices", path = path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: serde_json::Error,
    },
}

impl PriceTable {
    /// Reads a table.
    ///
    /// # Errors
    /// [`PricesError`], with the line for a mistake in the table.
    pub fn load(path: &Path) -> Result<Self, PricesError> {
        let text = fs::read(path).map_err(|source| PricesError::Read {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| PricesError::Form {
            path: path.to_owned(),
            source,
        })
    }

    /// Its currency, as it is written.
    #[must_use]
    pub fn currency(&self) -> &str {
        &self.currency
    }

    /// What a row costs, in billionths of the currency. A refunded build costs nothing.
    #[must_use]
    pub fn cost(&self, row: &LedgerRow) -> i128 {
        if row.refunded {
            return 0;
        }
        let prices = self.tiers.get(&row.tier).unwrap_or(&self.default);
        let build = u64::from(row.kind == LedgerKind::Build);
        [
            (prices.build, u128::from(build), 1),
            (prices.wall_minute, row.wall.as_millis(), 60_000),
            (prices.cpu_minute, row.cpu.as_millis(), 60_000),
            (prices.gib_pulled, u128::from(row.pulled_bytes), 1 << 30),
            (
                prices.gib_day_stored,
                u128::from(row.stored_byte_seconds),
                86_400 << 30,
            ),
        ]
        .into_iter()
        .map(|(price, quantity, unit)| part(price, quantity, unit))
        .sum()
    }
}

/// A price times a quantity of a unit's parts, rounded half up.
fn part(price: Price, quantity: u128, unit: Nanos) -> Nanos {
    let quantity = i128::try_from(quantity).unwrap_or(i128::MAX);
    price.0.saturating_mul(quantity).saturating_add(unit / 2) / unit
}

/// Billionths as decimal text with at least two places.
#[must_use]
pub fn amount(nanos: i128) -> String {
    let text = format!("{}.{:09}", nanos / NANOS, nanos % NANOS);
    let kept = text.trim_end_matches('0').len();
    let shortest = text.len() - 7;
    text[..kept.max(shortest)].to_owned()
}

impl TryFrom<String> for Price {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (whole, places) = text.split_once('.').unwrap_or((&text, "0"));
        let is_number = |digits: &str, most: usize| {
            (1..=most).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !is_number(whole, LARGEST_DIGITS) || !is_number(places, 9) {
            return Err(format!(
                "{text:?} is not a price: expected a decimal number with up to nine places, as \"0.002\""
            ));
        }
        let digits = |text: &str| text.parse::<Nanos>().map_err(|error| error.to_string());
        Ok(Self(digits(whole)? * NANOS + digits(&format!("{places:0<9}"))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<PriceTable, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn prices_are_exact_decimals() {
        let read = |text: &str| Price::try_from(text.to_owned()).map(|price| price.0);
        for (text, expected) in [
            ("0", 0),
            ("1", NANOS),
            ("0.1", NANOS / 10),
            ("0.000000001", 1),
            ("12.5", 12 * NANOS + NANOS / 2),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "1e3",
            "0.0000000001",
            "1,5",
            "1234567890123",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn parts_are_rounded_half_up_to_billionths() {
        for (price, quantity, unit, expected) in [
            (1, 1, 2, 1),
            (1, 1, 3, 0),
            (2, 1, 3, 1),
            (NANOS, 90_000, 60_000, NANOS + NANOS / 2),
            (NANOS, u128::MAX, 1, i128::MAX),
        ] {
            assert_eq!(
                part(Price(price), quantity, unit),
                expected,
                "{price} {quantity} {unit}"
            );
        }
    }

    #[test]
    fn amounts_have_two_places_at_least() {
        for (nanos, expected) in [
            (0, "0.00"),
            (NANOS, "1.00"),
            (NANOS / 10, "0.10"),
            (1, "0.000000001"),
            (123_450_000, "0.12345"),
        ] {
            assert_eq!(amount(nanos), expected);
        }
    }

    #[test]
    fn a_table_with_a_mistake_is_refused_with_its_name() {
        assert!(table(r#"{"currency":"EUR","default":{"build":"1"},"tiers":{"free":{}}}"#).is_ok());
        for (text, named) in [
            (r#"{"default":{}}"#, "currency"),
            (r#"{"currency":"EUR","default":{"cpu_hour":"1"}}"#, "cpu_hour"),
            (r#"{"currency":"EUR","tiers":{"gold":{}}}"#, "gold"),
            (r#"{"currency":"EUR","default":{"build":0.1}}"#, "0.1"),
            (r#"{"currency":"EUR","default":{"build":"a lot"}}"#, "a lot"),
        ] {
            let error = table(text).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
