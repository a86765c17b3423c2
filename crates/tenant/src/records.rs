//! Tenants as rows, read and written in the caller's transaction.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use crate::{id::TenantId, tier::Tier};

/// Version by version; one that was released is never edited. `created_at` is in microseconds since 1970; `version` counts
/// the changes of a row, so that a change made from an old copy can be refused.
const MIGRATIONS: [&str; 1] = ["
CREATE TABLE tenants (
    tenant_id  TEXT    NOT NULL PRIMARY KEY,
    tier       TEXT    NOT NULL CHECK (tier IN ('free', 'pro', 'enterprise', 'dedicated')),
    weight     INTEGER NOT NULL CHECK (weight BETWEEN 1 AND 1000),
    created_at INTEGER NOT NULL,
    version    INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;
"];

/// The statements that make this crate's tables, one entry for each version, oldest first.
///
/// The caller runs each exactly once, in order, in a transaction, among its own migrations. Later releases only add to
/// the end.
#[must_use]
pub const fn migrations() -> &'static [&'static str] {
    &MIGRATIONS
}

/// What the service knows about a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TenantRecord {
    /// Its name.
    pub tenant_id: TenantId,
    /// Its tier, whatever requests claim.
    pub tier: Tier,
    /// Its share of a contended machine relative to other tenants, 1 to 1000.
    pub weight: u32,
    /// When it was first seen, to the microsecond.
    pub created_at: SystemTime,
    /// 1 at first, one more with each change.
    pub version: u64,
}

/// A tenant's row could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The database refused.
    #[error("failed to access the record of tenant {tenant_id}")]
    Database {
        /// Whose row.
        tenant_id: TenantId,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
}

/// The tenant's record, made with `default_tier` when the tenant was never seen before.
///
/// # Errors
///
/// [`RecordError::Database`], also for a row that this version does not understand.
pub fn get_or_create(
    transaction: &Transaction<'_>,
    tenant_id: &TenantId,
    default_tier: Tier,
    now: SystemTime,
) -> Result<TenantRecord, RecordError> {
    let insert = "INSERT INTO tenants (tenant_id, tier, weight, created_at) VALUES (?, ?, ?, ?)
                  ON CONFLICT (tenant_id) DO NOTHING";
    let values = params![
        tenant_id.as_str(),
        default_tier.as_str(),
        default_tier.weight(),
        microseconds(now)
    ];
    let select = "SELECT tenant_id, tier, weight, created_at, version FROM tenants WHERE tenant_id = ?";
    transaction
        .execute(insert, values)
        .and_then(|_| transaction.query_row(select, [tenant_id.as_str()], record))
        .map_err(|source| RecordError::Database {
            tenant_id: tenant_id.clone(),
            source,
        })
}

/// The tenant's tier, or `None` when the tenant was never seen before.
///
/// # Errors
///
/// [`RecordError::Database`], also for a row that this version does not understand.
pub fn tier_of(transaction: &Transaction<'_>, tenant_id: &TenantId) -> Result<Option<Tier>, RecordError> {
    let select = "SELECT tier FROM tenants WHERE tenant_id = ?";
    transaction
        .query_row(select, [tenant_id.as_str()], |row| parsed(row, 0))
        .optional()
        .map_err(|source| RecordError::Database {
            tenant_id: tenant_id.clone(),
            source,
        })
}

fn record(row: &Row<'_>) -> rusqlite::Result<TenantRecord> {
    let micros: i64 = row.get(3)?;
    let out_of_range = || rusqlite::Error::IntegralValueOutOfRange(3, micros);
    let since_epoch = Duration::from_micros(micros.unsigned_abs());
    let created_at = if micros >= 0 {
        UNIX_EPOCH.checked_add(since_epoch)
    } else {
        UNIX_EPOCH.checked_sub(since_epoch)
    };
    let version: i64 = row.get(4)?;
    Ok(TenantRecord {
        tenant_id: parsed(row, 0)?,
        tier: parsed(row, 1)?,
        weight: row.get(2)?,
        created_at: created_at.ok_or_else(out_of_range)?,
        version: u64::try_from(version).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(4, version))?,
    })
}

/// A column of text that has a form.
fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// A clock before 1970 is taken for 1970.
fn microseconds(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        for migration in migrations() {
            connection.execute_batch(migration).unwrap();
        }
        connection
    }

    fn id(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_tenant_keeps_the_tier_with_which_it_was_first_seen() {
        let mut connection = database();
        let transaction = connection.transaction().unwrap();
        assert_eq!(tier_of(&transaction, &id("a")).unwrap(), None);
        let created = get_or_create(&transaction, &id("a"), Tier::Pro, at(100)).unwrap();
        let expected = TenantRecord {
            tenant_id: id("a"),
            tier: Tier::Pro,
            weight: 2,
            created_at: at(100),
            version: 1,
        };
        assert_eq!(created, expected);
        // The default changed, time went on: the record does not care.
        assert_eq!(
            get_or_create(&transaction, &id("a"), Tier::Free, at(200)).unwrap(),
            expected
        );
        assert_eq!(tier_of(&transaction, &id("a")).unwrap(), Some(Tier::Pro));
        assert_eq!(
            tier_of(&transaction, &id("A")).unwrap(),
            None,
            "names differ by case"
        );
    }

    #[test]
    fn nothing_is_left_of_a_transaction_that_is_given_up() {
        let mut connection = database();
        let transaction = connection.transaction().unwrap();
        get_or_create(&transaction, &id("a"), Tier::Pro, at(1)).unwrap();
        transaction.rollback().unwrap();
        let transaction = connection.transaction().unwrap();
        assert_eq!(tier_of(&transaction, &id("a")).unwrap(), None);
    }

    #[test]
    fn rows_that_make_no_sense_cannot_be_written_or_are_errors() {
        let mut connection = database();
        let write = |connection: &Connection, values: &str| {
            let columns = "tenant_id, tier, weight, created_at, version";
            connection.execute(&format!("INSERT INTO tenants ({columns}) VALUES ({values})"), [])
        };
        assert!(write(&connection, "'a', 'gold', 1, 0, 1").is_err());
        assert!(write(&connection, "'a', 'free', 0, 0, 1").is_err());
        assert!(write(&connection, "'a', 'free', 1, 'now', 1").is_err());
        write(&connection, "'a', 'free', 1, 0, -1").unwrap();
        let transaction = connection.transaction().unwrap();
        let error = get_or_create(&transaction, &id("a"), Tier::Free, at(1)).unwrap_err();
        assert_eq!(error.to_string(), "failed to access the record of tenant a");
    }

    #[test]
    fn a_clock_before_1970_is_harmless() {
        let mut connection = database();
        let transaction = connection.transaction().unwrap();
        let early = UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(
            get_or_create(&transaction, &id("a"), Tier::Free, early)
                .unwrap()
                .created_at,
            UNIX_EPOCH
        );
    }
}
