//! The tables of this crate, version by version. One that was released is never edited: a new one is added below it.
//!
//! All times are microseconds since 1970, all days numbers of UTC days since 1970.

/// `version` counts the changes of a row, so that a change made from an old copy can be refused.
const TENANTS: &str = "
CREATE TABLE tenants (
    tenant_id  TEXT    NOT NULL PRIMARY KEY,
    tier       TEXT    NOT NULL CHECK (tier IN ('free', 'pro', 'enterprise', 'dedicated')),
    weight     INTEGER NOT NULL CHECK (weight BETWEEN 1 AND 1000),
    created_at INTEGER NOT NULL,
    version    INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;
";

/// What a tenant uses is always a sum over these rows, never a counter beside them:
///
/// - `admissions`: a row for each build from its acceptance to its end. `sequence` is the order of acceptance, `cost` what
///   the build counts in the queue, `bypassed` how many others were started while this one was next and did not fit,
///   `spent_*` what attempts took that were interrupted.
/// - `reservations`: a row for each build that runs, with what it has reserved and, at `checked_at`, had used so far.
/// - `charges`: a row for each build that counts for a day. It stays when the build ends.
/// - `shares`: how much each tenant was served, in the units of `cost` divided by its weight; `turn` holds how far the
///   queue is as a whole.
/// - `stored_images`: what each image takes. `since` is NULL until the build has ended as completed; up to `accrued_until`
///   the ledger has the time for which it was stored.
/// - `idempotency_keys`: which build a key made, and of which request.
/// - `ledger`: what is billed. Rows are only ever added, which triggers see to.
const ACCOUNTS: &str = "
ALTER TABLE tenants ADD COLUMN limits TEXT NOT NULL DEFAULT '{}';
ALTER TABLE tenants ADD COLUMN changed_at INTEGER;

CREATE TABLE admissions (
    sequence          INTEGER PRIMARY KEY AUTOINCREMENT,
    build_id          TEXT    NOT NULL UNIQUE,
    tenant_id         TEXT    NOT NULL,
    customer_id       TEXT    NOT NULL,
    admitted_at       INTEGER NOT NULL,
    requested         TEXT    NOT NULL,
    cost              INTEGER NOT NULL CHECK (cost > 0),
    running           INTEGER NOT NULL DEFAULT 0 CHECK (running IN (0, 1)),
    bypassed          INTEGER NOT NULL DEFAULT 0,
    first_started_at  INTEGER,
    spent_wall_ms     INTEGER NOT NULL DEFAULT 0,
    spent_cpu_ms      INTEGER NOT NULL DEFAULT 0,
    spent_pulled      INTEGER NOT NULL DEFAULT 0,
    peak_memory_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX admissions_waiting ON admissions (tenant_id, sequence) WHERE running = 0;

CREATE TABLE reservations (
    build_id          TEXT    NOT NULL PRIMARY KEY REFERENCES admissions (build_id),
    tenant_id         TEXT    NOT NULL,
    memory_bytes      INTEGER NOT NULL,
    cpu_cores         INTEGER NOT NULL,
    disk_bytes        INTEGER NOT NULL,
    started_at        INTEGER NOT NULL,
    checked_at        INTEGER NOT NULL,
    wall_ms           INTEGER NOT NULL DEFAULT 0,
    cpu_ms            INTEGER NOT NULL DEFAULT 0,
    pulled_bytes      INTEGER NOT NULL DEFAULT 0,
    peak_memory_bytes INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX reservations_by_tenant ON reservations (tenant_id);

CREATE TABLE charges (
    build_id  TEXT    NOT NULL PRIMARY KEY,
    tenant_id TEXT    NOT NULL,
    day       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX charges_by_day ON charges (tenant_id, day);

CREATE TABLE shares (
    tenant_id TEXT    NOT NULL PRIMARY KEY,
    served    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE turn (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    served INTEGER NOT NULL
) STRICT;
INSERT INTO turn VALUES (1, 0);

CREATE TABLE stored_images (
    build_id      TEXT    NOT NULL PRIMARY KEY,
    tenant_id     TEXT    NOT NULL,
    customer_id   TEXT    NOT NULL,
    bytes         INTEGER NOT NULL,
    since         INTEGER,
    accrued_until INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX stored_images_by_tenant ON stored_images (tenant_id, bytes);
CREATE INDEX stored_images_by_accrual ON stored_images (accrued_until) WHERE accrued_until IS NOT NULL;

CREATE TABLE idempotency_keys (
    tenant_id    TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    request_hash BLOB    NOT NULL,
    build_id     TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

CREATE TABLE ledger (
    sequence            INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id            TEXT    NOT NULL UNIQUE,
    kind                TEXT    NOT NULL CHECK (kind IN ('build', 'storage')),
    build_id            TEXT    NOT NULL,
    tenant_id           TEXT    NOT NULL,
    customer_id         TEXT    NOT NULL,
    tier                TEXT    NOT NULL,
    outcome             TEXT    NOT NULL CHECK (outcome IN ('completed', 'failed', 'cancelled', 'stored')),
    refunded            INTEGER NOT NULL CHECK (refunded IN (0, 1)),
    started_at          INTEGER,
    ended_at            INTEGER NOT NULL,
    wall_ms             INTEGER NOT NULL,
    cpu_ms              INTEGER NOT NULL,
    peak_memory_bytes   INTEGER NOT NULL,
    pulled_bytes        INTEGER NOT NULL,
    stored_bytes        INTEGER NOT NULL,
    stored_byte_seconds INTEGER NOT NULL
) STRICT;
CREATE INDEX ledger_by_tenant ON ledger (tenant_id, ended_at);
CREATE INDEX ledger_by_end ON ledger (ended_at);
CREATE TRIGGER ledger_is_not_changed BEFORE UPDATE ON ledger
    BEGIN SELECT RAISE(ABORT, 'a row of the ledger is never changed'); END;
CREATE TRIGGER ledger_is_not_deleted BEFORE DELETE ON ledger
    BEGIN SELECT RAISE(ABORT, 'a row of the ledger is never deleted'); END;
";

/// How long the last builds ran, and how many of a tenant were given up while they waited, are found without a look at all
/// that ever ended.
const ENDS: &str = "
CREATE INDEX ledger_of_runs ON ledger (sequence, wall_ms) WHERE kind = 'build' AND wall_ms > 0;
CREATE INDEX ledger_given_up ON ledger (tenant_id, ended_at)
    WHERE kind = 'build' AND outcome = 'cancelled' AND started_at IS NULL;
";

const MIGRATIONS: [&str; 3] = [TENANTS, ACCOUNTS, ENDS];

/// The statements that make this crate's tables, one entry for each version, oldest first.
///
/// The caller runs each exactly once, in order, in a transaction, among its own migrations. Later releases only add to
/// the end.
#[must_use]
pub const fn migrations() -> &'static [&'static str] {
    &MIGRATIONS
}
