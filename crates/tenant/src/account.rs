//! What happens to an accepted build after its start: measured, interrupted, ended.
//!
//! ```text
//! admit ──> waiting ──start_next──> running ──end──> ledger
//!              ^  \                  |    |
//!              |   `──────end────────┼────┼──────────^
//!              `──────interrupt──────'    `─ checkpoint (stays running)
//! ```
//!
//! Every function is one step in the caller's transaction, and doing a step again changes nothing: a build ends once,
//! whoever says so, and what it had reserved is free from then on.

use std::time::{Duration, SystemTime};

use rusqlite::{OptionalExtension as _, Transaction, params};

use crate::{
    AccountError,
    id::TenantId,
    ledger::{self, LedgerKind, NewRow, Outcome, integer, number},
    records::parsed,
    time::{DAY, Micros, day_of, micros},
};

/// Refunds of one tenant on one UTC day.
const MAX_REFUNDS_A_DAY: i64 = 100;

/// What an attempt of a build used, from its beginning on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// CPU time of its workers.
    pub cpu: Duration,
    /// The most memory, in bytes.
    pub peak_memory_bytes: u64,
    /// Compressed bytes that were pulled over the network.
    pub pulled_bytes: u64,
}

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// What became of it.
    pub outcome: Outcome,
    /// The failure was the service's own: the day is given back, a hundred times a UTC day and tenant at most. Whose fault it
    /// was is told by a worker too, and a worker that a layer has taken over may say anything.
    pub refund: bool,
    /// What the last attempt used, as far as it is known; what checkpoints know counts where that is more.
    pub used: Used,
    /// Bytes that its image takes where it is kept; 0 without one.
    pub stored_bytes: u64,
}

/// What came of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The build has ended now: its reservation is gone and its row is in the ledger.
    Now,
    /// It had ended before, or was never accepted: nothing was changed.
    Before,
}

struct Account {
    tenant_id: TenantId,
    customer_id: String,
    first_started_at: Option<Micros>,
    spent_wall_ms: u64,
    spent_cpu_ms: u64,
    spent_pulled: u64,
    peak_memory_bytes: u64,
}

/// An attempt as its reservation knows it.
#[derive(Default)]
struct Attempt {
    wall_ms: u64,
    cpu_ms: u64,
    pulled_bytes: u64,
    peak_memory_bytes: u64,
}

/// Notes what a running build has used so far, so that a crash loses no more than what comes after. A figure that is less
/// than the one before is not taken. A build that does not run is left alone.
///
/// # Errors
///
/// When the database fails.
pub fn checkpoint(
    transaction: &Transaction<'_>,
    build_id: &str,
    used: &Used,
    now: SystemTime,
) -> Result<(), AccountError> {
    let update = "UPDATE reservations SET
            checked_at = MAX(checked_at, ?2), wall_ms = MAX(wall_ms, (?2 - started_at) / 1000), cpu_ms = MAX(cpu_ms, ?3),
            pulled_bytes = MAX(pulled_bytes, ?4), peak_memory_bytes = MAX(peak_memory_bytes, ?5)
        WHERE build_id = ?1";
    transaction
        .prepare_cached(update)
        .and_then(|mut statement| {
            statement.execute(params![
                build_id,
                micros(now),
                milliseconds(used.cpu),
                integer(used.pulled_bytes),
                integer(used.peak_memory_bytes)
            ])
        })
        .map(drop)
        .map_err(AccountError::new("note what a build has used"))
}

/// Builds that have something reserved, in no order: after a crash, those that were running.
///
/// # Errors
///
/// When the database fails.
pub fn running(transaction: &Transaction<'_>) -> Result<Vec<String>, AccountError> {
    let read = || {
        let mut statement = transaction.prepare_cached("SELECT build_id FROM reservations")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        rows.collect::<rusqlite::Result<Vec<_>>>()
    };
    read().map_err(AccountError::new("list running builds"))
}

/// Puts a running build back into the queue, as the next one of its tenant: its reservation is gone, what it used is kept for the ledger, its
/// day stays charged. `ended_at` is when the attempt ended, `None` when only its checkpoints know. A build that does not
/// run is left alone.
///
/// # Errors
///
/// When the database fails.
pub fn interrupt(
    transaction: &Transaction<'_>,
    build_id: &str,
    used: &Used,
    ended_at: Option<SystemTime>,
) -> Result<(), AccountError> {
    let work = || {
        let Some(attempt) = release(transaction, build_id, used, ended_at.map(micros))? else {
            return Ok(());
        };
        transaction
            .prepare_cached(
                "UPDATE admissions SET running = 0, spent_wall_ms = spent_wall_ms + ?2, spent_cpu_ms = spent_cpu_ms + ?3,
                    spent_pulled = spent_pulled + ?4, peak_memory_bytes = MAX(peak_memory_bytes, ?5)
                 WHERE build_id = ?1",
            )?
            .execute(params![
                build_id,
                integer(attempt.wall_ms),
                integer(attempt.cpu_ms),
                integer(attempt.pulled_bytes),
                integer(attempt.peak_memory_bytes)
            ])?;
        release_storage(transaction, build_id)
    };
    work().map_err(AccountError::new("put a build back into the queue"))
}

