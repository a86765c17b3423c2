//! Until when an image has to be here.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{FetchError, FetchErrorKind};

/// The end of the time that one pull may take; `None` for no limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    end: Option<(Instant, Duration)>,
}

impl Deadline {
    pub(crate) fn starting_now(limit: Option<Duration>) -> Self {
        // A limit that no clock can count to is none.
        let end = limit.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
        Self { end }
    }

    /// Drives the work until it is done or the time is over; then the work is dropped.
    pub(crate) async fn bound<T>(
        self,
        work: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, FetchError> {
        tokio::select! {
            biased;
            result = work => result,
            error = self.passed() => Err(error),
        }
    }

    /// Waits until the time is over; for ever when there is no limit.
    pub(crate) async fn passed(self) -> FetchError {
        match self.end {
            Some((end, limit)) => {
                tokio::time::sleep_until(end).await;
                let limit = limit.as_secs_f64();
                FetchError::new(
                    FetchErrorKind::TimedOut,
                    format!("pulling the image took longer than the {limit} seconds that it may take"),
                )
            }
            None => std::future::pending().await,
        }
    }
}
