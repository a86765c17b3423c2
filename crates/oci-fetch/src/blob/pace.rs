//! Whether one connection is fast enough for a blob.

use std::time::Duration;

/// A connection that is the only one is asked at once for what it brings in this time.
const RANGE_TIME: Duration = Duration::from_millis(500);

/// What the rate of the only connection says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// It may go on alone, with ranges of this length.
    Fast { range_bytes: u64 },
    /// Others have to help.
    Slow,
}

/// Looks at a connection that has brought `received` bytes in `elapsed`: whether it brings the `left` bytes that nobody has
/// asked for within `limit`.
pub(super) fn pace(received: u64, elapsed: Duration, left: u64, limit: Duration) -> Pace {
    let bytes_in = |time: Duration| {
        let bytes = u128::from(received).saturating_mul(time.as_millis()) / elapsed.as_millis().max(1);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    };
    if bytes_in(limit) < left {
        return Pace::Slow;
    }
    // Never all of it: should the line become slow, there is something left to share.
    Pace::Fast {
        range_bytes: bytes_in(RANGE_TIME).min(left.div_ceil(2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_slow_when_the_rest_takes_it_longer_than_the_limit() {
        const MIB: u64 = 1 << 20;
        let fast = |mib: u64| Pace::Fast {
            range_bytes: mib * MIB,
        };
        for (name, received_mib, milliseconds, left_mib, limit_seconds, expected) in [
            ("700 MB/s", 35, 50, 200, 2, fast(100)),
            ("100 MB/s", 40, 400, 160, 2, fast(50)),
            ("50 MB/s", 3, 50, 230, 2, Pace::Slow),
            ("50 MB/s near the end", 130, 2_600, 90, 2, fast(25)),
            ("nothing yet", 0, 50, 1, 2, Pace::Slow),
            ("nothing left", 0, 50, 0, 2, fast(0)),
            ("no time at all", 2, 0, 2, 2, fast(1)),
            ("always shared", 1_000, 50, 1, 0, Pace::Slow),
        ] {
            let elapsed = Duration::from_millis(milliseconds);
            let limit = Duration::from_secs(limit_seconds);
            let found = pace(received_mib * MIB, elapsed, left_mib * MIB, limit);
            assert_eq!(found, expected, "{name}");
        }
        let endless = pace(u64::MAX, Duration::ZERO, u64::MAX, Duration::MAX);
        assert!(matches!(endless, Pace::Fast { .. }), "no figure is too large");
    }
}
