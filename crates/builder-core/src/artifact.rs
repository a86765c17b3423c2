//! Finished images where they are kept: published whole, counted, removed.
//!
//! An artifact is an image and its sidecars, named by tenant and build: `<tenant>/<build_id>.ext4`,
//! `<tenant>/<build_id>.metadata.json` and `<tenant>/<build_id>.firecracker.json`, below a directory or in a bucket. Who
//! keeps them stands behind [`ArtifactStore`]; [`LocalStore`] is a directory of this machine, [`BucketStore`] a bucket of
//! S3 or of Google Cloud Storage.
//!
//! ```text
//! pipeline ── writes ──> staging_path ── publish ──> location ── remove / list ──> gone
//!                        (a file of this machine)    (path or URL that clients see)
//! ```
//!
//! The order in which the service does things makes it safe against a crash: an image is published before its build's
//! row says so, and the row is gone before the image is. So there may be artifacts without a row, which a sweep at the
//! start finds with [`list`](ArtifactStore::list); there is no row without its artifact.

mod bucket;
mod local;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use futures_util::future::BoxFuture;
use tenant::TenantId;
use tokio_util::sync::CancellationToken;

pub use self::{
    bucket::{ArtifactConfig, BucketStore, GcsConfig, S3Config, S3Keys},
    local::LocalStore,
};
use crate::{build::BuildId, pipeline::UNFINISHED_MARK};

const IMAGE_ENDING: &str = ".ext4";

/// Of all that belongs to an image; [`crate::pipeline::sidecar_paths`] makes them.
const SIDECAR_ENDINGS: [&str; 2] = [".metadata.json", ".firecracker.json"];

/// Whose artifact, and of which build.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ArtifactKey {
    /// The tenant.
    pub tenant: TenantId,
    /// The build.
    pub build: BuildId,
}

/// What the pipeline has written and synced: an image and its sidecars as files of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedImage {
    /// The image; the path is [`ArtifactStore::staging_path`].
    pub image: PathBuf,
    /// Its metadata, as [`crate::pipeline::metadata_path`] names it.
    pub metadata: PathBuf,
    /// A machine's configuration with it, as [`crate::pipeline::machine_path`] names it.
    pub machine: PathBuf,
    /// SHA-256 of the image in hexadecimal.
    pub checksum: String,
}

/// An artifact that is in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Bytes that image and sidecars take there. Holes take nothing on a disk; a bucket has none.
    pub stored_bytes: u64,
}

/// What a store has of one build: an image, its metadata, something unfinished, or several of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredArtifact {
    /// Whose, and of which build.
    pub key: ArtifactKey,
    /// Bytes that all of it takes.
    pub stored_bytes: u64,
}

/// An artifact could not be published, removed or listed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct ArtifactError {
    /// What was being done, as `remove the image`.
    pub action: &'static str,
    /// What sort of reason it is.
    pub fault: ArtifactFault,
    /// Why it failed; names paths or objects, so it is for the operator.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Sorts of [`ArtifactError`], so that who starts the service can name the setting that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactFault {
    /// The settings contradict themselves, or a file that they name is not what it should be.
    #[error("its settings cannot be used")]
    Configuration,
    /// The service answers and has no such bucket.
    #[error("there is no such bucket")]
    NoSuchBucket,
    /// The service answers and does not take the credentials, or they may not put, list and delete objects.
    #[error("the credentials are refused, or may not put, list and delete objects")]
    Refused,
    /// The work was to stop.
    #[error("it was stopped")]
    Stopped,
    /// Anything else: no answer, a full disk.
    #[error("it does not answer as it should")]
    Failed,
}

