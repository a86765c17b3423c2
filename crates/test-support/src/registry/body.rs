//! Bodies that arrive as a rule says.

use std::{io, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;

use super::{Misbehaviour, Shared};

/// Bytes sent at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// What is left to send, and how.
struct Sending {
    shared: Arc<Shared>,
    content: Bytes,
    chunk_bytes: usize,
    pause: Option<Duration>,
    /// Sent bytes at which something happens, and what.
    stop: Option<(u64, Stop)>,
    sent: u64,
    endless: bool,
}

#[derive(Clone, Copy)]
enum Stop {
    Cut,
    Stall,
}

/// A body that counts as in flight until it has been sent or dropped.
pub(super) fn body(shared: &Arc<Shared>, content: Bytes, misbehaviour: Option<&Misbehaviour>) -> Body {
    shared.lock().n_in_flight += 1;
    let mut sending = Sending {
        shared: Arc::clone(shared),
        content,
        chunk_bytes: CHUNK_BYTES,
        pause: None,
        stop: None,
        sent: 0,
        endless: false,
    };
    match misbehaviour {
        Some(Misbehaviour::CutAt(at)) => sending.stop = Some((*at, Stop::Cut)),
        Some(Misbehaviour::StallAt(at)) => sending.stop = Some((*at, Stop::Stall)),
        Some(Misbehaviour::Drip { chunk_bytes, pause }) => {
            sending.chunk_bytes = (*chunk_bytes).max(1);
            sending.pause = Some(*pause);
        }
        Some(Misbehaviour::Endless) => sending.endless = true,
        _ => {}
    }
    Body::from_stream(stream::unfold(sending, |mut sending| async move {
        let chunk = sending.next().await?;
        Some((chunk, sending))
    }))
}

impl Sending {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.endless {
            return Some(Ok(Bytes::from_static(&[0; CHUNK_BYTES])));
        }
        let mut limit = self.chunk_bytes.min(self.content.len());
        if let Some((at, stop)) = self.stop {
            let until_stop = usize::try_from(at.saturating_sub(self.sent)).unwrap_or(usize::MAX);
            if until_stop == 0 {
                self.stop = None;
                match stop {
                    Stop::Cut => {
                        // A body that is not ready makes the server flush what it has; an error alone would not.
                        tokio::task::yield_now().await;
                        return Some(Err(io::Error::other("cut by a rule of the test")));
                    }
                    Stop::Stall => stall(&self.shared).await,
                }
            } else {
                limit = limit.min(until_stop);
            }
        }
        if self.content.is_empty() {
            return None;
        }
        if let Some(pause) = self.pause {
            tokio::time::sleep(pause).await;
        }
        self.sent += limit as u64;
        Some(Ok(self.content.split_to(limit)))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.shared.lock().n_in_flight -= 1;
        self.shared.changed.notify_all();
    }
}

/// Waits for the next [`Registry::release`](super::Registry::release).
pub(super) async fn stall(shared: &Shared) {
    /// Counts down also when the client goes away meanwhile.
    struct Stalled<'a>(&'a Shared);
    impl Drop for Stalled<'_> {
        fn drop(&mut self) {
            self.0.lock().n_stalled -= 1;
        }
    }
    let mut released = shared.released.subscribe();
    released.mark_unchanged();
    shared.lock().n_stalled += 1;
    let _stalled = Stalled(shared);
    shared.changed.notify_all();
    // The sender lives in `shared`, so this can only end by a release.
    let _ = released.changed().await;
}
