//! One build: reference in, published image out. The daemon and `builderd build` both run this.
//!
//! ```text
//! resolve ─ plan ─ layers, several at a time: cached layer file, or pull ═> index worker ─ verified
//!                                                                              │
//!                             publish <─ checksum <─ assemble worker <─ shape <┤
//!                                    `───── copy of the same image, if there is one ┘
//! ```
//!
//! The image is written under a hidden name in its final directory and appears there, together with its metadata, only
//! when it is whole and synced. Whatever ends a build early (an error, the [`CancellationToken`], the time limit), its
//! workers are dead and its temporary files gone when [`run`] returns. When its future is dropped, the workers are
//! killed and the files removed too, but nobody waits for it.

mod ahead;
mod assemble;
mod contents;
mod copy;
mod direct;
mod feed;
mod fetch;
mod layers;
mod own;
mod progress;
mod publish;
mod reuse;
mod stop;

use std::{
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

pub(crate) use self::publish::UNFINISHED_MARK;
pub use self::publish::{machine_path, metadata_path, sidecar_paths};
use self::{
    ahead::Ahead,
    layers::Sums,
    progress::{Progress, megabytes},
    publish::Draft,
    reuse::{Reuse, Reused},
    stop::{Reason, Stop},
};
use crate::{
    build::{BuildMetrics, BuildState, ImageMetadata},
    error::{BuildError, BuildErrorKind},
    event::{Component, Event, EventSender, Level},
    image_cache::ImageCache,
    observe::{self, Step},
    pack_cache::{Grant, PackCache},
    request::{Backend, BuildRequest, InitStrategy, LayerMode},
    shape::{GuestInit, shape},
    worker::{Alarms, Launcher, Usage, WorkerLimits},
};

/// What a build needs from its surroundings. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PipelineConfig {
    /// Resolves images and fetches their layers.
    pub fetch: oci_fetch::Client,
    /// Whether `oci:`, `oci-archive:` and `docker-archive:` may name files of this machine. Never for a request that
    /// came over the network.
    pub local_images: bool,
    /// Starts the workers.
    pub launcher: Arc<dyn Launcher>,
    /// Counts the workers that cannot be killed.
    pub alarms: Alarms,
    /// Keeps layer files between builds.
    pub packs: PackCache,
    /// Knows finished images, so that the same one is copied instead of made again; `None` makes every image anew.
    pub images: Option<ImageCache>,
    /// Where the backend that stages its tree does so.
    pub staging_directory: PathBuf,
    /// The init that [`crate::request::InitStrategy::Tini`] puts into the image.
    pub guest_init: Arc<[u8]>,
    /// The architecture that `guest_init` runs on, in OCI's words (`amd64`, `arm64`).
    pub guest_architecture: String,
    /// Which writer makes the image.
    pub backend: Backend,
    /// Layers that one build indexes at the same time, at least 1. Some more are pulled meanwhile.
    pub layers_in_parallel: usize,
    /// Whether an image and its metadata that are at the output already are replaced. Nothing but regular files ever
    /// is.
    pub replace_existing: bool,
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
    /// Bytes of address space of each worker; in boxes also of memory of all workers together.
    pub max_memory_bytes: Option<u64>,
    /// Cores of all workers together, in boxes.
    pub max_cpu_cores: Option<u32>,
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

/// What all parts of a running build share.
struct Work<'a> {
    config: &'a PipelineConfig,
    request: &'a BuildRequest,
    image: &'a oci_fetch::Image,
    isolation_key: &'a str,
    grant: &'a Grant,
    progress: &'a Progress,
    stop: &'a Stop,
    sums: Sums,
    ahead: Ahead,
    usage: &'a Mutex<Usage>,
}

