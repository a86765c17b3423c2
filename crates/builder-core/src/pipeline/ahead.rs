//! Layers on their way before their turn. A registry often gives each connection a part of what the line holds, so more
//! layers of an image come in than are indexed at the same time.

use std::time::Instant;

use futures_util::FutureExt as _;
use oci_fetch::Blob;

use super::{Work, blocking, fetch, layers::entry_name};
use crate::error::BuildError;

/// Layers whose download is begun before their turn, beside those whose turn it is. A download that waits for a connection
/// keeps a place from others, and what nobody has read yet takes space on the disk: a build is to have little of both.
pub(super) const LAYERS_AHEAD: usize = 4;

/// One place for each layer of an image.
pub(super) struct Ahead {
    layers: Vec<tokio::sync::Mutex<Place>>,
}

#[derive(Default)]
enum Place {
    #[default]
    Untouched,
    Begun(Download),
    /// Its turn has come.
    Taken,
}

/// A layer that is read, or will be.
pub(super) struct Download {
    pub(super) blob: Blob,
    pub(super) begun: Instant,
}

impl Ahead {
    pub(super) fn new(n_layers: usize) -> Self {
        Self {
            layers: (0..n_layers).map(|_| tokio::sync::Mutex::default()).collect(),
        }
    }

    /// Takes what was begun of a layer, and lets nobody begin it any more.
    async fn take(&self, layer_idx: usize) -> Option<Download> {
        // Waits for a beginning that is under way.
        let mut place = self.layers[layer_idx].lock().await;
        match std::mem::replace(&mut *place, Place::Taken) {
            Place::Begun(download) => Some(download),
            Place::Untouched | Place::Taken => None,
        }
    }

    /// Ends the download of a layer that needs none any more; says whether there was one.
    pub(super) async fn give_up(&self, layer_idx: usize) -> bool {
        self.take(layer_idx).await.is_some()
    }
}

/// Opens a layer whose turn has come, or takes over its download.
pub(super) async fn open(work: &Work<'_>, layer_idx: usize) -> Result<Download, BuildError> {
    let opening = async {
        match work.ahead.take(layer_idx).await {
            // One that has failed before its turn is tried again.
            Some(begun) if !has_failed(&begun.blob) => Ok(begun),
            _ => download(work, layer_idx).await,
        }
    };
    work.stop.unless(opening).await
}

fn has_failed(blob: &Blob) -> bool {
    matches!(blob.verified().now_or_never(), Some(Err(_)))
}

/// Begins the download of a layer before its turn, if it needs one. What goes wrong is told when it is the layer's turn.
pub(super) async fn begin(work: &Work<'_>, layer_idx: usize) {
    let beginning = async {
        let mut place = work.ahead.layers[layer_idx].lock().await;
        if matches!(*place, Place::Untouched) && !is_at_hand(work, layer_idx).await? {
            *place = Place::Begun(download(work, layer_idx).await?);
        }
        Ok(())
    };
    if let Err(error) = work.stop.unless(beginning).await {
        tracing::debug!(layer.index = layer_idx, %error, "A download was not begun ahead");
    }
}

/// Whether a layer needs no download, as far as can be told without asking anybody.
pub(super) async fn is_at_hand(work: &Work<'_>, layer_idx: usize) -> Result<bool, BuildError> {
    let (cache, grant) = (work.config.packs.clone(), work.grant.clone());
    let blob_name = entry_name(work, &work.image.layers[layer_idx]);
    if blocking(move || cache.has(&blob_name, &grant)).await? {
        return Ok(true);
    }
    let at_hand = work.config.fetch.is_at_hand(work.image, layer_idx).await;
    at_hand.map_err(|error| fetch::explain(&error))
}

async fn download(work: &Work<'_>, layer_idx: usize) -> Result<Download, BuildError> {
    let opening = work.config.fetch.open_layer(work.image, layer_idx);
    let blob = opening.await.map_err(|error| fetch::explain(&error))?;
    work.progress.follow(&blob);
    Ok(Download {
        blob,
        begun: Instant::now(),
    })
}
