//! How many transfers run at one time, and for whom.
//!
//! A slot is held by a response, from before its request is sent to the end of its body, and the crate always reads a body
//! as fast as the local disk takes it. A consumer that is slow, or opens a layer late, holds none: it reads from the disk.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

/// Small documents do not queue behind blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Traffic {
    Document,
    Blob,
}

/// Returned when the response is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Slot {
    _host: FairPermit,
    _total: OwnedSemaphorePermit,
}

pub(crate) struct Slots {
    per_host: usize,
    hosts: Mutex<HashMap<(String, Traffic), Arc<FairSemaphore>>>,
    blobs: Arc<Semaphore>,
    documents: Arc<Semaphore>,
}

/// A semaphore of which no one party can hold, or queue for, more than three quarters at a time. The rest of what a greedy
/// party wants waits behind its own share, not in front of the others.
pub(crate) struct FairSemaphore {
    all: Arc<Semaphore>,
    share: usize,
    shares: Mutex<HashMap<String, Arc<Semaphore>>>,
}

#[derive(Debug)]
#[must_use]
pub(crate) struct FairPermit {
    _share: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Slots {
    pub(crate) fn new(per_host: usize, total: usize) -> Self {
        Self {
            per_host,
            hosts: Mutex::default(),
            blobs: Arc::new(Semaphore::new(total)),
            documents: Arc::new(Semaphore::new(total)),
        }
    }

    /// Waits for a slot of the host, then for one of all; both are given in the order of asking.
    pub(crate) async fn acquire(&self, url: &Url, traffic: Traffic, party: &str) -> Slot {
        let host = shared_entry(&self.hosts, (url.origin().ascii_serialization(), traffic), || {
            FairSemaphore::new(self.per_host)
        });
        let total = match traffic {
            Traffic::Blob => &self.blobs,
            Traffic::Document => &self.documents,
        };
        let host = host.acquire(party).await;
        let total = Arc::clone(total)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        Slot {
            _host: host,
            _total: total,
        }
    }
}

impl FairSemaphore {
    pub(crate) fn new(permits: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(permits)),
            share: (permits - permits / 4).max(1),
            shares: Mutex::default(),
        }
    }

    pub(crate) async fn acquire(&self, party: &str) -> FairPermit {
        let share = shared_entry(&self.shares, party.to_owned(), || Semaphore::new(self.share));
        let share = share
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let all = Arc::clone(&self.all)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        FairPermit {
            _share: share,
            _all: all,
        }
    }
}

/// The value under a key, made when there is none. Strangers make keys: those that nobody uses are forgotten in time.
fn shared_entry<K: Eq + Hash, V>(
    map: &Mutex<HashMap<K, Arc<V>>>,
    key: K,
    make: impl FnOnce() -> V,
) -> Arc<V> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    if map.len() >= 1024 {
        map.retain(|_, value| Arc::strong_count(value) > 1);
    }
    Arc::clone(map.entry(key).or_insert_with(|| Arc::new(make())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_greedy_party_leaves_room_for_the_others() {
        let slots = Slots::new(8, 64);
        let url = Url::parse("https://registry.example/v2/x").unwrap();
        let take = |party: &'static str| slots.acquire(&url, Traffic::Blob, party).now_or_never();
        let mut held: Vec<Slot> = std::iter::from_fn(|| take("greedy")).collect();
        assert_eq!(held.len(), 6);
        // More requests of the greedy party wait, and not in front of anybody.
        let mut waiting: Vec<_> = (0..10)
            .map(|_| Box::pin(slots.acquire(&url, Traffic::Blob, "greedy")))
            .collect();
        for request in &mut waiting {
            assert!(request.as_mut().now_or_never().is_none());
        }
        let modest: Vec<Slot> = std::iter::from_fn(|| take("modest")).collect();
        assert_eq!(modest.len(), 2);
        assert!(
            slots
                .acquire(&url, Traffic::Document, "greedy")
                .now_or_never()
                .is_some()
        );
        held.pop();
        assert!(waiting[0].as_mut().now_or_never().is_some());
    }
}
