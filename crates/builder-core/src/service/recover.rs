//! What a crash left behind: builds that had not ended, and their files.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{
    Inner, Waiting,
    cleanup::{self, Orphans},
    live::{EndReason, LiveBuild},
    run::{self, CREDENTIALS_LOST, Unstored},
};
use crate::{
    build::BuildState,
    error::{StartError, StartErrorKind},
    event::{Component, ERROR_KIND, Level},
    store::{self, BuildChange, NewLine, Requeued, StoreError, StoredBuild},
    worker::{Alarm, Alarms, Survivor},
};

/// So often a build is begun: one that takes the service down with it each time must not do so for ever.
const MAX_ATTEMPTS: u32 = 3;

/// How often what cannot be killed is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Ends or requeues every build that had not ended, in order of acceptance.
pub(super) async fn recover(inner: &Arc<Inner>) -> Result<(), StartError> {
    let failed = |error: StoreError| {
        StartError::new(
            StartErrorKind::Database,
            "cannot take up the builds that had not ended",
        )
        .with_source(error)
    };
    sweep_staging(&inner.pipeline.staging_directory);
    cleanup::sweep(inner, Orphans::Remove).await.map_err(failed)?;
    let mut survivors = survivors(inner).await;
    let mut held = Vec::new();
    for stored in inner.store.unfinished().await.map_err(failed)? {
        let (id, name) = (stored.build.id, stored.build.id.to_string());
        let live = inner.live.insert(id);
        let of_build: Vec<_> = survivors
            .extract_if(.., |survivor| survivor.build() == name)
            .collect();
        if of_build.is_empty() {
            take_up(inner, &stored, live).await.map_err(failed)?;
        } else {
            held.push(id);
            let watched = Watched::new(of_build, &inner.pipeline.alarms);
            tokio::spawn(hold(Arc::downgrade(inner), stored, live, watched));
        }
    }
    if !survivors.is_empty() {
        let watched = Watched::new(survivors, &inner.pipeline.alarms);
        let stopped = inner.stopped.clone();
        tokio::spawn(async move { watched.until_gone(&stopped).await });
    }
    let left = inner.store.release_leftovers(held).await.map_err(failed)?;
    if left > 0 {
        tracing::error!(
            builds = left,
            "Builds that had ended had something reserved: it is free again"
        );
    }
    inner.store.keep_accounts(store::now()).await.map_err(failed)?;
    Ok(())
}

/// Puts a build that had not ended back into the queue, or ends it.
async fn take_up(inner: &Inner, stored: &StoredBuild, live: Arc<LiveBuild>) -> Result<(), StoreError> {
    let build = &stored.build;
    // Unfinished files, and an image that was published in the last moment, which is made again.
    inner.remove_files(&Inner::key(build)).await;
    let was_running = build.state != BuildState::Pending || build.started_at.is_some();
    let reason = if stored.needs_credentials {
        Some(CREDENTIALS_LOST.to_owned())
    } else if was_running && stored.attempts >= MAX_ATTEMPTS {
        Some(format!(
            "internal error: the service ended {MAX_ATTEMPTS} times while this build was running"
        ))
    } else {
        None
    };
    if let Some(reason) = reason {
        let failure = match stored.needs_credentials {
            true => "credentials_lost",
            false => "internal",
        };
        let mut line = NewLine::new(
            Level::Error,
            Component::Builder,
            format!("The build failed: {reason}"),
        );
        line.metadata.insert(ERROR_KIND.to_owned(), failure.to_owned());
        let change = BuildChange {
            state: Some(BuildState::Failed),
            completed_at: Some(store::now()),
            lines: vec![line],
            error_message: Some(reason),
            refund: true,
            ..BuildChange::default()
        };
        live.broadcast(inner.store.change(build.id, change).await?);
        run::tell_end(inner, build.id, Some(failure)).await;
        inner.live.remove(build.id);
        return Ok(());
    }
    // Before its row says that it waits: who starts it finds it.
    inner.lock_queue().insert(Waiting {
        id: build.id,
        request: build.request.clone(),
        live: Arc::clone(&live),
    });
    if was_running {
        let line = NewLine::new(
            Level::Warn,
            Component::Builder,
            "The service was restarted while this build was running: it starts over",
        );
        let requeued = inner.store.requeue(build.id, line, Requeued::Crash).await;
        live.broadcast(requeued.inspect_err(|_| drop(inner.lock_queue().remove(build.id)))?);
    }
    Ok(())
}

