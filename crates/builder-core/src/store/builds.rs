//! Builds: inserted once, then moved forward until they end.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf, time::SystemTime};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params, params_from_iter, types::Value};
use tenant::{TenantId, TenantRecord, account::Used};

use super::{
    Duty, Lane, NewLine, Registration, Store, StoreError,
    answer::AnswerSize,
    from_integer, from_micros,
    logs::{append, decode, decode_name, encode},
    outbox,
    queue::{end, used},
    to_integer, to_micros,
};
use crate::{
    build::{Build, BuildId, BuildMetrics, BuildState, ImageMetadata},
    event::LogLine,
};

/// A build with what only the service needs to know of it.
#[derive(Clone, Debug)]
pub(crate) struct StoredBuild {
    pub(crate) build: Build,
    /// The request carried credentials, which are not stored.
    pub(crate) needs_credentials: bool,
    /// How often its work has begun.
    pub(crate) attempts: u32,
}

/// What a finished build adds to its row.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) size_bytes: u64,
    /// Bytes that the image takes where it is kept.
    pub(crate) stored_bytes: u64,
    pub(crate) checksum: String,
}

/// One step of a build: everything in it is one transaction.
#[derive(Clone, Debug, Default)]
pub(crate) struct BuildChange {
    /// Where the build stands now. A state that lies behind the present one is not taken.
    pub(crate) state: Option<BuildState>,
    pub(crate) completed_at: Option<SystemTime>,
    pub(crate) progress: Option<(u8, String)>,
    pub(crate) finished: Option<Finished>,
    pub(crate) image_metadata: Option<ImageMetadata>,
    pub(crate) metrics: Option<BuildMetrics>,
    pub(crate) error_message: Option<String>,
    /// What assetmanagerd is to be told of the image.
    pub(crate) registration: Option<Registration>,
    /// The build fails by the service's own fault: its day is given back.
    pub(crate) refund: bool,
    pub(crate) lines: Vec<NewLine>,
}

/// Why a build is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requeued {
    /// The service ended while it ran: it may be the build's fault, so the attempt counts.
    Crash,
    /// The service shuts down: it is not the build's fault, and the attempt does not count.
    Shutdown,
}

/// A page of a listing and how many builds there are in all.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) builds: Vec<Build>,
    /// The ordinal before which the next page starts, when there is one.
    pub(crate) next_before: Option<u64>,
    pub(crate) total: u64,
}

pub(super) const COLUMNS: &str = "ordinal, id, tenant_id, state, request, needs_credentials, attempts, created_at, started_at, \
     completed_at, rootfs_path, rootfs_size_bytes, rootfs_checksum, image_metadata, metrics, error_message, \
     progress_percent, current_step, asset_id, image_removed_at";

impl Store {
    /// Applies a change; gives the log lines with their numbers, to be broadcast now that they are stored.
    ///
    /// # Errors
    /// [`StoreError::Ended`] when the build has ended before: nothing is changed.
    pub(crate) async fn change(&self, id: BuildId, change: BuildChange) -> Result<Vec<LogLine>, StoreError> {
        self.write(move |transaction| apply(transaction, id, change))
            .await
    }

    /// Puts a build that was interrupted back to the start of its life; gives the line with its number.
    pub(crate) async fn requeue(
        &self,
        id: BuildId,
        line: NewLine,
        why: Requeued,
    ) -> Result<Vec<LogLine>, StoreError> {
        self.write(move |transaction| {
            let (ordinal, state) = standing(transaction, id)?;
            if state.is_terminal() {
                return Err(StoreError::Ended);
            }
            transaction
                .prepare_cached(
                    "UPDATE builds SET state = 'pending', started_at = NULL, progress_percent = 0,
                     current_step = 'wait for a turn', attempts = MAX(0, attempts - ?2) WHERE ordinal = ?1",
                )?
                .execute(params![ordinal, why == Requeued::Shutdown])?;
            // After a crash only the checkpoints know how long it ran.
            let ended_at = (why == Requeued::Shutdown).then(super::now);
            tenant::account::interrupt(transaction, &id.to_string(), &Used::default(), ended_at)?;
            append(transaction, ordinal, vec![line], true)
        })
        .await
    }

