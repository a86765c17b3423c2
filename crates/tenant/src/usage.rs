//! What a tenant uses: always counted from rows.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, params};

use crate::{
    AccountError,
    id::TenantId,
    ledger::number,
    time::{DAY, day_of, micros},
};

/// What a tenant uses at one moment. Days are UTC's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Builds that run.
    pub active_builds: u64,
    /// Builds that wait.
    pub queued_builds: u64,
    /// Builds that count for today: those that were started, refunded ones left out.
    pub daily_builds: u64,
    /// Bytes of images, those that are being published included.
    pub storage_bytes: u64,
    /// Wall-clock time for which builds ran that ended today.
    pub wall_today: Duration,
    /// CPU time of the builds that ended today.
    pub cpu_today: Duration,
    /// CPU time of builds that have not ended, as far as checkpoints know.
    pub cpu_running: Duration,
}

/// What a tenant uses now.
///
/// # Errors
///
/// When the database fails.
pub fn usage(connection: &Connection, tenant: &TenantId, now: SystemTime) -> Result<Usage, AccountError> {
    let now = micros(now);
    let read = || {
        let select = "SELECT
            (SELECT COUNT(*) FROM reservations WHERE tenant_id = ?1),
            (SELECT COUNT(*) FROM admissions WHERE tenant_id = ?1 AND running = 0),
            (SELECT COUNT(*) FROM charges WHERE tenant_id = ?1 AND day >= ?2),
            (SELECT COALESCE(SUM(bytes), 0) FROM stored_images WHERE tenant_id = ?1),
            (SELECT COALESCE(SUM(wall_ms), 0) FROM ledger WHERE tenant_id = ?1 AND ended_at >= ?3),
            (SELECT COALESCE(SUM(cpu_ms), 0) FROM ledger WHERE tenant_id = ?1 AND ended_at >= ?3),
            (SELECT COALESCE(SUM(cpu_ms), 0) FROM reservations WHERE tenant_id = ?1)
              + (SELECT COALESCE(SUM(spent_cpu_ms), 0) FROM admissions WHERE tenant_id = ?1)";
        let day = day_of(now);
        connection.prepare_cached(select)?.query_row(
            params![tenant.as_str(), day, day.saturating_mul(DAY)],
            |row| {
                Ok(Usage {
                    active_builds: number(row, 0)?,
                    queued_builds: number(row, 1)?,
                    daily_builds: number(row, 2)?,
                    storage_bytes: number(row, 3)?,
                    wall_today: Duration::from_millis(number(row, 4)?),
                    cpu_today: Duration::from_millis(number(row, 5)?),
                    cpu_running: Duration::from_millis(number(row, 6)?),
                })
            },
        )
    };
    read().map_err(AccountError::new("count what a tenant uses"))
}
