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

/// Migrations of the tenant crate stand among ours, one by one: their order in time is what counts.
static MIGRATIONS: LazyLock<Migrations<'static>> =
    LazyLock::new(|| Migrations::new(vec![M::up(BUILDS_AND_LOGS), M::up(tenant::migrations()[0])]));

pub(super) fn migrations() -> &'static Migrations<'static> {
    &MIGRATIONS
}
