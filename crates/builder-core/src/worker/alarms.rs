//! How many workers cannot be killed.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Counts workers that live on after SIGKILL. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Alarms {
    raised: Arc<AtomicUsize>,
}

/// One such worker, until this is dropped.
#[derive(Debug)]
pub(crate) struct Alarm {
    raised: Arc<AtomicUsize>,
}

impl Alarms {
    /// Workers that live on at this moment.
    #[must_use]
    pub fn count(&self) -> usize {
        self.raised.load(Ordering::Relaxed)
    }

    pub(crate) fn raise(&self) -> Alarm {
        self.raised.fetch_add(1, Ordering::Relaxed);
        Alarm {
            raised: Arc::clone(&self.raised),
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.raised.fetch_sub(1, Ordering::Relaxed);
    }
}
