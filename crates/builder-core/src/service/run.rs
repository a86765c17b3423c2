//! One build of the service: the pipeline, and beside it the recorder that stores what it tells.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tenant::{Reserved, SandboxLevel, account::Used};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use super::{
    Inner,
    live::{EndReason, LiveBuild},
    queue::Waiting,
    shown::shown,
    validate,
};
use crate::{
    artifact::{ArtifactError, ArtifactFault, ArtifactKey, Published, StagedImage},
    build::{BuildId, BuildMetrics, BuildState},
    error::{BuildError, BuildErrorKind},
    event::{self, Component, ERROR_KIND, Event, EventSender, Level, LogLine},
    observe::{self, EndedBuild, Step},
    outbox,
    pipeline::{self, BuildLimits, Outcome, PipelineConfig},
    request::BuildRequest,
    store::{self, BuildChange, Finished, NewLine, Registration, Requeued, StoreError},
    worker::BuildBox,
};

/// Events on their way from the pipeline to the recorder, and in one transaction.
const EVENTS: usize = 256;

/// Figures alone are not stored more often than this; who asks gets them fresh from memory.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// What a running build has used is stored so often.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);

/// Pauses between attempts to store what has to be stored: a disk that is full now may not be in a moment.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Attempts where it is not the disk's fault and another one may well fail the same way.
const ATTEMPTS: u32 = 5;

/// Lines that wait for a database that does not take them; beyond, the latest are left out.
const MAX_PENDING_LINES: usize = 1_000;

/// Why a build that had credentials does not survive a restart.
pub(super) const CREDENTIALS_LOST: &str = "credentials are not kept over a restart; submit again";

/// An image that is in place, what it takes there, and what assetmanagerd is to be told of it.
type Placed = (Outcome, Published, Option<Registration>);

/// How a build ended here.
enum Ending {
    /// For good.
    Ended(Box<BuildChange>),
    /// It starts over with the next start of the service.
    Requeued(NewLine),
}

/// How long the end of a cancelled build waits for its files to be removed.
const REMOVAL_PATIENCE: Duration = Duration::from_millis(300);

/// Runs a build from its turn to its end, within a span of its own.
pub(super) async fn run(inner: &Arc<Inner>, waiting: Waiting, reserved: Reserved) {
    let span = observe::build_span(&waiting.id, &waiting.request.tenant.tenant_id);
    inner.observer.begins(&waiting.id, &span);
    run_one(inner, waiting, reserved).instrument(span).await;
}

async fn run_one(inner: &Arc<Inner>, waiting: Waiting, reserved: Reserved) {
    let Waiting { id, request, live } = waiting;
    let had_credentials = request.source.credentials.is_some();
    let tenant = request.tenant.tenant_id.clone();
    tracing::info!(build.id = %id, tenant.id = %request.tenant.tenant_id, "Build begins");

    let (events, received) = event::channel(EVENTS);
    let cancel = live.end_token().clone();
    let service = Arc::clone(inner);
    // A task of its own: a panic in it ends this build and nothing else.
    let work = tokio::spawn(
        async move { build(&service, id, &request, &reserved, events, cancel).await }.in_current_span(),
    );
    let untold = record(inner, id, &live, received).await;
    let result = work
        .await
        .unwrap_or_else(|error| Err(BuildError::internal("run the build", error)));
    let mut ending = match result {
        Ok(placed) => Ending::Ended(Box::new(completed(placed))),
        Err(error) => {
            let key = ArtifactKey {
                tenant: tenant.clone(),
                build: id,
            };
            let service = Arc::clone(inner);
            let mut removing = tokio::spawn(async move { service.remove_files(&key).await });
            // A bucket that does not answer must not keep a tenant waiting who has cancelled. The task goes on without us.
            if matches!(live.end_reason(), Some(EndReason::ByRequest)) {
                let _ = tokio::time::timeout(REMOVAL_PATIENCE, &mut removing).await;
            } else if let Err(error) = removing.await {
                tracing::error!(build.id = %id, %error, "Removing the files of a build ended by a fault of its own");
            }
            given_up(inner, id, &live, &error, had_credentials)
        }
    };
    if let Ending::Ended(change) = &mut ending {
        change.lines.splice(0..0, untold);
    }
    end(inner, id, &live, ending).await;
    inner.make_room.notify_one();
}

