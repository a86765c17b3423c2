//! Finished images where they are kept: published whole, counted, removed.
//!
//! An artifact is an image and its metadata, named by tenant and build: `<tenant>/<build_id>.ext4` and
//! `<tenant>/<build_id>.metadata.json`, below a directory or in a bucket. Who keeps them stands behind [`ArtifactStore`];
//! [`LocalStore`] is a directory of this machine.
//!
//! ```text
//! pipeline ── writes ──> staging_path ── publish ──> location ── remove / list ──> gone
//!                        (a file of this machine)    (path or URL that clients see)
//! ```
//!
//! The order in which the service does things makes it safe against a crash: an image is published before its build's
//! row says so, and the row is gone before the image is. So there may be artifacts without a row, which a sweep at the
//! start finds with [`list`](ArtifactStore::list); there is no row without its artifact.

mod local;

use std::{fmt, path::PathBuf, time::SystemTime};

use futures_util::future::BoxFuture;
use tenant::TenantId;

pub use self::local::LocalStore;
use crate::build::BuildId;

/// Whose artifact, and of which build.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ArtifactKey {
    /// The tenant.
    pub tenant: TenantId,
    /// The build.
    pub build: BuildId,
}

/// What the pipeline has written and synced: an image and its metadata as files of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedImage {
    /// The image; the path is [`ArtifactStore::staging_path`].
    pub image: PathBuf,
    /// Its metadata, as [`crate::pipeline::metadata_path`] names it.
    pub metadata: PathBuf,
    /// SHA-256 of the image in hexadecimal.
    pub checksum: String,
}

/// An artifact that is in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Bytes that image and metadata take there.
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
    /// Why it failed; names paths or objects, so it is for the operator.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
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

    /// Where the pipeline is to write the image: a file of this machine on a disk that can hold it. The same path for the
    /// same key, also after a restart.
    fn staging_path(&self, key: &ArtifactKey) -> PathBuf;

    /// Makes the directory of [`staging_path`](Self::staging_path), closed to others: images may hold what only the tenant
    /// should see.
    fn prepare<'a>(&'a self, key: &'a ArtifactKey) -> BoxFuture<'a, Result<(), ArtifactError>>;

    /// Puts a staged image and its metadata in their place, whole or not at all, the metadata first: an image that is there
    /// has its metadata. Nothing is left at the staging path unless that is the place.
    ///
    /// A dropped future leaves either nothing at [`location`](Self::location) or all of it.
    fn publish<'a>(
        &'a self,
        key: &'a ArtifactKey,
        staged: &'a StagedImage,
    ) -> BoxFuture<'a, Result<Published, ArtifactError>>;

    /// Removes whatever there is of a build: image, metadata, and what is unfinished or staged.
    fn remove<'a>(&'a self, key: &'a ArtifactKey) -> BoxFuture<'a, Result<(), ArtifactError>>;

    /// All that is kept or unfinished. Files that no build can have made are not listed.
    fn list(&self) -> BoxFuture<'_, Result<Vec<StoredArtifact>, ArtifactError>>;

    /// When the image was last read, as far as the store can tell; for the choice of what to remove when room is needed.
    fn last_read<'a>(&'a self, key: &'a ArtifactKey) -> BoxFuture<'a, Option<SystemTime>>;
}

impl ArtifactError {
    /// An error met while doing `action`.
    pub fn new(action: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            action,
            source: source.into(),
        }
    }
}
