//! Whether a build is accepted.
//!
//! One call in the transaction that also makes the build's own row: either both are there afterwards or neither. A build
//! that is refused changes nothing, not even the tenant's record when the caller rolls back, as it must.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rusqlite::{OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::{
    AccountError,
    capacity::NodeCapacity,
    id::TenantId,
    ledger::{integer, number},
    limits::{Limits, Quota},
    request::RequestedLimits,
    time::{DAY, Micros, day_of, from_micros, micros, next_midnight},
};

/// For how long a key stands for its build.
pub const IDEMPOTENCY_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest key.
const MAX_KEY_BYTES: usize = 255;

/// Builds of a day that a tenant may cancel while they wait, where it may start fewer.
const LEAST_GIVEN_UP: u32 = 100;

/// When to look again where nobody knows when a place in the queue is free.
const QUEUE_PATIENCE: Duration = Duration::from_secs(30);

/// A build that wants to be accepted.
#[derive(Clone, Debug)]
pub struct Application<'a> {
    /// Its name, unique for ever.
    pub build_id: &'a str,
    /// Whose it is.
    pub tenant_id: &'a TenantId,
    /// The customer to bill; empty for none.
    pub customer_id: &'a str,
    /// What the request lowers.
    pub requested: &'a RequestedLimits,
    /// What the build counts in the queue and what it may use at most: the tenant's limits, lowered by the request.
    pub limits: &'a Limits,
    /// When the tenant gave the request a key: the same key and request give the same build.
    pub key: Option<&'a IdempotencyKey>,
}

/// A name that a tenant gave to a request, and the SHA-256 of what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    key: String,
    request_hash: [u8; 32],
}

/// Not a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to 255 visible ASCII characters")]
pub struct InvalidIdempotencyKey;

/// What became of an application.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// It waits for its turn now. The caller makes its row in the same transaction.
    Accepted,
    /// The key was used for the same request before: this is its build. Nothing was changed.
    Repeated {
        /// Its name.
        build_id: String,
    },
    /// It is refused. The caller rolls back.
    Refused(Refusal),
    /// The key was used for another request. The caller rolls back.
    KeyReused,
}

/// Why a build is refused: which quota, how much is used, what is allowed, when something frees.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// Which one.
    pub quota: Quota,
    /// What is used.
    pub current: u64,
    /// What is allowed, in the same unit.
    pub limit: u64,
    /// When something frees at the latest, if nothing is done about it; `None` when only somebody's doing frees something.
    pub frees_at: Option<SystemTime>,
    /// How long to wait before another attempt can have success.
    pub retry_after: Option<Duration>,
    words: &'static str,
}

/// What of a request has to be known when its turn comes: the row's form of [`RequestedLimits`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "snake_case")]
pub(crate) struct Asked {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_cores: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrent_builds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daily_builds: Option<u32>,
}

impl IdempotencyKey {
    /// A key and the hash of its request, which must leave out credentials.
    ///
    /// # Errors
    ///
    /// [`InvalidIdempotencyKey`] for anything but 1 to 255 visible ASCII characters.
    pub fn new(key: &str, request_hash: [u8; 32]) -> Result<Self, InvalidIdempotencyKey> {
        let is_valid =
            (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        is_valid
            .then(|| Self {
                key: key.to_owned(),
                request_hash,
            })
            .ok_or(InvalidIdempotencyKey)
    }
}

impl Refusal {
    pub(crate) fn new(quota: Quota, current: u64, limit: u64, words: &'static str) -> Self {
        Self {
            quota,
            current,
            limit,
            frees_at: None,
            retry_after: None,
            words,
        }
    }

    fn until(self, moment: Micros, now: Micros) -> Self {
        let wait = u64::try_from(moment.saturating_sub(now)).unwrap_or(0);
        Self {
            frees_at: Some(from_micros(moment)),
            // Whole seconds, as a header tells them; never too early.
            retry_after: Some(Duration::from_secs(wait.div_ceil(1_000_000).max(1))),
            ..self
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            quota,
            current,
            limit,
            words,
            ..
        } = self;
        write!(formatter, "{quota}: {current} of {limit} {words}")
    }
}

impl Asked {
    pub(crate) fn of(requested: &RequestedLimits) -> Self {
        let time = [requested.timeout, requested.build_time]
            .into_iter()
            .flatten()
            .min();
        Self {
            memory_bytes: requested.memory_bytes,
            cpu_cores: requested.cpu_cores,
            disk_bytes: requested.disk_bytes,
            timeout_seconds: time.map(|time| time.as_secs()),
            concurrent_builds: requested.concurrent_builds,
            daily_builds: requested.daily_builds,
        }
    }