impl Work<'_> {
    const fn events(&self) -> &EventSender {
        self.progress.events()
    }

    /// Adds what a worker took that has ended, and tells what all took so far.
    async fn add_usage(&self, usage: Usage) {
        let used = {
            let mut sum = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
            sum.cpu_time += usage.cpu_time;
            sum.peak_memory_bytes = sum.peak_memory_bytes.max(usage.peak_memory_bytes);
            sum.read_bytes = sum.read_bytes.saturating_add(usage.read_bytes);
            sum.written_bytes = sum.written_bytes.saturating_add(usage.written_bytes);
            Event::Used {
                cpu: sum.cpu_time,
                peak_memory_bytes: sum.peak_memory_bytes,
                pulled_bytes: self.sums.pulled_bytes.load(Ordering::Relaxed),
            }
        };
        self.events().send(used).await;
    }

    /// Limits of any worker. The time limit is a second line: the build ends its workers itself.
    fn worker_limits(&self) -> WorkerLimits {
        WorkerLimits {
            address_space_bytes: self.config.limits.max_memory_bytes,
            file_size_bytes: None,
            wall_time: self
                .config
                .limits
                .timeout
                .map(|limit| limit + Duration::from_secs(30)),
        }
    }

    /// Whether layers and image together take no more of the disk than they may.
    fn check_image(&self, allocated_bytes: u64) -> Result<(), BuildError> {
        let layers_bytes = self.sums.disk_bytes.load(Ordering::Relaxed);
        self.check_disk(
            layers_bytes.saturating_add(allocated_bytes),
            "the layers, uncompressed, and the image",
        )
    }

    fn check_disk(&self, bytes: u64, what: &str) -> Result<(), BuildError> {
        match self.config.limits.max_disk_bytes {
            Some(limit) if bytes > limit => Err(BuildError::new(
                BuildErrorKind::LimitExceeded,
                format!("disk: {what} take {bytes} bytes, the build may use {limit}"),
            )),
            _ => Ok(()),
        }
    }
}

/// Runs one build and publishes its image at `output`, with its metadata beside it. The directory of `output` has to
/// exist; for files that are there already see [`PipelineConfig::replace_existing`].
///
/// `events` gets a line for each thing worth knowing, figures several times a second, and the states from `Pulling` to
/// `Optimizing`, each once and in order; how the build ended is what this returns.
///
/// # Errors
/// See [`BuildErrorKind`].
pub async fn run(
    config: &PipelineConfig,
    request: &BuildRequest,
    output: &Path,
    events: EventSender,
    cancel: CancellationToken,
) -> Result<Outcome, BuildError> {
    let stop = Stop::default();
    let usage = Mutex::default();
    let progress = Progress::new(events);
    let mut work = pin!(build(config, request, output, &progress, &stop, &usage));
    let mut cancelled = pin!(cancel.cancelled());
    let mut timed_out = pin!(async {
        match config.limits.timeout {
            Some(limit) => {
                tokio::time::sleep(limit).await;
                limit
            }
            None => std::future::pending().await,
        }
    });
    let mut watch = pin!(progress.watch());
    loop {
        // A stop is a signal, not the end: the work is driven on until it has cleared up behind itself.
        tokio::select! {
            biased;
            result = &mut work => {
                if result.is_err() {
                    report_spent(config, &progress, &usage).await;
                }
                return result;
            }
            () = &mut cancelled, if !stop.is_stopped() => stop.stop(Reason::Cancelled),
            limit = &mut timed_out, if !stop.is_stopped() => stop.stop(Reason::TimedOut(limit)),
            never = &mut watch => match never {},
        }
    }
}

