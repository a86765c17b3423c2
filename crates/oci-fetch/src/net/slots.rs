//! How many transfers run at one time.
//!
//! A slot is held by a response, from before its request is sent to the end of its body, and the crate always reads a body
//! as fast as the local disk takes it. A consumer that is slow, or opens a layer late, holds none: it reads from the disk.

use std::collections::HashMap;
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
    _host: OwnedSemaphorePermit,
    _total: OwnedSemaphorePermit,
}

pub(crate) struct Slots {
    per_host: usize,
    hosts: Mutex<HashMap<(String, Traffic), Arc<Semaphore>>>,
    blobs: Arc<Semaphore>,
    documents: Arc<Semaphore>,
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
    pub(crate) async fn acquire(&self, url: &Url, traffic: Traffic) -> Slot {
        let host = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            // Strangers name hosts: forget those that nobody uses.
            if hosts.len() >= 1024 {
                hosts.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
            }
            let key = (url.origin().ascii_serialization(), traffic);
            Arc::clone(
                hosts
                    .entry(key)
                    .or_insert_with(|| Arc::new(Semaphore::new(self.per_host))),
            )
        };
        let total = match traffic {
            Traffic::Blob => &self.blobs,
            Traffic::Document => &self.documents,
        };
        let host = host.acquire_owned().await.expect("the semaphore is never closed");
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
