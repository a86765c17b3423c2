//! Layers on their way before their turn. A registry often gives each connection a part of what the line holds, so all
//! layers of an image are asked for at once, while a few at a time are indexed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_fetch::Blob;

use super::{Work, blocking, fetch, layers::entry_name};
use crate::error::BuildError;

/// Layers that are begun at the same time: each looks into two caches.
const BEGUN_AT_ONCE: usize = 16;

/// The downloads that were begun, by the index of their layer, until somebody takes them. What nobody takes ends with
/// this.
#[derive(Debug, Default)]
pub(super) struct Ahead(Mutex<BTreeMap<usize, Blob>>);

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Blob>> {
        // Plain handles: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The download of a layer, if it was begun and not taken yet.
    pub(super) fn take(&self, layer_idx: usize) -> Option<Blob> {
        self.lock().remove(&layer_idx)
    }

    pub(super) fn contains(&self, layer_idx: usize) -> bool {
        self.lock().contains_key(&layer_idx)
    }
}

/// Begins to download every layer that this build has to download, as far as can be told before its turn.
pub(super) async fn begin(work: &Work<'_>) -> Result<(), BuildError> {
    let beginning = futures_util::stream::iter(0..work.image.layers.len())
        .map(|layer_idx| begin_one(work, layer_idx))
        .buffer_unordered(BEGUN_AT_ONCE)
        .try_collect::<()>();
    work.stop.unless(beginning).await
}

async fn begin_one(work: &Work<'_>, layer_idx: usize) -> Result<(), BuildError> {
    let (cache, grant) = (work.config.packs.clone(), work.grant.clone());
    let blob_name = entry_name(work, &work.image.layers[layer_idx]);
    if blocking(move || cache.has(&blob_name, &grant)).await? {
        return Ok(());
    }
    let beginning = work.config.fetch.begin_layer(work.image, layer_idx);
    if let Some(blob) = beginning.await.map_err(|error| fetch::explain(&error))? {
        work.progress.follow(&blob);
        work.ahead.lock().insert(layer_idx, blob);
    }
    Ok(())
}
