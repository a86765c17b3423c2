//! What an operator does to the database of a service, beside it or without it.
//!
//! The service need not run, and may: every change is one `BEGIN IMMEDIATE` transaction of a few rows, both sides wait for
//! each other's, and the service reads a tenant's record anew for every build. A change is made from a version of the
//! record; when the record is another one by then, nothing is changed. It is noted for the audit log in the same
//! transaction.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tenant::{
    AccountError, LimitOverrides, RecordError, TenantId, TenantRecord, Tier,
    ledger::{self, LedgerQuery, LedgerRow, LedgerSums},
    records,
};

use crate::{
    audit::AuditEvent,
    store::{self, SCHEMA_VERSION},
};

/// How long somebody else's transaction is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The database of a service.
pub struct Database {
    connection: Connection,
}

/// What is changed of a tenant's record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Another tier, and with it the weight and limits of that tier; limits of the tenant's own stay.
    Tier(Tier),
    /// Another weight than the tier has, 1 to 1000.
    Weight(u32),
    /// Other limits of its own in place of all it has.
    Limits(LimitOverrides),
}

/// A record before and after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// As it was.
    pub before: TenantRecord,
    /// As it is.
    pub after: TenantRecord,
}

/// Why something could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// There is no database.
    #[error("there is no database at {path}", path = path.display())]
    NoDatabase {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The database is of another version of builderd.
    #[error(
        "the database has schema version {found}, and this program works with version {known}: \
         {advice}", advice = if found < known { "start this version's service once" } else { "use the service's own version" }
    )]
    Version {
        /// The file's version.
        found: i64,
        /// This program's.
        known: i64,
    },
    /// SQLite refused.
    #[error("the database failed")]
    Sqlite(#[from] rusqlite::Error),
    /// A tenant's record could not be read or changed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The ledger could not be read.
    #[error(transparent)]
    Ledger(#[from] AccountError),
}

impl fmt::Debug for Database {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Database").finish_non_exhaustive()
    }
}

impl Database {
    /// Opens `builderd.db` in a directory, as it is: none is made, and none is brought to another version.
    ///
    /// # Errors
    /// [`AdminError::NoDatabase`], [`AdminError::Version`], [`AdminError::Sqlite`].
    pub fn open(directory: &Path) -> Result<Self, AdminError> {
        let path = directory.join("builderd.db");
        if !path.try_exists().unwrap_or(true) {
            return Err(AdminError::NoDatabase { path });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found != SCHEMA_VERSION {
            let known = SCHEMA_VERSION;
            return Err(AdminError::Version { found, known });
        }
        Ok(Self { connection })
    }

    /// At most `limit` tenants in the order of their names, from the one after `after` on.
    ///
    /// # Errors
    /// [`AdminError::Record`].
    pub fn tenants(&self, after: Option<&TenantId>, limit: usize) -> Result<Vec<TenantRecord>, AdminError> {
        Ok(records::list(&self.connection, after, limit)?)
    }

    /// A tenant's record; `None` when it was never seen.
    ///
    /// # Errors
    /// [`AdminError::Record`].
    pub fn tenant(&self, id: &TenantId) -> Result<Option<TenantRecord>, AdminError> {
        Ok(records::get(&self.connection, id)?)
    }

    /// Makes the record of a tenant that was never seen, as its first build would; gives the one that is there otherwise.
    ///
    /// # Errors
    /// [`AdminError::Record`], [`AdminError::Sqlite`].
    pub fn make_tenant(&mut self, id: &TenantId, tier: Tier) -> Result<TenantRecord, AdminError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let record = records::get_or_create(&transaction, id, tier, SystemTime::now())?;
        transaction.commit()?;
        Ok(record)
    }

    /// Changes a tenant's record from `expected_version`, and notes the event that `tell` makes of it.
    ///
    /// # Errors
    /// [`AdminError::Record`] when there is no such tenant, when its record is of another version by now, or for a weight
    /// that none can have; then nothing is changed and nothing noted.
    pub fn change(
        &mut self,
        id: &TenantId,
        change: &Change,
        expected_version: u64,
        tell: impl FnOnce(&Changed) -> AuditEvent,
    ) -> Result<Changed, AdminError> {
        let now = SystemTime::now();
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = records::get(&transaction, id)?.ok_or_else(|| RecordError::Unknown {
            tenant_id: id.clone(),
        })?;
        let after = match change {
            Change::Tier(tier) => records::set_tier(&transaction, id, *tier, expected_version, now),
            Change::Weight(weight) => records::set_weight(&transaction, id, *weight, expected_version, now),
            Change::Limits(limits) => records::set_limits(&transaction, id, limits, expected_version, now),
        }?;
        let changed = Changed { before, after };
        store::note_audit_event(&transaction, id.as_str(), &tell(&changed), now)?;
        transaction.commit()?;
        Ok(changed)
    }

    /// What was changed of a tenant's record, the newest first, at most `limit` events; those of more than 400 days ago are
    /// gone. Builds that were removed without a request are among them where the service has an audit log.
    ///
    /// # Errors
    /// [`AdminError::Sqlite`].
    pub fn events(&self, id: &TenantId, limit: usize) -> Result<Vec<AuditEvent>, AdminError> {
        let mut statement = self
            .connection
            .prepare("SELECT event FROM audit_events WHERE tenant_id = ?1 ORDER BY ordinal DESC LIMIT ?2")?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map((id.as_str(), limit), |row| row.get::<_, String>(0))?;
        let mut events = Vec::new();
        for row in rows {
            // What a later version may have written is not this program's to show.
            events.extend(serde_json::from_str(&row?));
        }
        Ok(events)
    }

    /// Rows of the ledger.
    ///
    /// # Errors
    /// [`AdminError::Ledger`].
    pub fn ledger(&self, query: &LedgerQuery) -> Result<Vec<LedgerRow>, AdminError> {
        Ok(ledger::rows(&self.connection, query)?)
    }

    /// Sums over the ledger.
    ///
    /// # Errors
    /// [`AdminError::Ledger`].
    pub fn ledger_sums(&self, query: &LedgerQuery) -> Result<LedgerSums, AdminError> {
        Ok(ledger::sums(&self.connection, query)?)
    }
}
