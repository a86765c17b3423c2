//! Numbers as tar writes them: octal, base-256, and decimal in PAX records.

use crate::Timestamp;

const NANOSECONDS_PER_SECOND: u32 = 1_000_000_000;

/// A header field: octal digits, or base-256 when the first bit is set. An empty field is 0.
///
/// Spaces and NULs may stand before the digits, and one of them ends the number.
pub(super) fn field(bytes: &[u8]) -> Option<i64> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => base_256(bytes),
        _ => octal(bytes),
    }
}

/// Octal digits only; see [`field`].
pub(super) fn octal(bytes: &[u8]) -> Option<i64> {
    let mut value: i64 = 0;
    for &byte in bytes.iter().skip_while(|byte| matches!(byte, b' ' | 0)) {
        match byte {
            b'0'..=b'7' => value = value.checked_mul(8)?.checked_add(i64::from(byte - b'0'))?,
            b' ' | 0 => break,
            _ => return None,
        }
    }
    Some(value)
}

/// Two's complement, big endian; the first bit marks the format and the second is the sign.
fn base_256(bytes: &[u8]) -> Option<i64> {
    let (first, rest) = bytes.split_first()?;
    let negative = first & 0x40 != 0;
    // The marker bit is no part of the number: replace it by the sign.
    let first = if negative { *first } else { first & 0x7f };
    let mut value = i64::from(i8::from_be_bytes([first]));
    for &byte in rest {
        value = value.checked_mul(256)?.checked_add(i64::from(byte))?;
    }
    Some(value)
}

/// Decimal digits and nothing else.
pub(super) fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A PAX time: an optional `-`, digits, and optionally a point and more digits. What is finer than a nanosecond is
/// rounded to the earlier time.
pub(super) fn time(bytes: &[u8]) -> Option<Timestamp> {
    let (negative, magnitude) = match bytes.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, bytes),
    };
    let mut parts = magnitude.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    let mut nanoseconds = 0;
    let mut unit = NANOSECONDS_PER_SECOND / 10;
    let mut finer = false;
    for byte in fraction {
        let digit = u32::from(byte.checked_sub(b'0').filter(|digit| *digit <= 9)?);
        nanoseconds += digit * unit;
        finer |= unit == 0 && digit != 0;
        unit /= 10;
    }
    if !negative {
        return Some(Timestamp { seconds, nanoseconds });
    }
    let nanoseconds = nanoseconds + u32::from(finer);
    // Nanoseconds count forward: -0.25 s is one second back and three quarters forward.
    Some(match nanoseconds {
        0 => Timestamp {
            seconds: -seconds,
            nanoseconds: 0,
        },
        _ => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: NANOSECONDS_PER_SECOND - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields_are_octal_or_base_256() {
        for (name, bytes, expected) in [
            ("octal ended by NUL", &b"0000644\0"[..], Some(0o644)),
            ("octal ended by space and NUL", b"000644 \0", Some(0o644)),
            ("octal after spaces", b"   644 \0", Some(0o644)),
            ("octal that fills the field", b"77777777", Some(0o77_777_777)),
            ("empty", b"\0\0\0\0", Some(0)),
            ("spaces", b"    ", Some(0)),
            ("what follows the end is ignored", b"12\0junk", Some(0o12)),
            ("not octal", b"0000898\0", None),
            ("signed octal", b"-000001\0", None),
            ("base-256, small", b"\x80\0\0\0\0\0\0\x05", Some(5)),
            ("base-256, -1", &[0xff; 12], Some(-1)),
            (
                "base-256, a time before 1970",
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\x0c",
                Some(-500),
            ),
            (
                "base-256, largest",
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            ("base-256, too large", b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (
                "base-256, much too large",
                b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                None,
            ),
        ] {
            assert_eq!(field(bytes), expected, "{name}");
        }
    }

    #[test]
    fn pax_times_have_signs_and_fractions() {
        let at = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
        for (text, expected) in [
            ("0", at(0, 0)),
            ("1234567890", at(1_234_567_890, 0)),
            ("1.5", at(1, 500_000_000)),
            ("1.", at(1, 0)),
            ("1.000000001999", at(1, 1)),
            ("-1", at(-1, 0)),
            ("-0", at(0, 0)),
            ("-0.25", at(-1, 750_000_000)),
            ("-1.5", at(-2, 500_000_000)),
            ("-0.0000000001", at(-1, 999_999_999)),
            ("-0.9999999999", at(-1, 0)),
            ("17179869184", at(1 << 34, 0)),
            ("", None),
            ("-", None),
            (".5", None),
            ("+1", None),
            ("1.5x", None),
            ("1e3", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }
}
