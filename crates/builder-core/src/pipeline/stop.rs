//! Ending a build early: by request, by time, or because a part of it failed.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::error::{BuildError, BuildErrorKind};

/// Why a build is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// By request.
    Cancelled,
    /// It took longer than this.
    TimedOut(Duration),
    /// Another part of it failed, whose error is the one that counts.
    Failed,
}

/// The signal to end, with the first reason that was given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    token: CancellationToken,
    reason: Arc<OnceLock<Reason>>,
}

impl Stop {
    pub(super) fn stop(&self, reason: Reason) {
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The error of a build that ends for the reason given.
    pub(super) fn error(&self) -> BuildError {
        match self.reason.get() {
            Some(Reason::TimedOut(limit)) => {
                let limit = limit.as_secs_f64();
                BuildError::new(
                    BuildErrorKind::TimedOut,
                    format!("the build took longer than the {limit} seconds that it may take"),
                )
            }
            _ => BuildError::new(BuildErrorKind::Cancelled, "the build was cancelled"),
        }
    }

    /// Runs `work` to its end or until the signal; then `work` is dropped.
    pub(crate) fn unless<T>(
        &self,
        work: impl Future<Output = Result<T, BuildError>>,
    ) -> impl Future<Output = Result<T, BuildError>> {
        // Boxed before anything awaits it: every async function that takes a future holds it twice, and three of them made
        // a build too large for the stack of a test's thread.
        let work = Box::pin(work);
        async move {
            match self.token.run_until_cancelled(work).await {
                Some(result) => result,
                None => Err(self.error()),
            }
        }
    }
}
