//! The builds of a machine: accepted, queued, run, stored, followed.
//!
//! ```text
//! create ─ validate ─ admit ─ fair queue ─ start ─> pipeline ─ events ─> recorder ─ one transaction ─> followers
//! ```
//!
//! A build is a row before its creator learns its name. Everything that happens to it is one transaction each, with the
//! log lines that belong to it, and only then shown to followers: who follows never sees what a crash could take back.
//! A build is complete when its image is in its place; assetmanagerd is told of it afterwards, for sure (`outbox`).
//! Whether a build is accepted, and whose turn it is, the accounts of its tenant
//! say (`tenant`), in the same transaction as the build's row.
//!
//! After a crash, [`Builder::start`] finds the builds that had not ended. One that needs no credentials starts over, up to
//! three times; one that does ends with a reason, because credentials are never stored. What it left in the output
//! directory is removed. A shutdown does the same in good order: what cannot end in time is requeued.
//!
//! A build that is deleted leaves a tombstone, so that what was counted stays counted. Builds are removed too when their
//! time is over, and images when room is needed.

mod accept;
mod artifacts;
mod changes;
mod cleanup;
mod follow;
mod health;
mod live;
mod load;
mod queue;
mod recover;
mod removal;
mod run;
mod shown;
mod usage;
mod validate;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::Duration,
};

use assetclient::AssetClient;
use futures_util::{Stream, TryStreamExt as _};
use tenant::{NodeCapacity, TenantId, TierTable};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::{
    changes::Changes,
    follow::LogStreams,
    live::{EndReason, LiveBuilds},
    queue::{Places, Queue, Waiting},
    removal::RemovalLocks,
};
pub use self::{
    follow::{MAX_LOG_STREAMS, MAX_LOG_STREAMS_PER_TENANT},
    health::{Check, Health},
    load::{Backlog, Load},
    usage::{BuildStats, QuotaViolation, StatsWindow, TenantQuotas},
};
pub use crate::store::TenantUsage;
use crate::{
    artifact::{ArtifactConfig, ArtifactKey, ArtifactStore},
    build::{Build, BuildId, BuildState},
    error::{ServiceError, StartError, StartErrorKind},
    event::LogLine,
    image_cache::ImageCache,
    observe::{Observer, Unobserved},
    outbox::{Outbox, SystemClock},
    pack_cache::PackCache,
    pipeline::{BuildLimits, PipelineConfig},
    request::{Backend, BuildRequest},
    store::{Lane, Store, StoreError, last_lines},
    worker::{Alarms, Launcher, ProcessLauncher},
};

/// Builds on a page when the query does not say, and at most.
const DEFAULT_PAGE_SIZE: u32 = 50;
const MAX_PAGE_SIZE: u32 = 200;

/// How long builds that a shutdown ends may take to clear up behind themselves. Taken from the end of the shutdown's
/// time, of which at least two thirds are for builds to finish.
const CLEARING_UP: Duration = Duration::from_secs(5);

