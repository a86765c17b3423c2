//! A database with this crate's tables, and builds in few words.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tenant::{
    Admission, Application, IdempotencyKey, Limits, NodeCapacity, RequestedLimits, TenantDefaults, TenantId,
    Tier, TierTable,
    account::{self, End, Ended, Used},
    ledger::Outcome,
    queue::{self, Next},
    records,
};

pub const DAY: u64 = 86_400;

/// Noon of some day, `seconds` later.
pub fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(20_000 * DAY + DAY / 2 + seconds)
}

pub fn id(name: &str) -> TenantId {
    name.parse().unwrap()
}

pub fn migrated(connection: Connection) -> Connection {
    for migration in tenant::migrations() {
        connection.execute_batch(migration).unwrap();
    }
    connection
}

pub fn database() -> Connection {
    migrated(Connection::open_in_memory().unwrap())
}

/// A file that several processes may open; what a power cut would do is not tested with it.
pub fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection.pragma_update(None, "synchronous", "off").unwrap();
    connection.pragma_update(None, "foreign_keys", true).unwrap();
    connection
}

/// Pro is the default tier: 3 at once, 100 a day, 2 GiB and 2 cores each.
pub fn table() -> TierTable {
    TierTable::new(Tier::Pro, &TenantDefaults::default())
}

/// A table whose default tier has these figures.
pub fn figures(concurrent_builds: u32, daily_builds: u32) -> TierTable {
    let defaults = TenantDefaults {
        concurrent_builds,
        daily_builds,
        ..TenantDefaults::default()
    };
    TierTable::new(Tier::Pro, &defaults)
}

pub fn transaction<T>(connection: &mut Connection, work: impl FnOnce(&Transaction<'_>) -> T) -> T {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .unwrap();
    let value = work(&transaction);
    transaction.commit().unwrap();
    value
}

#[allow(
    clippy::too_many_arguments,
    reason = "what an application has, in one line of a table"
)]
/// Applies for a build as a service does: what is refused is rolled back.
pub fn apply(
    connection: &mut Connection,
    table: &TierTable,
    node: &NodeCapacity,
    build: &str,
    tenant: &str,
    key: Option<&IdempotencyKey>,
    requested: &RequestedLimits,
    now: SystemTime,
) -> Admission {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .unwrap();
    let tenant_id = id(tenant);
    let record = records::get_or_create(&transaction, &tenant_id, table.default_tier(), now).unwrap();
    let limits: Limits = table.limits_of(&record).lowered_by(requested).limits;
    let application = Application {
        build_id: build,
        tenant_id: &tenant_id,
        customer_id: "customer",
        requested,
        limits: &limits,
        key,
    };
    let admission = tenant::admit(&transaction, &application, node, now).unwrap();
    if admission == Admission::Accepted {
        transaction.commit().unwrap();
    }
    admission
}

pub fn admit(
    connection: &mut Connection,
    table: &TierTable,
    node: &NodeCapacity,
    build: &str,
    tenant: &str,
) -> Admission {
    let requested = RequestedLimits::default();
    apply(connection, table, node, build, tenant, None, &requested, at(0))
}

/// The build that was started.
pub fn start(
    connection: &mut Connection,
    table: &TierTable,
    node: &NodeCapacity,
    now: SystemTime,
) -> Option<String> {
    match transaction(connection, |transaction| {
        queue::start_next(transaction, table, node, now)
    })
    .unwrap()
    {
        Next::Start(start) => Some(start.build_id),
        Next::Wait { .. } => None,
    }
}

pub fn completed(stored_bytes: u64) -> End {
    End {
        outcome: Outcome::Completed,
        refund: false,
        used: Used::default(),
        stored_bytes,
    }
}

pub fn failed(refund: bool) -> End {
    End {
        outcome: Outcome::Failed,
        refund,
        ..completed(0)
    }
}

pub fn end(connection: &mut Connection, build: &str, end: &End, now: SystemTime) -> Ended {
    transaction(connection, |transaction| {
        account::end(transaction, build, end, now)
    })
    .unwrap()
}

pub fn number(connection: &Connection, select: &str) -> u64 {
    let number: i64 = connection.query_row(select, [], |row| row.get(0)).unwrap();
    u64::try_from(number).unwrap()
}
