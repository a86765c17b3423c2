//! The tables, version by version. A migration that was released is never edited: a new one is added below it.

use std::sync::LazyLock;

use rusqlite_migration::{M, Migrations};

/// `ordinal` is the order of acceptance: the queue and the pages of a listing go by it, so that a clock set back moves
/// nothing. `last_sequence` and `log_bytes` count what `build_logs` holds for the build, so that a line is numbered
/// and the bound kept without a scan. Times are microseconds since 1970.
const BUILDS_AND_LOGS: &str = "
CREATE TABLE builds (
    ordinal           INTEGER PRIMARY KEY AUTOINCREMENT,
    id                TEXT    NOT NULL UNIQUE,
    tenant_id         TEXT    NOT NULL,
    state             TEXT    NOT NULL,
    request           TEXT    NOT NULL,
    needs_credentials INTEGER NOT NULL,
    attempts          INTEGER NOT NULL DEFAULT 0,
    created_at        INTEGER NOT NULL,
    started_at        INTEGER,
    completed_at      INTEGER,
    rootfs_path       BLOB    NOT NULL,
    rootfs_size_bytes INTEGER,
    rootfs_checksum   TEXT,
    image_metadata    TEXT,
    metrics           TEXT    NOT NULL DEFAULT '{}',
    error_message     TEXT,
    progress_percent  INTEGER NOT NULL DEFAULT 0,
    current_step      TEXT    NOT NULL DEFAULT '',
    asset_id          TEXT,
    last_sequence     INTEGER NOT NULL DEFAULT 0,
    log_bytes         INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX builds_by_tenant ON builds (tenant_id, ordinal);
CREATE INDEX builds_by_state ON builds (state, ordinal);

CREATE TABLE build_logs (
    build_ordinal INTEGER NOT NULL REFERENCES builds (ordinal) ON DELETE CASCADE,
    sequence      INTEGER NOT NULL,
    timestamp     INTEGER NOT NULL,
    level         TEXT    NOT NULL,
    component     TEXT    NOT NULL,
    message       TEXT    NOT NULL,
    metadata      TEXT    NOT NULL,
    PRIMARY KEY (build_ordinal, sequence)
) STRICT, WITHOUT ROWID;
";

/// What a deleted build leaves, and what keeping and counting need.
///
/// A deleted build stays as a *tombstone*: `deleted_at` is set, what the tenant wrote or could read is blank, and what is
/// counted stays (tenant, times, state, CPU time, attempts). `stored_bytes` is what the image takes while it is kept:
/// usage is always the sum over rows, never a counter beside them. `pulse` has one row that a health check writes, so
/// that a database that takes no writes is seen before a build is; its `born_at` tells files of this database's builds
/// from those of another's.
const REMOVAL_AND_USAGE: &str = "
ALTER TABLE builds ADD COLUMN deleted_at       INTEGER;
ALTER TABLE builds ADD COLUMN image_removed_at INTEGER;
ALTER TABLE builds ADD COLUMN stored_bytes     INTEGER NOT NULL DEFAULT 0;
ALTER TABLE builds ADD COLUMN cpu_time_ms      INTEGER NOT NULL DEFAULT 0;
UPDATE builds SET
    cpu_time_ms = COALESCE(json_extract(metrics, '$.cpu_time_ms'), 0),
    stored_bytes = CASE WHEN state = 'completed'
        THEN COALESCE(json_extract(metrics, '$.disk_usage_bytes'), rootfs_size_bytes, 0) ELSE 0 END;
CREATE INDEX builds_kept ON builds (completed_at) WHERE deleted_at IS NULL AND completed_at IS NOT NULL;
CREATE INDEX builds_stored ON builds (tenant_id) WHERE stored_bytes > 0;
CREATE INDEX builds_by_creation ON builds (tenant_id, created_at);
CREATE INDEX builds_by_end ON builds (tenant_id, completed_at);
CREATE INDEX builds_deleted ON builds (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE TABLE pulse (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    written_at INTEGER NOT NULL,
    born_at    INTEGER NOT NULL
) STRICT;
INSERT INTO pulse VALUES (1, 0, COALESCE(
    (SELECT MIN(created_at) FROM builds),
    CAST(unixepoch('subsec') * 1000000 AS INTEGER)));
";

/// What the accounts of tenants hold of builds that were there before them: those that wait or run, as waiting, with the
/// cost of a build of the default figures; the day that each began build counts for; the images that are kept, whose time
/// begins to be counted now. The ledger begins with this version.
const ACCOUNTS_OF_EARLIER_BUILDS: &str = "
INSERT INTO admissions (build_id, tenant_id, customer_id, admitted_at, requested, cost)
    SELECT id, tenant_id, COALESCE(json_extract(request, '$.tenant.customer_id'), ''), created_at, '{}', 1800
    FROM builds WHERE state IN ('pending', 'pulling', 'extracting', 'building', 'optimizing') AND deleted_at IS NULL
    ORDER BY ordinal;
INSERT INTO charges (build_id, tenant_id, day)
    SELECT id, tenant_id, started_at / 86400000000 FROM builds WHERE started_at IS NOT NULL;
INSERT INTO stored_images (build_id, tenant_id, customer_id, bytes, since, accrued_until)
    SELECT id, tenant_id, COALESCE(json_extract(request, '$.tenant.customer_id'), ''), stored_bytes,
        CAST(unixepoch('subsec') * 1000000 AS INTEGER), CAST(unixepoch('subsec') * 1000000 AS INTEGER)
    FROM builds WHERE stored_bytes > 0;
";

/// What is owed to others: `asset_outbox` holds what assetmanagerd has still to be told, one row for a build at most
/// (`store::outbox`); `audit_events` what was changed by other processes than the daemon, which writes it to the audit log
/// (`exported_at`) when there is one.
const OUTBOX_AND_AUDIT: &str = "
CREATE TABLE asset_outbox (
    ordinal         INTEGER PRIMARY KEY AUTOINCREMENT,
    build_id        TEXT    NOT NULL UNIQUE,
    tenant_id       TEXT    NOT NULL,
    action          TEXT    NOT NULL CHECK (action IN ('register', 'delete')),
    payload         TEXT    NOT NULL,
    created_at      INTEGER NOT NULL,
    attempts        INTEGER NOT NULL DEFAULT 0,
    uncertain       INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL,
    last_error      TEXT
) STRICT;
CREATE INDEX asset_outbox_due ON asset_outbox (next_attempt_at);

CREATE TABLE audit_events (
    ordinal     INTEGER PRIMARY KEY AUTOINCREMENT,
    occurred_at INTEGER NOT NULL,
    tenant_id   TEXT    NOT NULL,
    event       TEXT    NOT NULL,
    exported_at INTEGER
) STRICT;
CREATE INDEX audit_events_of_tenant ON audit_events (tenant_id, ordinal);
CREATE INDEX audit_events_to_export ON audit_events (ordinal) WHERE exported_at IS NULL;
";

/// Migrations there are: the `user_version` of a file that has seen them all.
pub(crate) const VERSION: i64 = 7;

/// Migrations of the tenant crate stand among ours, one by one: their order in time is what counts.
static MIGRATIONS: LazyLock<Migrations<'static>> = LazyLock::new(|| {
    Migrations::new(vec![
        M::up(BUILDS_AND_LOGS),
        M::up(tenant::migrations()[0]),
        M::up(REMOVAL_AND_USAGE),
        M::up(tenant::migrations()[1]),
        M::up(ACCOUNTS_OF_EARLIER_BUILDS),
        M::up(OUTBOX_AND_AUDIT),
        M::up(tenant::migrations()[2]),
    ])
});

pub(super) fn migrations() -> &'static Migrations<'static> {
    &MIGRATIONS
}