/// The work of a build: image, and its place.
async fn build(
    inner: &Inner,
    id: BuildId,
    request: &BuildRequest,
    reserved: &Reserved,
    events: EventSender,
    cancel: CancellationToken,
) -> Result<Placed, BuildError> {
    let (pipeline, storage_bytes) = prepare(inner, id, request, reserved).await?;
    if let Some(isolation) = pipeline.launcher.isolation() {
        // Seen while the build runs; its end says it again.
        let change = BuildChange {
            metrics: Some(BuildMetrics {
                isolation: Some(isolation),
                ..BuildMetrics::default()
            }),
            ..BuildChange::default()
        };
        if let Err(error) = inner.store.change(id, change).await {
            tracing::warn!(build.id = %id, error = &error as &dyn std::error::Error, "Failed to store a build's isolation");
        }
    }
    let key = ArtifactKey {
        tenant: request.tenant.tenant_id.clone(),
        build: id,
    };
    inner.artifacts.prepare(&key).await.map_err(unwritable)?;
    let output = inner.artifacts.staging_path(&key);
    let begun = Instant::now();
    let mut outcome = pipeline::run(&pipeline, request, &output, events.clone(), cancel.clone()).await?;
    let deadline = pipeline.limits.timeout.map(|limit| (begun + limit, limit));
    if let Err(error) = keep_room(inner, id, &outcome, storage_bytes).await {
        events.send(Event::Spent(Box::new(outcome.metrics))).await;
        return Err(error);
    }
    let publishing = publish(inner, &key, &outcome, &events, &cancel, deadline);
    let published = match observe::step(&events, Step::Publish, publishing).await {
        Ok(published) => published,
        Err(error) => {
            events.send(Event::Spent(Box::new(outcome.metrics))).await;
            return Err(error);
        }
    };
    let total = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    outcome.metrics.total_duration_ms = Some(total);
    let registration = inner
        .assets
        .as_ref()
        .map(|_| outbox::registration(&*inner.artifacts, &key, request, &outcome));
    Ok((outcome, published, registration))
}

/// Counts the image towards its tenant's storage before it is published: what would be too much is never kept.
async fn keep_room(inner: &Inner, id: BuildId, outcome: &Outcome, limit: u64) -> Result<(), BuildError> {
    let allocated = outcome.metrics.disk_usage_bytes;
    let bytes = allocated
        .filter(|_| inner.artifacts.keeps_holes())
        .unwrap_or(outcome.size_bytes);
    let kept = inner.store.keep_room(id, bytes, limit).await;
    match kept.map_err(|error| BuildError::internal("count the image", error))? {
        Some(refusal) => Err(BuildError::new(
            BuildErrorKind::LimitExceeded,
            refusal.to_string(),
        )),
        None => Ok(()),
    }
}

