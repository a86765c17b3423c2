//! So many requests a second of each peer.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Peers that are told apart; all others share one allowance.
const MAX_PEERS: usize = 4096;

/// So many requests a second of each peer, and as many at once after a pause: one who asks too often takes nothing from
/// another.
#[derive(Debug)]
pub(super) struct RateLimiter {
    per_second: f64,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    /// Only peers whose bucket is not full, as far as was looked: one that has waited long enough is as good as new.
    by_peer: HashMap<IpAddr, Bucket>,
    /// Of the peers for which there is no room, and of those without an address.
    others: Bucket,
    cleared: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl RateLimiter {
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        let now = Instant::now();
        Self {
            per_second,
            buckets: Mutex::new(Buckets {
                by_peer: HashMap::new(),
                others: Bucket {
                    tokens: per_second,
                    filled: now,
                },
                cleared: now,
            }),
        }
    }

    /// Takes one request's share, or says how long until there is one.
    pub(super) fn take(&self, peer: Option<IpAddr>) -> Result<(), Duration> {
        let now = Instant::now();
        // The lock is held for arithmetic only, so a panic while holding it cannot happen.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets
            .bucket(peer, now, self.per_second)
            .take(now, self.per_second)
    }
}

impl Buckets {
    fn bucket(&mut self, peer: Option<IpAddr>, now: Instant, per_second: f64) -> &mut Bucket {
        let Some(peer) = peer else {
            return &mut self.others;
        };
        let is_full = self.by_peer.len() >= MAX_PEERS && !self.by_peer.contains_key(&peer);
        // After a second a bucket that was left alone is full again, whatever the rate.
        if is_full && now - self.cleared >= Duration::from_secs(1) {
            self.by_peer
                .retain(|_, bucket| now - bucket.filled < Duration::from_secs(1));
            self.cleared = now;
        }
        if self.by_peer.len() >= MAX_PEERS && !self.by_peer.contains_key(&peer) {
            return &mut self.others;
        }
        self.by_peer.entry(peer).or_insert(Bucket {
            tokens: per_second,
            filled: now,
        })
    }
}

impl Bucket {
    fn take(&mut self, now: Instant, per_second: f64) -> Result<(), Duration> {
        let gained = (now - self.filled).as_secs_f64() * per_second;
        self.filled = now;
        self.tokens = (self.tokens + gained).min(per_second);
        // Less by what rounding to nanoseconds loses: who waits as long as was said has one.
        if self.tokens >= 1.0 - 1e-6 {
            self.tokens = (self.tokens - 1.0).max(0.0);
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / per_second))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn peer(number: usize) -> Option<IpAddr> {
        Some(Ipv4Addr::from_bits(u32::try_from(number).unwrap()).into())
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_asks_too_often_takes_nothing_from_another() {
        let limiter = RateLimiter::new(3);
        for _ in 0..3 {
            assert_eq!(limiter.take(peer(1)), Ok(()));
        }
        let wait = limiter.take(peer(1)).unwrap_err();
        assert!(wait <= Duration::from_millis(334), "{wait:?}");
        for _ in 0..3 {
            assert_eq!(limiter.take(peer(2)), Ok(()));
        }
        assert!(limiter.take(peer(2)).is_err());
        tokio::time::advance(wait).await;
        assert_eq!(limiter.take(peer(1)), Ok(()));
        assert!(limiter.take(peer(1)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_peers_are_remembered_and_forgotten_again() {
        let limiter = RateLimiter::new(2);
        for number in 0..MAX_PEERS {
            assert_eq!(limiter.take(peer(number)), Ok(()), "{number}");
        }
        // The table is full: the rest share.
        assert_eq!(limiter.take(peer(MAX_PEERS)), Ok(()));
        assert_eq!(limiter.take(peer(MAX_PEERS + 1)), Ok(()));
        assert!(limiter.take(peer(MAX_PEERS + 2)).is_err());
        assert_eq!(
            limiter.take(peer(7)),
            Ok(()),
            "who is remembered is not among them"
        );
        assert_eq!(limiter.buckets.lock().unwrap().by_peer.len(), MAX_PEERS);

        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..2 {
            assert_eq!(limiter.take(peer(MAX_PEERS + 2)), Ok(()));
        }
        assert_eq!(limiter.buckets.lock().unwrap().by_peer.len(), 1);
    }
}
