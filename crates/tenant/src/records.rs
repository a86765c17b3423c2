//! Tenants as rows, read and written in the caller's transaction.

use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use crate::{
    id::TenantId,
    overrides::LimitOverrides,
    tier::Tier,
    time::{from_micros, micros},
};

const COLUMNS: &str = "tenant_id, tier, weight, limits, created_at, changed_at, version";

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
    /// Limits that replace those of the tier.
    pub limits: LimitOverrides,
    /// When it was first seen, to the microsecond.
    pub created_at: SystemTime,
    /// When the record was changed last.
    pub changed_at: Option<SystemTime>,
    /// 1 at first, one more with each change.
    pub version: u64,
}

/// A tenant's row could not be read or written, or was not changed.
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
    /// The database refused to list.
    #[error("failed to list the records of tenants")]
    List {
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// There is no such tenant: it was never seen.
    #[error("there is no tenant {tenant_id}")]
    Unknown {
        /// Who was asked for.
        tenant_id: TenantId,
    },
    /// Somebody else changed the record in the meantime.
    #[error(
        "the record of tenant {tenant_id} is version {found}, and the change was made from version {expected}"
    )]
    Changed {
        /// Whose row.
        tenant_id: TenantId,
        /// The version from which the change was made.
        expected: u64,
        /// The row's version.
        found: u64,
    },
    /// A share that no tenant can have.
    #[error("{weight} is not a weight: expected 1 to 1000")]
    Weight {
        /// What was given.
        weight: u32,
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
        micros(now)
    ];
    transaction
        .prepare_cached(insert)
        .and_then(|mut statement| statement.execute(values))
        .and_then(|_| find(transaction, tenant_id))
        .map_err(database(tenant_id))?
        .ok_or_else(|| unknown(tenant_id))
}

/// The tenant's record, or `None` when the tenant was never seen before.
///
/// # Errors
///
/// [`RecordError::Database`], also for a row that this version does not understand.
pub fn get(connection: &Connection, tenant_id: &TenantId) -> Result<Option<TenantRecord>, RecordError> {
    find(connection, tenant_id).map_err(database(tenant_id))
}

/// At most `limit` records in the order of their names, from the one after `after` on.
///
/// # Errors
///
/// [`RecordError::List`], also for a row that this version does not understand.
pub fn list(
    connection: &Connection,
    after: Option<&TenantId>,
    limit: usize,
) -> Result<Vec<TenantRecord>, RecordError> {
    let read = || {
        let select = format!("SELECT {COLUMNS} FROM tenants WHERE tenant_id > ? ORDER BY tenant_id LIMIT ?");
        let mut statement = connection.prepare_cached(&select)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![after.map_or("", TenantId::as_str), limit], record)?;
        rows.collect::<rusqlite::Result<Vec<_>>>()
    };
    read().map_err(|source| RecordError::List { source })
}

/// Gives the tenant another tier, and the weight of that tier. What waits already is measured by it when its turn comes.
///
/// # Errors
///
/// [`RecordError::Unknown`], and [`RecordError::Changed`] when the record's version is not `expected_version`.
pub fn set_tier(
    transaction: &Transaction<'_>,
    tenant_id: &TenantId,
    tier: Tier,
    expected_version: u64,
    now: SystemTime,
) -> Result<TenantRecord, RecordError> {
    let record = expected(transaction, tenant_id, expected_version)?;
    let changed = TenantRecord {
        tier,
        weight: tier.weight(),
        ..record
    };
    store(transaction, changed, now)
}

/// Gives the tenant another share of a contended machine than its tier has, 1 to 1000.
///
/// # Errors
///
/// [`RecordError::Weight`], [`RecordError::Unknown`], and [`RecordError::Changed`] when the record's version is not
/// `expected_version`.
pub fn set_weight(
    transaction: &Transaction<'_>,
    tenant_id: &TenantId,
    weight: u32,
    expected_version: u64,
    now: SystemTime,
) -> Result<TenantRecord, RecordError> {
    if !(1..=1000).contains(&weight) {
        return Err(RecordError::Weight { weight });
    }
    let record = expected(transaction, tenant_id, expected_version)?;
    store(transaction, TenantRecord { weight, ..record }, now)
}

/// Replaces the limits that are set for this tenant; the default takes all of them away again.
///
/// # Errors
///
/// [`RecordError::Unknown`], and [`RecordError::Changed`] when the record's version is not `expected_version`.
pub fn set_limits(
    transaction: &Transaction<'_>,
    tenant_id: &TenantId,
    limits: &LimitOverrides,
    expected_version: u64,
    now: SystemTime,
) -> Result<TenantRecord, RecordError> {
    let record = expected(transaction, tenant_id, expected_version)?;
    let limits = limits.clone();
    store(transaction, TenantRecord { limits, ..record }, now)
}

/// The tenant's tier, or `None` when the tenant was never seen before.
///
/// # Errors
///
/// [`RecordError::Database`], also for a row that this version does not understand.
pub fn tier_of(connection: &Connection, tenant_id: &TenantId) -> Result<Option<Tier>, RecordError> {
    let read = || {
        connection
            .prepare_cached("SELECT tier FROM tenants WHERE tenant_id = ?")?
            .query_row([tenant_id.as_str()], |row| parsed(row, 0))
            .optional()
    };
    read().map_err(database(tenant_id))
}

