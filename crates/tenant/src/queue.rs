//! Whose turn it is.
//!
//! Each tenant has a count of what it was served: the cost of the builds that were started for it, divided by its weight.
//! Next is the first waiting build of the tenant that was served least, among those that may start one now. That is
//! deficit round robin with the deficit carried as an absolute number (stride scheduling): nobody is ahead of its share by
//! more than one build, and since the counts and the order of acceptance are rows, a restart changes nothing.
//!
//! - *Work-conserving*: a tenant at its limit is passed over, and so is a build for which memory or disk is not free.
//! - *Nothing is saved up*: who comes back begins where the queue is; who was passed over at its own limit keeps the lead of
//!   one build.
//! - *Aging*: the first build that is passed over because it does not fit is counted each time; after
//!   [`MOST_PASSED_OVER`] times nothing is started before it, so that large builds are not starved by small ones.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, Row, Transaction, params};

use crate::{
    AccountError,
    admission::{Asked, charged, count},
    capacity::{NodeCapacity, Reserved},
    id::TenantId,
    ledger::{integer, number},
    limits::Limits,
    records::{overrides, parsed},
    table::TierTable,
    tier::Tier,
    time::{Micros, day_of, from_micros, micros, next_midnight},
};

/// So often others are started before a build that is next and does not fit.
pub const MOST_PASSED_OVER: u32 = 8;

/// Makes counts of what was served fine enough for all weights.
const SCALE: u64 = 1_000;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// This build was started.
    Start(Start),
    /// Nothing can be started before a build ends or is accepted, or a limit is raised; or the clock reaches `wake_at`.
    Wait {
        /// When the first day begins on which a tenant may build again that waits for that.
        wake_at: Option<SystemTime>,
    },
}

/// A build that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Start {
    /// Its name.
    pub build_id: String,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// What is reserved for it.
    pub reserved: Reserved,
    /// When it was accepted.
    pub admitted_at: SystemTime,
}

/// A build that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// Its name.
    pub build_id: String,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// Where it stands relative to others: builds with a lower one are served before.
    pub turn: u64,
}

/// The order of all builds that wait, as it is at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Order {
    /// In their order, as far as no limit holds one up.
    pub waiting: Vec<Waiting>,
    /// Builds that run.
    pub running: u64,
    /// For how long the last builds that ended ran, on average; `None` when none did.
    pub average_run: Option<Duration>,
}

/// How many builds of one tier wait, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backlog {
    /// The tier of their tenants; `None` for tenants that have no record, whose tier is the default one.
    pub tier: Option<Tier>,
    /// Builds that wait; at least one.
    pub builds: u64,
    /// When the oldest of them was accepted.
    pub oldest_admitted_at: SystemTime,
}

impl Waiting {
    /// A build that waits for its turn.
    #[must_use]
    pub fn new(build_id: &str, tenant_id: TenantId, turn: u64) -> Self {
        Self {
            build_id: build_id.to_owned(),
            tenant_id,
            turn,
        }
    }
}

/// The first waiting build of a tenant.
struct Head {
    sequence: i64,
    build_id: String,
    tenant_id: TenantId,
    asked: Asked,
    cost: u64,
    bypassed: u32,
    admitted_at: Micros,
    was_started: bool,
    tier: Tier,
    limits: crate::LimitOverrides,
    weight: u64,
    turn: u64,
}

/// Starts the build whose turn it is: reserves what it may use and charges its day, in the caller's transaction, in which
/// the caller also notes the start in the build's own row.
///
/// # Errors
///
/// When the database fails, or a row is not one of this version.
pub fn start_next(
    transaction: &Transaction<'_>,
    table: &TierTable,
    node: &NodeCapacity,
    now: SystemTime,
) -> Result<Next, AccountError> {
    let now = micros(now);
    next(transaction, table, node, now).map_err(AccountError::new("start a build"))
}