/// Puts the image into its place, within what the build has left of its time.
async fn publish(
    inner: &Inner,
    key: &ArtifactKey,
    outcome: &Outcome,
    events: &EventSender,
    cancel: &CancellationToken,
    deadline: Option<(Instant, Duration)>,
) -> Result<Published, BuildError> {
    let staged = StagedImage {
        image: outcome.image_path.clone(),
        metadata: outcome.metadata_path.clone(),
        machine: pipeline::machine_path(&outcome.image_path),
        checksum: outcome.checksum.clone(),
    };
    let stop = cancel.child_token();
    let location = inner.artifacts.location(key);
    let is_elsewhere = location != staged.image;
    if is_elsewhere {
        let step = "uploading the image".to_owned();
        events.send(Event::Progress { percent: 99, step }).await;
    }
    let mut publishing = inner.artifacts.publish(key, &staged, &stop);
    let timed_out = async {
        match deadline {
            Some((moment, _)) => tokio::time::sleep_until(moment).await,
            None => std::future::pending().await,
        }
    };
    // A stop is a signal, not the end: the work is driven on until it has cleared up behind itself.
    let result = tokio::select! {
        biased;
        result = &mut publishing => result,
        () = timed_out => {
            stop.cancel();
            publishing.await
        }
    };
    let published = result.map_err(|error| match error.fault {
        ArtifactFault::Stopped if cancel.is_cancelled() => {
            BuildError::new(BuildErrorKind::Cancelled, "the build was cancelled")
        }
        ArtifactFault::Stopped => {
            let limit = deadline.map_or(0.0, |(_, limit)| limit.as_secs_f64());
            let message = format!("the build took longer than the {limit} seconds that it may take");
            BuildError::new(BuildErrorKind::TimedOut, message)
        }
        _ if is_elsewhere => BuildError::new(
            BuildErrorKind::StorageUnavailable,
            format!("the image cannot be put into the service's object store: {error}"),
        )
        .with_cause(error),
        _ => unwritable(error),
    })?;
    if is_elsewhere {
        let message = format!("Uploaded the image: {}", location.display());
        events.log(Level::Info, Component::Publisher, message).await;
    }
    Ok(published)
}

fn unwritable(error: ArtifactError) -> BuildError {
    BuildError::new(
        BuildErrorKind::StorageUnavailable,
        format!("the output directory cannot be written to: {error}"),
    )
    .with_cause(error)
}

/// The pipeline of one build: its limits, and the box that its workers share.
async fn prepare(
    inner: &Inner,
    id: BuildId,
    request: &BuildRequest,
    reserved: &Reserved,
) -> Result<(PipelineConfig, u64), BuildError> {
    let (limits, storage_bytes, level) = limits(inner, request, reserved).await?;
    let launcher = Arc::clone(&inner.pipeline.launcher);
    let build = BuildBox {
        name: id.to_string(),
        level: Some(level.number()),
        memory_bytes: limits.max_memory_bytes,
        cpu_cores: limits.max_cpu_cores,
    };
    let boxed = tokio::task::spawn_blocking(move || {
        let own = launcher.for_build(&build)?;
        Ok::<_, BuildError>(own.unwrap_or(launcher))
    });
    let launcher = boxed
        .await
        .map_err(|error| BuildError::internal("prepare the build's box", error))??;
    let pipeline = PipelineConfig {
        limits,
        launcher,
        ..inner.pipeline.clone()
    };
    Ok((pipeline, storage_bytes))
}

/// Ends a build that was taken out of the queue.
pub(super) async fn end_waiting(inner: &Inner, id: BuildId, live: &LiveBuild, reason: EndReason) {
    live.end(reason);
    let cancelled = BuildError::new(BuildErrorKind::Cancelled, "the build was cancelled");
    let ending = given_up(inner, id, live, &cancelled, false);
    end(inner, id, live, ending).await;
    // It may have been the one that all others waited behind.
    inner.wake.notify_one();
}

