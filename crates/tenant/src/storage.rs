//! Bytes of images: room is kept before an image is published, counted while it is kept, given back when it goes.

use std::time::SystemTime;

use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use crate::{
    AccountError, Refusal,
    admission::stored,
    id::TenantId,
    ledger::{self, LedgerKind, NewRow, integer, number},
    limits::Quota,
    records::parsed,
    time::{Micros, date, day_of, micros, next_midnight},
};

/// What to write about one image.
struct Kept {
    build_id: String,
    tenant_id: TenantId,
    customer_id: String,
    bytes: u64,
    accrued_until: Micros,
}

/// Keeps room for the image of a running build, so that the images of a tenant never take more than its storage. Keeping
/// room again for the same build replaces what was kept. Answers with a refusal when it does not fit.
///
/// # Errors
///
/// When the database fails.
pub fn keep_room(
    transaction: &Transaction<'_>,
    build_id: &str,
    bytes: u64,
    limit: u64,
) -> Result<Option<Refusal>, AccountError> {
    let work = || {
        let owner: Option<(String, String)> = transaction
            .prepare_cached(
                "SELECT tenant_id, customer_id FROM admissions WHERE build_id = ?1 AND running = 1",
            )?
            .query_row([build_id], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((tenant, customer)) = owner else {
            // It ended in the meantime, and nothing will be published.
            return Ok(None);
        };
        transaction
            .prepare_cached("DELETE FROM stored_images WHERE build_id = ?1")?
            .execute([build_id])?;
        let wanted = stored(transaction, &tenant)?.saturating_add(bytes);
        if wanted > limit {
            let words = "bytes of images would be kept; deleting builds frees theirs at once";
            return Ok(Some(Refusal::new(Quota::Storage, wanted, limit, words)));
        }
        transaction
            .prepare_cached(
                "INSERT INTO stored_images (build_id, tenant_id, customer_id, bytes) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![build_id, tenant, customer, integer(bytes)])?;
        Ok(None)
    };
    work().map_err(AccountError::new("keep room for an image"))
}

/// The image of a build is removed: its bytes are free, and the ledger gets the time since the last midnight for which it
/// was kept. An image that is not known is left alone.
///
/// # Errors
///
/// When the database fails.
pub fn remove(transaction: &Transaction<'_>, build_id: &str, now: SystemTime) -> Result<(), AccountError> {
    let now = micros(now);
    let work = || {
        let select = "SELECT build_id, tenant_id, customer_id, bytes, accrued_until FROM stored_images
                      WHERE build_id = ?1 AND accrued_until IS NOT NULL";
        let kept = transaction
            .prepare_cached(select)?
            .query_row([build_id], kept)
            .optional()?;
        if let Some(kept) = kept {
            accrue(transaction, &kept, now, true)?;
        }
        transaction
            .prepare_cached("DELETE FROM stored_images WHERE build_id = ?1")?
            .execute([build_id])
            .map(drop)
    };
    work().map_err(AccountError::new("count an image that is removed"))
}

/// Writes into the ledger what days that are over have added to images that are kept, for at most `limit` images; says for
/// how many. Those that waited longest come first: call again until it says less than `limit`.
///
/// # Errors
///
/// When the database fails.
pub fn accrue_days(
    transaction: &Transaction<'_>,
    now: SystemTime,
    limit: usize,
) -> Result<usize, AccountError> {
    let now = micros(now);
    let midnight = day_of(now).saturating_mul(crate::time::DAY);
    let work = || {
        let select = "SELECT build_id, tenant_id, customer_id, bytes, accrued_until FROM stored_images
                      WHERE accrued_until < ?1 ORDER BY accrued_until LIMIT ?2";
        let due = transaction
            .prepare_cached(select)?
            .query_map(params![midnight, integer(limit as u64)], kept)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        for kept in &due {
            accrue(transaction, kept, now, false)?;
        }
        Ok(due.len())
    };
    work().map_err(AccountError::new("count the days of images"))
}

/// One row for each day that is over, and with `last` one for the day that is not. An image whose clock was set back adds
/// nothing until the clock is where it was.
fn accrue(transaction: &Transaction<'_>, kept: &Kept, now: Micros, last: bool) -> rusqlite::Result<()> {
    let mut from = kept.accrued_until;
    while from < now {
        let midnight = next_midnight(from);
        if midnight > now && !last {
            break;
        }
        let until = midnight.min(now);
        let event_id = format!("{}.storage.{}", kept.build_id, date(day_of(from)));
        let byte_microseconds = u128::from(kept.bytes) * u128::from(until.abs_diff(from));
        let row = NewRow {
            event_id: &event_id,
            kind: LedgerKind::Storage,
            build_id: &kept.build_id,
            tenant_id: &kept.tenant_id,
            customer_id: &kept.customer_id,
            outcome: None,
            refunded: false,
            started_at: Some(from),
            ended_at: until,
            wall_ms: 0,
            cpu_ms: 0,
            peak_memory_bytes: 0,
            pulled_bytes: 0,
            stored_bytes: kept.bytes,
            stored_byte_seconds: u64::try_from(byte_microseconds / 1_000_000).unwrap_or(u64::MAX),
        };
        ledger::append(transaction, &row)?;
        from = until;
    }
    transaction
        .prepare_cached(
            "UPDATE stored_images SET accrued_until = MAX(accrued_until, ?2) WHERE build_id = ?1",
        )?
        .execute(params![kept.build_id, from])
        .map(drop)
}

fn kept(row: &Row<'_>) -> rusqlite::Result<Kept> {
    Ok(Kept {
        build_id: row.get(0)?,
        tenant_id: parsed(row, 1)?,
        customer_id: row.get(2)?,
        bytes: number(row, 3)?,
        accrued_until: row.get(4)?,
    })
}
