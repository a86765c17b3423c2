//! `builderd usage cost`: sums by tenant or customer.

use std::{collections::BTreeMap, time::Duration};

use clap::ArgMatches;
use serde_json::{Value, json};
use tenant::ledger::{LedgerKind, LedgerRow};

use super::{each_row, prices, query};
use crate::{
    cli::output::{print, print_json, table},
    commands::records::{open, values},
    exit::Failure,
    prices::{PriceTable, amount},
};

/// What one of them has used.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    builds: u64,
    refunded: u64,
    wall: Duration,
    cpu: Duration,
    pulled_bytes: u64,
    stored_byte_seconds: u128,
    cost: i128,
}

impl Sum {
    fn add(&mut self, row: &LedgerRow, prices: Option<&PriceTable>) {
        self.builds += u64::from(row.kind == LedgerKind::Build);
        self.refunded += u64::from(row.refunded);
        self.wall += row.wall;
        self.cpu += row.cpu;
        self.pulled_bytes = self.pulled_bytes.saturating_add(row.pulled_bytes);
        self.stored_byte_seconds += u128::from(row.stored_byte_seconds);
        self.cost += prices.map_or(0, |prices| prices.cost(row));
    }

    /// Thousandths of a GiB for a day.
    fn stored_gib_days(&self) -> String {
        let thousandths = self.stored_byte_seconds * 1_000 / (86_400 << 30);
        format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000)
    }
}

/// Prints the sums, and that of all.
pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let values = values(matches)?;
    let prices = prices(&values, matches)?;
    let database = open(&values)?;
    let by_customer = matches.get_one::<String>("by").is_some_and(|by| by == "customer");
    let mut sums: BTreeMap<(String, String), Sum> = BTreeMap::new();
    each_row(&database, query(matches), |row| {
        let customer = if by_customer {
            row.customer_id.clone()
        } else {
            String::new()
        };
        let key = (row.tenant_id.to_string(), customer);
        sums.entry(key).or_default().add(row, prices.as_ref());
        true
    })?;
    if matches.get_flag("json") {
        let rows = sums.iter().map(|((tenant, customer), sum)| {
            let mut row = json!({
                "tenant_id": tenant,
                "builds": sum.builds,
                "refunded_builds": sum.refunded,
                "wall_seconds": sum.wall.as_secs_f64(),
                "cpu_seconds": sum.cpu.as_secs_f64(),
                "pulled_bytes": sum.pulled_bytes,
                "stored_gib_days": sum.stored_gib_days(),
            });
            if by_customer {
                row["customer_id"] = json!(customer);
            }
            if let Some(prices) = &prices {
                row["cost"] = json!(amount(sum.cost));
                row["currency"] = json!(prices.currency());
            }
            row
        });
        return print_json(&Value::Array(rows.collect()));
    }
    let cost = |nanos: i128| match &prices {
        Some(prices) => format!("{} {}", amount(nanos), prices.currency()),
        None => "-".to_owned(),
    };
    let total = sums.values().map(|sum| sum.cost).sum();
    let mut rows: Vec<[String; 7]> = sums
        .into_iter()
        .map(|((tenant, customer), sum)| {
            [
                tenant,
                if by_customer { customer } else { "-".to_owned() },
                sum.builds.to_string(),
                format!("{:.1}", sum.cpu.as_secs_f64() / 60.0),
                format!("{:.3}", mebibytes(sum.pulled_bytes) / 1024.0),
                sum.stored_gib_days(),
                cost(sum.cost),
            ]
        })
        .collect();
    if prices.is_some() {
        let none = || String::new();
        rows.push([
            "all".to_owned(),
            none(),
            none(),
            none(),
            none(),
            none(),
            cost(total),
        ]);
    }
    print(&table(
        [
            "TENANT",
            "CUSTOMER",
            "BUILDS",
            "CPU MINUTES",
            "GIB PULLED",
            "GIB-DAYS STORED",
            "COST",
        ],
        &rows,
    ))
}

/// For people.
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