/// The order in which builds are served that wait now.
///
/// # Errors
///
/// When the database fails, or a row is not one of this version.
pub fn order(connection: &Connection) -> Result<Order, AccountError> {
    let read = || {
        let mut statement = connection.prepare_cached(
            "SELECT a.build_id, a.tenant_id, a.cost, COALESCE(t.weight, 1), COALESCE(s.served, 0), turn.served,
                 a.first_started_at IS NOT NULL, a.sequence
             FROM admissions a JOIN turn LEFT JOIN tenants t ON t.tenant_id = a.tenant_id
             LEFT JOIN shares s ON s.tenant_id = a.tenant_id
             WHERE a.running = 0 ORDER BY a.tenant_id, a.sequence",
        )?;
        let mut rows = statement.query([])?;
        let mut waiting: Vec<(i64, Waiting)> = Vec::new();
        // What the tenant will have been served when the row's build is next.
        let mut served = 0;
        while let Some(row) = rows.next()? {
            let tenant_id: TenantId = parsed(row, 1)?;
            let stride = stride(number(row, 2)?, number(row, 3)?);
            let is_first = waiting.last().is_none_or(|(_, last)| last.tenant_id != tenant_id);
            if is_first {
                served = number(row, 4)?.max(number(row, 5)?.saturating_sub(stride));
            }
            let was_started: bool = row.get(6)?;
            let build_id = row.get(0)?;
            let turn = served;
            waiting.push((
                row.get(7)?,
                Waiting {
                    build_id,
                    tenant_id,
                    turn,
                },
            ));
            if !was_started {
                served = served.saturating_add(stride);
            }
        }
        waiting.sort_by_key(|(sequence, waiting)| (waiting.turn, *sequence));
        let running = connection
            .prepare_cached("SELECT COUNT(*) FROM reservations")?
            .query_row([], |row| number(row, 0))?;
        let average: Option<f64> = connection
            .prepare_cached(
                "SELECT AVG(wall_ms) FROM
                    (SELECT wall_ms FROM ledger WHERE kind = 'build' AND wall_ms > 0 ORDER BY sequence DESC LIMIT 50)",
            )?
            .query_row([], |row| row.get(0))?;
        Ok(Order {
            waiting: waiting.into_iter().map(|(_, waiting)| waiting).collect(),
            running,
            average_run: average.map(|milliseconds| Duration::from_secs_f64(milliseconds / 1_000.0)),
        })
    };
    read().map_err(AccountError::new("read the queue"))
}

/// What waits now, by tier, without a line for a tier of which nothing waits.
///
/// # Errors
///
/// When the database fails, or a row is not one of this version.
pub fn backlog(connection: &Connection) -> Result<Vec<Backlog>, AccountError> {
    let read = || {
        let mut statement = connection.prepare_cached(
            "SELECT t.tier, COUNT(*), MIN(a.admitted_at) FROM admissions a
             LEFT JOIN tenants t ON t.tenant_id = a.tenant_id WHERE a.running = 0 GROUP BY t.tier",
        )?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let has_record = row.get::<_, Option<String>>(0)?.is_some();
            found.push(Backlog {
                tier: has_record.then(|| parsed(row, 0)).transpose()?,
                builds: number(row, 1)?,
                oldest_admitted_at: from_micros(row.get(2)?),
            });
        }
        Ok(found)
    };
    read().map_err(AccountError::new("read what waits"))
}

fn next(
    transaction: &Transaction<'_>,
    table: &TierTable,
    node: &NodeCapacity,
    now: Micros,
) -> rusqlite::Result<Next> {
    let mut wait = Next::Wait { wake_at: None };
    let in_use = in_use(transaction)?;
    if in_use.builds >= u64::from(node.concurrent_builds) {
        return Ok(wait);
    }
    let mut passed_over: Option<i64> = None;
    let mut statement = transaction.prepare_cached(
        "SELECT a.sequence, a.build_id, a.tenant_id, a.requested, a.cost, a.bypassed, a.admitted_at,
             a.first_started_at IS NOT NULL, COALESCE(t.tier, ?1), COALESCE(t.limits, '{}'), COALESCE(t.weight, 1),
             MAX(COALESCE(s.served, 0), turn.served - a.cost * ?2 / COALESCE(t.weight, 1)) AS turn
         FROM (SELECT MIN(sequence) AS sequence FROM admissions WHERE running = 0 GROUP BY tenant_id) first
         JOIN admissions a ON a.sequence = first.sequence JOIN turn
         LEFT JOIN tenants t ON t.tenant_id = a.tenant_id LEFT JOIN shares s ON s.tenant_id = a.tenant_id
         ORDER BY 12, a.sequence",
    )?;
    let mut rows = statement.query(params![table.default_tier().as_str(), integer(SCALE)])?;
    while let Some(row) = rows.next()? {
        let head = head(row)?;
        let limits = table
            .limits_with(head.tier, &head.limits)
            .lowered_by(&head.asked.requested())
            .limits;
        if running(transaction, &head.tenant_id)? >= u64::from(limits.concurrent_builds) {
            continue;
        }
        if !may_start_today(transaction, &head, &limits, now)? {
            wait = Next::Wait {
                wake_at: Some(from_micros(next_midnight(now))),
            };
            continue;
        }
        let reserved = node.reserved(&limits);
        if !in_use.fits(&reserved, node) {
            if head.bypassed >= MOST_PASSED_OVER {
                return Ok(wait);
            }
            passed_over.get_or_insert(head.sequence);
            continue;
        }
        start(transaction, &head, &reserved, now)?;
        if let Some(sequence) = passed_over {
            transaction
                .prepare_cached("UPDATE admissions SET bypassed = bypassed + 1 WHERE sequence = ?1")?
                .execute([sequence])?;
        }
        return Ok(Next::Start(Start {
            build_id: head.build_id,
            tenant_id: head.tenant_id,
            reserved,
            admitted_at: from_micros(head.admitted_at),
        }));
    }
    Ok(wait)
}