/// Ends a build, wherever it is: its reservation and its place in the queue are gone, its row is in the ledger, its
/// image counts as stored from now on. With [`End::refund`] its day is given back.
///
/// # Errors
///
/// When the database fails.
pub fn end(
    transaction: &Transaction<'_>,
    build_id: &str,
    end: &End,
    now: SystemTime,
) -> Result<Ended, AccountError> {
    let now = micros(now);
    let work = || {
        let Some(account) = account(transaction, build_id)? else {
            return Ok(Ended::Before);
        };
        let attempt = release(transaction, build_id, &end.used, Some(now))?.unwrap_or_default();
        transaction
            .prepare_cached("DELETE FROM admissions WHERE build_id = ?1")?
            .execute([build_id])?;
        let is_refunded =
            end.refund && refunds_today(transaction, &account.tenant_id, now)? < MAX_REFUNDS_A_DAY;
        if is_refunded {
            transaction
                .prepare_cached("DELETE FROM charges WHERE build_id = ?1")?
                .execute([build_id])?;
        }
        if end.stored_bytes > 0 {
            let store =
                "INSERT INTO stored_images (build_id, tenant_id, customer_id, bytes, since, accrued_until)
                VALUES (?1, ?2, ?3, ?4, ?5, ?5)
                ON CONFLICT (build_id) DO UPDATE SET
                    bytes = excluded.bytes, since = excluded.since, accrued_until = excluded.accrued_until";
            transaction.prepare_cached(store)?.execute(params![
                build_id,
                account.tenant_id.as_str(),
                account.customer_id,
                integer(end.stored_bytes),
                now
            ])?;
        } else {
            release_storage(transaction, build_id)?;
        }
        let row = NewRow {
            event_id: build_id,
            kind: LedgerKind::Build,
            build_id,
            tenant_id: &account.tenant_id,
            customer_id: &account.customer_id,
            outcome: Some(end.outcome),
            refunded: is_refunded,
            started_at: account.first_started_at,
            ended_at: now,
            wall_ms: account.spent_wall_ms.saturating_add(attempt.wall_ms),
            cpu_ms: account.spent_cpu_ms.saturating_add(attempt.cpu_ms),
            peak_memory_bytes: account.peak_memory_bytes.max(attempt.peak_memory_bytes),
            pulled_bytes: account.spent_pulled.saturating_add(attempt.pulled_bytes),
            stored_bytes: end.stored_bytes,
            stored_byte_seconds: 0,
        };
        ledger::append(transaction, &row)?;
        Ok(Ended::Now)
    };
    work().map_err(AccountError::new("end a build"))
}

fn refunds_today(transaction: &Transaction<'_>, tenant: &TenantId, now: Micros) -> rusqlite::Result<i64> {
    transaction
        .prepare_cached(
            "SELECT COUNT(*) FROM ledger WHERE tenant_id = ?1 AND ended_at >= ?2 AND refunded = 1",
        )?
        .query_row(params![tenant.as_str(), day_of(now).saturating_mul(DAY)], |row| {
            row.get(0)
        })
}

fn account(transaction: &Transaction<'_>, build_id: &str) -> rusqlite::Result<Option<Account>> {
    transaction
        .prepare_cached(
            "SELECT tenant_id, customer_id, first_started_at, spent_wall_ms, spent_cpu_ms, spent_pulled,
                peak_memory_bytes FROM admissions WHERE build_id = ?1",
        )?
        .query_row([build_id], |row| {
            Ok(Account {
                tenant_id: parsed(row, 0)?,
                customer_id: row.get(1)?,
                first_started_at: row.get(2)?,
                spent_wall_ms: number(row, 3)?,
                spent_cpu_ms: number(row, 4)?,
                spent_pulled: number(row, 5)?,
                peak_memory_bytes: number(row, 6)?,
            })
        })
        .optional()
}

/// Takes the reservation away; gives what the attempt used, the more of what is told and what checkpoints know.
fn release(
    transaction: &Transaction<'_>,
    build_id: &str,
    used: &Used,
    ended_at: Option<Micros>,
) -> rusqlite::Result<Option<Attempt>> {
    let delete = "DELETE FROM reservations WHERE build_id = ?1
        RETURNING MAX(wall_ms, (COALESCE(?2, checked_at) - started_at) / 1000, 0), cpu_ms, pulled_bytes, peak_memory_bytes";
    transaction
        .prepare_cached(delete)?
        .query_row(params![build_id, ended_at], |row| {
            let cpu_ms = u64::try_from(used.cpu.as_millis()).unwrap_or(u64::MAX);
            Ok(Attempt {
                wall_ms: number(row, 0)?,
                cpu_ms: number(row, 1)?.max(cpu_ms),
                pulled_bytes: number(row, 2)?.max(used.pulled_bytes),
                peak_memory_bytes: number(row, 3)?.max(used.peak_memory_bytes),
            })
        })
        .optional()
}

/// Gives back room that was kept for an image that is not there.
fn release_storage(transaction: &Transaction<'_>, build_id: &str) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM stored_images WHERE build_id = ?1 AND since IS NULL")?
        .execute([build_id])
        .map(drop)
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
