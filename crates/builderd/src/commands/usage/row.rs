//! A row of the ledger as a line.

use builder_core::audit::rfc3339;
use serde_json::{Map, Value, json};
use tenant::ledger::{LedgerRow, Outcome};

use crate::prices::{PriceTable, amount};

/// Names of the columns, which are also the names in JSON.
const COLUMNS: [&str; 18] = [
    "sequence",
    "event_id",
    "kind",
    "build_id",
    "tenant_id",
    "customer_id",
    "tier",
    "outcome",
    "refunded",
    "started_at",
    "ended_at",
    "wall_ms",
    "cpu_ms",
    "peak_memory_bytes",
    "pulled_bytes",
    "stored_bytes",
    "stored_byte_seconds",
    "stored_byte_days",
];

/// The line of names.
pub(super) fn csv_header(prices: Option<&PriceTable>) -> String {
    let mut line = COLUMNS.join(",");
    if prices.is_some() {
        line.push_str(",cost,currency");
    }
    line + "\r\n"
}

/// A row as a line of CSV (RFC 4180).
pub(super) fn csv(row: &LedgerRow, prices: Option<&PriceTable>) -> String {
    let object = object(row, prices);
    let names = COLUMNS
        .iter()
        .chain(prices.map_or(&[][..], |_| &["cost", "currency"]));
    let cells: Vec<String> = names
        .map(|name| match &object[*name] {
            Value::Null => String::new(),
            Value::String(text) => quoted(text),
            other => other.to_string(),
        })
        .collect();
    cells.join(",") + "\r\n"
}

/// A row as a line of JSON. What is not known is absent.
pub(super) fn json(row: &LedgerRow, prices: Option<&PriceTable>) -> String {
    let mut object = object(row, prices);
    object.retain(|_, value| !value.is_null());
    Value::Object(object).to_string() + "\n"
}

fn object(row: &LedgerRow, prices: Option<&PriceTable>) -> Map<String, Value> {
    let mut object = Map::new();
    let values = [
        json!(row.sequence),
        json!(row.event_id),
        json!(row.kind.as_str()),
        json!(row.build_id),
        json!(row.tenant_id),
        json!(row.customer_id),
        json!(row.tier),
        json!(row.outcome.map(Outcome::as_str)),
        json!(row.refunded),
        json!(row.started_at.map(rfc3339)),
        json!(rfc3339(row.ended_at)),
        json!(milliseconds(row.wall)),
        json!(milliseconds(row.cpu)),
        json!(row.peak_memory_bytes),
        json!(row.pulled_bytes),
        json!(row.stored_bytes),
        json!(row.stored_byte_seconds),
        json!(row.stored_byte_days()),
    ];
    for (name, value) in COLUMNS.into_iter().zip(values) {
        object.insert(name.to_owned(), value);
    }
    if let Some(prices) = prices {
        // As text: a number of JSON is often read as a float.
        object.insert("cost".to_owned(), json!(amount(prices.cost(row))));
        object.insert("currency".to_owned(), json!(prices.currency()));
    }
    object
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A customer is free text: it may hold anything.
fn quoted(text: &str) -> String {
    match text.contains(['"', ',', '\r', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}
