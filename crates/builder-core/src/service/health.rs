//! Whether the service can build.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{Inner, usable};
use crate::store::{Lane, StoreError};

/// A check that takes longer has failed: a disk that hangs builds nothing.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// For how long the answer of a box that was tried out holds.
const BOX_INTERVAL: Duration = Duration::from_secs(5);

/// Whether a part that building needs works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It does.
    Healthy,
    /// It does not, with the reason for the operator.
    Unhealthy(String),
    /// It does, but somebody has to look after it, with the reason for the operator. The service goes on.
    Alarm(String),
    /// It is switched off.
    Disabled,
}

/// Whether the service can build.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Workspace and scratch directories take files, and so does the place of the images.
    pub storage: Check,
    /// The database answers and takes writes.
    pub database: Check,
    /// Boxes can be made, and all workers that were killed have ended.
    pub isolation: Check,
    /// assetmanagerd could be told of every finished image. When not, that hinders no build.
    pub assets: Check,
    /// New builds are refused because the service is shutting down.
    pub draining: bool,
}

pub(super) async fn check(inner: &Inner) -> Health {
    let storage = async {
        let config = &inner.config;
        let directories = [
            ("workspace", config.workspace_directory.clone()),
            ("scratch", config.scratch_directory.clone()),
        ];
        within_time(async move {
            tokio::task::spawn_blocking(move || writable(&directories))
                .await
                .unwrap_or_else(|error| Err(error.to_string()))?;
            inner.artifacts.check().await.map_err(|error| {
                let reason = &error.source;
                format!("{error}: {reason}")
            })
        })
        .await
    };
    let database = within_time(async {
        // The writer's turn: it answers only when it is not stuck, and its change reaches the disk.
        let written = inner.store.pulse();
        let read = inner.store.read_in(Lane::Health, |connection| {
            Ok(connection.query_row("SELECT 1", [], |_| Ok(()))?)
        });
        let result: Result<((), ()), StoreError> = futures_util::future::try_join(written, read).await;
        result.map(drop).map_err(|error| error.to_string())
    });
    let (storage, mut database, isolation) =
        futures_util::future::join3(storage, database, isolation(inner)).await;
    let unstored = inner.unstored.load(Ordering::Relaxed);
    if unstored > 0 && database == Check::Healthy {
        // A small change may fit where the end of a build does not.
        database = Check::Unhealthy(format!("{unstored} builds wait for their state to be stored"));
    }
    Health {
        storage,
        database,
        isolation,
        assets: assets(inner).await,
        draining: inner.lock_queue().is_draining(),
    }
}

/// Whether what assetmanagerd has to be told gets through.
async fn assets(inner: &Inner) -> Check {
    if inner.assets.is_none() {
        return Check::Disabled;
    }
    match tokio::time::timeout(TIME_LIMIT, inner.store.backlog(Vec::new())).await {
        Ok(Ok(backlog)) if backlog.failing == 0 => Check::Healthy,
        Ok(Ok(backlog)) => Check::Unhealthy(format!(
            "assetmanagerd could not be told of {} images yet",
            backlog.failing
        )),
        // That is the database's to tell.
        Ok(Err(_)) | Err(_) => Check::Healthy,
    }
}

/// Whether boxes can still be made. A box costs the price of a worker, so that who asks often gets an answer that is some
/// seconds old.
async fn isolation(inner: &Inner) -> Check {
    let mut last = inner.isolation_check.lock().await;
    let check = match last.take() {
        Some((at, check)) if at.elapsed() < BOX_INTERVAL => {
            *last = Some((at, check.clone()));
            check
        }
        _ => {
            let launcher = Arc::clone(&inner.pipeline.launcher);
            let tried = tokio::task::spawn_blocking(move || launcher.check());
            let check = match tokio::time::timeout(TIME_LIMIT, tried).await {
                Ok(Ok(None)) => Check::Disabled,
                Ok(Ok(Some(Ok(())))) => Check::Healthy,
                Ok(Ok(Some(Err(reason)))) => Check::Unhealthy(reason),
                Ok(Err(error)) => Check::Unhealthy(error.to_string()),
                Err(_) => Check::Unhealthy(format!("no box within {} seconds", TIME_LIMIT.as_secs())),
            };
            *last = Some((Instant::now(), check.clone()));
            check
        }
    };
    match (check, inner.pipeline.alarms.count()) {
        (Check::Healthy | Check::Disabled, count @ 1..) => {
            Check::Alarm(format!("{count} workers live on after SIGKILL"))
        }
        (check, _) => check,
    }
}

async fn within_time(check: impl Future<Output = Result<(), String>>) -> Check {
    match tokio::time::timeout(TIME_LIMIT, check).await {
        Ok(Ok(())) => Check::Healthy,
        Ok(Err(reason)) => Check::Unhealthy(reason),
        Err(_) => Check::Unhealthy(format!("no answer within {} seconds", TIME_LIMIT.as_secs())),
    }
}

fn writable(directories: &[(&str, PathBuf)]) -> Result<(), String> {
    for (name, directory) in directories {
        usable(directory).map_err(|error| format!("the {name} directory cannot be written to: {error}"))?;
    }
    Ok(())
}