/// How long an ended worker may take to be gone before a caller is told that something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a [`Builder`] needs to know.
#[derive(Clone, Debug)]
pub struct BuilderConfig {
    /// Holds `builderd.db`.
    pub database_directory: PathBuf,
    /// Where finished images are kept. In a bucket, none is reused for a later build: the file that would be copied is not
    /// on this machine any more.
    pub artifacts: ArtifactConfig,
    /// Finished images, when they are kept on this machine: `<tenant>/<build_id>.ext4` and what belongs to them.
    pub output_directory: PathBuf,
    /// Holds the caches (`cache/blobs`, `cache/packs`), unfinished layer packs, and images on their way into a bucket
    /// (`artifacts`).
    pub workspace_directory: PathBuf,
    /// Holds small files only.
    pub scratch_directory: PathBuf,
    /// What this node has for all builds together.
    pub node: NodeCapacity,
    /// Whether builds reserve their disk too: then no more of them run than the free space of the workspace's file system
    /// is enough for.
    pub reserve_disk: bool,
    /// How often quotas are looked over and the days of stored images go into the ledger (TENANT_QUOTA_CHECK_INTERVAL).
    pub quota_check_interval: Duration,
    /// The longest that any build may take.
    pub build_timeout: Duration,
    /// Program and arguments of a worker, as `[/proc/self/exe, "worker"]`; it calls [`crate::worker::main`].
    pub worker_command: Vec<OsString>,
    /// Starts the workers instead of `worker_command`, when given: in boxes, that is.
    pub launcher: Option<Arc<dyn Launcher>>,
    /// The static init that images get.
    pub guest_init: Arc<[u8]>,
    /// The architecture of `guest_init`, in OCI's words (`amd64`, `arm64`).
    pub guest_architecture: String,
    /// Which writer makes the images.
    pub backend: Backend,
    /// Whether blobs and layer packs are kept between builds (STORAGE_CACHE_ENABLED).
    pub cache_enabled: bool,
    /// Bytes that cached blobs and layer packs may take together (STORAGE_CACHE_MAX_SIZE_GB).
    pub cache_max_bytes: u64,
    /// Compressed bytes of all layers of an image; `None` for no limit (DOCKER_MAX_IMAGE_SIZE_GB).
    pub max_compressed_bytes: Option<u64>,
    /// Layers that one build pulls and indexes at the same time, at least 1.
    pub layers_in_parallel: usize,
    /// How images are fetched; the bound of its cache is set from `cache_max_bytes`.
    pub fetch: oci_fetch::ClientConfig,
    /// What each tier may use on this machine.
    pub tenants: TierTable,
    /// Where finished images are registered; `None` for nowhere.
    pub asset_manager: Option<assetclient::Config>,
    /// Bytes that all finished images may take; `None` for no limit (STORAGE_MAX_SIZE_GB). Beyond, the images that were
    /// not read for the longest time go, but none that a virtual machine uses.
    pub storage_max_bytes: Option<u64>,
    /// Whether what the service removes of its own accord is noted for an audit log ([`Builder::audit_events`]).
    pub audit: bool,
    /// How often is removed what is due (CLEANUP_INTERVAL). For how long builds are kept is a matter of their tenant's tier.
    pub cleanup_interval: Duration,
}

/// Which builds [`Builder::list`] lists.
#[derive(Clone, Debug)]
pub struct ListQuery {
    /// Whose builds.
    pub tenant: TenantId,
    /// In which states; empty for all.
    pub states: Vec<BuildState>,
    /// At most so many; 0 for the default of 50, cut to 200. A page of long builds ends earlier, at about 1 MiB.
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

/// The builds of a machine. Cheap to clone.
#[derive(Clone)]
pub struct Builder {
    inner: Arc<Inner>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Builder")
            .field("store", &self.inner.store)
            .finish_non_exhaustive()
    }
}

struct Inner {
    config: BuilderConfig,
    observer: Arc<dyn Observer>,
    /// With the limits of the machine; each build's own are cut from them.
    pipeline: PipelineConfig,
    store: Store,
    artifacts: Arc<dyn ArtifactStore>,
    assets: Option<AssetClient>,
    /// Something is to be told to assetmanagerd.
    outbox_changed: Arc<Notify>,
    removals: RemovalLocks,
    changes: Changes,
    /// Images were added or removed.
    make_room: Arc<Notify>,
    /// The images take more room than they may, and none can be removed.
    storage_full: AtomicBool,
    /// Builds whose beginning or end the database does not take.
    unstored: AtomicUsize,
    /// When a box was tried out last, and what came of it.
    isolation_check: tokio::sync::Mutex<Option<(tokio::time::Instant, Check)>>,
    live: LiveBuilds,
    log_streams: LogStreams,
    queue: Mutex<Queue>,
    /// The order of the queue as it was counted last.
    places: Mutex<Option<Arc<Places>>>,
    /// There may be a build to be started.
    wake: Arc<Notify>,
    /// A slot became free.
    slot_freed: Notify,
    /// The service has stopped: nothing more will be written.
    stopped: CancellationToken,
}

impl Builder {
    /// Opens the database, ends or requeues what a crash left behind, and starts to build.
    ///
    /// # Errors
    /// See [`StartErrorKind`].
    pub async fn start(config: BuilderConfig) -> Result<Self, StartError> {
        Box::pin(Self::start_observed(config, Arc::new(Unobserved))).await
    }

