//! One build of the service: the pipeline, and beside it the recorder that stores what it tells.

use std::{os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};

use super::{
    Inner,
    live::{EndReason, LiveBuild},
    queue::Waiting,
    register::{Registration, register},
    validate,
};
use crate::{
    build::{BuildId, BuildState},
    error::{BuildError, BuildErrorKind},
    event::{self, Component, Event, Level},
    pipeline::{self, BuildLimits, Outcome, PipelineConfig},
    request::BuildRequest,
    store::{self, BuildChange, Finished, NewLine, StoreError},
};

/// Events on their way from the pipeline to the recorder, and in one transaction.
const EVENTS: usize = 256;

/// Figures alone are not stored more often than this; who asks gets them fresh from memory.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// How often the end of a build is tried to be stored, and the pause in between.
const END_ATTEMPTS: u32 = 10;
const END_PAUSE: Duration = Duration::from_secs(1);

/// An image that is in place, and what assetmanagerd said to it.
type Published = (Outcome, Option<Registration>);

/// Runs a build from its turn to its end.
pub(super) async fn run(inner: &Arc<Inner>, waiting: Waiting) {
    let Waiting { id, request, live } = waiting;
    let begun = BuildChange {
        started_at: Some(store::now()),
        lines: vec![NewLine::new(Level::Info, Component::Builder, "The build begins")],
        ..BuildChange::default()
    };
    match inner.store.change(id, begun).await {
        Ok(lines) => live.broadcast(lines),
        Err(StoreError::Ended | StoreError::NoSuchBuild) => {
            inner.live.remove(id);
            return;
        }
        // The build is not begun without its row saying so; it stays for the next start.
        Err(error) => {
            tracing::error!(build.id = %id, error = &error as &dyn std::error::Error, "Failed to begin a build");
            inner.live.remove(id);
            return;
        }
    }
    tracing::info!(build.id = %id, tenant.id = %request.tenant.tenant_id, "Build begins");

    let output = inner.image_path(&request.tenant.tenant_id, id);
    let (events, received) = event::channel(EVENTS);
    let cancel = live.end_token().clone();
    let service = Arc::clone(inner);
    // A task of its own: a panic in it ends this build and nothing else.
    let work = tokio::spawn(async move {
        let pipeline = PipelineConfig {
            limits: limits(&service, &request).await?,
            ..service.pipeline.clone()
        };
        make_directory(&output).await?;
        let outcome = pipeline::run(&pipeline, &request, &output, events, cancel).await?;
        let registration = match &service.assets {
            Some(assets) => Some(register(assets, id, &request, &outcome).await),
            None => None,
        };
        Ok((outcome, registration))
    });
    record(inner, id, &live, received).await;
    let result = work
        .await
        .unwrap_or_else(|error| Err(BuildError::internal("run the build", error)));
    end(inner, id, &live, result).await;
}

/// Ends a build that was taken out of the queue.
pub(super) async fn end_waiting(inner: &Inner, id: BuildId, live: &LiveBuild, reason: EndReason) {
    live.end(reason);
    let cancelled = BuildError::new(BuildErrorKind::Cancelled, "the build was cancelled");
    end(inner, id, live, Err(cancelled)).await;
}

/// What one build may use: the machine's limits, lowered by those of the tenant's tier, lowered by the request. Looked
/// up at the beginning of the build, so that a change of the tenant's record counts for what still waits.
async fn limits(inner: &Inner, request: &BuildRequest) -> Result<BuildLimits, BuildError> {
    let unknown = |error: StoreError| BuildError::internal("look up the tenant's limits", error);
    let tenants = &inner.config.tenants;
    let tier = inner
        .store
        .tier(request.tenant.tenant_id.clone())
        .await
        .map_err(unknown)?;
    let own = tenants.limits(tier.unwrap_or_else(|| tenants.default_tier()));
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
    Ok(BuildLimits {
        timeout: Some(timeout),
        max_disk_bytes: Some(lowered.disk_bytes),
        max_memory_bytes: Some(lowered.memory_bytes),
        max_compressed_bytes: [machine.max_compressed_bytes, lowered.image_bytes]
            .into_iter()
            .flatten()
            .min(),
        max_image_bytes: machine.max_image_bytes,
    })
}

/// The tenant's directory, closed to others: images may hold what only the tenant should see.
async fn make_directory(image: &Path) -> Result<(), BuildError> {
    let Some(directory) = image.parent().map(Path::to_owned) else {
        return Ok(());
    };
    let make = move || {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(directory)
    };
    tokio::task::spawn_blocking(make)
        .await
        .map_err(|error| BuildError::internal("make the tenant's directory", error))?
        .map_err(|error| {
            let message = "the output directory cannot be written to: failed to make the tenant's directory";
            BuildError::new(BuildErrorKind::OutputNotWritable, message).with_cause(error)
        })
}

