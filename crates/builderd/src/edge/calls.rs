//! How many calls a peer has open.
//!
//! An answer waits in memory until its reader takes it, and over HTTP/2 a reader may open many calls and take nothing. A
//! call is open until the last byte of its answer was handed to the connection, or the call was given up.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls with one answer that a peer has open; further ones wait. An answer has a few MiB at most, and 1 mostly.
pub(super) const MAX_UNARY: usize = 256;

/// Calls with a stream that a peer has open; further ones are refused. More than there may be logs that are read, since
/// all callers may come by one gateway.
pub(super) const MAX_STREAMS: usize = 4096;

/// For how long a call with one answer waits for its turn.
const PATIENCE: Duration = Duration::from_secs(60);

/// The open calls of all peers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls {
    peers: Arc<Mutex<HashMap<IpAddr, PeerCalls>>>,
}

#[derive(Debug)]
struct PeerCalls {
    unary: Arc<Semaphore>,
    /// Those that wait included.
    open: usize,
    streams: usize,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, PeerCalls>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more call of a peer; `None` when it has too many open.
    pub(super) async fn take(&self, peer: IpAddr, is_stream: bool) -> Option<Place> {
        let (mut place, unary) = {
            let mut peers = self.lock();
            let calls = peers.entry(peer).or_insert_with(|| PeerCalls {
                unary: Arc::new(Semaphore::new(MAX_UNARY)),
                open: 0,
                streams: 0,
            });
            if is_stream && calls.streams >= MAX_STREAMS {
                return None;
            }
            calls.open += 1;
            calls.streams += usize::from(is_stream);
            let place = Place {
                calls: self.clone(),
                peer,
                is_stream,
                _turn: None,
            };
            (place, Arc::clone(&calls.unary))
        };
        if !is_stream {
            let turn = tokio::time::timeout(PATIENCE, unary.acquire_owned()).await;
            place._turn = Some(turn.ok()?.ok()?);
        }
        Some(place)
    }
}

/// A call's place among those of its peer, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    calls: Calls,
    peer: IpAddr,
    is_stream: bool,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Keeps the place until the answer is through.
    pub(super) fn until_read(self, response: Response<Body>) -> Response<Body> {
        response.map(|body| Body::new(Answer { body, _place: self }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.calls.lock();
        if let Some(calls) = peers.get_mut(&self.peer) {
            calls.open -= 1;
            calls.streams -= usize::from(self.is_stream);
            if calls.open == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

/// An answer with its place.
struct Answer {
    body: Body,
    _place: Place,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use std::net::Ipv4Addr;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_has_so_many_calls_open_and_takes_none_from_another() {
        let calls = Calls::default();
        let (greedy, other) = (
            Ipv4Addr::new(192, 0, 2, 1).into(),
            Ipv4Addr::new(192, 0, 2, 2).into(),
        );
        let mut held = Vec::new();
        for _ in 0..MAX_UNARY {
            held.push(calls.take(greedy, false).await.unwrap());
        }
        let mut next = Box::pin(calls.take(greedy, false));
        assert!(next.as_mut().now_or_never().is_none(), "it waits");
        assert!(calls.take(other, false).await.is_some());
        held.pop();
        held.push(next.await.unwrap());
        // The clock goes on by itself where everything waits.
        assert!(calls.take(greedy, false).await.is_none(), "nobody waits for ever");

        for _ in 0..MAX_STREAMS {
            held.push(calls.take(greedy, true).await.unwrap());
        }
        assert!(calls.take(greedy, true).await.is_none());
        assert!(calls.take(other, true).await.is_some());
        held.clear();
        assert!(calls.lock().is_empty(), "nobody is remembered");
    }

    #[tokio::test]
    async fn a_place_is_kept_until_the_answer_is_read_or_dropped() {
        let calls = Calls::default();
        let peer = Ipv4Addr::LOCALHOST.into();
        let place = calls.take(peer, false).await.unwrap();
        let response = place.until_read(Response::new(Body::from("answer")));
        assert_eq!(response.body().size_hint().exact(), Some(6));
        assert_eq!(calls.lock().len(), 1);
        let bytes = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
        assert_eq!(&bytes[..], b"answer");
        assert!(calls.lock().is_empty());
    }
}
