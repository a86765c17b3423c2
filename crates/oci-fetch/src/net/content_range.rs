//! The `Content-Range` header of a partial response.

/// `bytes first-last/total`, both ends inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// `None` when the server does not know (`*`).
    pub(crate) total: Option<u64>,
}

/// Parses strictly; `None` is a response that must not be used.
///
/// Source: RFC 9110, section 14.4.
pub(crate) fn parse(text: &str) -> Option<ContentRange> {
    let (unit, rest) = text.split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = match total {
        "*" => None,
        total => Some(number(total)?),
    };
    if first > last || total.is_some_and(|total| last >= total) {
        return None;
    }
    Some(ContentRange { first, last, total })
}

/// Digits only; `parse` alone would take a sign.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_exact_headers_parse() {
        let range = |first, last, total| Some(ContentRange { first, last, total });
        for (text, expected) in [
            ("bytes 0-0/1", range(0, 0, Some(1))),
            ("bytes 500-999/1000", range(500, 999, Some(1000))),
            ("Bytes 500-999/*", range(500, 999, None)),
            ("bytes */1000", None),
            ("bytes 5-4/10", None),
            ("bytes 0-10/10", None),
            ("bytes 0-10", None),
            ("bytes=0-10/20", None),
            ("bytes  0-10/20", None),
            ("bytes +0-10/20", None),
            ("bytes 0-10/+20", None),
            ("bytes 0--10/20", None),
            ("items 0-10/20", None),
            ("bytes 0-18446744073709551616/*", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,60}", numbers in "bytes [0-9*+/ -]{0,50}") {
            let _ = parse(&text);
            let _ = parse(&numbers);
        }

        #[test]
        fn what_servers_write_is_read(first in any::<u32>(), length in 1u32.., more in any::<u32>()) {
            let (first, last) = (u64::from(first), u64::from(first) + u64::from(length) - 1);
            let total = last + 1 + u64::from(more);
            prop_assert_eq!(
                parse(&format!("bytes {first}-{last}/{total}")),
                Some(ContentRange { first, last, total: Some(total) })
            );
        }
    }
}