/// What the launcher knows of processes that have outlived their build and the service.
async fn survivors(inner: &Inner) -> Vec<Box<dyn Survivor>> {
    let launcher = Arc::clone(&inner.pipeline.launcher);
    let survivors = tokio::task::spawn_blocking(move || launcher.survivors());
    survivors.await.unwrap_or_default()
}

/// Leaves a build as it is, with all that is reserved for it, until its processes are gone; then takes it up. A shutdown
/// leaves it to the next start.
async fn hold(inner: Weak<Inner>, stored: StoredBuild, live: Arc<LiveBuild>, watched: Watched) {
    let Some(service) = inner.upgrade() else { return };
    let id = stored.build.id;
    let line = NewLine::new(
        Level::Warn,
        Component::Builder,
        "Processes of this build have outlived the service that ran it: it waits until they are gone",
    );
    let change = BuildChange {
        lines: vec![line],
        ..BuildChange::default()
    };
    match service.store.change(id, change).await {
        Ok(lines) => live.broadcast(lines),
        Err(error) => tracing::warn!(
            build.id = %id,
            error = &error as &dyn std::error::Error,
            "Failed to tell why a build waits"
        ),
    }
    let stopped = service.stopped.clone();
    drop(service);
    if !watched.until_gone(&stopped).await {
        return;
    }
    let Some(service) = inner.upgrade() else { return };
    let ended_before = live.end_reason();
    if ended_before == Some(EndReason::Shutdown) {
        return;
    }
    if ended_before.is_none() && !take_up_at_last(&service, &stored, &live).await {
        return;
    }
    if live.end_reason() == Some(EndReason::ByRequest) {
        let waiting = service.lock_queue().remove(id);
        // Whoever took it out of the queue meanwhile runs or ends it.
        if ended_before.is_some() || waiting.is_some() {
            run::end_waiting(&service, id, &live, EndReason::ByRequest).await;
        }
    }
    service.wake.notify_one();
}

/// Takes a build up, as often as it takes; `false` when the service stops before.
async fn take_up_at_last(inner: &Inner, stored: &StoredBuild, live: &Arc<LiveBuild>) -> bool {
    // Says that the service is unhealthy, for as long as the database takes no change.
    let mut unstored = None;
    loop {
        match take_up(inner, stored, Arc::clone(live)).await {
            // Somebody has ended it meanwhile.
            Ok(()) | Err(StoreError::Ended | StoreError::NoSuchBuild) => return true,
            Err(error) => {
                tracing::error!(build.id = %stored.build.id, error = &error as &dyn std::error::Error, "Failed to take up a build");
                unstored.get_or_insert_with(|| Unstored::new(&inner.unstored));
            }
        }
        tokio::select! {
            () = inner.stopped.cancelled() => return false,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Processes that are waited for, each with an alarm.
struct Watched {
    survivors: Vec<Box<dyn Survivor>>,
    raised: Vec<Alarm>,
}

impl Watched {
    fn new(survivors: Vec<Box<dyn Survivor>>, alarms: &Alarms) -> Self {
        let raised = survivors.iter().map(|_| alarms.raise()).collect();
        Self { survivors, raised }
    }

    /// Waits until nothing lives of any of them; `false` when the service stops before.
    async fn until_gone(mut self, stopped: &CancellationToken) -> bool {
        loop {
            let mut survivors = self.survivors;
            let look = tokio::task::spawn_blocking(move || {
                survivors.retain(|survivor| !survivor.is_gone());
                survivors
            });
            self.survivors = match look.await {
                Ok(left) => left,
                Err(error) => {
                    tracing::error!(%error, "Looking after processes of an earlier start failed");
                    return false;
                }
            };
            self.raised.truncate(self.survivors.len());
            if self.survivors.is_empty() {
                return true;
            }
            tokio::select! {
                () = stopped.cancelled() => return false,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }
}

/// Nobody stages anything while the service is not running.
fn sweep_staging(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        remove(&entry.path(), |path| fs::remove_dir_all(path));
    }
}

fn remove(path: &Path, how: impl FnOnce(&Path) -> io::Result<()>) {
    if let Err(error) = how(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "Failed to remove what a crash left behind");
    }
}