    pub(crate) fn requested(&self) -> RequestedLimits {
        RequestedLimits {
            memory_bytes: self.memory_bytes,
            cpu_cores: self.cpu_cores,
            disk_bytes: self.disk_bytes,
            timeout: self.timeout_seconds.map(Duration::from_secs),
            concurrent_builds: self.concurrent_builds,
            daily_builds: self.daily_builds,
            ..RequestedLimits::default()
        }
    }
}

/// Accepts a build, or says why not. The tenant's record has to be there.
///
/// In this order: a key that is known; limits that allow no build at all; the builds of the day, those that wait
/// included; storage; places in the queue, first the tenant's own.
///
/// # Errors
///
/// When the database fails.
pub fn admit(
    transaction: &Transaction<'_>,
    application: &Application<'_>,
    node: &NodeCapacity,
    now: SystemTime,
) -> Result<Admission, AccountError> {
    let now = micros(now);
    let work = || {
        if let Some(key) = application.key
            && let Some(known) = known_key(transaction, application.tenant_id, key, now)?
        {
            return Ok(known);
        }
        if let Some(refusal) = refusal(transaction, application, node, now)? {
            return Ok(Admission::Refused(refusal));
        }
        enter(transaction, application, now)?;
        Ok(Admission::Accepted)
    };
    work().map_err(AccountError::new("admit a build"))
}

/// Forgets keys that are older than [`IDEMPOTENCY_KEPT`]; says how many.
///
/// # Errors
///
/// When the database fails.
pub fn forget_keys(transaction: &Transaction<'_>, now: SystemTime) -> Result<usize, AccountError> {
    transaction
        .prepare_cached("DELETE FROM idempotency_keys WHERE created_at <= ?1")
        .and_then(|mut statement| statement.execute([micros(now) - kept()]))
        .map_err(AccountError::new("forget old keys"))
}

fn known_key(
    transaction: &Transaction<'_>,
    tenant: &TenantId,
    key: &IdempotencyKey,
    now: Micros,
) -> rusqlite::Result<Option<Admission>> {
    // A key from the future, by a clock that was set back, is not old.
    let select = "SELECT request_hash, build_id FROM idempotency_keys
                  WHERE tenant_id = ?1 AND key = ?2 AND created_at > ?3";
    transaction
        .prepare_cached(select)?
        .query_row(params![tenant.as_str(), key.key, now - kept()], |row| {
            Ok(if row.get_ref(0)?.as_blob()? == key.request_hash {
                Admission::Repeated {
                    build_id: row.get(1)?,
                }
            } else {
                Admission::KeyReused
            })
        })
        .optional()
}

fn refusal(
    transaction: &Transaction<'_>,
    application: &Application<'_>,
    node: &NodeCapacity,
    now: Micros,
) -> rusqlite::Result<Option<Refusal>> {
    let limits = application.limits;
    let tenant = application.tenant_id.as_str();
    if limits.concurrent_builds == 0 {
        let words = "builds may run at the same time: this tenant may not build";
        return Ok(Some(Refusal::new(Quota::ConcurrentBuilds, 0, 0, words)));
    }

    let waiting_of_tenant = count(
        transaction,
        "SELECT COUNT(*) FROM admissions WHERE tenant_id = ?1 AND running = 0",
        params![tenant],
    )?;
    // A build that waits again, after an interruption, is charged already.
    let uncharged = count(
        transaction,
        "SELECT COUNT(*) FROM admissions a WHERE tenant_id = ?1 AND running = 0
         AND NOT EXISTS (SELECT 1 FROM charges c WHERE c.build_id = a.build_id)",
        params![tenant],
    )?;
    let today = charged(transaction, tenant, now)? + uncharged;
    if today >= u64::from(limits.daily_builds) {
        let words = "builds of this UTC day are started or wait; the count begins anew at 00:00 UTC";
        let refusal = Refusal::new(Quota::DailyBuilds, today, limits.daily_builds.into(), words);
        return Ok(Some(refusal.until(next_midnight(now), now)));
    }

    // What is given up while it waits is charged to no day, and yet leaves a row here and there.
    let today_begins = day_of(now).saturating_mul(DAY);
    let given_up = count(
        transaction,
        "SELECT COUNT(*) FROM ledger
         WHERE tenant_id = ?1 AND ended_at >= ?2 AND kind = 'build' AND outcome = 'cancelled' AND started_at IS NULL",
        params![tenant, today_begins],
    )?;
    let most = u64::from(limits.daily_builds.max(LEAST_GIVEN_UP));
    if given_up >= most {
        let words =
            "builds of this UTC day were cancelled while they waited; the count begins anew at 00:00 UTC";
        let refusal = Refusal::new(Quota::DailyBuilds, given_up, most, words);
        return Ok(Some(refusal.until(next_midnight(now), now)));
    }

    let stored = stored(transaction, tenant)?;
    if stored >= limits.storage_bytes {
        let words = "bytes of images are kept; deleting builds frees theirs at once";
        let refusal = Refusal::new(Quota::Storage, stored, limits.storage_bytes, words);
        let oldest: Option<Micros> = transaction
            .prepare_cached("SELECT MIN(since) FROM stored_images WHERE tenant_id = ?1")?
            .query_row([tenant], |row| row.get(0))?;
        let retention = Micros::try_from(limits.retention.as_micros()).unwrap_or(Micros::MAX);
        return Ok(Some(match oldest {
            Some(oldest) => refusal.until(oldest.saturating_add(retention), now),
            None => refusal,
        }));
    }

    // Who finds a free place does not wait.
    let running = count(transaction, "SELECT COUNT(*) FROM reservations", [])?;
    let free = u64::from(node.concurrent_builds).saturating_sub(running);
    let waiting = count(
        transaction,
        "SELECT COUNT(*) FROM admissions WHERE running = 0",
        [],
    )?;
    for (waiting, places, words) in [
        (
            waiting_of_tenant,
            node.queued_builds_of_tenant,
            "builds of this tenant wait for their turn",
        ),
        (
            waiting,
            node.queued_builds,
            "builds wait for their turn: the queue is full",
        ),
    ] {
        let places = u64::from(places);
        if waiting >= places.saturating_add(free) {
            let refusal = Refusal::new(Quota::QueuedBuilds, waiting, places, words);
            return Ok(Some(Refusal {
                retry_after: Some(QUEUE_PATIENCE),
                ..refusal
            }));
        }
    }
    Ok(None)
}

fn enter(transaction: &Transaction<'_>, application: &Application<'_>, now: Micros) -> rusqlite::Result<()> {
    let tenant = application.tenant_id.as_str();
    // Who comes back after a pause begins where the queue is: nothing is saved up by staying away.
    transaction
        .prepare_cached(
            "INSERT INTO shares (tenant_id, served) SELECT ?1, served FROM turn
             WHERE NOT EXISTS (SELECT 1 FROM admissions WHERE tenant_id = ?1 AND running = 0)
             ON CONFLICT (tenant_id) DO UPDATE SET served = MAX(served, excluded.served)",
        )?
        .execute([tenant])?;
    let asked = serde_json::to_string(&Asked::of(application.requested))
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    transaction
        .prepare_cached(
            "INSERT INTO admissions (build_id, tenant_id, customer_id, admitted_at, requested, cost)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            application.build_id,
            tenant,
            application.customer_id,
            now,
            asked,
            integer(cost(application.limits))
        ])?;
    if let Some(key) = application.key {
        transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO idempotency_keys (tenant_id, key, request_hash, build_id, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                tenant,
                key.key,
                key.request_hash.as_slice(),
                application.build_id,
                now
            ])?;
    }
    Ok(())
}

