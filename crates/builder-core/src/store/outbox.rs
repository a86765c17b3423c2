//! What assetmanagerd has still to be told: a row for each image, written with the change that made it necessary.
//!
//! ```text
//! build completes ──> register ──(answered)──> gone, the build knows its asset
//!                        │
//!                        │ build deleted or image removed
//!                        ├─(surely never carried out)──> gone
//!                        └─(may have been carried out)──> delete ──(there is no such asset)──> gone
//! ```
//!
//! A build has one row at most. A row is *uncertain* from the moment before a call goes out until an answer says that it
//! was not carried out: a crash in between leaves it so, and the next attempt looks first.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use tenant::TenantId;

use super::{
    NewLine, Store, StoreError, from_integer, from_micros,
    logs::{append, decode, encode},
    to_integer, to_micros,
};
use crate::build::BuildId;

/// No row waits longer than this. One that seems to was dated by a clock that was wrong, and is due.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(2 * 60 * 60);

/// An image that is to be registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registration {
    /// The id that the asset is to have; never empty, so that an attempt can be repeated.
    pub(crate) asset_id: String,
    pub(crate) customer_id: String,
    /// A name for people; may be empty.
    pub(crate) name: String,
    /// The image reference as asked for.
    pub(crate) source_image: String,
    /// As [`assetclient::StorageBackend::as_str`] spells it.
    pub(crate) backend: String,
    pub(crate) location: String,
    pub(crate) size_bytes: u64,
    pub(crate) checksum: String,
}

/// Assets that are to be forgotten, as far as they are those of the build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deletion {
    pub(crate) asset_ids: Vec<String>,
    pub(crate) customer_id: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Duty {
    Register(Registration),
    Delete(Deletion),
}

/// A row that an attempt is made for.
#[derive(Clone, Debug)]
pub(crate) struct Claimed {
    pub(crate) ordinal: i64,
    pub(crate) build: BuildId,
    pub(crate) tenant: TenantId,
    pub(crate) duty: Duty,
    /// With this one.
    pub(crate) attempts: u32,
    /// Whether an earlier attempt may have been carried out.
    pub(crate) was_uncertain: bool,
    pub(crate) created_at: SystemTime,
}

/// What an attempt that did not get there leaves.
#[derive(Clone, Debug)]
pub(crate) struct Postponed {
    pub(crate) next_attempt_at: SystemTime,
    /// Whether it may have been carried out all the same.
    pub(crate) uncertain: bool,
    /// For the operator, without words of the other side.
    pub(crate) last_error: String,
    /// What is to be registered from now on, when that changed.
    pub(crate) registration: Option<Registration>,
    /// For the build's log.
    pub(crate) line: Option<NewLine>,
}

/// What waits to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Rows of which an attempt failed.
    pub(crate) failing: u64,
    /// When the next attempt is due.
    pub(crate) next_attempt_at: Option<SystemTime>,
}

/// How much waits to be told, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Untold {
    pub(crate) registrations: u64,
    pub(crate) oldest_registration: Option<SystemTime>,
    pub(crate) deletions: u64,
    pub(crate) oldest_deletion: Option<SystemTime>,
    /// Rows of which an attempt failed.
    pub(crate) failing: u64,
}

impl Duty {
    pub(crate) fn customer_id(&self) -> &str {
        match self {
            Self::Register(registration) => &registration.customer_id,
            Self::Delete(deletion) => &deletion.customer_id,
        }
    }
}

impl Store {
    /// Takes at most `limit` rows that are due, the longest due first, but none of the builds in `busy`: counts the attempt,
    /// marks registrations as uncertain, and dates the next attempt, for the case that nobody comes back to say how this
    /// one went.
    pub(crate) async fn claim_duties(
        &self,
        now: SystemTime,
        limit: usize,
        busy: Vec<BuildId>,
        pause: fn(u32) -> Duration,
    ) -> Result<Vec<Claimed>, StoreError> {
        self.write(move |transaction| {
            let mut due = due(transaction, now, limit + busy.len())?;
            due.retain(|claimed| !busy.contains(&claimed.build));
            due.truncate(limit);
            for claimed in &due {
                transaction
                    .prepare_cached(
                        "UPDATE asset_outbox SET attempts = ?2, uncertain = MAX(uncertain, action = 'register'),
                         next_attempt_at = ?3 WHERE ordinal = ?1",
                    )?
                    .execute(params![
                        claimed.ordinal,
                        claimed.attempts,
                        to_micros(now + pause(claimed.attempts))
                    ])?;
            }
            Ok(due)
        })
        .await
    }

