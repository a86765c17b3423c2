//! A service below a directory of its own, with a registry beside it.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

use std::sync::Arc;

use builder_core::{
    ServiceError,
    build::{Build, BuildId},
    event::LogLine,
    service::{Builder, BuilderConfig},
};
use futures_util::{Stream, StreamExt};
use tempfile::TempDir;
use tenant::TenantId;
use test_support::registry::{Misbehaviour, Registry};
use tokio::time::Instant;

use crate::{
    common::{PATIENCE, request, sample, worker_command},
    serve,
};

pub struct Service {
    pub directory: TempDir,
    pub builder: Builder,
    pub registry: Arc<Registry>,
    pub reference: String,
}

impl Service {
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub async fn start_with(change: impl FnOnce(&mut BuilderConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = serve::config(directory.path(), worker_command("worker"));
        change(&mut config);
        let builder = Builder::start(config).await.unwrap();
        let registry = Registry::start().unwrap();
        let reference = registry.publish("team/app", "1", &sample().build());
        Self {
            directory,
            builder,
            registry: Arc::new(registry),
            reference,
        }
    }

    pub async fn create(&self) -> Build {
        self.builder.create(request(&self.reference)).await.unwrap()
    }

    pub async fn get(&self, id: BuildId) -> Build {
        self.builder.get(&alice(), &id).await.unwrap()
    }

    /// Follows the log to the end of the build.
    pub async fn ended(&self, id: BuildId) -> Build {
        lines(self.builder.logs(alice(), id, 0, true)).await.unwrap();
        self.get(id).await
    }

    /// Waits until assetmanagerd knows the image.
    pub async fn registered(&self, id: BuildId) -> Build {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let build = self.get(id).await;
            if build.asset_id.is_some() {
                return build;
            }
            assert!(Instant::now() < deadline, "the image is registered");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// From now on every layer stalls.
    pub fn stall(&self) {
        self.registry.misbehave("/blobs/", Misbehaviour::Hang);
    }

    pub async fn stalled(&self) {
        let registry = Arc::clone(&self.registry);
        let stalls = tokio::task::spawn_blocking(move || registry.wait_for_stalled(1, PATIENCE));
        assert!(stalls.await.unwrap());
    }

    pub fn let_go(&self) {
        self.registry.behave();
        self.registry.release();
    }
}

pub fn alice() -> TenantId {
    "alice".parse().unwrap()
}

pub fn bob() -> TenantId {
    "bob".parse().unwrap()
}

pub async fn lines(
    stream: impl Stream<Item = Result<LogLine, ServiceError>>,
) -> Result<Vec<LogLine>, ServiceError> {
    let stream = std::pin::pin!(stream);
    let collect = stream.collect::<Vec<_>>();
    let items = tokio::time::timeout(PATIENCE, collect)
        .await
        .expect("the stream ends with the build");
    items.into_iter().collect()
}

#[track_caller]
pub fn assert_gapless(lines: &[LogLine], from: u64) {
    let sequences: Vec<u64> = lines.iter().map(|line| line.sequence).collect();
    let expected: Vec<u64> = (from..from + lines.len() as u64).collect();
    assert_eq!(sequences, expected);
}

/// Starts the service again, as soon as the last handle of the one before is gone.
pub async fn restart(directory: &TempDir) -> Builder {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Builder::start(serve::config(directory.path(), worker_command("worker"))).await {
            Ok(builder) => return builder,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}
