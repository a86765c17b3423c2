//! The builds of a machine: accepted, queued, run, stored, followed.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use futures_util::Stream;
use tenant::TenantId;

use crate::{
    build::{Build, BuildId, BuildState},
    error::{ServiceError, StartError},
    event::LogLine,
    request::{Backend, BuildRequest},
};

/// What a [`Builder`] needs to know.
#[derive(Clone, Debug)]
pub struct BuilderConfig {
    /// Holds `builderd.db`.
    pub database_directory: PathBuf,
    /// Finished images: `<tenant>/<build_id>.ext4` and `<tenant>/<build_id>.metadata.json`.
    pub output_directory: PathBuf,
    /// Holds the caches (`cache/blobs`, `cache/packs`) and unfinished layer packs.
    pub workspace_directory: PathBuf,
    /// Holds small files only.
    pub scratch_directory: PathBuf,
    /// Builds that run at the same time, at least 1.
    pub max_concurrent_builds: usize,
    /// Builds that may wait for their turn; beyond, [`Builder::create`] answers `ResourceExhausted`.
    pub max_queued_builds: usize,
    /// The longest that any build may take.
    pub build_timeout: Duration,
    /// Program and arguments of a worker, as `[/proc/self/exe, "worker"]`; it calls [`crate::worker::main`].
    pub worker_command: Vec<OsString>,
    /// The static init that images get.
    pub guest_init: Arc<[u8]>,
    /// The architecture of `guest_init`, in OCI's words (`amd64`, `arm64`).
    pub guest_architecture: String,
    /// Which writer makes the images.
    pub backend: Backend,
    /// Whether layer packs are kept between builds (STORAGE_CACHE_ENABLED).
    pub cache_enabled: bool,
    /// Bytes that the pack cache may take.
    pub pack_cache_max_bytes: u64,
    /// Compressed bytes of all layers of an image; `None` for no limit (DOCKER_MAX_IMAGE_SIZE_GB).
    pub max_compressed_bytes: Option<u64>,
    /// Layers that one build pulls and indexes at the same time, at least 1.
    pub layers_in_parallel: usize,
}

/// Which builds [`Builder::list`] lists.
#[derive(Clone, Debug)]
pub struct ListQuery {
    /// Whose builds.
    pub tenant: TenantId,
    /// In which states; empty for all.
    pub states: Vec<BuildState>,
    /// At most so many; 0 for the default of 50, cut to 200.
    pub page_size: u32,
    /// [`BuildPage::next_page_token`] of the page before; empty for the first.
    pub page_token: String,
}

/// A page of builds, newest first.
#[derive(Clone, Debug)]
pub struct BuildPage {
    /// The builds.
    pub builds: Vec<Build>,
    /// For the next page; empty on the last one.
    pub next_page_token: String,
    /// Builds that fit the query, on all pages.
    pub total_count: u64,
}

/// Whether a part that building needs works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It does.
    Healthy,
    /// It does not, with the reason for the operator.
    Unhealthy(String),
}

/// Whether the service can build.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Output, workspace and scratch directories take files.
    pub storage: Check,
    /// The database answers and takes writes.
    pub database: Check,
    /// New builds are refused because the service is shutting down.
    pub draining: bool,
}

/// The builds of a machine.
#[derive(Clone, Debug)]
pub struct Builder {}

impl Builder {
    /// Opens the database, ends or requeues what a crash left behind, and starts to build.
    ///
    /// # Errors
    /// See [`crate::error::StartErrorKind`].
    pub async fn start(_config: BuilderConfig) -> Result<Self, StartError> {
        Ok(Self {})
    }

    /// Accepts a build.
    ///
    /// # Errors
    /// `InvalidArgument` for a reference or registry that is not allowed, `ResourceExhausted` for a full queue,
    /// `Unavailable` while shutting down.
    pub async fn create(&self, _request: BuildRequest) -> Result<Build, ServiceError> {
        Err(ServiceError::Unavailable("not written yet".to_owned()))
    }

    /// One build.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied` for another tenant's.
    pub async fn get(&self, _tenant: &TenantId, _id: &BuildId) -> Result<Build, ServiceError> {
        Err(ServiceError::NotFound)
    }

    /// Builds of a tenant, newest first.
    ///
    /// # Errors
    /// `InvalidArgument` for a page token that is none.
    pub async fn list(&self, _query: ListQuery) -> Result<BuildPage, ServiceError> {
        Err(ServiceError::NotFound)
    }

    /// Ends a build that waits or runs; answers when its work has stopped.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `FailedPrecondition` when it has ended already.
    pub async fn cancel(&self, _tenant: &TenantId, _id: &BuildId) -> Result<Build, ServiceError> {
        Err(ServiceError::NotFound)
    }

    /// The log of a build, from `from_sequence` on (0 and 1 both mean the first line).
    ///
    /// Lines come from the database first, then, with `follow`, as they are written: without a gap, without a repeat,
    /// until the build ends. The first item is an error when the build does not exist or is another tenant's; a
    /// shutdown ends the stream with `Unavailable`, and the caller may come back with the next sequence number.
    pub fn logs(
        &self,
        _tenant: TenantId,
        _id: BuildId,
        _from_sequence: u64,
        _follow: bool,
    ) -> impl Stream<Item = Result<LogLine, ServiceError>> + Send + 'static + use<> {
        futures_util::stream::empty()
    }

    /// Whether the service can build.
    pub async fn health(&self) -> Health {
        Health {
            storage: Check::Healthy,
            database: Check::Healthy,
            draining: false,
        }
    }

    /// Refuses new builds, lets running ones finish for `grace`, then ends them with a reason; answers when nothing
    /// runs any more. Waiting builds stay in the database and are taken up at the next start.
    pub async fn shutdown(&self, _grace: Duration) {}
}
