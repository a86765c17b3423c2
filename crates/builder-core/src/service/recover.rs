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
    live::LiveBuild,
    run::{self, CREDENTIALS_LOST},
};
use crate::{
    build::BuildState,
    error::{StartError, StartErrorKind},
    event::{Component, ERROR_KIND, Level},
    store::{self, BuildChange, NewLine, Requeued, StoreError, StoredBuild},
    worker::{Alarms, Survivor},
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
        let name = stored.build.id.to_string();
        let of_build: Vec<_> = survivors
            .extract_if(.., |survivor| survivor.build() == name)
            .collect();
        if of_build.is_empty() {
            let live = inner.live.insert(stored.build.id);
            take_up(inner, stored, live).await.map_err(failed)?;
        } else {
            held.push(stored.build.id);
            tokio::spawn(hold(Arc::downgrade(inner), stored, of_build));
        }
    }
    if !survivors.is_empty() {
        let (alarms, stopped) = (inner.pipeline.alarms.clone(), inner.stopped.clone());
        tokio::spawn(async move { until_gone(survivors, &alarms, &stopped).await });
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
async fn take_up(inner: &Arc<Inner>, stored: StoredBuild, live: Arc<LiveBuild>) -> Result<(), StoreError> {
    let build = stored.build;
    // Unfinished files, and an image that was published in the last moment, which is made again.
    inner.remove_files(&Inner::key(&build)).await;
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
        request: build.request,
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
async fn hold(inner: Weak<Inner>, stored: StoredBuild, survivors: Vec<Box<dyn Survivor>>) {
    let Some(service) = inner.upgrade() else { return };
    let id = stored.build.id;
    let live = service.live.insert(id);
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
    let (alarms, stopped) = (service.pipeline.alarms.clone(), service.stopped.clone());
    drop(service);
    if !until_gone(survivors, &alarms, &stopped).await {
        return;
    }
    let Some(service) = inner.upgrade() else { return };
    if live.end_reason().is_none()
        && let Err(error) = take_up(&service, stored, Arc::clone(&live)).await
    {
        // The next start takes it up.
        tracing::error!(build.id = %id, error = &error as &dyn std::error::Error, "Failed to take up a build");
        service.live.remove(id);
        return;
    }
    // By request, before it was back in the queue or a moment after.
    if let Some(reason) = live.end_reason() {
        let _waiting = service.lock_queue().remove(id);
        if service.live.get(id).is_some() {
            run::end_waiting(&service, id, &live, reason).await;
        }
    }
    service.wake.notify_one();
}

/// Waits until nothing lives of any of them, with an alarm; `false` when the service stops before.
async fn until_gone(
    mut survivors: Vec<Box<dyn Survivor>>,
    alarms: &Alarms,
    stopped: &CancellationToken,
) -> bool {
    let mut raised: Vec<_> = survivors.iter().map(|_| alarms.raise()).collect();
    loop {
        let look = tokio::task::spawn_blocking(move || {
            survivors.retain(|survivor| !survivor.is_gone());
            survivors
        });
        survivors = match look.await {
            Ok(left) => left,
            Err(error) => {
                tracing::error!(%error, "Looking after processes of an earlier start failed");
                return false;
            }
        };
        raised.truncate(survivors.len());
        if survivors.is_empty() {
            return true;
        }
        tokio::select! {
            () = stopped.cancelled() => return false,
            () = tokio::time::sleep(LOOK_AGAIN) => {}
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