/// What a build counts in the queue: the seconds of CPU that it may use. Between a minute of one core and a day of 16, so
/// that no request makes itself free and none makes its tenant wait for ever.
pub(crate) fn cost(limits: &Limits) -> u64 {
    let seconds = limits.deadline().as_secs();
    seconds
        .saturating_mul(limits.cpu_cores.into())
        .clamp(60, 16 * 86_400)
}

/// Builds of a tenant that count for the UTC day of `now`.
///
/// Those of later days count too: a clock that was set back gives nothing away.
pub(crate) fn charged(transaction: &Transaction<'_>, tenant: &str, now: Micros) -> rusqlite::Result<u64> {
    count(
        transaction,
        "SELECT COUNT(*) FROM charges WHERE tenant_id = ?1 AND day >= ?2",
        params![tenant, day_of(now)],
    )
}

/// Bytes of a tenant's images, those that are being published included.
pub(crate) fn stored(transaction: &Transaction<'_>, tenant: &str) -> rusqlite::Result<u64> {
    count(
        transaction,
        "SELECT COALESCE(SUM(bytes), 0) FROM stored_images WHERE tenant_id = ?1",
        params![tenant],
    )
}

pub(crate) fn count(
    transaction: &Transaction<'_>,
    select: &str,
    values: impl rusqlite::Params,
) -> rusqlite::Result<u64> {
    transaction
        .prepare_cached(select)?
        .query_row(values, |row| number(row, 0))
}

const fn kept() -> Micros {
    DAY
}