fn expected(
    connection: &Connection,
    tenant_id: &TenantId,
    expected: u64,
) -> Result<TenantRecord, RecordError> {
    let record = get(connection, tenant_id)?.ok_or_else(|| unknown(tenant_id))?;
    if record.version == expected {
        return Ok(record);
    }
    Err(RecordError::Changed {
        tenant_id: tenant_id.clone(),
        expected,
        found: record.version,
    })
}

fn store(
    transaction: &Transaction<'_>,
    mut record: TenantRecord,
    now: SystemTime,
) -> Result<TenantRecord, RecordError> {
    record.version += 1;
    record.changed_at = Some(from_micros(micros(now)));
    let write = || {
        let limits = serde_json::to_string(&record.limits)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        transaction.execute(
            "UPDATE tenants SET tier = ?2, weight = ?3, limits = ?4, changed_at = ?5, version = version + 1
             WHERE tenant_id = ?1",
            params![
                record.tenant_id.as_str(),
                record.tier.as_str(),
                record.weight,
                limits,
                micros(now)
            ],
        )
    };
    write().map_err(database(&record.tenant_id))?;
    Ok(record)
}

fn find(connection: &Connection, tenant_id: &TenantId) -> rusqlite::Result<Option<TenantRecord>> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM tenants WHERE tenant_id = ?"))?
        .query_row([tenant_id.as_str()], record)
        .optional()
}

fn record(row: &Row<'_>) -> rusqlite::Result<TenantRecord> {
    let version: i64 = row.get(6)?;
    Ok(TenantRecord {
        tenant_id: parsed(row, 0)?,
        tier: parsed(row, 1)?,
        weight: row.get(2)?,
        limits: overrides(row, 3)?,
        created_at: from_micros(row.get(4)?),
        changed_at: row.get::<_, Option<i64>>(5)?.map(from_micros),
        version: u64::try_from(version).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(6, version))?,
    })
}

/// A column of limits as JSON.
pub(crate) fn overrides(row: &Row<'_>, column: usize) -> rusqlite::Result<LimitOverrides> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// A column of text that has a form.
pub(crate) fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

fn database(tenant_id: &TenantId) -> impl FnOnce(rusqlite::Error) -> RecordError {
    let tenant_id = tenant_id.clone();
    move |source| RecordError::Database { tenant_id, source }
}

fn unknown(tenant_id: &TenantId) -> RecordError {
    RecordError::Unknown {
        tenant_id: tenant_id.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::migrations;

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
            limits: LimitOverrides::default(),
            created_at: at(100),
            changed_at: None,
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

    #[test]
    fn a_record_is_changed_from_its_present_version_alone() {
        let mut connection = database();
        let transaction = connection.transaction().unwrap();
        let unknown = set_tier(&transaction, &id("a"), Tier::Pro, 1, at(1)).unwrap_err();
        assert_eq!(unknown.to_string(), "there is no tenant a");
        get_or_create(&transaction, &id("a"), Tier::Free, at(1)).unwrap();
        let raised = set_tier(&transaction, &id("a"), Tier::Enterprise, 1, at(2)).unwrap();
        assert_eq!(
            (raised.tier, raised.weight, raised.version),
            (Tier::Enterprise, 4, 2)
        );
        let limits = LimitOverrides {
            daily_builds: Some(7),
            ..LimitOverrides::default()
        };
        let late = set_limits(&transaction, &id("a"), &limits, 1, at(3)).unwrap_err();
        assert_eq!(
            late.to_string(),
            "the record of tenant a is version 2, and the change was made from version 1"
        );
        set_limits(&transaction, &id("a"), &limits, 2, at(3)).unwrap();
        let weighted = set_weight(&transaction, &id("a"), 9, 3, at(4)).unwrap();
        assert!(matches!(
            set_weight(&transaction, &id("a"), 0, 4, at(4)),
            Err(RecordError::Weight { weight: 0 })
        ));
        let stored = get(&transaction, &id("a")).unwrap().unwrap();
        assert_eq!(stored, weighted);
        assert_eq!(
            (stored.weight, stored.version, stored.changed_at, stored.limits),
            (9, 4, Some(at(4)), limits)
        );
    }

    #[test]
    fn records_are_listed_by_name_page_by_page() {
        let mut connection = database();
        let transaction = connection.transaction().unwrap();
        for name in ["c", "a", "b"] {
            get_or_create(&transaction, &id(name), Tier::Free, at(1)).unwrap();
        }
        let names = |after: Option<&TenantId>, limit| {
            let records = list(&transaction, after, limit).unwrap();
            records
                .iter()
                .map(|record| record.tenant_id.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(None, 2), ["a", "b"]);
        assert_eq!(names(Some(&id("b")), 2), ["c"]);
        assert_eq!(names(Some(&id("c")), 2), [] as [&str; 0]);
    }
}
