//! What a tenant uses, always counted from rows. Tombstones count: deleting a build gives back its storage, and
//! nothing else.

use std::time::{Duration, SystemTime};

use rusqlite::{Row, params};
use tenant::{TenantId, TenantRecord};

use super::{
    Store, StoreError,
    answer::AnswerSize,
    builds::{COLUMNS, read},
    from_integer, to_integer, to_micros,
};
use crate::build::Build;

const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

/// What a tenant uses at one moment. Days are UTC's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantUsage {
    /// Builds that run.
    pub active_builds: u64,
    /// Builds that wait.
    pub queued_builds: u64,
    /// Builds whose work began today.
    pub builds_started_today: u64,
    /// Builds that completed today.
    pub builds_completed_today: u64,
    /// Builds that failed today; cancelled ones are not among them.
    pub builds_failed_today: u64,
    /// Bytes that the tenant's images take where they are kept.
    pub storage_bytes: u64,
    /// CPU time of the builds that ended today, and of those that run so far.
    pub cpu_time_today: Duration,
}

/// The figures of a window of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WindowSums {
    pub(crate) total: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) average_build_time: Option<Duration>,
    pub(crate) stored_bytes: u64,
    pub(crate) cpu_time: Duration,
}

impl Store {
    /// The tenant's record, if it was ever seen, and its usage, in one snapshot.
    pub(crate) async fn usage(
        &self,
        tenant: TenantId,
        now: SystemTime,
    ) -> Result<(Option<TenantRecord>, TenantUsage), StoreError> {
        self.read(move |connection| {
            let snapshot = connection.unchecked_transaction()?;
            let accounts = tenant::usage(&snapshot, &tenant, now)?;
            let mut usage = TenantUsage {
                active_builds: accounts.active_builds,
                queued_builds: accounts.queued_builds,
                builds_started_today: accounts.daily_builds,
                storage_bytes: accounts.storage_bytes,
                ..TenantUsage::default()
            };
            let now = to_micros(now);
            let day = now - now.rem_euclid(DAY_MICROS);
            let ended = "SELECT COALESCE(SUM(state = 'completed'), 0), COALESCE(SUM(state = 'failed'), 0),
                         COALESCE(SUM(cpu_time_ms), 0) FROM builds WHERE tenant_id = ?1 AND completed_at >= ?2";
            snapshot
                .prepare_cached(ended)?
                .query_row(params![tenant.as_str(), day], |row| {
                    usage.builds_completed_today = from_integer(row.get(0)?);
                    usage.builds_failed_today = from_integer(row.get(1)?);
                    usage.cpu_time_today = milliseconds(row, 2)?;
                    Ok(())
                })?;
            // Builds that run, as far as they were measured.
            usage.cpu_time_today += accounts.cpu_running;
            Ok((tenant::records::get(&snapshot, &tenant)?, usage))
        })
        .await
    }

    /// The figures of the tenant's builds created in `from..until`, and the newest `recent` of those that are kept, or
    /// fewer where an answer would be too large.
    pub(crate) async fn window(
        &self,
        tenant: TenantId,
        from: Option<SystemTime>,
        until: Option<SystemTime>,
        recent: usize,
    ) -> Result<(WindowSums, Vec<Build>), StoreError> {
        self.read(move |connection| {
            let snapshot = connection.unchecked_transaction()?;
            let (from, until) = (
                from.map_or(i64::MIN, to_micros),
                until.map_or(i64::MAX, to_micros),
            );
            let sums =
                "SELECT COUNT(*), COALESCE(SUM(state = 'completed'), 0), COALESCE(SUM(state = 'failed'), 0),
                     CAST(AVG(completed_at - started_at) FILTER (WHERE state = 'completed') AS INTEGER),
                     COALESCE(SUM(stored_bytes), 0), COALESCE(SUM(cpu_time_ms), 0)
                 FROM builds WHERE tenant_id = ?1 AND created_at >= ?2 AND created_at < ?3";
            let sums =
                snapshot
                    .prepare_cached(sums)?
                    .query_row(params![tenant.as_str(), from, until], |row| {
                        Ok(WindowSums {
                            total: from_integer(row.get(0)?),
                            completed: from_integer(row.get(1)?),
                            failed: from_integer(row.get(2)?),
                            average_build_time: row
                                .get::<_, Option<i64>>(3)?
                                .map(|micros| Duration::from_micros(from_integer(micros))),
                            stored_bytes: from_integer(row.get(4)?),
                            cpu_time: milliseconds(row, 5)?,
                        })
                    })?;
            let mut statement = snapshot.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM builds
                 WHERE tenant_id = ?1 AND created_at >= ?2 AND created_at < ?3 AND deleted_at IS NULL
                 ORDER BY created_at DESC, ordinal DESC LIMIT ?4"
            ))?;
            let mut rows =
                statement.query(params![tenant.as_str(), from, until, to_integer(recent as u64)])?;
            let mut builds = Vec::new();
            let mut size = AnswerSize::default();
            while let Some(row) = rows.next()? {
                if !size.takes(row)? {
                    break;
                }
                builds.push(read(row)?.build);
            }
            Ok((sums, builds))
        })
        .await
    }
}

fn milliseconds(row: &Row<'_>, column: usize) -> rusqlite::Result<Duration> {
    Ok(Duration::from_millis(from_integer(row.get(column)?)))
}
