//! What is taken away: deleted builds, images that make room, tombstones that have served their time.

use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use tenant::{TenantId, Tier};

use super::{
    NewLine, Store, StoreError, audit,
    builds::{COLUMNS, read, standing},
    from_integer, from_micros,
    logs::append,
    outbox, to_integer, to_micros,
};
use crate::{
    artifact::ArtifactKey,
    audit::AuditEvent,
    build::{Build, BuildId},
};

/// Builds whose time is over.
#[derive(Clone, Debug)]
pub(crate) struct Expired {
    pub(crate) builds: Vec<Build>,
    /// The end of the last build that was looked at; `None` when there is none further.
    pub(crate) looked_at_until: Option<SystemTime>,
}

/// Whether files of a build are to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileClaim {
    /// The build is there, or will be made.
    Needed,
    /// The build was deleted, or its image was removed.
    Removed,
    /// This database knows no such build.
    Unknown,
}

/// A finished image that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeptImage {
    pub(crate) id: BuildId,
    pub(crate) tenant: TenantId,
    pub(crate) completed_at: SystemTime,
    pub(crate) stored_bytes: u64,
}

impl KeptImage {
    /// The name of its artifact.
    pub(crate) fn key(&self) -> ArtifactKey {
        ArtifactKey {
            tenant: self.tenant.clone(),
            build: self.id,
        }
    }
}

impl Store {
    /// Makes a tombstone of a build that has ended: its log is gone, and so is everything that the tenant wrote or could
    /// read; what is counted stays. Its image is the caller's to remove, and so is `asset`, the one that the build has as
    /// far as the caller knows; a registration that still waits is withdrawn.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBuild`] also when it was deleted before, [`StoreError::NotEnded`] for one that has not ended,
    /// [`StoreError::AssetChanged`] when it has another asset.
    ///
    /// `event` is noted for the audit log with it.
    pub(crate) async fn bury(
        &self,
        id: BuildId,
        asset: Option<String>,
        event: Option<AuditEvent>,
    ) -> Result<(), StoreError> {
        self.write(move |transaction| {
            note_event(transaction, event.as_ref())?;
            let (ordinal, state) = standing(transaction, id)?;
            has_asset(transaction, ordinal, asset.as_deref())?;
            if !state.is_terminal() {
                return Err(StoreError::NotEnded);
            }
            outbox::withdraw(transaction, id, super::now())?;
            transaction
                .prepare_cached("DELETE FROM build_logs WHERE build_ordinal = ?1")?
                .execute([ordinal])?;
            transaction
                .prepare_cached(
                    "UPDATE builds SET
                        deleted_at = ?2, stored_bytes = 0, log_bytes = 0, last_sequence = 0,
                        request = '{}', metrics = '{}', rootfs_path = x'', current_step = '',
                        image_metadata = NULL, error_message = NULL, rootfs_checksum = NULL, asset_id = NULL
                     WHERE ordinal = ?1",
                )?
                .execute(params![ordinal, to_micros(super::now())])?;
            tenant::storage::remove(transaction, &id.to_string(), super::now())?;
            Ok(())
        })
        .await
    }

    /// Notes that the image of a completed build is no longer kept, with a line in its log; the build stays. As for
    /// [`bury`](Self::bury), `asset` is the caller's to remove, and a registration that waits is withdrawn.
    pub(crate) async fn forget_image(
        &self,
        id: BuildId,
        asset: Option<String>,
        line: NewLine,
        event: Option<AuditEvent>,
    ) -> Result<(), StoreError> {
        self.write(move |transaction| {
            note_event(transaction, event.as_ref())?;
            let (ordinal, _) = standing(transaction, id)?;
            has_asset(transaction, ordinal, asset.as_deref())?;
            outbox::withdraw(transaction, id, super::now())?;
            transaction
                .prepare_cached(
                    "UPDATE builds SET image_removed_at = ?2, stored_bytes = 0, asset_id = NULL,
                     current_step = 'done; the image was removed to make room' WHERE ordinal = ?1",
                )?
                .execute(params![ordinal, to_micros(super::now())])?;
            tenant::storage::remove(transaction, &id.to_string(), super::now())?;
            append(transaction, ordinal, vec![line], true)?;
            Ok(())
        })
        .await
    }

