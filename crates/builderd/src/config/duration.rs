//! Durations as Go spells them: `15m`, `1h30m`, `1.5h`, `250ms`.

use std::time::Duration;

/// Units, with nanoseconds. Longer spellings go first where one is the beginning of another.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration: one or more numbers with units, largest first or not, each with a fraction or not; `0` needs no
/// unit. Negative durations, which Go has, make no sense for any setting and are refused.
///
/// Digits of a fraction below a nanosecond are dropped. `None` for anything else and beyond 292 years, which is where
/// Go ends, too.
///
/// Reference: `time.ParseDuration` of Go's standard library.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_end = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let (_, nanoseconds) = UNITS.iter().find(|(name, _)| *name == unit)?;

        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(*nanoseconds)?)?;
        let mut place = *nanoseconds;
        for digit in fraction.bytes() {
            place /= 10;
            total = total.checked_add(u64::from(digit - b'0') * place)?;
        }
        rest = after;
    }
    i64::try_from(total).ok()?;
    Some(Duration::from_nanos(total))
}

/// Writes a duration so that [`parse_duration`] reads it back, in the largest units that fit: `1h30m`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, nanoseconds) in [UNITS[7], UNITS[6], UNITS[5], UNITS[4], UNITS[1], UNITS[0]] {
        let amount = rest / nanoseconds;
        rest %= nanoseconds;
        if amount > 0 {
            text.push_str(&amount.to_string());
            text.push_str(unit);
        }
    }
    text
}

fn digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (text, expected) in [
            ("0", Some(Duration::ZERO)),
            ("0s", Some(Duration::ZERO)),
            ("15s", seconds(15)),
            ("15m", seconds(900)),
            ("1h30m", seconds(5400)),
            ("1h30m0s", seconds(5400)),
            ("1.5h", seconds(5400)),
            (".5h", seconds(1800)),
            ("1.h", seconds(3600)),
            ("30m1h", seconds(5400)),
            ("250ms", Some(Duration::from_millis(250))),
            ("1us", Some(Duration::from_micros(1))),
            ("1\u{b5}s", Some(Duration::from_micros(1))),
            ("0.5ns", Some(Duration::ZERO)),
            ("+1s", seconds(1)),
            ("", None),
            ("+", None),
            (".", None),
            (".s", None),
            ("10", None),
            ("-1s", None),
            ("1d", None),
            ("1 h", None),
            ("1h ", None),
            ("one", None),
            ("3000000h", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(parse_duration(text), expected, "{text:?}");
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["0s", "15s", "1h30m", "250ms", "1h1m1s1ms1us1ns", "24h"] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(format_duration(duration), text);
        }
    }
}
