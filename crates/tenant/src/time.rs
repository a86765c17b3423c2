//! Moments as the database keeps them, and UTC days.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Microseconds since 1970.
pub(crate) type Micros = i64;

/// Microseconds of a day.
pub(crate) const DAY: Micros = 24 * 60 * 60 * 1_000_000;

/// A clock before 1970 is taken for 1970.
pub(crate) fn micros(time: SystemTime) -> Micros {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

/// A moment before 1970 was never written.
pub(crate) fn from_micros(micros: Micros) -> SystemTime {
    let since_epoch = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
    UNIX_EPOCH.checked_add(since_epoch).unwrap_or(UNIX_EPOCH)
}

/// The UTC day of a moment, counted from 1970.
pub(crate) const fn day_of(moment: Micros) -> i64 {
    moment.div_euclid(DAY)
}

/// When the UTC day after that of `moment` begins.
pub(crate) const fn next_midnight(moment: Micros) -> Micros {
    (day_of(moment) + 1).saturating_mul(DAY)
}

/// A day as `2026-11-22` (the civil calendar; after Howard Hinnant's `civil_from_days`).
pub(crate) fn date(day: i64) -> String {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_the_dates_of_the_calendar() {
        for (day, expected) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (789, "1972-02-29"),
            (11_016, "2000-02-29"),
            (20_453, "2025-12-31"),
            (20_454, "2026-01-01"),
        ] {
            assert_eq!(date(day), expected);
        }
    }

    #[test]
    fn a_day_ends_at_midnight() {
        assert_eq!((day_of(DAY - 1), day_of(DAY)), (0, 1));
        assert_eq!((next_midnight(0), next_midnight(DAY)), (DAY, 2 * DAY));
    }
}