    /// As [`start`](Self::start), with somebody to watch.
    ///
    /// # Errors
    /// See [`StartErrorKind`].
    pub async fn start_observed(
        config: BuilderConfig,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, StartError> {
        let assets = match &config.asset_manager {
            Some(assets) => {
                let client = AssetClient::connect_lazy(assets.clone()).map_err(|error| {
                    StartError::new(StartErrorKind::AssetManager, error.to_string()).with_source(error)
                })?;
                Some(client.with_observer(Arc::clone(&observer) as _))
            }
            None => None,
        };
        let uploads = config
            .asset_manager
            .as_ref()
            .is_some_and(|assets| assets.delivery == assetclient::Delivery::Upload);
        if uploads && config.artifacts != ArtifactConfig::Local {
            return Err(StartError::new(
                StartErrorKind::Configuration,
                "images in a bucket are registered with assetmanagerd, not uploaded to it",
            ));
        }
        let directory = config.database_directory.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&directory)).await;
        let store = opened.unwrap_or(Err(StoreError::Stopped)).map_err(|error| {
            let kind = match error {
                StoreError::Locked { .. } => StartErrorKind::DatabaseInUse,
                StoreError::TooNew { .. } => StartErrorKind::DatabaseTooNew,
                _ => StartErrorKind::Database,
            };
            StartError::new(kind, error.to_string()).with_source(error)
        })?;
        // After the database: who has its lock is alone, so that what a sweep finds is nobody's any more.
        let pipeline = prepare(&config)?;
        let artifacts = artifacts::open(&config).await?;
        let inner = Arc::new(Inner {
            artifacts,
            outbox_changed: Arc::new(Notify::new()),
            observer,
            removals: RemovalLocks::default(),
            changes: Changes::default(),
            make_room: Arc::new(Notify::new()),
            storage_full: AtomicBool::new(false),
            unstored: AtomicUsize::new(0),
            isolation_check: tokio::sync::Mutex::new(None),
            queue: Mutex::default(),
            places: Mutex::default(),
            wake: Arc::new(Notify::new()),
            config,
            pipeline,
            store,
            assets,
            live: LiveBuilds::default(),
            log_streams: LogStreams::default(),
            slot_freed: Notify::new(),
            stopped: CancellationToken::new(),
        });
        Box::pin(recover::recover(&inner)).await?;
        if let Some(client) = &inner.assets {
            let outbox = Outbox::new(
                inner.store.clone(),
                client.clone(),
                Arc::clone(&inner.artifacts),
                Arc::new(SystemClock),
                Arc::clone(&inner.outbox_changed),
            );
            tokio::spawn(outbox.run(inner.stopped.clone()));
        }
        tokio::spawn(cleanup::run(Arc::downgrade(&inner)));
        tokio::spawn(usage::look_over(Arc::downgrade(&inner)));
        tokio::spawn(queue::dispatch(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// Accepts a build. Its row is in the database when this returns. When the future is dropped, the build is accepted
    /// all the same if it can be: a client that went away finds it in the list.
    ///
    /// # Errors
    /// `InvalidArgument` for a reference or registry that is not allowed, `ResourceExhausted` for a quota that is used up
    /// or a full queue, `Unavailable` while shutting down.
    pub async fn create(&self, request: BuildRequest) -> Result<Build, ServiceError> {
        let tenant = request.tenant.tenant_id.clone();
        let work = accept::accept(Arc::clone(&self.inner), request, None);
        self.inner.changes.run(&tenant, work).await
    }

    /// The same for a request to which its tenant gave a key: within 24 hours the same key and request give the same
    /// build, as it stands then. Credentials are no part of what is compared.
    ///
    /// # Errors
    /// As [`create`](Self::create), `InvalidArgument` for anything but 1 to 255 visible ASCII characters, `AlreadyExists`
    /// when the key was used for another request, `FailedPrecondition` when its build was deleted.
    pub async fn create_once(&self, request: BuildRequest, key: &str) -> Result<Build, ServiceError> {
        let key = Some(key.to_owned());
        let tenant = request.tenant.tenant_id.clone();
        let work = accept::accept(Arc::clone(&self.inner), request, key);
        self.inner.changes.run(&tenant, work).await
    }

    /// One build.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied` for another tenant's.
    pub async fn get(&self, tenant: &TenantId, id: &BuildId) -> Result<Build, ServiceError> {
        let mut build = self.inner.find(tenant, *id).await?;
        self.inner.refresh(&mut build).await;
        Ok(build)
    }

    /// Builds of a tenant, newest first.
    ///
    /// # Errors
    /// `InvalidArgument` for a page token that is none.
    pub async fn list(&self, query: ListQuery) -> Result<BuildPage, ServiceError> {
        let before = match query.page_token.as_str() {
            "" => None,
            token => Some(validate::page_token(token)?),
        };
        let page_size = match query.page_size {
            0 => DEFAULT_PAGE_SIZE,
            size => size.min(MAX_PAGE_SIZE),
        };
        let listing = self
            .inner
            .store
            .list(query.tenant, query.states, before, page_size as usize)
            .await
            .map_err(internal)?;
        let mut builds = listing.builds;
        for build in &mut builds {
            self.inner.refresh(build).await;
        }
        Ok(BuildPage {
            builds,
            next_page_token: listing
                .next_before
                .map(validate::encode_page_token)
                .unwrap_or_default(),
            total_count: listing.total,
        })
    }

    /// Ends a build that waits or runs; answers when its work has stopped. Dropping the future changes nothing about that.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `FailedPrecondition` when it has ended already, other than by cancelling.
    pub async fn cancel(&self, tenant: &TenantId, id: &BuildId) -> Result<Build, ServiceError> {
        let work = accept::cancel(Arc::clone(&self.inner), tenant.clone(), *id);
        self.inner.changes.run(tenant, work).await
    }

    /// Removes a build that has ended: its image, its metadata, its asset, its log. What is counted stays counted. With
    /// `force` a build that has not ended is cancelled first. Dropping the future changes nothing.
    ///
    /// # Errors
    /// `NotFound` (also when it is gone already), `PermissionDenied` for another tenant's, `FailedPrecondition` when it has
    /// not ended, or when a virtual machine uses its image or that is not known; the latter also with `force`.
    pub async fn delete(&self, tenant: &TenantId, id: &BuildId, force: bool) -> Result<(), ServiceError> {
        let work = removal::delete(Arc::clone(&self.inner), tenant.clone(), *id, force);
        self.inner.changes.run(tenant, work).await
    }

    /// What a tenant may use and what it uses. A tenant that was never seen has the limits of the default tier.
    ///
    /// # Errors
    /// `Internal` when the database fails.
    pub async fn quotas(&self, tenant: &TenantId) -> Result<TenantQuotas, ServiceError> {
        usage::quotas(&self.inner, tenant.clone()).await
    }

    /// The tenant's builds of a window of time in figures.
    ///
    /// # Errors
    /// `InvalidArgument` for a window that ends before it begins.
    pub async fn stats(&self, tenant: &TenantId, window: StatsWindow) -> Result<BuildStats, ServiceError> {
        usage::stats(&self.inner, tenant.clone(), window).await
    }

    /// The log of a build, from `from_sequence` on (0 and 1 both mean the first line).
    ///
    /// Lines come from the database first, then, with `follow`, as they are written: without a gap, without a repeat,
    /// until the build ends. A shutdown ends the stream with `Unavailable`, and the caller may come back with the next
    /// sequence number. Lines are read when the stream is polled: who reads slowly holds up nobody, and keeps a page of
    /// at most 16 KiB in memory, or one line where that is longer.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied` for another tenant's, `ResourceExhausted` while the tenant has
    /// [`MAX_LOG_STREAMS_PER_TENANT`] open, or all tenants [`MAX_LOG_STREAMS`]. A place is free when a stream is dropped.
    pub async fn open_log(
        &self,
        tenant: TenantId,
        id: BuildId,
        from_sequence: u64,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<LogLine, ServiceError>> + Send + 'static + use<>, ServiceError>
    {
        follow::open(Arc::clone(&self.inner), tenant, id, from_sequence, follow).await
    }

    /// [`Builder::open_log`], whose error is the first item.
    pub fn logs(
        &self,
        tenant: TenantId,
        id: BuildId,
        from_sequence: u64,
        follow: bool,
    ) -> impl Stream<Item = Result<LogLine, ServiceError>> + Send + 'static + use<> {
        let opened = follow::open(Arc::clone(&self.inner), tenant, id, from_sequence, follow);
        futures_util::stream::once(opened).try_flatten()
    }

    /// The last lines of a build's log, at most `limit`, in their order.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied` for another tenant's.
    pub async fn last_lines(
        &self,
        tenant: &TenantId,
        id: BuildId,
        limit: usize,
    ) -> Result<Vec<LogLine>, ServiceError> {
        self.inner.find(tenant, id).await?;
        let read = move |connection: &_| last_lines(connection, id, limit);
        self.inner.store.read(read).await.map_err(internal)
    }

    /// Events from outside of requests that the audit log does not have yet, with their numbers, the oldest first, at most
    /// `limit`: what the service removed of its own accord, and what operators changed with other processes. Each is a line
    /// of an [`AuditEvent`](crate::audit::AuditEvent).
    ///
    /// # Errors
    /// `Internal` when the database fails.
    pub async fn audit_events(&self, limit: usize) -> Result<Vec<(i64, String)>, ServiceError> {
        self.inner.store.audit_events(limit).await.map_err(internal)
    }

    /// The audit log has these events.
    ///
    /// # Errors
    /// `Internal` when the database fails; then they are given again.
    pub async fn audit_events_written(&self, numbers: Vec<i64>) -> Result<(), ServiceError> {
        self.inner
            .store
            .audit_events_exported(numbers)
            .await
            .map_err(internal)
    }

    /// Whether the service can build.
    pub async fn health(&self) -> Health {
        health::check(&self.inner).await
    }

    /// Refuses new builds and lets running ones finish; those that do not end in time are requeued, or ended with a
    /// reason where they had credentials, which are not kept. Answers when nothing runs any more, after `grace` at the
    /// latest, or 5 seconds where that is less: builds that were ended need a moment to clear up. Waiting builds stay in
    /// the database and are taken up at the next start.
    pub async fn shutdown(&self, grace: Duration) {
        let inner = &self.inner;
        inner.lock_queue().drain();
        inner.wake.notify_one();
        let clearing_up = CLEARING_UP.min(grace / 3);
        if tokio::time::timeout(grace.saturating_sub(clearing_up), inner.idle())
            .await
            .is_err()
        {
            inner.live.end_all(EndReason::Shutdown);
            if tokio::time::timeout(CLEARING_UP, inner.idle()).await.is_err() {
                tracing::warn!("Builds are still running after the shutdown: the next start takes them up");
            }
        }
        inner.stopped.cancel();
    }
}

impl Inner {
    /// What the node has at this moment: what builds have reserved of the disk is theirs, whether they have written it or
    /// not.
    fn capacity(&self) -> NodeCapacity {
        let mut node = self.config.node;
        if self.config.reserve_disk
            && let Ok(free) = rustix::fs::statvfs(&self.config.workspace_directory)
        {
            let free = free.f_bavail.saturating_mul(free.f_frsize);
            node.disk_bytes = Some(node.disk_bytes.unwrap_or(u64::MAX).min(free));
        }
        node
    }

    /// Where clients find the image of a build, or will.
    fn image_location(&self, tenant: &TenantId, id: BuildId) -> PathBuf {
        self.artifacts.location(&ArtifactKey {
            tenant: tenant.clone(),
            build: id,
        })
    }

    async fn find(&self, tenant: &TenantId, id: BuildId) -> Result<Build, ServiceError> {
        self.find_in(Lane::Methods, tenant, id).await
    }

    async fn find_in(&self, lane: Lane, tenant: &TenantId, id: BuildId) -> Result<Build, ServiceError> {
        let found = self.store.get_in(lane, id).await.map_err(internal)?;
        let build = found.ok_or(ServiceError::NotFound)?.build;
        if build.request.tenant.tenant_id == *tenant {
            Ok(build)
        } else {
            Err(ServiceError::PermissionDenied)
        }
    }

    /// Adds what is not worth a transaction each: the latest figures, the place in the queue.
    async fn refresh(&self, build: &mut Build) {
        if build.state.is_terminal() {
            return;
        }
        if let Some((percent, step)) = self.live.get(build.id).and_then(|live| live.progress())
            && percent >= build.progress_percent
        {
            build.progress_percent = percent;
            build.current_step = step;
        }
        if build.state == BuildState::Pending {
            let place = self.place(build.id).await;
            build.queue_position = place.map(|place| place.before);
            build.estimated_start = place.and_then(|place| place.estimated_start);
        }
    }
}

/// Makes the directories and what the pipeline needs.
fn prepare(config: &BuilderConfig) -> Result<PipelineConfig, StartError> {
    let staging_directory = config.workspace_directory.join("staging");
    let is_local = config.artifacts == ArtifactConfig::Local;
    let output = (StartErrorKind::OutputDirectory, config.output_directory.as_path());
    for (kind, directory) in is_local.then_some(output).into_iter().chain([
        (
            StartErrorKind::WorkspaceDirectory,
            config.workspace_directory.as_path(),
        ),
        (StartErrorKind::WorkspaceDirectory, &staging_directory),
        (StartErrorKind::ScratchDirectory, &config.scratch_directory),
    ]) {
        usable(directory).map_err(|error| {
            StartError::new(kind, format!("cannot write to {}", directory.display())).with_source(error)
        })?;
    }
    let launcher = match &config.launcher {
        Some(launcher) => Arc::clone(launcher),
        None => Arc::new(
            ProcessLauncher::from_command(&config.worker_command).ok_or_else(|| {
                StartError::new(StartErrorKind::Configuration, "the worker command is empty")
            })?,
        ),
    };
    // Blobs and packs share the allowance half and half: a pack holds what its blob holds, uncompressed, but fewer of
    // them are worth keeping.
    let share_bytes = config.cache_max_bytes / 2;
    let max_pack_bytes = config.cache_enabled.then_some(share_bytes);
    let packs = PackCache::open(&config.workspace_directory, max_pack_bytes).map_err(|error| {
        StartError::new(StartErrorKind::WorkspaceDirectory, "cannot open the pack cache").with_source(error)
    })?;
    let images = (config.cache_enabled && is_local)
        .then(|| ImageCache::open(&config.workspace_directory))
        .transpose()
        .map_err(|error| {
            StartError::new(StartErrorKind::WorkspaceDirectory, "cannot open the image cache")
                .with_source(error)
        })?;
    let max_blob_bytes = max_pack_bytes.unwrap_or(0);
    let fetch = config.fetch.clone().with_cache_limit(max_blob_bytes);
    let fetch = oci_fetch::Client::new(fetch).map_err(|error| {
        StartError::new(StartErrorKind::Registry, "cannot make the registry client").with_source(error)
    })?;
    Ok(PipelineConfig {
        fetch,
        local_images: false,
        launcher,
        alarms: Alarms::default(),
        packs,
        images,
        staging_directory,
        guest_init: Arc::clone(&config.guest_init),
        guest_architecture: config.guest_architecture.clone(),
        backend: config.backend,
        layers_in_parallel: config.layers_in_parallel.max(1),
        // A build that is run again after a crash may have been published already.
        replace_existing: true,
        limits: BuildLimits {
            timeout: Some(config.build_timeout),
            max_compressed_bytes: config.max_compressed_bytes,
            ..BuildLimits::default()
        },
    })
}

/// Makes the directory when it is absent, and a file in it.
fn usable(directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    tempfile::tempfile_in(directory).map(drop)
}

/// A change that the database did not take. The caller may try again; a full disk is the operator's.
fn database_failed(error: StoreError) -> ServiceError {
    match error {
        StoreError::Sqlite(_) | StoreError::Stopped => {
            tracing::error!(error = &error as &dyn std::error::Error, "The database failed");
            ServiceError::DatabaseUnavailable
        }
        error => internal(error),
    }
}

/// An error that only the operator can do something about.
fn internal(error: StoreError) -> ServiceError {
    tracing::error!(error = &error as &dyn std::error::Error, "The database failed");
    ServiceError::Internal(Box::new(error))
}
