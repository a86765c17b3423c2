//! What is billed: rows that are added when a build ends and when storage was used, and never change.
//!
//! A build gives one row of kind [`LedgerKind::Build`] when it ends, whatever became of it. Its image, while it is kept,
//! gives one row of kind [`LedgerKind::Storage`] for each UTC day, written when the day is over or the image is removed:
//! byte-seconds in whole numbers, so that sums are exact. A row is complete when it is written, so that a reader may go by
//! [`LedgerRow::sequence`] and never has to look at a row twice; [`LedgerRow::event_id`] stays the same for ever and is
//! what a billing system deduplicates by.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, Row, ToSql, Transaction, named_params};

use crate::{
    AccountError,
    id::TenantId,
    tier::Tier,
    time::{Micros, from_micros, micros},
};

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LedgerKind {
    /// A build that ended.
    Build,
    /// An image that was stored for a while.
    Storage,
}

/// What became of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Its image is there.
    Completed,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LedgerRow {
    /// Its place in the ledger, above 0, rising without being gapless.
    pub sequence: u64,
    /// Unique and stable: the build's name, or `BUILD.storage.YYYY-MM-DD`.
    pub event_id: String,
    /// What it is about.
    pub kind: LedgerKind,
    /// The build, or the one that made the image.
    pub build_id: String,
    /// Whose.
    pub tenant_id: TenantId,
    /// The customer that the build's request named; empty for none.
    pub customer_id: String,
    /// The tenant's tier when the row was written.
    pub tier: Tier,
    /// What became of the build; `None` for storage.
    pub outcome: Option<Outcome>,
    /// The failure was the service's own: the build's day was given back, and nothing should be charged.
    pub refunded: bool,
    /// When the build's work first began, or the time of storage; `None` for a build that never ran.
    pub started_at: Option<SystemTime>,
    /// When the build, or the time of storage, ended.
    pub ended_at: SystemTime,
    /// Time for which it ran, all attempts together.
    pub wall: Duration,
    /// CPU time of its workers, all attempts together.
    pub cpu: Duration,
    /// The most memory that it used, in bytes.
    pub peak_memory_bytes: u64,
    /// Compressed bytes that it pulled over the network, all attempts together.
    pub pulled_bytes: u64,
    /// Size of its image where it is kept, in bytes; 0 without one.
    pub stored_bytes: u64,
    /// For storage: bytes times seconds.
    pub stored_byte_seconds: u64,
}

/// Which rows to read. The default is all, from the first on, 1,000 at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerQuery {
    /// Rows after this one: [`LedgerRow::sequence`] of the last one that was read, 0 for the beginning.
    pub after_sequence: u64,
    /// Rows of what ended at this moment or later.
    pub since: Option<SystemTime>,
    /// Rows of what ended before this moment.
    pub until: Option<SystemTime>,
    /// Rows of one tenant.
    pub tenant: Option<TenantId>,
    /// At most so many.
    pub limit: usize,
}

/// Sums over rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LedgerSums {
    /// Builds that ended.
    pub builds: u64,
    /// Time for which they ran.
    pub wall: Duration,
    /// CPU time of their workers.
    pub cpu: Duration,
    /// Bytes that they pulled.
    pub pulled_bytes: u64,
    /// Bytes times seconds that were stored.
    pub stored_byte_seconds: u64,
}

impl LedgerRow {
    /// [`stored_byte_seconds`](Self::stored_byte_seconds) in bytes times days.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "for people; the exact figure is the integer"
    )]
    pub fn stored_byte_days(&self) -> f64 {
        self.stored_byte_seconds as f64 / 86_400.0
    }
}

impl LedgerKind {
    /// Its name in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Storage => "storage",
        }
    }
}

impl Outcome {
    /// Its name in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Default for LedgerQuery {
    fn default() -> Self {
        Self {
            after_sequence: 0,
            since: None,
            until: None,
            tenant: None,
            limit: 1_000,
        }
    }
}

/// The rows that come after one, in their order, at most `limit`: call again with the last one's sequence for more.
///
/// # Errors
///
/// When the database fails, or a row is not one of this version.
pub fn rows_since(
    connection: &Connection,
    after_sequence: u64,
    limit: usize,
) -> Result<Vec<LedgerRow>, AccountError> {
    let query = LedgerQuery {
        after_sequence,
        limit,
        ..LedgerQuery::default()
    };
    rows(connection, &query)
}

/// The rows that `query` asks for, in their order.
///
/// # Errors
///
/// When the database fails, or a row is not one of this version.
pub fn rows(connection: &Connection, query: &LedgerQuery) -> Result<Vec<LedgerRow>, AccountError> {
    let select = format!(
        "SELECT sequence, event_id, kind, build_id, tenant_id, customer_id, tier, outcome, refunded, started_at,
                ended_at, wall_ms, cpu_ms, peak_memory_bytes, pulled_bytes, stored_bytes, stored_byte_seconds
         FROM ledger WHERE {CONDITIONS} ORDER BY sequence LIMIT :limit"
    );
    let read = || {
        let mut statement = connection.prepare_cached(&select)?;
        let rows = statement.query_map(
            named_params! {
                ":after": integer(query.after_sequence),
                ":since": query.since.map_or(i64::MIN, micros),
                ":until": query.until.map_or(i64::MAX, micros),
                ":tenant": query.tenant.as_ref().map(TenantId::as_str),
                ":limit": integer(query.limit as u64),
            },
            read_row,
        )?;
        rows.collect::<rusqlite::Result<Vec<_>>>()
    };
    read().map_err(AccountError::new("read the ledger"))
}

