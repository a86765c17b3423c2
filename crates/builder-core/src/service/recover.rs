//! What a crash left behind: builds that had not ended, and their files.

use std::{fs, io, path::Path, sync::Arc};

use super::{
    Inner, Waiting,
    cleanup::{self, Orphans},
    run::{self, CREDENTIALS_LOST},
};
use crate::{
    build::BuildState,
    error::{StartError, StartErrorKind},
    event::{Component, ERROR_KIND, Level},
    store::{self, BuildChange, NewLine, Requeued, StoreError},
};

/// So often a build is begun: one that takes the service down with it each time must not do so for ever.
const MAX_ATTEMPTS: u32 = 3;

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
    for stored in inner.store.unfinished().await.map_err(failed)? {
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
            inner.store.change(build.id, change).await.map_err(failed)?;
            run::tell_end(inner, build.id, Some(failure)).await;
            continue;
        }
        if was_running {
            let line = NewLine::new(
                Level::Warn,
                Component::Builder,
                "The service was restarted while this build was running: it starts over",
            );
            inner
                .store
                .requeue(build.id, line, Requeued::Crash)
                .await
                .map_err(failed)?;
        }
        let live = inner.live.insert(build.id);
        inner.lock_queue().insert(Waiting {
            id: build.id,
            request: build.request,
            live,
        });
    }
    let left = inner.store.release_leftovers().await.map_err(failed)?;
    if left > 0 {
        tracing::error!(
            builds = left,
            "Builds that had ended had something reserved: it is free again"
        );
    }
    inner.store.keep_accounts(store::now()).await.map_err(failed)?;
    Ok(())
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
