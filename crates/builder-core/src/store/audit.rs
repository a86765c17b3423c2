//! Events that happen outside of a request, from the transaction that does it to the audit log.

use std::time::SystemTime;

use rusqlite::{Connection, params};

use super::{Store, StoreError, to_integer, to_micros};
use crate::audit::AuditEvent;

impl Store {
    /// The oldest events that the log does not have yet, at most `limit`, with their numbers.
    pub(crate) async fn audit_events(&self, limit: usize) -> Result<Vec<(i64, String)>, StoreError> {
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT ordinal, event FROM audit_events WHERE exported_at IS NULL ORDER BY ordinal LIMIT ?1",
            )?;
            let rows =
                statement.query_map([to_integer(limit as u64)], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// The log has these events.
    pub(crate) async fn audit_events_exported(&self, ordinals: Vec<i64>) -> Result<(), StoreError> {
        self.write(move |transaction| {
            let mut statement =
                transaction.prepare_cached("UPDATE audit_events SET exported_at = ?2 WHERE ordinal = ?1")?;
            for ordinal in ordinals {
                statement.execute(params![ordinal, to_micros(super::now())])?;
            }
            Ok(())
        })
        .await
    }

    /// Removes events that happened before `moment`.
    pub(crate) async fn drop_audit_events(&self, moment: SystemTime) -> Result<(), StoreError> {
        self.write(move |transaction| {
            transaction
                .prepare_cached("DELETE FROM audit_events WHERE occurred_at < ?1")?
                .execute([to_micros(moment)])?;
            Ok(())
        })
        .await
    }
}

/// Notes an event with what it tells of, in one transaction.
pub(crate) fn note(
    connection: &Connection,
    tenant: &str,
    event: &AuditEvent,
    now: SystemTime,
) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached("INSERT INTO audit_events (occurred_at, tenant_id, event) VALUES (?1, ?2, ?3)")?
        .execute(params![to_micros(now), tenant, event.to_line()])?;
    Ok(())
}
