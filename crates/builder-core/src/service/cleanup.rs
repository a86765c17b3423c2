//! What nobody asks for and has to be done: builds whose time is over, images that are too many, files that belong to
//! nothing.
//!
//! Runs each `cleanup_interval`, and in between when an image was added or room is wanted. Only one run at a time.

use std::{
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use super::{Inner, removal::StillNeeded};
use crate::store::{self, FileClaim, KeptImage, StoreError};

/// Expired builds that are looked at before others have a turn with the database.
const BATCH: usize = 100;

/// Batches in one run; what is left waits for the next.
const MAX_BATCHES: usize = 100;

/// For how long the figures of deleted builds are kept: a year and what a yearly report takes longer.
const TOMBSTONES_KEPT: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// Times in a row that it may not be known whether a registered image is in use before a run asks no more: each time may
/// take as long as a call to assetmanagerd may, and nothing else is removed meanwhile.
const MAX_UNKNOWN: u32 = 3;

/// Tombstones that one run removes.
const MAX_TOMBSTONES: usize = 10_000;

/// Runs until the service has stopped or is dropped.
pub(super) async fn run(inner: Weak<Inner>) {
    let Some((stopped, interval)) = inner
        .upgrade()
        .map(|inner| (inner.stopped.clone(), inner.config.cleanup_interval))
    else {
        return;
    };
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked_at_until = None;
    loop {
        let Some(service) = inner.upgrade() else {
            return;
        };
        let make_room = Arc::clone(&service.make_room);
        drop(service);
        let is_due = tokio::select! {
            () = stopped.cancelled() => return,
            _ = ticks.tick() => true,
            () = make_room.notified() => false,
        };
        let Some(service) = inner.upgrade() else {
            return;
        };
        let work = async {
            if is_due {
                expire(&service, &mut looked_at_until).await?;
                sweep(&service, Orphans::Keep).await?;
                let moment = SystemTime::now()
                    .checked_sub(TOMBSTONES_KEPT)
                    .unwrap_or(SystemTime::UNIX_EPOCH);
                service.store.drop_tombstones(moment, MAX_TOMBSTONES).await?;
                service.store.drop_audit_events(moment).await?;
                let packs = service.pipeline.packs.clone();
                let trimmed = tokio::task::spawn_blocking(move || packs.trim()).await;
                if let Ok(Err(error)) = trimmed {
                    tracing::warn!(%error, "Failed to trim the pack cache");
                }
            }
            bound_storage(&service).await
        };
        let result = tokio::select! {
            () = stopped.cancelled() => return,
            result = work => result,
        };
        if let Err(error) = result {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "A cleanup did not get through"
            );
        }
    }
}

/// Removes builds that have been kept for as long as their tenant's tier says. Goes on after what the last run has looked
/// at, and from the beginning when that was all: those that are kept long must not hide the others from every run.
async fn expire(inner: &Inner, looked_at_until: &mut Option<SystemTime>) -> Result<(), StoreError> {
    let now = store::now();
    let mut unknown_in_a_row = 0;
    for _ in 0..MAX_BATCHES {
        let after = *looked_at_until;
        let tiers = inner.config.tenants.clone();
        let default_tier = tiers.default_tier();
        let expired = inner
            .store
            .expired(default_tier, now, after, BATCH, move |tier| {
                tiers.limits(tier).retention
            })
            .await?;
        *looked_at_until = expired.looked_at_until;
        if looked_at_until.is_none() {
            return Ok(());
        }
        for build in expired.builds {
            if build.asset_id.is_some() && unknown_in_a_row >= MAX_UNKNOWN {
                continue;
            }
            let _removal = inner.removals.lock(build.id).await;
            match inner.release_asset(&build).await {
                Ok(()) => match inner
                    .bury(
                        &build,
                        inner.own_act("retention.delete", &build, "its time is over"),
                    )
                    .await
                {
                    // Deleted by request, or registered, a moment ago.
                    Ok(()) | Err(StoreError::NoSuchBuild | StoreError::AssetChanged) => {}
                    Err(error) => return Err(error),
                },
                Err(reason) => {
                    tracing::info!(build.id = %build.id, %reason, "A build is kept beyond its time");
                    unknown_in_a_row = and_one_more(unknown_in_a_row, &reason);
                }
            }
        }
    }
    Ok(())
}

