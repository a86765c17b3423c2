//! Whether the service can build.

use std::{path::PathBuf, sync::atomic::Ordering, time::Duration};

use super::{Inner, usable};
use crate::store::StoreError;

/// A check that takes longer has failed: a disk that hangs builds nothing.
const TIME_LIMIT: Duration = Duration::from_secs(5);

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

pub(super) async fn check(inner: &Inner) -> Health {
    let storage = async {
        let config = &inner.config;
        let directories = [
            ("output", config.output_directory.clone()),
            ("workspace", config.workspace_directory.clone()),
            ("scratch", config.scratch_directory.clone()),
        ];
        within_time(async move {
            tokio::task::spawn_blocking(move || writable(&directories))
                .await
                .unwrap_or_else(|error| Err(error.to_string()))
        })
        .await
    };
    let database = within_time(async {
        // The writer's turn: it answers only when it is not stuck, and its change reaches the disk.
        let written = inner.store.pulse();
        let read = inner
            .store
            .read(|connection| Ok(connection.query_row("SELECT 1", [], |_| Ok(()))?));
        let result: Result<((), ()), StoreError> = futures_util::future::try_join(written, read).await;
        result.map(drop).map_err(|error| error.to_string())
    });
    let (storage, mut database) = futures_util::future::join(storage, database).await;
    let unstored = inner.unstored.load(Ordering::Relaxed);
    if unstored > 0 && database == Check::Healthy {
        // A small change may fit where the end of a build does not.
        database = Check::Unhealthy(format!("{unstored} builds wait for their state to be stored"));
    }
    Health {
        storage,
        database,
        draining: inner.lock_queue().is_draining(),
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