async fn build(
    config: &PipelineConfig,
    request: &BuildRequest,
    output: &Path,
    progress: &Progress,
    stop: &Stop,
    usage: &Mutex<Usage>,
) -> Result<Outcome, BuildError> {
    let events = progress.events();
    // An image that could not be put anywhere is not worth a download.
    let draft = {
        let output = output.to_owned();
        let replace = config.replace_existing;
        blocking(move || Draft::create(&output, replace)).await??
    };
    progress.enter(BuildState::Pulling).await;
    progress.report().await;

    let resolved = observe::step(
        events,
        Step::Resolve,
        stop.unless(fetch::resolve(config, request)),
    )
    .await?;
    let image = &resolved.image;
    let n_layers = image.layers.len();
    let compressed_bytes: u64 = image.layers.iter().map(|layer| layer.size_bytes).sum();
    let message = format!(
        "Resolved {} to {} for {}: {n_layers} layers, {} compressed",
        image.reference,
        image.manifest_digest,
        image.platform,
        megabytes(compressed_bytes)
    );
    events
        .log_with(
            Level::Info,
            Component::Puller,
            message,
            [
                ("image.digest", image.manifest_digest.to_string()),
                ("image.compressed_bytes", compressed_bytes.to_string()),
            ],
        )
        .await;
    let mut shaped = shape(
        image,
        request,
        GuestInit {
            binary: &config.guest_init,
            architecture: &config.guest_architecture,
        },
    )?;
    events
        .send(Event::Metadata(Box::new(shaped.metadata.clone())))
        .await;

    let work = Work {
        config,
        request,
        image,
        isolation_key: request.tenant.tenant_id.as_str(),
        grant: &resolved.grant,
        progress,
        stop,
        sums: Sums::default(),
        ahead: Ahead::new(n_layers),
        usage,
    };
    plan(&work, compressed_bytes)?;
    progress.plan(n_layers, compressed_bytes);
    let layers = observe::step(events, Step::Layers, layers::collect(&work)).await?;
    // An image without layers has passed all the same.
    progress.enter(BuildState::Extracting).await;

    progress.enter(BuildState::Building).await;
    let building = progress.elapsed();
    if request.target.layer_mode == LayerMode::Docker {
        events
            .log(
                Level::Info,
                Component::Writer,
                "Reading the layers as Docker does",
            )
            .await;
    }
    let reuse = Reuse::new(&work, &layers, &shaped);
    let reused = match &reuse {
        Some(reuse) => observe::step(events, Step::Reuse, reuse.copy(&work, &draft)).await?,
        None => None,
    };
    let (written, checksum, finishing) = match reused {
        Some(Reused { written, checksum }) => {
            progress.enter(BuildState::Optimizing).await;
            (written, checksum, progress.elapsed())
        }
        None => {
            let writing = assemble::write(&work, &layers, &shaped, draft.file());
            let (mut written, contents) = observe::step(events, Step::Write, writing).await?;
            let filling = contents::fill(&work, contents, &draft, written.size_bytes);
            let filled = observe::step(events, Step::Contents, filling).await?;
            written.measure(draft.file())?;
            (written, filled.checksum, filled.copied)
        }
    };
    drop(layers);
    if request.target.init == InitStrategy::Custom {
        let left_out = shaped.found_init(written.init.as_deref())?;
        if !left_out.is_empty() {
            let message = format!(
                "The kernel cannot hand these variables of the image to its init, which finds them in /container.env: {}",
                left_out.join(", ")
            );
            events.log(Level::Warn, Component::Writer, message).await;
        }
    }
    if let Some(tree) = &written.verity {
        shaped.made_tree(tree);
        events
            .send(Event::Metadata(Box::new(shaped.metadata.clone())))
            .await;
    }
    progress.begin(progress::Phase::Publish, 0).await;
    if stop.is_stopped() {
        return Err(stop.error());
    }
    // From here on the image is there; a cancellation comes too late.
    let metadata_path = {
        let metadata = shaped.metadata.clone();
        let placing = async { blocking(move || draft.publish(&metadata)).await? };
        observe::step(events, Step::Place, placing).await?
    };
    if let Some(reuse) = reuse {
        reuse.remember(output, &checksum, written.verity).await;
    }
    let trimmed = {
        let packs = config.packs.clone();
        blocking(move || packs.trim()).await?
    };
    if let Err(error) = trimmed {
        tracing::warn!(%error, "Failed to trim the pack cache");
    }

    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let ended = progress.elapsed();
    let times = progress.times();
    let usage = *work.usage.lock().unwrap_or_else(PoisonError::into_inner);
    let metrics = BuildMetrics {
        pull_duration_ms: times.pulled.map(milliseconds),
        extract_duration_ms: times.indexed.map(milliseconds),
        build_duration_ms: Some(milliseconds(finishing.saturating_sub(building))),
        optimize_duration_ms: Some(milliseconds(ended.saturating_sub(finishing))),
        total_duration_ms: Some(milliseconds(ended)),
        original_size_bytes: Some(work.sums.uncompressed_bytes.load(Ordering::Relaxed)),
        rootfs_size_bytes: Some(written.size_bytes),
        // Without a worker there is nothing to be measured.
        memory_peak_bytes: Some(usage.peak_memory_bytes).filter(|bytes| *bytes > 0),
        disk_usage_bytes: Some(written.allocated_bytes),
        cpu_time_ms: Some(milliseconds(usage.cpu_time)),
        pulled_bytes: Some(work.sums.pulled_bytes.load(Ordering::Relaxed)),
        io_read_bytes: Some(usage.read_bytes),
        io_write_bytes: Some(usage.written_bytes),
        isolation: config.launcher.isolation(),
        optimization: written.savings,
    };
    let message = format!(
        "Published the image: {} bytes, {} on disk, SHA-256 {checksum}",
        written.size_bytes,
        megabytes(written.allocated_bytes)
    );
    events
        .log_with(
            Level::Info,
            Component::Publisher,
            message,
            [
                ("rootfs.checksum", checksum.clone()),
                ("rootfs.size_bytes", written.size_bytes.to_string()),
            ],
        )
        .await;
    Ok(Outcome {
        image_path: output.to_owned(),
        metadata_path,
        size_bytes: written.size_bytes,
        checksum,
        metadata: shaped.metadata,
        metrics,
    })
}