/// Sums over the rows that `query` asks for, however many; its limit does not count.
///
/// # Errors
///
/// When the database fails.
pub fn sums(connection: &Connection, query: &LedgerQuery) -> Result<LedgerSums, AccountError> {
    let select = format!(
        "SELECT COALESCE(SUM(kind = 'build'), 0), COALESCE(SUM(wall_ms), 0), COALESCE(SUM(cpu_ms), 0),
                COALESCE(SUM(pulled_bytes), 0), COALESCE(SUM(stored_byte_seconds), 0)
         FROM ledger WHERE {CONDITIONS}"
    );
    let read = || {
        connection.prepare_cached(&select)?.query_row(
            named_params! {
                ":after": integer(query.after_sequence),
                ":since": query.since.map_or(i64::MIN, micros),
                ":until": query.until.map_or(i64::MAX, micros),
                ":tenant": query.tenant.as_ref().map(TenantId::as_str),
            },
            |row| {
                Ok(LedgerSums {
                    builds: number(row, 0)?,
                    wall: Duration::from_millis(number(row, 1)?),
                    cpu: Duration::from_millis(number(row, 2)?),
                    pulled_bytes: number(row, 3)?,
                    stored_byte_seconds: number(row, 4)?,
                })
            },
        )
    };
    read().map_err(AccountError::new("sum up the ledger"))
}

const CONDITIONS: &str = "sequence > :after AND ended_at >= :since AND ended_at < :until
    AND (:tenant IS NULL OR tenant_id = :tenant)";

/// A row to be written; its tier is looked up in the tenant's record.
#[derive(Clone, Debug)]
pub(crate) struct NewRow<'a> {
    pub(crate) event_id: &'a str,
    pub(crate) kind: LedgerKind,
    pub(crate) build_id: &'a str,
    pub(crate) tenant_id: &'a TenantId,
    pub(crate) customer_id: &'a str,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) refunded: bool,
    pub(crate) started_at: Option<Micros>,
    pub(crate) ended_at: Micros,
    pub(crate) wall_ms: u64,
    pub(crate) cpu_ms: u64,
    pub(crate) peak_memory_bytes: u64,
    pub(crate) pulled_bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) stored_byte_seconds: u64,
}

/// Writes a row, unless one with that event is there: says whether it was written.
pub(crate) fn append(transaction: &Transaction<'_>, row: &NewRow<'_>) -> rusqlite::Result<bool> {
    let insert = "INSERT INTO ledger
        (event_id, kind, build_id, tenant_id, customer_id, tier, outcome, refunded, started_at, ended_at, wall_ms, cpu_ms,
         peak_memory_bytes, pulled_bytes, stored_bytes, stored_byte_seconds)
        VALUES (:event, :kind, :build, :tenant, :customer,
         COALESCE((SELECT tier FROM tenants WHERE tenant_id = :tenant), 'free'),
         :outcome, :refunded, :started, :ended, :wall, :cpu, :peak, :pulled, :stored, :byte_seconds)
        ON CONFLICT (event_id) DO NOTHING";
    let outcome = row.outcome.map_or("stored", Outcome::as_str);
    let values: &[(&str, &dyn ToSql)] = named_params! {
        ":event": row.event_id,
        ":kind": row.kind.as_str(),
        ":build": row.build_id,
        ":tenant": row.tenant_id.as_str(),
        ":customer": row.customer_id,
        ":outcome": outcome,
        ":refunded": row.refunded,
        ":started": row.started_at,
        ":ended": row.ended_at,
        ":wall": integer(row.wall_ms),
        ":cpu": integer(row.cpu_ms),
        ":peak": integer(row.peak_memory_bytes),
        ":pulled": integer(row.pulled_bytes),
        ":stored": integer(row.stored_bytes),
        ":byte_seconds": integer(row.stored_byte_seconds),
    };
    Ok(transaction.prepare_cached(insert)?.execute(values)? == 1)
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<LedgerRow> {
    let kind = match row.get_ref(2)?.as_str()? {
        "storage" => LedgerKind::Storage,
        _ => LedgerKind::Build,
    };
    let outcome = match row.get_ref(7)?.as_str()? {
        "completed" => Some(Outcome::Completed),
        "failed" => Some(Outcome::Failed),
        "cancelled" => Some(Outcome::Cancelled),
        _ => None,
    };
    Ok(LedgerRow {
        sequence: number(row, 0)?,
        event_id: row.get(1)?,
        kind,
        build_id: row.get(3)?,
        tenant_id: crate::records::parsed(row, 4)?,
        customer_id: row.get(5)?,
        tier: crate::records::parsed(row, 6)?,
        outcome,
        refunded: row.get(8)?,
        started_at: row.get::<_, Option<i64>>(9)?.map(from_micros),
        ended_at: from_micros(row.get(10)?),
        wall: Duration::from_millis(number(row, 11)?),
        cpu: Duration::from_millis(number(row, 12)?),
        peak_memory_bytes: number(row, 13)?,
        pulled_bytes: number(row, 14)?,
        stored_bytes: number(row, 15)?,
        stored_byte_seconds: number(row, 16)?,
    })
}

/// SQLite's integers are signed; no figure of ours reaches their limit.
pub(crate) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A column that is never negative.
pub(crate) fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}
