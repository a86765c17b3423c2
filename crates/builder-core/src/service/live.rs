//! Builds that have not ended: what a follower and a canceller need of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::{build::BuildId, event::LogLine};

/// Lines that a follower may lag behind before it has to read from the database again. Small on purpose: the database
/// is where lines come from, this only says that there are some.
const CHANNEL_LINES: usize = 64;

/// Why a build is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndReason {
    ByRequest,
    Shutdown,
}

/// A build that waits or runs.
#[derive(Debug)]
pub(super) struct LiveBuild {
    lines: broadcast::Sender<LogLine>,
    end: CancellationToken,
    end_reason: OnceLock<EndReason>,
    failure: OnceLock<&'static str>,
    ended: CancellationToken,
    progress: Mutex<Option<(u8, String)>>,
}

impl LiveBuild {
    fn new() -> Self {
        Self {
            lines: broadcast::Sender::new(CHANNEL_LINES),
            end: CancellationToken::new(),
            end_reason: OnceLock::new(),
            failure: OnceLock::new(),
            ended: CancellationToken::new(),
            progress: Mutex::default(),
        }
    }

    /// Asks the build to end. The first reason counts.
    pub(super) fn end(&self, reason: EndReason) {
        let _ = self.end_reason.set(reason);
        self.end.cancel();
    }

    pub(super) fn end_reason(&self) -> Option<EndReason> {
        self.end_reason.get().copied()
    }

    /// Keeps the kind of the error that ends the build, for the figures.
    pub(super) fn set_failure(&self, kind: &'static str) {
        let _ = self.failure.set(kind);
    }

    pub(super) fn failure(&self) -> Option<&'static str> {
        self.failure.get().copied()
    }

    /// Cancelled when the build is to end.
    pub(super) const fn end_token(&self) -> &CancellationToken {
        &self.end
    }

    /// Waits until the build has ended and its last line is stored.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(super) fn ended_token(&self) -> CancellationToken {
        self.ended.clone()
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<LogLine> {
        self.lines.subscribe()
    }

    /// Shows stored lines to followers.
    pub(super) fn broadcast(&self, lines: Vec<LogLine>) {
        for line in lines {
            // Nobody may be following.
            let _ = self.lines.send(line);
        }
    }

    pub(super) fn progress(&self) -> Option<(u8, String)> {
        self.progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set_progress(&self, percent: u8, step: &str) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        *progress = Some((percent, step.to_owned()));
    }
}

/// All builds that wait or run, by name.
#[derive(Debug, Default)]
pub(super) struct LiveBuilds {
    builds: Mutex<HashMap<BuildId, Arc<LiveBuild>>>,
}

impl LiveBuilds {
    fn lock(&self) -> MutexGuard<'_, HashMap<BuildId, Arc<LiveBuild>>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, id: BuildId) -> Arc<LiveBuild> {
        let live = Arc::new(LiveBuild::new());
        self.lock().insert(id, Arc::clone(&live));
        live
    }

    pub(super) fn get(&self, id: BuildId) -> Option<Arc<LiveBuild>> {
        self.lock().get(&id).cloned()
    }

    /// The build has ended, and everything about it is stored.
    pub(super) fn remove(&self, id: BuildId) {
        let removed = self.lock().remove(&id);
        if let Some(live) = removed {
            live.ended.cancel();
        }
    }

    /// Asks all to end. Those that wait take no notice of it: what is in the queue is kept for the next start.
    pub(super) fn end_all(&self, reason: EndReason) {
        for live in self.lock().values() {
            live.end(reason);
        }
    }
}