/// Tells what the workers of a build took that ends without an image: that counts as any other.
async fn report_spent(config: &PipelineConfig, progress: &Progress, usage: &Mutex<Usage>) {
    let usage = *usage.lock().unwrap_or_else(PoisonError::into_inner);
    if usage.cpu_time.is_zero() && usage.peak_memory_bytes == 0 {
        return;
    }
    let metrics = BuildMetrics {
        memory_peak_bytes: Some(usage.peak_memory_bytes).filter(|bytes| *bytes > 0),
        cpu_time_ms: Some(u64::try_from(usage.cpu_time.as_millis()).unwrap_or(u64::MAX)),
        io_read_bytes: Some(usage.read_bytes),
        io_write_bytes: Some(usage.written_bytes),
        isolation: config.launcher.isolation(),
        ..BuildMetrics::default()
    };
    progress.events().send(Event::Spent(Box::new(metrics))).await;
}

/// Compares what the manifest says with what the build may use, before the first byte of a layer.
fn plan(work: &Work<'_>, compressed_bytes: u64) -> Result<(), BuildError> {
    if let Some(limit) = work.config.limits.max_compressed_bytes
        && compressed_bytes > limit
    {
        return Err(BuildError::new(
            BuildErrorKind::LimitExceeded,
            format!("the image's layers have {compressed_bytes} bytes compressed, {limit} are allowed"),
        ));
    }
    if work.image.layers.len() > assemble::MAX_LAYERS {
        return Err(BuildError::new(
            BuildErrorKind::UnsupportedImage,
            format!(
                "the image has {} layers, at most {} are built",
                work.image.layers.len(),
                assemble::MAX_LAYERS
            ),
        ));
    }
    // Compression makes nothing larger by much, so that this refuses nothing that would fit.
    work.check_disk(compressed_bytes, "the layers, still compressed,")
}

/// Runs `work` in a thread for blocking work.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| BuildError::internal("do work on files", error))
}