fn and_one_more(unknown_in_a_row: u32, reason: &StillNeeded) -> u32 {
    match reason {
        StillNeeded::Unknown(_) => unknown_in_a_row.saturating_add(1),
        StillNeeded::InUse(_) | StillNeeded::Used => 0,
    }
}

/// Removes the images that were not read for the longest time until all fit, but none that somebody uses and none that is
/// younger than the interval: who had it built must have had the chance to take it.
async fn bound_storage(inner: &Inner) -> Result<(), StoreError> {
    let Some(limit) = inner.config.storage_max_bytes else {
        return Ok(());
    };
    let mut stored = inner.store.stored_bytes().await?;
    if stored > limit {
        let mut unknown_in_a_row = 0;
        for image in least_recently_used(inner).await? {
            if stored <= limit {
                break;
            }
            let _removal = inner.removals.lock(image.id).await;
            let Some(build) = inner.store.get(image.id).await?.map(|stored| stored.build) else {
                continue;
            };
            if build.asset_id.is_some() && unknown_in_a_row >= MAX_UNKNOWN {
                continue;
            }
            if let Err(reason) = inner.release_asset(&build).await {
                tracing::debug!(build.id = %build.id, %reason, "An image is kept although room is wanted");
                unknown_in_a_row = and_one_more(unknown_in_a_row, &reason);
                continue;
            }
            match inner.evict_image(&build).await {
                Ok(()) => stored = stored.saturating_sub(image.stored_bytes),
                Err(StoreError::NoSuchBuild | StoreError::AssetChanged) => {}
                Err(error) => return Err(error),
            }
        }
    }
    if stored > limit {
        tracing::warn!(
            storage.bytes = stored,
            storage.limit = limit,
            "The images take more room than they may, and none of them can be removed"
        );
    }
    inner
        .storage_full
        .store(stored > limit, std::sync::atomic::Ordering::Relaxed);
    Ok(())
}

async fn least_recently_used(inner: &Inner) -> Result<Vec<KeptImage>, StoreError> {
    let youngest = SystemTime::now().checked_sub(inner.config.cleanup_interval);
    let mut images = Vec::new();
    for image in inner.store.kept_images().await? {
        if youngest.is_some_and(|youngest| image.completed_at > youngest) {
            continue;
        }
        let read = inner.artifacts.last_read(&image.key()).await;
        let used = read.unwrap_or(image.completed_at).max(image.completed_at);
        images.push((used, image));
    }
    images.sort_by_key(|(used, _)| *used);
    Ok(images.into_iter().map(|(_, image)| image).collect())
}

/// What is done with files of builds that the database does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Orphans {
    Keep,
    /// Removed, unless they are older than the database: then they were another's, and an operator who started with a new
    /// database by mistake must not lose all images. Never where they may be another service's, as in a bucket.
    Remove,
}

/// Removes files of builds that are gone.
pub(super) async fn sweep(inner: &Inner, orphans: Orphans) -> Result<(), StoreError> {
    let artifacts = match inner.artifacts.list().await {
        Ok(artifacts) => artifacts,
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "Failed to look for files without a build"
            );
            return Ok(());
        }
    };
    // Names of builds are precise to the millisecond.
    let keeps_all = orphans == Orphans::Keep || inner.artifacts.is_shared();
    let born = inner.store.born_at().await? - Duration::from_millis(1);
    let mut strangers = 0_u64;
    for artifact in artifacts {
        let _removal = inner.removals.lock(artifact.key.build).await;
        let is_ours = artifact
            .key
            .build
            .created_at()
            .is_some_and(|created| created >= born);
        match inner
            .store
            .claim(artifact.key.build, artifact.key.tenant.clone())
            .await?
        {
            FileClaim::Needed => {}
            FileClaim::Removed => inner.remove_files(&artifact.key).await,
            FileClaim::Unknown if keeps_all => {}
            FileClaim::Unknown if is_ours => {
                tracing::warn!(build.id = %artifact.key.build, "Removing an image without a build");
                inner.remove_files(&artifact.key).await;
            }
            FileClaim::Unknown => strangers += 1,
        }
    }
    if strangers > 0 {
        tracing::warn!(
            images = strangers,
            "The output directory holds images that are older than the database and not in it: they are left alone"
        );
    }
    Ok(())
}
