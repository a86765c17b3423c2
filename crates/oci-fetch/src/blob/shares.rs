//! How the ranges of one blob are shared out among its connections.

use std::sync::atomic::{AtomicU64, Ordering};

/// The last ranges of a blob become smaller, so that all connections end at about the same time; smaller ones than this cost
/// more round trips than they gain.
pub(super) const MIN_SHARE_BYTES: u64 = 2 << 20;

/// What of a blob nobody has asked for yet, shared out among its connections.
pub(super) struct Shares {
    next: AtomicU64,
    size_bytes: u64,
    /// The largest range.
    range_bytes: u64,
    /// The largest range while one connection has all of them; 0 once there are several.
    lone_range_bytes: AtomicU64,
    connections: u64,
}

impl Shares {
    /// Shares out the bytes from `next` to `size_bytes`.
    pub(super) fn new(next: u64, size_bytes: u64, range_bytes: u64, connections: usize) -> Self {
        Self {
            next: AtomicU64::new(next),
            size_bytes,
            range_bytes,
            lone_range_bytes: AtomicU64::new(range_bytes),
            connections: u64::try_from(connections).unwrap_or(u64::MAX).max(1),
        }
    }

    /// Bytes that nobody has asked for yet.
    pub(super) fn left_bytes(&self) -> u64 {
        self.size_bytes.saturating_sub(self.next.load(Ordering::Relaxed))
    }

    /// Lets the one connection there is ask for so many bytes at once, if that is more than a range has; each request is a
    /// round trip in which nothing comes in.
    pub(super) fn lengthen(&self, bytes: u64) {
        self.lone_range_bytes
            .store(bytes.max(self.range_bytes), Ordering::Relaxed);
    }

    /// From now on the rest is shared out.
    pub(super) fn share(&self) {
        self.lone_range_bytes.store(0, Ordering::Relaxed);
    }

    /// The next range, without the byte at its end; `None` when all are taken.
    pub(super) fn take(&self) -> Option<(u64, u64)> {
        let lone = self.lone_range_bytes.load(Ordering::Relaxed);
        let end = |from: u64| {
            let left = self.size_bytes.checked_sub(from).filter(|left| *left > 0)?;
            let length = match lone {
                0 => left
                    .div_ceil(self.connections)
                    .max(MIN_SHARE_BYTES)
                    .min(self.range_bytes),
                lone => lone,
            };
            Some(from + length.min(left))
        };
        let from = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, end)
            .ok()?;
        Some((from, end(from)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ranges_cover_the_rest_once_and_become_smaller_to_the_end() {
        for (name, size_mib, range_mib, connections, expected) in [
            ("nothing", 0, 16, 4, &[][..]),
            ("less than a share", 1, 16, 4, &[1][..]),
            ("four of the same", 8, 16, 4, &[2, 2, 2, 2]),
            ("small ranges stay", 3, 1, 4, &[1, 1, 1]),
            ("one connection", 40, 16, 1, &[16, 16, 8]),
            (
                "large to small",
                80,
                16,
                4,
                &[16, 16, 12, 9, 6, 5, 3, 2, 2, 2, 2, 2, 0],
            ),
        ] {
            let shares = Shares::new(0, size_mib * MIB, range_mib * MIB, connections);
            shares.share();
            let ranges: Vec<(u64, u64)> = std::iter::from_fn(|| shares.take()).take(100).collect();
            let mut position = 0;
            for (from, to) in &ranges {
                assert_eq!(*from, position, "{name}");
                position = *to;
            }
            assert_eq!(position, size_mib * MIB, "{name}");
            let sizes: Vec<u64> = ranges.iter().map(|(from, to)| (to - from) / MIB).collect();
            assert_eq!(sizes, expected, "{name}");
        }
    }

    #[test]
    fn one_connection_takes_longer_ranges_until_there_are_several() {
        let shares = Shares::new(0, 200 * MIB, 16 * MIB, 4);
        let mut ranges = vec![shares.take()];
        shares.lengthen(MIB);
        ranges.push(shares.take());
        shares.lengthen(64 * MIB);
        ranges.push(shares.take());
        assert_eq!(shares.left_bytes(), 104 * MIB);
        shares.share();
        ranges.push(shares.take());
        let ends: Vec<u64> = ranges.iter().map(|range| range.unwrap().1 / MIB).collect();
        assert_eq!(ends, [16, 32, 96, 112]);
    }
}
