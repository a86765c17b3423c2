//! How far a pull is: bytes, rate, time left.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::blob::Blob;
use crate::digest::Digest;

/// The rate is that of the last seconds: a shorter time makes it jump, a longer one hides that a pull has stopped.
const WINDOW: Duration = Duration::from_secs(5);

/// Over a shorter time no rate is given.
const SHORTEST_WINDOW: Duration = Duration::from_millis(500);

/// More samples than a window has at ten a second.
const MAX_SAMPLES: usize = 64;

/// Watches the blobs of one image arrive. Keeps no download alive.
///
/// Ask for a [`sample`](Self::sample) as often as it is to be shown, a few times a second.
#[derive(Debug)]
pub struct PullProgress {
    total_bytes: u64,
    /// What needs no download.
    at_hand_bytes: u64,
    blobs: Vec<Watched>,
    /// When, and how many bytes had come over the network by then; oldest first.
    samples: VecDeque<(Instant, u64)>,
}

#[derive(Debug)]
struct Watched {
    digest: Digest,
    size_bytes: u64,
    arrived: watch::Receiver<u64>,
    /// Bytes that had arrived, for others, before this pull began to watch.
    before_bytes: u64,
}

/// How far a pull is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PullSample {
    /// Bytes that are here, at hand from the beginning or downloaded.
    pub arrived_bytes: u64,
    /// Bytes of the image's layers.
    pub total_bytes: u64,
    /// Bytes per second over the last seconds; `None` while that cannot be told.
    pub bytes_per_second: Option<u64>,
    /// The time that the rest takes at this rate; `None` without a rate, or with one of 0.
    pub remaining: Option<Duration>,
    /// The blobs that are downloaded or have been, in the order in which they were added.
    pub blobs: Vec<BlobSample>,
}

/// How far one blob is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlobSample {
    /// Which one.
    pub digest: Digest,
    /// Bytes at its front that are here.
    pub arrived_bytes: u64,
    /// All its bytes.
    pub size_bytes: u64,
}

impl PullProgress {
    /// A pull of layers with so many bytes in all.
    #[must_use]
    pub fn new(total_bytes: u64) -> Self {
        Self {
            total_bytes,
            at_hand_bytes: 0,
            blobs: Vec::new(),
            samples: VecDeque::new(),
        }
    }

    /// Watches a blob, too. One that is in the cache counts as arrived.
    pub fn add(&mut self, blob: &Blob) {
        if !blob.from_network() {
            return self.skip(blob.size_bytes());
        }
        let arrived = blob.downloaded();
        let before_bytes = *arrived.borrow();
        self.blobs.push(Watched {
            digest: blob.digest().clone(),
            size_bytes: blob.size_bytes(),
            arrived,
            before_bytes,
        });
    }

    /// Counts bytes as arrived that nobody has to download.
    pub fn skip(&mut self, bytes: u64) {
        self.at_hand_bytes = self.at_hand_bytes.saturating_add(bytes);
    }

    /// How far it is now.
    pub fn sample(&mut self) -> PullSample {
        let blobs: Vec<BlobSample> = self
            .blobs
            .iter()
            .map(|blob| BlobSample {
                digest: blob.digest.clone(),
                arrived_bytes: *blob.arrived.borrow(),
                size_bytes: blob.size_bytes,
            })
            .collect();
        let arrived: u64 = blobs.iter().map(|blob| blob.arrived_bytes).sum();
        let before: u64 = self.blobs.iter().map(|blob| blob.before_bytes).sum();
        let bytes_per_second = self.rate(Instant::now(), arrived.saturating_sub(before));
        let arrived_bytes = self.at_hand_bytes.saturating_add(arrived).min(self.total_bytes);
        let left = self.total_bytes - arrived_bytes;
        PullSample {
            arrived_bytes,
            total_bytes: self.total_bytes,
            bytes_per_second,
            remaining: bytes_per_second
                .filter(|rate| *rate > 0)
                .map(|rate| Duration::from_millis(left.saturating_mul(1000) / rate)),
            blobs,
        }
    }

    fn rate(&mut self, now: Instant, bytes: u64) -> Option<u64> {
        self.samples.push_back((now, bytes));
        // The oldest that stays is the last one outside of the window, so that the window is always covered.
        while self.samples.len() > MAX_SAMPLES
            || self
                .samples
                .get(1)
                .is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW)
        {
            self.samples.pop_front();
        }
        let (since, before) = self.samples.front()?;
        let elapsed = now.duration_since(*since);
        if elapsed < SHORTEST_WINDOW {
            return None;
        }
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        Some(bytes.saturating_sub(*before).saturating_mul(1000) / millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(progress: &mut PullProgress, size_bytes: u64, before_bytes: u64) -> watch::Sender<u64> {
        let (sender, arrived) = watch::channel(before_bytes);
        progress.blobs.push(Watched {
            digest: Digest::sha256(&size_bytes.to_le_bytes()),
            size_bytes,
            arrived,
            before_bytes,
        });
        sender
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_that_of_the_last_seconds() {
        let mut progress = PullProgress::new(10_000);
        progress.skip(1000);
        let first = watched(&mut progress, 8000, 0);
        let joined = watched(&mut progress, 1000, 500);
        let start = progress.sample();
        assert_eq!(
            (start.arrived_bytes, start.bytes_per_second, start.remaining),
            (1500, None, None)
        );
        for step in 1..=4 {
            tokio::time::advance(Duration::from_secs(1)).await;
            first.send_replace(step * 1000);
            let sample = progress.sample();
            assert_eq!(sample.bytes_per_second, Some(1000), "second {step}");
        }
        let sample = progress.sample();
        assert_eq!(sample.remaining, Some(Duration::from_millis(4500)));
        assert_eq!(sample.blobs[0].arrived_bytes, 4000);
        // It stops; after the window the rate says so.
        for _ in 0..6 {
            tokio::time::advance(Duration::from_secs(1)).await;
            progress.sample();
        }
        let sample = progress.sample();
        assert_eq!((sample.bytes_per_second, sample.remaining), (Some(0), None));
        first.send_replace(8000);
        joined.send_replace(1000);
        assert_eq!(progress.sample().arrived_bytes, 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn no_number_of_samples_grows_without_bound() {
        let mut progress = PullProgress::new(10);
        for _ in 0..10_000 {
            progress.sample();
        }
        assert!(progress.samples.len() <= MAX_SAMPLES);
    }
}