/// What one build may use: the machine's limits, lowered by those of the tenant's tier, lowered by the request. Looked
/// up at the beginning of the build, so that a change of the tenant's record counts for what still waits.
async fn limits(
    inner: &Inner,
    request: &BuildRequest,
    reserved: &Reserved,
) -> Result<(BuildLimits, u64, SandboxLevel), BuildError> {
    let unknown = |error: StoreError| BuildError::internal("look up the tenant's limits", error);
    let tenants = &inner.config.tenants;
    let record = inner
        .store
        .record(request.tenant.tenant_id.clone())
        .await
        .map_err(unknown)?;
    let own = match &record {
        Some(record) => tenants.limits_of(record),
        None => tenants.limits(tenants.default_tier()).clone(),
    };
    // Both were checked when the build was accepted; a row could only have been changed by hand.
    let image_field = BuildErrorKind::InvalidArgument {
        field: "docker_image.image_uri",
    };
    let requested = validate::requested_limits(request)
        .map_err(|error| BuildError::internal("read the request's limits", error))?;
    let reference: oci_fetch::Reference = request
        .source
        .image_uri
        .parse()
        .map_err(|error: oci_fetch::FetchError| BuildError::new(image_field.clone(), error.to_string()))?;
    let lowered = own.lowered_by(&requested).limits;
    validate::allows(&lowered, reference.registry())
        .map_err(|message| BuildError::new(image_field, message))?;

    let machine = &inner.pipeline.limits;
    let timeout = machine
        .timeout
        .map_or(lowered.deadline(), |limit| limit.min(lowered.deadline()));
    // No more than is reserved, should the record have been raised in between.
    let limits = BuildLimits {
        timeout: Some(timeout),
        max_disk_bytes: Some(lowered.disk_bytes.min(reserved.disk_bytes)),
        max_memory_bytes: Some(lowered.memory_bytes.min(reserved.memory_bytes)),
        max_cpu_cores: Some(lowered.cpu_cores.min(reserved.cpu_cores)),
        max_compressed_bytes: [machine.max_compressed_bytes, lowered.image_bytes]
            .into_iter()
            .flatten()
            .min(),
        // What is stored whole has to fit whole; better said before it is written than after.
        max_image_bytes: [
            machine.max_image_bytes,
            (!inner.artifacts.keeps_holes()).then_some(lowered.storage_bytes),
        ]
        .into_iter()
        .flatten()
        .min(),
    };
    Ok((limits, lowered.storage_bytes, lowered.sandbox_level))
}

/// Stores what the pipeline tells, in batches, until it has nothing more to tell. What the database did not take is
/// tried again with the next batch, so that a build goes on beside a database that fails, and can be cancelled; gives the
/// lines that were not stored up to the end.
async fn record(
    inner: &Inner,
    id: BuildId,
    live: &LiveBuild,
    mut received: mpsc::Receiver<Event>,
) -> Vec<NewLine> {
    let mut batch = Vec::with_capacity(EVENTS);
    let mut figures_stored = Instant::now();
    let mut change = BuildChange::default();
    let mut used = Used::default();
    let mut checkpoints = tokio::time::interval(CHECKPOINT_INTERVAL);
    checkpoints.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let received = tokio::select! {
            received = received.recv_many(&mut batch, EVENTS) => received,
            _ = checkpoints.tick() => {
                // A crash loses what comes after it, and nothing else.
                if let Err(error) = inner.store.checkpoint(id, used).await {
                    tracing::error!(build.id = %id, error = &error as &dyn std::error::Error, "Failed to store what a build has used");
                }
                continue;
            }
        };
        if received == 0 {
            break;
        }
        for event in batch.drain(..) {
            match event {
                Event::Log {
                    level,
                    component,
                    message,
                    metadata,
                } => {
                    if change.lines.len() < MAX_PENDING_LINES {
                        change.lines.push(NewLine {
                            metadata,
                            ..NewLine::new(level, component, message)
                        });
                    }
                }
                Event::State(state) => change.state = Some(state),
                Event::Progress { percent, step } => {
                    live.set_progress(percent, &step);
                    change.progress = Some((percent, step));
                }
                Event::Metadata(metadata) => {
                    let (metadata, left_out) = shown(*metadata);
                    change.image_metadata = Some(metadata);
                    change.lines.extend(left_out);
                }
                Event::Used {
                    cpu,
                    peak_memory_bytes,
                    pulled_bytes,
                } => {
                    used = Used {
                        cpu,
                        peak_memory_bytes,
                        pulled_bytes,
                    };
                }
                Event::Spent(metrics) => change.metrics = Some(*metrics),
                Event::Step {
                    step,
                    outcome,
                    duration,
                } => inner.observer.step(step, outcome, duration),
            }
        }
        let only_figures = change.lines.is_empty()
            && change.state.is_none()
            && change.image_metadata.is_none()
            && change.metrics.is_none();
        if only_figures && figures_stored.elapsed() < PROGRESS_INTERVAL {
            continue;
        }
        figures_stored = Instant::now();
        match inner.store.change(id, change.clone()).await {
            Ok(lines) => {
                live.broadcast(lines);
                change = BuildChange::default();
            }
            Err(error) => {
                tracing::error!(build.id = %id, error = &error as &dyn std::error::Error, "Failed to store what a build tells");
            }
        }
    }
    // Its end adds what it knows itself, which is not all where it ends without an image.
    if let Err(error) = inner.store.checkpoint(id, used).await {
        tracing::error!(build.id = %id, error = &error as &dyn std::error::Error, "Failed to store what a build has used");
    }
    change.lines
}

