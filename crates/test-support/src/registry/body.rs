//! Bodies that arrive as a rule says.

use std::{io, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use tokio::time::Instant;

use super::{Misbehaviour, Shared};

/// Bytes sent at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes sent at once by a throttled body: its pauses must be longer than the millisecond that a timer is exact to.
const THROTTLED_CHUNK_BYTES: usize = 256 * 1024;

/// For so long a throttled body that was held up by its reader goes faster than its rate, to make up for it.
const BURST: Duration = Duration::from_millis(20);

/// What is left to send, and how.
struct Sending {
    shared: Arc<Shared>,
    content: Bytes,
    chunk_bytes: usize,
    pause: Option<Duration>,
    throttle: Option<Throttle>,
    /// Sent bytes at which something happens, and what.
    stop: Option<(u64, Stop)>,
    sent: u64,
    endless: bool,
}

struct Throttle {
    bytes_per_second: u64,
    /// When the rate has paid for everything that was sent.
    paid_until: Instant,
}

impl Throttle {
    /// Waits until the rate has paid for so many bytes more.
    async fn pay(&mut self, bytes: usize) {
        let nanoseconds = (bytes as u64).saturating_mul(1_000_000_000) / self.bytes_per_second;
        let now = Instant::now();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        self.paid_until = self.paid_until.max(earliest) + Duration::from_nanos(nanoseconds);
        tokio::time::sleep_until(self.paid_until).await;
    }
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
        throttle: None,
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
        Some(Misbehaviour::Throttle { bytes_per_second }) => {
            sending.chunk_bytes = THROTTLED_CHUNK_BYTES;
            sending.throttle = Some(Throttle {
                bytes_per_second: (*bytes_per_second).max(1),
                paid_until: Instant::now(),
            });
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
        if let Some(throttle) = &mut self.throttle {
            throttle.pay(limit).await;
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