/// Stores what the pipeline tells, in batches, until it has nothing more to tell.
async fn record(inner: &Inner, id: BuildId, live: &LiveBuild, mut received: mpsc::Receiver<Event>) {
    let mut batch = Vec::with_capacity(EVENTS);
    let mut figures_stored = Instant::now();
    while received.recv_many(&mut batch, EVENTS).await > 0 {
        let mut change = BuildChange::default();
        for event in batch.drain(..) {
            match event {
                Event::Log {
                    level,
                    component,
                    message,
                    metadata,
                } => {
                    change.lines.push(NewLine {
                        metadata,
                        ..NewLine::new(level, component, message)
                    });
                }
                Event::State(state) => change.state = Some(state),
                Event::Progress { percent, step } => {
                    live.set_progress(percent, &step);
                    change.progress = Some((percent, step));
                }
                Event::Metadata(metadata) => change.image_metadata = Some(*metadata),
            }
        }
        let only_figures =
            change.lines.is_empty() && change.state.is_none() && change.image_metadata.is_none();
        if only_figures && figures_stored.elapsed() < PROGRESS_INTERVAL {
            continue;
        }
        figures_stored = Instant::now();
        match inner.store.change(id, change).await {
            Ok(lines) => live.broadcast(lines),
            // The build goes on; its end is what has to be stored.
            Err(error) => {
                tracing::error!(build.id = %id, error = &error as &dyn std::error::Error, "Failed to store what a build tells");
            }
        }
    }
}

/// Stores how a build ended, shows it to followers, and lets go of it.
async fn end(inner: &Inner, id: BuildId, live: &LiveBuild, result: Result<Published, BuildError>) {
    let change = match result {
        Ok((outcome, registration)) => completed(outcome, registration),
        Err(error) => given_up(id, live, &error),
    };
    let state = change.state.map_or("", BuildState::as_str);
    for attempt in 1..=END_ATTEMPTS {
        match inner.store.change(id, change.clone()).await {
            Ok(lines) => {
                live.broadcast(lines);
                tracing::info!(build.id = %id, build.state = state, "Build ended");
                break;
            }
            Err(StoreError::Ended | StoreError::NoSuchBuild) => break,
            // A disk that is full now may not be in a moment; otherwise the next start takes the build up.
            Err(error) => {
                tracing::error!(build.id = %id, attempt, error = &error as &dyn std::error::Error, "Failed to store how a build ended");
                tokio::time::sleep(END_PAUSE).await;
            }
        }
    }
    inner.live.remove(id);
}

fn completed(outcome: Outcome, registration: Option<Registration>) -> BuildChange {
    let message = format!("The build is complete: {} bytes", outcome.size_bytes);
    let (asset_id, line) = registration.map(|done| (done.asset_id, done.line)).unzip();
    let last = NewLine::new(Level::Info, Component::Builder, message);
    BuildChange {
        state: Some(BuildState::Completed),
        completed_at: Some(store::now()),
        progress: Some((100, "done".to_owned())),
        finished: Some(Finished {
            size_bytes: outcome.size_bytes,
            checksum: outcome.checksum,
        }),
        image_metadata: Some(outcome.metadata),
        metrics: Some(outcome.metrics),
        asset_id: asset_id.flatten(),
        lines: line.into_iter().chain([last]).collect(),
        ..BuildChange::default()
    }
}

fn given_up(id: BuildId, live: &LiveBuild, error: &BuildError) -> BuildChange {
    let (state, level, message) = match (error.kind(), live.end_reason()) {
        (BuildErrorKind::Cancelled, Some(EndReason::Shutdown)) => (
            BuildState::Failed,
            Level::Error,
            "the service was shut down before the build was done; submit again".to_owned(),
        ),
        (BuildErrorKind::Cancelled, _) => (BuildState::Cancelled, Level::Warn, error.to_string()),
        _ => (BuildState::Failed, Level::Error, error.to_string()),
    };
    if *error.kind() == BuildErrorKind::Internal {
        tracing::error!(build.id = %id, error = error as &dyn std::error::Error, "Build failed by a fault of the service");
    } else {
        tracing::info!(build.id = %id, error = error as &dyn std::error::Error, "Build given up");
    }
    let line = match state {
        BuildState::Cancelled => "The build was cancelled".to_owned(),
        _ => format!("The build failed: {message}"),
    };
    BuildChange {
        state: Some(state),
        completed_at: Some(store::now()),
        progress: Some((0, state.as_str().to_owned())),
        error_message: Some(message),
        lines: vec![NewLine::new(level, Component::Builder, line)],
        ..BuildChange::default()
    }
}