    /// An image is known as `asset_id`: its build says so from now on, and the row is gone. When the build was taken away
    /// in the meantime, the asset is to be forgotten.
    pub(crate) async fn registered(
        &self,
        claimed: &Claimed,
        asset_id: String,
        line: NewLine,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let (ordinal, build, tenant) = (claimed.ordinal, claimed.build, claimed.tenant.clone());
        let customer_id = claimed.duty.customer_id().to_owned();
        self.write(move |transaction| {
            if remove(transaction, ordinal)? {
                let known: Option<i64> = transaction
                    .prepare_cached(
                        "UPDATE builds SET asset_id = ?2
                         WHERE id = ?1 AND deleted_at IS NULL AND image_removed_at IS NULL RETURNING ordinal",
                    )?
                    .query_row(params![build.to_string(), asset_id], |row| row.get(0))
                    .optional()?;
                if let Some(ordinal) = known {
                    append(transaction, ordinal, vec![line], true)?;
                    return Ok(());
                }
            }
            let mut asset_ids = Vec::new();
            if let Some((ordinal, Duty::Delete(deletion))) = of_build(transaction, build)? {
                remove(transaction, ordinal)?;
                asset_ids = deletion.asset_ids;
            }
            if !asset_ids.contains(&asset_id) {
                asset_ids.push(asset_id);
            }
            let duty = Duty::Delete(Deletion {
                asset_ids,
                customer_id,
            });
            insert(transaction, build, &tenant, &duty, now)
        })
        .await
    }

    /// An attempt did not get there. Nothing happens when the row is gone.
    pub(crate) async fn postpone_duty(&self, claimed: &Claimed, later: Postponed) -> Result<(), StoreError> {
        let (ordinal, build) = (claimed.ordinal, claimed.build);
        self.write(move |transaction| {
            let payload = later.registration.map(|changed| encode(&Duty::Register(changed)));
            let changed = transaction
                .prepare_cached(
                    "UPDATE asset_outbox SET next_attempt_at = ?2, uncertain = ?3, last_error = ?4,
                     payload = COALESCE(?5, payload) WHERE ordinal = ?1",
                )?
                .execute(params![
                    ordinal,
                    to_micros(later.next_attempt_at),
                    later.uncertain,
                    later.last_error,
                    payload
                ])?;
            let of_build: Option<i64> = transaction
                .prepare_cached("SELECT ordinal FROM builds WHERE id = ?1 AND deleted_at IS NULL")?
                .query_row([build.to_string()], |row| row.get(0))
                .optional()?;
            if let (1, Some(ordinal), Some(line)) = (changed, of_build, later.line) {
                append(transaction, ordinal, vec![line], true)?;
            }
            Ok(())
        })
        .await
    }

    /// There is nothing left to do for a row.
    pub(crate) async fn settle_duty(&self, ordinal: i64) -> Result<(), StoreError> {
        self.write(move |transaction| remove(transaction, ordinal).map(drop))
            .await
    }

    /// From now on everything is due: what kept it waiting is over.
    pub(crate) async fn hurry_duties(&self, now: SystemTime) -> Result<(), StoreError> {
        self.write(move |transaction| {
            transaction
                .prepare_cached("UPDATE asset_outbox SET next_attempt_at = ?1 WHERE next_attempt_at > ?1")?
                .execute([to_micros(now)])?;
            Ok(())
        })
        .await
    }

    /// What waits, leaving out the builds in `busy` for the time of the next attempt.
    pub(crate) async fn backlog(&self, busy: Vec<BuildId>) -> Result<Backlog, StoreError> {
        self.read(move |connection| {
            let failing: i64 = connection
                .prepare_cached("SELECT COUNT(*) FROM asset_outbox WHERE last_error IS NOT NULL")?
                .query_row([], |row| row.get(0))?;
            let mut statement = connection.prepare_cached(
                "SELECT build_id, next_attempt_at FROM asset_outbox ORDER BY next_attempt_at LIMIT ?1",
            )?;
            let mut found = statement.query([to_integer(busy.len() as u64 + 1)])?;
            let busy: Vec<String> = busy.iter().map(ToString::to_string).collect();
            let mut next_attempt_at = None;
            while let Some(row) = found.next()? {
                if !busy.contains(&row.get(0)?) {
                    next_attempt_at = Some(from_micros(row.get(1)?));
                    break;
                }
            }
            Ok(Backlog {
                failing: from_integer(failing),
                next_attempt_at,
            })
        })
        .await
    }