    /// The tenant's record, as it is now.
    pub(crate) async fn record(&self, tenant: TenantId) -> Result<Option<TenantRecord>, StoreError> {
        self.read(move |connection| Ok(tenant::records::get(connection, &tenant)?))
            .await
    }

    /// One build, whosever it is.
    pub(crate) async fn get(&self, id: BuildId) -> Result<Option<StoredBuild>, StoreError> {
        self.get_in(Lane::Methods, id).await
    }

    /// [`Store::get`], among the reads of `lane`.
    pub(crate) async fn get_in(&self, lane: Lane, id: BuildId) -> Result<Option<StoredBuild>, StoreError> {
        self.read_in(lane, move |connection| find(connection, id)).await
    }

    /// All builds that have not ended, in order of acceptance.
    pub(crate) async fn unfinished(&self) -> Result<Vec<StoredBuild>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare(&format!(
                "SELECT {COLUMNS} FROM builds
                 WHERE state IN ('pending', 'pulling', 'extracting', 'building', 'optimizing') ORDER BY ordinal"
            ))?;
            let mut rows = statement.query([])?;
            let mut builds = Vec::new();
            while let Some(row) = rows.next()? {
                builds.push(read(row)?);
            }
            Ok(builds)
        })
        .await
    }

    /// A tenant's builds in those states (all when empty), newest first, accepted before `before`: at most `limit`, and
    /// no more than an answer may have.
    pub(crate) async fn list(
        &self,
        tenant: TenantId,
        states: Vec<BuildState>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        self.read(move |connection| {
            // One snapshot for the page and the total.
            let snapshot = connection.unchecked_transaction()?;
            let states: Vec<Value> = states.iter().map(|state| Value::Text(state.as_str().to_owned())).collect();
            let in_states = match states.len() {
                0 => String::new(),
                n => format!(" AND state IN ({})", vec!["?"; n].join(", ")),
            };
            let tenant = [Value::Text(tenant.as_str().to_owned())];

            let total = snapshot.query_row(
                &format!("SELECT COUNT(*) FROM builds WHERE tenant_id = ?{in_states} AND deleted_at IS NULL"),
                params_from_iter(tenant.iter().chain(&states)),
                |row| row.get(0).map(from_integer),
            )?;
            let mut statement = snapshot.prepare(&format!(
                "SELECT {COLUMNS} FROM builds WHERE tenant_id = ?{in_states} AND deleted_at IS NULL AND ordinal < ?
                 ORDER BY ordinal DESC LIMIT ?"
            ))?;
            let bounds = [
                Value::Integer(before.map_or(i64::MAX, to_integer)),
                Value::Integer(to_integer(limit as u64 + 1)),
            ];
            let mut rows = statement.query(params_from_iter(tenant.iter().chain(&states).chain(&bounds)))?;
            let mut builds = Vec::new();
            let mut last_ordinal = None;
            let mut next_before = None;
            let mut size = AnswerSize::default();
            while let Some(row) = rows.next()? {
                if builds.len() == limit || !size.takes(row)? {
                    next_before = last_ordinal;
                    break;
                }
                last_ordinal = Some(from_integer(row.get(0)?));
                builds.push(read(row)?.build);
            }
            Ok(Listing { builds, next_before, total })
        })
        .await
    }
}

