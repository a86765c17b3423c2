//! Sizes as people write them: `512MiB`.

/// Reads a size: a whole number and a unit of powers of two (`K`, `KiB`, … `T`, `TiB`) or of ten (`KB`, … `TB`); bytes
/// without one.
///
/// # Errors
/// A text for the one who wrote it.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    const EXPECTED: &str =
        "expected a whole number with K, M, G, T (or KiB, …, or KB, …) behind it or not, as 512MiB";
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(EXPECTED.to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| EXPECTED.to_owned())?;
    number
        .checked_mul(factor)
        .ok_or_else(|| "more than there are bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, expected) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("1K", Some(1024)),
            ("1KB", Some(1000)),
            ("256MiB", Some(256 << 20)),
            ("256M", Some(256 << 20)),
            ("2GiB", Some(2 << 30)),
            ("1TB", Some(1_000_000_000_000)),
            ("", None),
            ("M", None),
            ("1.5G", None),
            ("-1", None),
            ("1 GiB", None),
            ("1PiB", None),
            ("99999999999999999999", None),
            ("18446744073709551615K", None),
        ] {
            assert_eq!(parse_size(text).ok(), expected, "{text:?}");
        }
    }
}