    /// How much waits.
    pub(crate) async fn untold(&self) -> Result<Untold, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT action = 'register', COUNT(*), MIN(created_at), COUNT(last_error) FROM asset_outbox
                 GROUP BY action",
            )?;
            let mut rows = statement.query([])?;
            let mut untold = Untold::default();
            while let Some(row) = rows.next()? {
                let (count, oldest) = (from_integer(row.get(1)?), Some(from_micros(row.get(2)?)));
                if row.get(0)? {
                    (untold.registrations, untold.oldest_registration) = (count, oldest);
                } else {
                    (untold.deletions, untold.oldest_deletion) = (count, oldest);
                }
                untold.failing += from_integer(row.get(3)?);
            }
            Ok(untold)
        })
        .await
    }

    /// A registration of a build that may have been carried out although no answer said so.
    pub(crate) async fn uncertain_registration(
        &self,
        build: BuildId,
    ) -> Result<Option<Registration>, StoreError> {
        self.read(move |connection| {
            let uncertain: Option<bool> = connection
                .prepare_cached("SELECT uncertain FROM asset_outbox WHERE build_id = ?1")?
                .query_row([build.to_string()], |row| row.get(0))
                .optional()?;
            match of_build(connection, build)? {
                Some((_, Duty::Register(registration))) if uncertain == Some(true) => Ok(Some(registration)),
                _ => Ok(None),
            }
        })
        .await
    }
}

/// Writes what is to be done for a build that has nothing to be done yet.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    build: BuildId,
    tenant: &TenantId,
    duty: &Duty,
    now: SystemTime,
) -> Result<(), StoreError> {
    let action = match duty {
        Duty::Register(_) => "register",
        Duty::Delete(_) => "delete",
    };
    transaction
        .prepare_cached(
            "INSERT INTO asset_outbox (build_id, tenant_id, action, payload, created_at, next_attempt_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
        )?
        .execute(params![
            build.to_string(),
            tenant.as_str(),
            action,
            encode(duty),
            to_micros(now)
        ])?;
    Ok(())
}

/// The image of a build is not to be had any more: what was to be registered is not, and what may have been registered is
/// to be forgotten.
pub(super) fn withdraw(
    transaction: &Transaction<'_>,
    build: BuildId,
    now: SystemTime,
) -> Result<(), StoreError> {
    let Some((ordinal, Duty::Register(registration))) = of_build(transaction, build)? else {
        return Ok(());
    };
    let (tenant, uncertain): (String, bool) = transaction
        .prepare_cached("SELECT tenant_id, uncertain FROM asset_outbox WHERE ordinal = ?1")?
        .query_row([ordinal], |row| Ok((row.get(0)?, row.get(1)?)))?;
    remove(transaction, ordinal)?;
    if uncertain {
        let duty = Duty::Delete(Deletion {
            asset_ids: vec![registration.asset_id],
            customer_id: registration.customer_id,
        });
        insert(transaction, build, &tenant_of(build, &tenant)?, &duty, now)?;
    }
    Ok(())
}

fn remove(transaction: &Transaction<'_>, ordinal: i64) -> Result<bool, StoreError> {
    let removed = transaction
        .prepare_cached("DELETE FROM asset_outbox WHERE ordinal = ?1")?
        .execute([ordinal])?;
    Ok(removed > 0)
}

fn of_build(connection: &Connection, build: BuildId) -> Result<Option<(i64, Duty)>, StoreError> {
    let found: Option<(i64, String)> = connection
        .prepare_cached("SELECT ordinal, payload FROM asset_outbox WHERE build_id = ?1")?
        .query_row([build.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    found
        .map(|(ordinal, payload)| Ok((ordinal, decode(build, "asset_outbox.payload", &payload)?)))
        .transpose()
}

fn due(connection: &Connection, now: SystemTime, limit: usize) -> Result<Vec<Claimed>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT ordinal, build_id, tenant_id, payload, attempts, uncertain, created_at FROM asset_outbox
         WHERE next_attempt_at <= ?1 OR next_attempt_at > ?2 ORDER BY next_attempt_at, ordinal LIMIT ?3",
    )?;
    let mut rows = statement.query(params![
        to_micros(now),
        to_micros(now + LONGEST_WAIT),
        to_integer(limit as u64)
    ])?;
    let mut due = Vec::new();
    while let Some(row) = rows.next()? {
        due.push(claimed(row)?);
    }
    Ok(due)
}

fn claimed(row: &Row<'_>) -> Result<Claimed, StoreError> {
    let id: String = row.get(1)?;
    let build: BuildId = id.parse().map_err(|_| StoreError::Malformed {
        build: id.chars().take(80).collect(),
        column: "asset_outbox.build_id",
    })?;
    Ok(Claimed {
        ordinal: row.get(0)?,
        build,
        tenant: tenant_of(build, &row.get::<_, String>(2)?)?,
        duty: decode(build, "asset_outbox.payload", &row.get::<_, String>(3)?)?,
        attempts: row.get::<_, u32>(4)?.saturating_add(1),
        was_uncertain: row.get(5)?,
        created_at: from_micros(row.get(6)?),
    })
}

fn tenant_of(build: BuildId, name: &str) -> Result<TenantId, StoreError> {
    name.parse().map_err(|_| StoreError::Malformed {
        build: build.to_string(),
        column: "asset_outbox.tenant_id",
    })
}
