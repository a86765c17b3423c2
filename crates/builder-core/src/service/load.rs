//! How much there is to do, and how much is kept.

use std::time::{Duration, SystemTime};

use oci_fetch::CacheStatistics;
use tenant::Tier;

use super::{Builder, Inner, internal};
use crate::{error::ServiceError, store};

/// What the machine is at, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// Builds that run.
    pub active_builds: u64,
    /// Builds that wait.
    pub queued_builds: u64,
    /// Bytes that finished images take where they are kept, of all tenants together.
    pub stored_bytes: u64,
    /// Builds that wait, of each tier in the order of [`Tier::ALL`]; a build's age counts from its acceptance.
    pub queue: [Backlog; Tier::ALL.len()],
    /// Images of which assetmanagerd has still to be told; all zero where there is none.
    pub registrations: Backlog,
    /// Images that assetmanagerd has still to forget.
    pub deletions: Backlog,
    /// Of these two, those of which an attempt failed.
    pub failing_calls: u64,
    /// Layers as they come from registries.
    pub blobs: CacheStatistics,
}

/// What waits for something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// How many.
    pub count: u64,
    /// For how long the oldest has been waiting; zero when nothing waits.
    pub oldest: Duration,
}

impl Backlog {
    fn since(count: u64, oldest: Option<SystemTime>) -> Self {
        // A clock that was set back makes nothing older than it is.
        let age = |begin| store::now().duration_since(begin).unwrap_or_default();
        Self {
            count,
            oldest: oldest.map(age).unwrap_or_default(),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            oldest: self.oldest.max(other.oldest),
        }
    }
}

impl Builder {
    /// What the machine is at.
    ///
    /// # Errors
    /// `Internal` when the database fails.
    pub async fn load(&self) -> Result<Load, ServiceError> {
        load(&self.inner).await
    }
}

async fn load(inner: &Inner) -> Result<Load, ServiceError> {
    let stored_bytes = inner.store.stored_bytes().await.map_err(internal)?;
    let waiting = inner.store.waiting_by_tier().await.map_err(internal)?;
    let untold = inner.store.untold().await.map_err(internal)?;
    let mut queue = [Backlog::default(); Tier::ALL.len()];
    for of_tier in waiting {
        let tier = of_tier.tier.unwrap_or(inner.config.tenants.default_tier());
        let found = Backlog::since(of_tier.builds, Some(of_tier.oldest_admitted_at));
        for (place, known) in queue.iter_mut().zip(Tier::ALL) {
            if known == tier {
                *place = place.and(found);
            }
        }
    }
    let (active, queued) = inner.lock_queue().lengths();
    let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    Ok(Load {
        active_builds: count(active),
        queued_builds: count(queued),
        stored_bytes,
        queue,
        registrations: Backlog::since(untold.registrations, untold.oldest_registration),
        deletions: Backlog::since(untold.deletions, untold.oldest_deletion),
        failing_calls: untold.failing,
        blobs: inner.pipeline.fetch.cache_statistics(),
    })
}
