//! How much there is to do, and how much is kept.

use super::{Builder, Inner, internal};
use crate::error::ServiceError;

/// What the machine is at, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// Builds that run.
    pub active_builds: u64,
    /// Builds that wait.
    pub queued_builds: u64,
    /// Bytes that finished images take where they are kept, of all tenants together.
    pub stored_bytes: u64,
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
    let (active, queued) = inner.lock_queue().lengths();
    let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    Ok(Load {
        active_builds: count(active),
        queued_builds: count(queued),
        stored_bytes,
    })
}