/// A build that was charged belongs to the day on which it first began, however often it begins.
fn may_start_today(
    transaction: &Transaction<'_>,
    head: &Head,
    limits: &Limits,
    now: Micros,
) -> rusqlite::Result<bool> {
    let is_charged = "SELECT COUNT(*) FROM charges WHERE build_id = ?1";
    if count(transaction, is_charged, [&head.build_id])? > 0 {
        return Ok(true);
    }
    Ok(charged(transaction, head.tenant_id.as_str(), now)? < u64::from(limits.daily_builds))
}

fn start(
    transaction: &Transaction<'_>,
    head: &Head,
    reserved: &Reserved,
    now: Micros,
) -> rusqlite::Result<()> {
    let tenant = head.tenant_id.as_str();
    transaction
        .prepare_cached(
            "UPDATE admissions SET running = 1, first_started_at = COALESCE(first_started_at, ?2) WHERE sequence = ?1",
        )?
        .execute([head.sequence, now])?;
    transaction
        .prepare_cached(
            "INSERT INTO reservations
             (build_id, tenant_id, memory_bytes, cpu_cores, disk_bytes, started_at, checked_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
        )?
        .execute(params![
            head.build_id,
            tenant,
            integer(reserved.memory_bytes),
            reserved.cpu_cores,
            integer(reserved.disk_bytes),
            now
        ])?;
    transaction
        .prepare_cached(
            "INSERT INTO charges (build_id, tenant_id, day) VALUES (?1, ?2, ?3) ON CONFLICT (build_id) DO NOTHING",
        )?
        .execute(params![head.build_id, tenant, day_of(now)])?;
    transaction
        .prepare_cached("UPDATE turn SET served = MAX(served, ?1)")?
        .execute([integer(head.turn)])?;
    // An attempt after an interruption is the same service, not another one.
    let stride = if head.was_started {
        0
    } else {
        stride(head.cost, head.weight)
    };
    transaction
        .prepare_cached(
            "INSERT INTO shares (tenant_id, served) VALUES (?1, ?2)
             ON CONFLICT (tenant_id) DO UPDATE SET served = excluded.served",
        )?
        .execute(params![tenant, integer(head.turn.saturating_add(stride))])?;
    Ok(())
}

const fn stride(cost: u64, weight: u64) -> u64 {
    cost.saturating_mul(SCALE) / weight
}

struct InUse {
    builds: u64,
    memory_bytes: u64,
    disk_bytes: u64,
}

impl InUse {
    fn fits(&self, reserved: &Reserved, node: &NodeCapacity) -> bool {
        let fits = |used: u64, more: u64, all: Option<u64>| {
            all.is_none_or(|all| used.checked_add(more).is_some_and(|sum| sum <= all))
        };
        fits(self.memory_bytes, reserved.memory_bytes, node.memory_bytes)
            && fits(self.disk_bytes, reserved.disk_bytes, node.disk_bytes)
    }
}

fn in_use(transaction: &Transaction<'_>) -> rusqlite::Result<InUse> {
    transaction
        .prepare_cached(
            "SELECT COUNT(*), COALESCE(SUM(memory_bytes), 0), COALESCE(SUM(disk_bytes), 0) FROM reservations",
        )?
        .query_row([], |row| {
            Ok(InUse {
                builds: number(row, 0)?,
                memory_bytes: number(row, 1)?,
                disk_bytes: number(row, 2)?,
            })
        })
}

fn running(transaction: &Transaction<'_>, tenant: &TenantId) -> rusqlite::Result<u64> {
    let select = "SELECT COUNT(*) FROM reservations WHERE tenant_id = ?1";
    count(transaction, select, [tenant.as_str()])
}

fn head(row: &Row<'_>) -> rusqlite::Result<Head> {
    let asked = serde_json::from_str(row.get_ref(3)?.as_str()?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, Box::new(error))
    })?;
    Ok(Head {
        sequence: row.get(0)?,
        build_id: row.get(1)?,
        tenant_id: parsed(row, 2)?,
        asked,
        cost: number(row, 4)?,
        bypassed: row.get(5)?,
        admitted_at: row.get(6)?,
        was_started: row.get(7)?,
        tier: parsed(row, 8)?,
        limits: overrides(row, 9)?,
        weight: number(row, 10)?.max(1),
        turn: u64::try_from(row.get::<_, i64>(11)?).unwrap_or(0),
    })
}
