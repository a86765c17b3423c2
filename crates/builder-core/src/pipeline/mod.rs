//! One build: reference in, published image out.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    build::{BuildMetrics, ImageMetadata},
    error::{BuildError, BuildErrorKind},
    event::EventSender,
    request::{Backend, BuildRequest},
    worker::Launcher,
};

/// What a build needs from its surroundings. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PipelineConfig {
    /// Starts the workers.
    pub launcher: Arc<dyn Launcher>,
    /// Holds unfinished layer packs, and the pack cache below `cache/packs`.
    pub workspace_directory: PathBuf,
    /// The init that [`crate::request::InitStrategy::Tini`] puts into the image.
    pub guest_init: Arc<[u8]>,
    /// The architecture that `guest_init` runs on, in OCI's words (`amd64`, `arm64`).
    pub guest_architecture: String,
    /// Which writer makes the image.
    pub backend: Backend,
    /// Layers that one build pulls and indexes at the same time, at least 1.
    pub layers_in_parallel: usize,
    /// What one build may use.
    pub limits: BuildLimits,
}

/// What one build may use; `None` is no limit beyond the workers' own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildLimits {
    /// From the start of [`run`] to its end.
    pub timeout: Option<Duration>,
    /// Bytes of disk: all layers uncompressed plus what the image takes on disk.
    pub max_disk_bytes: Option<u64>,
    /// Bytes of address space of each worker.
    pub max_memory_bytes: Option<u64>,
    /// Compressed bytes of all layers together.
    pub max_compressed_bytes: Option<u64>,
    /// Bytes of the image, holes included.
    pub max_image_bytes: Option<u64>,
}

/// A published image.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// Where the image is: the `output` given to [`run`].
    pub image_path: PathBuf,
    /// Where its metadata is: beside the image, `.ext4` replaced by `.metadata.json`.
    pub metadata_path: PathBuf,
    /// Size of the image in bytes, holes included.
    pub size_bytes: u64,
    /// SHA-256 of the image in hexadecimal.
    pub checksum: String,
    /// What the metadata file says.
    pub metadata: ImageMetadata,
    /// What the build took.
    pub metrics: BuildMetrics,
}

/// Runs one build and publishes its image at `output`, replacing what is there.
///
/// # Errors
/// See [`BuildErrorKind`].
pub async fn run(
    _config: &PipelineConfig,
    _request: &BuildRequest,
    _output: &Path,
    _events: EventSender,
    _cancel: CancellationToken,
) -> Result<Outcome, BuildError> {
    Err(BuildError::new(BuildErrorKind::Internal, "not written yet"))
}
