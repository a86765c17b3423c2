//! How many transfers run at one time, and for whom.
//!
//! A slot is held by a response, from before its request is sent to the end of its body, and the crate always reads a body
//! as fast as the local disk takes it. A consumer that is slow, or opens a layer late, holds none: it reads from the disk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::StatusCode;
use url::Url;

use crate::net::gate::{Gate, Permit};

/// A host begins with so many transfers at a time; what it bears shows itself.
const START: usize = 6;

/// Strangers name hosts: from this many on, those that nobody uses are forgotten, and what was learnt of them.
const MAX_KEPT_HOSTS: usize = 1024;

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
    host: Permit,
    _total: Permit,
}

pub(crate) struct Slots {
    most_per_host: usize,
    hosts: Mutex<HashMap<(String, Traffic), Arc<Gate>>>,
    blobs: Arc<Gate>,
    documents: Arc<Gate>,
}

impl Slots {
    pub(crate) fn new(most_per_host: usize, total: usize) -> Self {
        Self {
            most_per_host,
            hosts: Mutex::default(),
            blobs: Arc::new(Gate::fixed(total)),
            documents: Arc::new(Gate::fixed(total)),
        }
    }

    /// Waits for a slot of the host, then for one of all.
    pub(crate) async fn acquire(&self, url: &Url, traffic: Traffic, party: &str) -> Slot {
        let total = match traffic {
            Traffic::Blob => &self.blobs,
            Traffic::Document => &self.documents,
        };
        let host = self.host(url, traffic).acquire(party).await;
        Slot {
            host,
            _total: total.acquire(party).await,
        }
    }

    fn host(&self, url: &Url, traffic: Traffic) -> Arc<Gate> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= MAX_KEPT_HOSTS {
            hosts.retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        let key = (url.origin().ascii_serialization(), traffic);
        let gate = hosts
            .entry(key)
            .or_insert_with(|| Arc::new(Gate::new(START, self.most_per_host)));
        Arc::clone(gate)
    }
}

impl Slot {
    /// Tells the host's gate how the request went.
    pub(crate) fn answered(&self, status: StatusCode) {
        match status.as_u16() {
            // A rate limit is one account's, as a rule.
            429 => self.host.slowed(),
            503 => self.host.overloaded(),
            200..=299 => self.host.succeeded(),
            _ => {}
        }
    }

    /// The host did not answer, or not in time.
    pub(crate) fn unanswered(&self) {
        self.host.overloaded();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn documents_do_not_wait_behind_blobs_nor_one_host_behind_another() {
        let slots = Slots::new(8, 64);
        let url = Url::parse("https://registry.example/v2/x").unwrap();
        let other = Url::parse("https://other.example/v2/x").unwrap();
        let take = |url, traffic| slots.acquire(url, traffic, "greedy").now_or_never();
        let held: Vec<Slot> = std::iter::from_fn(|| take(&url, Traffic::Blob)).collect();
        assert_eq!(held.len(), 5, "three quarters of the six to begin with");
        assert!(take(&url, Traffic::Document).is_some());
        assert!(take(&other, Traffic::Blob).is_some());
    }

    #[test]
    fn no_party_takes_all_connections_by_naming_many_hosts() {
        let slots = Slots::new(8, 8);
        let mut held = Vec::new();
        for number in 0..20 {
            let url = Url::parse(&format!("https://host-{number}.example/")).unwrap();
            held.extend(slots.acquire(&url, Traffic::Blob, "greedy").now_or_never());
        }
        assert_eq!(held.len(), 6);
        let url = Url::parse("https://registry.example/").unwrap();
        assert!(
            slots
                .acquire(&url, Traffic::Blob, "modest")
                .now_or_never()
                .is_some()
        );
    }

    #[test]
    fn a_host_that_asks_for_less_gets_less() {
        let slots = Slots::new(8, 64);
        let url = Url::parse("https://registry.example/v2/x").unwrap();
        let take = || slots.acquire(&url, Traffic::Blob, "t").now_or_never();
        take().unwrap().answered(StatusCode::SERVICE_UNAVAILABLE);
        let held: Vec<Slot> = std::iter::from_fn(take).collect();
        assert_eq!(held.len(), 3);
        held[0].answered(StatusCode::TOO_MANY_REQUESTS);
        drop(held);
        assert_eq!(std::iter::from_fn(take).collect::<Vec<_>>().len(), 1);
    }
}