    /// Builds that ended longer ago than their tenant's tier keeps them, oldest first; at most `limit`, from those that
    /// ended after `after`. `keeps` tells for how long.
    pub(crate) async fn expired<K>(
        &self,
        default_tier: Tier,
        now: SystemTime,
        after: Option<SystemTime>,
        limit: usize,
        keeps: K,
    ) -> Result<Expired, StoreError>
    where
        K: Fn(Tier) -> std::time::Duration + Send + 'static,
    {
        self.read(move |connection| {
            let snapshot = connection.unchecked_transaction()?;
            let shortest = Tier::ALL.into_iter().map(&keeps).min().unwrap_or_default();
            let mut statement = snapshot.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM builds
                 WHERE deleted_at IS NULL AND completed_at IS NOT NULL AND completed_at < ?1 AND completed_at > ?2
                 ORDER BY completed_at LIMIT ?3"
            ))?;
            let mut rows = statement.query(params![
                before(now, shortest),
                after.map_or(i64::MIN, to_micros),
                to_integer(limit as u64)
            ])?;
            let mut builds = Vec::new();
            let mut looked_at_until = None;
            while let Some(row) = rows.next()? {
                looked_at_until = Some(from_micros(row.get("completed_at")?));
                let build = read(row)?.build;
                let tier = tenant::records::tier_of(&snapshot, &build.request.tenant.tenant_id)?;
                let limit = before(now, keeps(tier.unwrap_or(default_tier)));
                if row.get::<_, i64>("completed_at")? < limit {
                    builds.push(build);
                }
            }
            Ok(Expired {
                builds,
                looked_at_until,
            })
        })
        .await
    }

    /// Bytes of all images that are kept.
    pub(crate) async fn stored_bytes(&self) -> Result<u64, StoreError> {
        self.read(|connection| {
            let sum = "SELECT COALESCE(SUM(stored_bytes), 0) FROM builds WHERE stored_bytes > 0";
            Ok(connection.query_row(sum, [], |row| row.get(0).map(from_integer))?)
        })
        .await
    }

    /// All images that are kept, the longest finished first.
    pub(crate) async fn kept_images(&self) -> Result<Vec<KeptImage>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, tenant_id, completed_at, stored_bytes FROM builds
                 WHERE stored_bytes > 0 AND completed_at IS NOT NULL ORDER BY completed_at",
            )?;
            let mut rows = statement.query([])?;
            let mut images = Vec::new();
            while let Some(row) = rows.next()? {
                images.push(kept_image(row)?);
            }
            Ok(images)
        })
        .await
    }

    /// Whether the files of a tenant's build are to be there.
    pub(crate) async fn claim(&self, id: BuildId, tenant: TenantId) -> Result<FileClaim, StoreError> {
        self.read(move |connection| {
            // A build is failed or cancelled only after its work has ended: what is still there was left behind.
            let gone = "SELECT deleted_at IS NOT NULL OR image_removed_at IS NOT NULL
                            OR state IN ('failed', 'cancelled')
                        FROM builds WHERE id = ?1 AND tenant_id = ?2";
            let gone: Option<bool> = connection
                .prepare_cached(gone)?
                .query_row([&id.to_string(), tenant.as_str()], |row| row.get(0))
                .optional()?;
            Ok(match gone {
                Some(false) => FileClaim::Needed,
                Some(true) => FileClaim::Removed,
                None => FileClaim::Unknown,
            })
        })
        .await
    }

    /// When this database was made, or the first build that it holds.
    pub(crate) async fn born_at(&self) -> Result<SystemTime, StoreError> {
        self.read(|connection| {
            Ok(connection.query_row("SELECT born_at FROM pulse", [], |row| row.get(0).map(from_micros))?)
        })
        .await
    }

    /// Removes tombstones of builds that were deleted before `moment`, at most `limit`; says how many.
    pub(crate) async fn drop_tombstones(
        &self,
        moment: SystemTime,
        limit: usize,
    ) -> Result<usize, StoreError> {
        self.write(move |transaction| drop_tombstones(transaction, moment, limit))
            .await
    }

    /// Writes something, and syncs it: whether that works is the answer.
    pub(crate) async fn pulse(&self) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .prepare_cached("UPDATE pulse SET written_at = ?1")?
                .execute([to_micros(super::now())])?;
            Ok(())
        })
        .await
    }
}

fn note_event(transaction: &Transaction<'_>, event: Option<&AuditEvent>) -> Result<(), StoreError> {
    if let Some(event) = event {
        let tenant = event.tenant.as_deref().unwrap_or_default();
        audit::note(transaction, tenant, event, super::now())?;
    }
    Ok(())
}

/// A registration may have come in between: then there is an asset that nobody has asked about.
fn has_asset(transaction: &Transaction<'_>, ordinal: i64, asset: Option<&str>) -> Result<(), StoreError> {
    let same: bool = transaction
        .prepare_cached("SELECT asset_id IS ?2 FROM builds WHERE ordinal = ?1")?
        .query_row(params![ordinal, asset], |row| row.get(0))?;
    same.then_some(()).ok_or(StoreError::AssetChanged)
}

/// Whether a build is there, and has ended.
pub(crate) fn has_ended(connection: &Connection, id: BuildId) -> Result<Option<bool>, StoreError> {
    let ended = "SELECT state IN ('completed', 'failed', 'cancelled') FROM builds
                 WHERE id = ?1 AND deleted_at IS NULL";
    Ok(connection
        .prepare_cached(ended)?
        .query_row([id.to_string()], |row| row.get(0))
        .optional()?)
}

fn drop_tombstones(
    transaction: &Transaction<'_>,
    moment: SystemTime,
    limit: usize,
) -> Result<usize, StoreError> {
    let delete = "DELETE FROM builds WHERE ordinal IN
                  (SELECT ordinal FROM builds WHERE deleted_at IS NOT NULL AND deleted_at < ?1 LIMIT ?2)";
    Ok(transaction
        .prepare_cached(delete)?
        .execute(params![to_micros(moment), to_integer(limit as u64)])?)
}

fn kept_image(row: &Row<'_>) -> Result<KeptImage, StoreError> {
    let id: String = row.get(0)?;
    let malformed = |column| StoreError::Malformed {
        build: id.chars().take(80).collect(),
        column,
    };
    Ok(KeptImage {
        tenant: row
            .get::<_, String>(1)?
            .parse()
            .map_err(|_| malformed("tenant_id"))?,
        completed_at: from_micros(row.get(2)?),
        stored_bytes: from_integer(row.get(3)?),
        id: id.parse().map_err(|_| malformed("id"))?,
    })
}

/// The moment `ago` before `now`, in microseconds.
fn before(now: SystemTime, ago: std::time::Duration) -> i64 {
    to_micros(now).saturating_sub(i64::try_from(ago.as_micros()).unwrap_or(i64::MAX))
}
