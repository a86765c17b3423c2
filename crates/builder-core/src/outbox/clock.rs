//! What time it is, so that an hour of a test is no hour.

use std::{fmt, time::SystemTime};

use futures_util::future::BoxFuture;
use tokio::time::{Duration, sleep};

/// A clock that rows can be dated by and waited for.
pub(crate) trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> SystemTime;

    /// Comes back at that moment, or before: who waits looks again.
    fn wait_until(&self, moment: SystemTime) -> BoxFuture<'_, ()>;
}

/// The machine's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemClock;

/// The clock may be set while somebody waits.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn wait_until(&self, moment: SystemTime) -> BoxFuture<'_, ()> {
        let left = moment.duration_since(self.now()).unwrap_or_default();
        Box::pin(sleep(left.min(LONGEST_SLEEP)))
    }
}