/// Stores how a build ended, shows it to followers, and lets go of it.
async fn end(inner: &Inner, id: BuildId, live: &LiveBuild, ending: Ending) {
    let (state, stored) = match ending {
        Ending::Ended(change) => {
            let state = change.state.map_or("", BuildState::as_str);
            (
                state,
                persist(inner, id, || inner.store.change(id, (*change).clone())).await,
            )
        }
        Ending::Requeued(line) => {
            let requeue = || inner.store.requeue(id, line.clone(), Requeued::Shutdown);
            inner.observer.requeued(&id);
            ("pending", persist(inner, id, requeue).await)
        }
    };
    if let Some(lines) = stored {
        live.broadcast(lines);
        Span::current().record("build.state", state);
        tracing::info!(build.id = %id, build.state = state, "Build ended");
        inner.outbox_changed.notify_one();
        tell_end(inner, id, live.failure()).await;
    }
    inner.live.remove(id);
}

/// Tells who watches how a build ended. What cannot be read now is not told: figures are worth no failure.
pub(super) async fn tell_end(inner: &Inner, id: BuildId, failure: Option<&'static str>) {
    let Ok(Some(stored)) = inner.store.get(id).await else {
        return;
    };
    let build = stored.build;
    if !build.state.is_terminal() {
        return;
    }
    let tenant = build.request.tenant.tenant_id;
    let record = inner.store.record(tenant.clone()).await.ok().flatten();
    let duration = match (build.started_at, build.completed_at) {
        // A clock that was set back in between gives no figure.
        (Some(begun), Some(ended)) => ended.duration_since(begun).ok(),
        _ => None,
    };
    inner.observer.ended(&EndedBuild {
        id,
        tier: record.map_or_else(|| inner.config.tenants.default_tier(), |record| record.tier),
        tenant,
        state: build.state,
        failure: failure.filter(|_| build.state == BuildState::Failed),
        duration,
        metrics: build.metrics,
    });
}

/// Stores a change that must not be lost: again and again while the database fails, until the service has stopped; then
/// the next start takes the build up. `None` when it was not stored.
///
/// Meanwhile the service is unhealthy and accepts nothing: what it cannot keep it must not promise.
async fn persist<F>(inner: &Inner, id: BuildId, mut store: impl FnMut() -> F) -> Option<Vec<LogLine>>
where
    F: Future<Output = Result<Vec<LogLine>, StoreError>>,
{
    let mut waiting = None;
    let mut pause = FIRST_PAUSE;
    for attempt in 1_u32.. {
        match store().await {
            Ok(lines) => return Some(lines),
            Err(StoreError::Ended | StoreError::NoSuchBuild) => return None,
            Err(error) => {
                tracing::error!(build.id = %id, attempt, error = &error as &dyn std::error::Error, "Failed to store the state of a build");
                if !matches!(error, StoreError::Sqlite(_)) && attempt >= ATTEMPTS {
                    return None;
                }
            }
        }
        waiting.get_or_insert_with(|| Unstored::new(&inner.unstored));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.stopped.cancelled() => return None,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    None
}

/// Counts a build whose state waits to be stored, as long as it lives.
pub(super) struct Unstored<'a>(&'a AtomicUsize);