/// Keeps finished images.
///
/// Every call may be repeated: publishing what is there replaces it, removing what is not there succeeds. Calls for
/// different keys may run at the same time; the service never has two under way for one.
pub trait ArtifactStore: fmt::Debug + Send + Sync + 'static {
    /// What holds the bytes, in the words of assetmanagerd.
    fn backend(&self) -> assetclient::StorageBackend;

    /// Where clients find the image once it is published: a path, or an object's URL. Known before the build begins.
    fn location(&self, key: &ArtifactKey) -> PathBuf;

    /// The same relative to the backend's base: what assetmanagerd is told.
    fn relative_location(&self, key: &ArtifactKey) -> String {
        format!("{}/{}.ext4", key.tenant, key.build)
    }

    /// The image as a file of this machine, where it is kept as one.
    fn local_path(&self, _key: &ArtifactKey) -> Option<PathBuf> {
        None
    }

    /// Whether other services, with databases of their own, may keep artifacts in the same place. Then what this one does
    /// not know is left alone.
    fn is_shared(&self) -> bool {
        false
    }

    /// Whether the holes of an image take no room where it is kept. Where they do, its whole size counts.
    fn keeps_holes(&self) -> bool {
        true
    }

    /// Where the pipeline is to write the image: a file of this machine on a disk that can hold it. The same path for the
    /// same key, also after a restart.
    fn staging_path(&self, key: &ArtifactKey) -> PathBuf;

    /// Makes the directory of [`staging_path`](Self::staging_path), closed to others: images may hold what only the tenant
    /// should see.
    fn prepare<'a>(&'a self, key: &'a ArtifactKey) -> BoxFuture<'a, Result<(), ArtifactError>>;

    /// Puts a staged image and its sidecars in their place, whole or not at all, the sidecars first: an image that is there
    /// has them. Nothing is left at the staging path unless that is the place.
    ///
    /// When `stop` is cancelled before the image is in its place, it does not get there, what was done is undone, and the
    /// error says [`ArtifactFault::Stopped`]. A dropped future leaves either nothing at [`location`](Self::location) or all
    /// of it, and what is unfinished to [`remove`](Self::remove).
    fn publish<'a>(
        &'a self,
        key: &'a ArtifactKey,
        staged: &'a StagedImage,
        stop: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Published, ArtifactError>>;

    /// Removes whatever there is of a build: image, sidecars, and what is unfinished or staged.
    fn remove<'a>(&'a self, key: &'a ArtifactKey) -> BoxFuture<'a, Result<(), ArtifactError>>;

    /// All that is kept or unfinished. Files that no build can have made are not listed.
    fn list(&self) -> BoxFuture<'_, Result<Vec<StoredArtifact>, ArtifactError>>;

    /// When the image was last read, as far as the store can tell; for the choice of what to remove when room is needed.
    fn last_read<'a>(&'a self, key: &'a ArtifactKey) -> BoxFuture<'a, Option<SystemTime>>;

    /// Whether artifacts can be published now.
    fn check(&self) -> BoxFuture<'_, Result<(), ArtifactError>>;
}

impl ArtifactError {
    /// An error met while doing `action`.
    pub fn new(action: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            action,
            fault: ArtifactFault::Failed,
            source: source.into(),
        }
    }

    /// The same error, of that sort.
    #[must_use]
    pub fn with_fault(mut self, fault: ArtifactFault) -> Self {
        self.fault = fault;
        self
    }

    fn stopped(action: &'static str) -> Self {
        let fault = ArtifactFault::Stopped;
        Self::new(action, fault.to_string()).with_fault(fault)
    }
}

/// Which build a file is of, finished or not; `None` for a name that no build makes.
fn build_of(path: &Path) -> Option<BuildId> {
    let name = path.file_name()?.to_str()?;
    let name = match name.strip_prefix('.') {
        Some(hidden) => hidden.split_once(UNFINISHED_MARK)?.0,
        None => name,
    };
    let stem = [IMAGE_ENDING]
        .into_iter()
        .chain(SIDECAR_ENDINGS)
        .find_map(|ending| name.strip_suffix(ending))?;
    stem.parse().ok()
}