fn apply(
    transaction: &Transaction<'_>,
    id: BuildId,
    change: BuildChange,
) -> Result<Vec<LogLine>, StoreError> {
    let (ordinal, state) = standing(transaction, id)?;
    if state.is_terminal() {
        return Err(StoreError::Ended);
    }
    let next = change.state.filter(|next| *next > state).unwrap_or(state);
    let (percent, step) = change.progress.unzip();
    let finished = change.finished.as_ref();
    let cpu_time_ms = change.metrics.as_ref().and_then(|metrics| metrics.cpu_time_ms);
    transaction
        .prepare_cached(
            "UPDATE builds SET
                state = ?2,
                completed_at = COALESCE(?3, completed_at),
                progress_percent = MAX(progress_percent, COALESCE(?4, 0)),
                current_step = COALESCE(?5, current_step),
                rootfs_size_bytes = COALESCE(?6, rootfs_size_bytes),
                rootfs_checksum = COALESCE(?7, rootfs_checksum),
                image_metadata = COALESCE(?8, image_metadata),
                metrics = COALESCE(?9, metrics),
                error_message = COALESCE(?10, error_message),
                stored_bytes = COALESCE(?11, stored_bytes),
                cpu_time_ms = cpu_time_ms + COALESCE(?12, 0)
             WHERE ordinal = ?1",
        )?
        .execute(params![
            ordinal,
            next.as_str(),
            change.completed_at.map(to_micros),
            percent,
            step,
            finished.map(|finished| to_integer(finished.size_bytes)),
            finished.map(|finished| &finished.checksum),
            change.image_metadata.as_ref().map(encode),
            change.metrics.as_ref().map(encode),
            change.error_message,
            finished.map(|finished| to_integer(finished.stored_bytes)),
            cpu_time_ms.map(to_integer),
        ])?;
    if let Some(registration) = change.registration {
        let tenant: String = transaction
            .prepare_cached("SELECT tenant_id FROM builds WHERE ordinal = ?1")?
            .query_row([ordinal], |row| row.get(0))?;
        let tenant = tenant.parse().map_err(|_| StoreError::Malformed {
            build: id.to_string(),
            column: "tenant_id",
        })?;
        outbox::insert(
            transaction,
            id,
            &tenant,
            &Duty::Register(registration),
            super::now(),
        )?;
    }
    let metrics = change.metrics.as_ref();
    if next.is_terminal() {
        let stored_bytes = change
            .finished
            .as_ref()
            .map_or(0, |finished| finished.stored_bytes);
        let moment = change.completed_at.unwrap_or_else(super::now);
        end(
            transaction,
            id,
            next,
            change.refund,
            metrics,
            stored_bytes,
            moment,
        )?;
    } else if let Some(metrics) = metrics {
        tenant::account::checkpoint(transaction, &id.to_string(), &used(metrics), super::now())?;
    }
    append(transaction, ordinal, change.lines, next.is_terminal())
}

pub(super) fn standing(transaction: &Transaction<'_>, id: BuildId) -> Result<(i64, BuildState), StoreError> {
    let (ordinal, state): (i64, String) = transaction
        .prepare_cached("SELECT ordinal, state FROM builds WHERE id = ?1 AND deleted_at IS NULL")?
        .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?
        .ok_or(StoreError::NoSuchBuild)?;
    Ok((ordinal, decode_name(id, "state", state)?))
}

pub(super) fn find(connection: &Connection, id: BuildId) -> Result<Option<StoredBuild>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM builds WHERE id = ?1 AND deleted_at IS NULL"
    ))?;
    let mut rows = statement.query([id.to_string()])?;
    rows.next()?.map(read).transpose()
}

pub(super) fn read(row: &Row<'_>) -> Result<StoredBuild, StoreError> {
    let id_text: String = row.get("id")?;
    let id: BuildId = id_text.parse().map_err(|_| StoreError::Malformed {
        build: id_text.chars().take(80).collect(),
        column: "id",
    })?;
    let optional_time = |column| {
        row.get::<_, Option<i64>>(column)
            .map(|micros| micros.map(from_micros))
    };
    let metadata: Option<String> = row.get("image_metadata")?;
    let build = Build {
        id,
        request: decode(id, "request", &row.get::<_, String>("request")?)?,
        state: decode_name(id, "state", row.get("state")?)?,
        created_at: from_micros(row.get("created_at")?),
        started_at: optional_time("started_at")?,
        completed_at: optional_time("completed_at")?,
        rootfs_path: PathBuf::from(OsString::from_vec(row.get("rootfs_path")?)),
        rootfs_size_bytes: row.get::<_, Option<i64>>("rootfs_size_bytes")?.map(from_integer),
        rootfs_checksum: row.get("rootfs_checksum")?,
        image_metadata: metadata
            .map(|text| decode(id, "image_metadata", &text))
            .transpose()?,
        metrics: decode(id, "metrics", &row.get::<_, String>("metrics")?)?,
        error_message: row.get("error_message")?,
        progress_percent: row.get("progress_percent")?,
        current_step: row.get("current_step")?,
        asset_id: row.get("asset_id")?,
        image_removed_at: optional_time("image_removed_at")?,
        queue_position: None,
        estimated_start: None,
    };
    Ok(StoredBuild {
        build,
        needs_credentials: row.get("needs_credentials")?,
        attempts: row.get("attempts")?,
    })
}