impl<'a> Unstored<'a> {
    pub(super) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Unstored<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn completed((outcome, published, registration): Placed) -> BuildChange {
    let message = format!("The build is complete: {} bytes", outcome.size_bytes);
    let last = NewLine::new(Level::Info, Component::Builder, message);
    BuildChange {
        state: Some(BuildState::Completed),
        completed_at: Some(store::now()),
        progress: Some((100, "done".to_owned())),
        finished: Some(Finished {
            size_bytes: outcome.size_bytes,
            stored_bytes: published.stored_bytes,
            checksum: outcome.checksum,
        }),
        image_metadata: Some(shown(outcome.metadata).0),
        metrics: Some(outcome.metrics),
        registration,
        lines: vec![last],
        ..BuildChange::default()
    }
}

/// Whether a build failed by something that its tenant has no part in: such a build counts for no day.
fn is_our_fault(kind: &BuildErrorKind) -> bool {
    match kind {
        BuildErrorKind::Internal
        | BuildErrorKind::DiskFull
        | BuildErrorKind::BackendUnavailable
        | BuildErrorKind::StorageUnavailable => true,
        BuildErrorKind::InvalidArgument { .. }
        | BuildErrorKind::ImageNotFound
        | BuildErrorKind::Unauthorized
        | BuildErrorKind::RegistryUnreachable
        | BuildErrorKind::RateLimited
        | BuildErrorKind::DigestMismatch
        | BuildErrorKind::UnsupportedImage
        | BuildErrorKind::CorruptLayer
        | BuildErrorKind::LimitExceeded
        // Of a build in the service: its worker was told to write more than it may.
        | BuildErrorKind::OutputNotWritable
        | BuildErrorKind::TimedOut
        | BuildErrorKind::Cancelled => false,
    }
}

fn given_up(
    inner: &Inner,
    id: BuildId,
    live: &LiveBuild,
    error: &BuildError,
    had_credentials: bool,
) -> Ending {
    let is_shutdown = match error.kind() {
        BuildErrorKind::Cancelled => live.end_reason() == Some(EndReason::Shutdown),
        // Who stops a service often signals its workers along with it.
        BuildErrorKind::Internal => inner.lock_queue().is_draining(),
        _ => false,
    };
    if is_shutdown && !had_credentials {
        return Ending::Requeued(NewLine::new(
            Level::Warn,
            Component::Builder,
            "The service is shutting down: the build starts over when it is back",
        ));
    }
    let (state, level, message) = match error.kind() {
        _ if is_shutdown => (BuildState::Failed, Level::Error, CREDENTIALS_LOST.to_owned()),
        BuildErrorKind::Cancelled => (BuildState::Cancelled, Level::Warn, error.to_string()),
        _ => (BuildState::Failed, Level::Error, error.to_string()),
    };
    if *error.kind() == BuildErrorKind::Internal {
        tracing::error!(build.id = %id, error = error as &dyn std::error::Error, "Build failed by a fault of the service");
    } else {
        tracing::info!(build.id = %id, error = error as &dyn std::error::Error, "Build given up");
    }
    let reason = match is_shutdown {
        true => "credentials_lost",
        false => error.kind().as_str(),
    };
    live.set_failure(reason);
    if state == BuildState::Failed {
        Span::current().record("otel.status_code", "ERROR");
    }
    let line = match state {
        BuildState::Cancelled => "The build was cancelled".to_owned(),
        _ => format!("The build failed: {message}"),
    };
    let mut line = NewLine::new(level, Component::Builder, line);
    line.metadata.insert(ERROR_KIND.to_owned(), reason.to_owned());
    Ending::Ended(Box::new(BuildChange {
        state: Some(state),
        completed_at: Some(store::now()),
        progress: Some((0, state.as_str().to_owned())),
        error_message: Some(message),
        refund: is_shutdown || is_our_fault(error.kind()),
        lines: vec![line],
        ..BuildChange::default()
    }))
}
