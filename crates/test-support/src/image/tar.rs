//! A tar writer that does what it is told (POSIX.1-1988 ustar, POSIX.1-2001 PAX, GNU extensions).

/// Bytes of a header and of the unit that bodies are padded to.
const BLOCK: usize = 512;

/// How names that do not fit into a header's 100 bytes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LongNames {
    /// As PAX records `path` and `linkpath`.
    #[default]
    Pax,
    /// As GNU's entries of type `L` and `K`.
    Gnu,
    /// In ustar's prefix field where the name can be split at a slash, else as a PAX record.
    UstarPrefix,
}

/// A header as it will be written, lies included.
#[derive(Clone, Debug, Default)]
pub(super) struct Header {
    pub(super) path: Vec<u8>,
    pub(super) type_flag: u8,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
    pub(super) link: Vec<u8>,
    pub(super) device: (u32, u32),
    /// PAX records of the caller's own, after those that the fields above need.
    pub(super) records: Vec<(Vec<u8>, Vec<u8>)>,
    /// What the size field says, when it is not the body's length.
    pub(super) claimed_size: Option<u64>,
    /// Bytes that overwrite the header from an offset on, before the checksum is made.
    pub(super) patches: Vec<(usize, Vec<u8>)>,
    pub(super) wrong_checksum: bool,
}

/// Appends the entry with everything that has to stand before it.
pub(super) fn append(output: &mut Vec<u8>, header: &Header, body: &[u8], long_names: LongNames) {
    let mut records = Vec::new();
    let mut prefix: &[u8] = b"";
    let mut name: &[u8] = &header.path;
    if header.path.len() > 100 {
        match (long_names, split_prefix(&header.path)) {
            (LongNames::Gnu, _) => append_gnu_long(output, b'L', &header.path),
            (LongNames::UstarPrefix, Some((head, tail))) => (prefix, name) = (head, tail),
            _ => records.push((b"path".to_vec(), header.path.clone())),
        }
    }
    if header.link.len() > 100 {
        match long_names {
            LongNames::Gnu => append_gnu_long(output, b'K', &header.link),
            LongNames::Pax | LongNames::UstarPrefix => {
                records.push((b"linkpath".to_vec(), header.link.clone()));
            }
        }
    }
    for (key, value) in [("uid", header.uid), ("gid", header.gid)] {
        if value > 0o7_777_777 {
            records.push((key.as_bytes().to_vec(), value.to_string().into_bytes()));
        }
    }
    if header.nanoseconds != 0 || !(0..1 << 33).contains(&header.seconds) {
        records.push((
            b"mtime".to_vec(),
            decimal_time(header.seconds, header.nanoseconds).into_bytes(),
        ));
    }
    records.extend(header.records.iter().cloned());
    if !records.is_empty() {
        append_pax(output, b'x', &records);
    }
    let size = header.claimed_size.unwrap_or(body.len() as u64);
    output.extend(encode(header, name, prefix, size));
    append_padded(output, body);
}

/// Appends a PAX header of type `x` (the next entry) or `g` (all that follow).
pub(super) fn append_pax(output: &mut Vec<u8>, type_flag: u8, records: &[(Vec<u8>, Vec<u8>)]) {
    let body: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| pax_record(key, value))
        .collect();
    let header = Header {
        path: b"PaxHeaders/entry".to_vec(),
        type_flag,
        mode: 0o644,
        ..Header::default()
    };
    output.extend(encode(&header, &header.path, b"", body.len() as u64));
    append_padded(output, &body);
}

/// One record: its own length in decimal, a space, `key=value` and a line feed.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() != rest.to_string().len() {
        // The digits of the length count too, and adding them made one more of them necessary.
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} ").into_bytes();
    record.extend(key);
    record.push(b'=');
    record.extend(value);
    record.push(b'\n');
    record
}

/// PAX times are decimal fractions, so that -0.25 s is not `-1.75` but `-0.25`.
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    if nanoseconds == 0 {
        return seconds.to_string();
    }
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let (sign, total) = if total < 0 { ("-", -total) } else { ("", total) };
    let text = format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000);
    text.trim_end_matches('0').to_owned()
}

fn append_gnu_long(output: &mut Vec<u8>, type_flag: u8, name: &[u8]) {
    let mut body = name.to_vec();
    body.push(0);
    let header = Header {
        path: b"././@LongLink".to_vec(),
        type_flag,
        mode: 0o644,
        ..Header::default()
    };
    output.extend(encode(&header, &header.path, b"", body.len() as u64));
    append_padded(output, &body);
}

/// The longest prefix of at most 155 bytes that ends at a slash and leaves at most 100 bytes.
fn split_prefix(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = (0..path.len().min(156))
        .rev()
        .find(|&index| path[index] == b'/')?;
    let (head, tail) = (&path[..slash], &path[slash + 1..]);
    (!tail.is_empty() && tail.len() <= 100).then_some((head, tail))
}

/// Appends `body` and zeros up to the next block.
pub(super) fn append_padded(output: &mut Vec<u8>, body: &[u8]) {
    output.extend(body);
    output.resize(output.len().next_multiple_of(BLOCK), 0);
}

fn encode(header: &Header, name: &[u8], prefix: &[u8], size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block, 0, 100, name);
    put_octal(&mut block, 100, 8, u64::from(header.mode));
    put_octal(&mut block, 108, 8, u64::from(header.uid));
    put_octal(&mut block, 116, 8, u64::from(header.gid));
    put_octal(&mut block, 124, 12, size);
    put_octal(&mut block, 136, 12, u64::try_from(header.seconds).unwrap_or(0));
    block[156] = header.type_flag;
    put(&mut block, 157, 100, &header.link);
    put(&mut block, 257, 8, b"ustar\x0000");
    put_octal(&mut block, 329, 8, u64::from(header.device.0));
    put_octal(&mut block, 337, 8, u64::from(header.device.1));
    put(&mut block, 345, 155, prefix);
    for (offset, bytes) in &header.patches {
        block[*offset..*offset + bytes.len()].copy_from_slice(bytes);
    }
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    let sum = if header.wrong_checksum { sum + 1 } else { sum };
    put(&mut block, 148, 8, format!("{sum:06o}\0 ").as_bytes());
    block
}

fn put(block: &mut [u8; BLOCK], offset: usize, width: usize, bytes: &[u8]) {
    let length = bytes.len().min(width);
    block[offset..offset + length].copy_from_slice(&bytes[..length]);
}

/// Octal digits and a NUL; what does not fit is written in GNU's base-256 form.
fn put_octal(block: &mut [u8; BLOCK], offset: usize, width: usize, value: u64) {
    let digits = format!("{value:0digits$o}", digits = width - 1);
    if digits.len() < width {
        put(block, offset, width, digits.as_bytes());
    } else {
        let bytes = value.to_be_bytes();
        block[offset] = 0x80;
        let at = offset + width - bytes.len().min(width - 1);
        block[at..offset + width].copy_from_slice(&bytes[bytes.len() - bytes.len().min(width - 1)..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for value_length in 0..1200 {
            let record = pax_record(b"k", &vec![b'v'; value_length]);
            let digits: String = record
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .map(|&b| b as char)
                .collect();
            assert_eq!(
                digits.parse::<usize>().unwrap(),
                record.len(),
                "a value of {value_length} bytes"
            );
        }
    }

    #[test]
    fn times_are_decimal_fractions() {
        for (seconds, nanoseconds, text) in [
            (5, 0, "5"),
            (1, 500_000_000, "1.5"),
            (0, 1, "0.000000001"),
            (-1, 750_000_000, "-0.25"),
            (-2, 500_000_000, "-1.5"),
            (-7, 0, "-7"),
        ] {
            assert_eq!(decimal_time(seconds, nanoseconds), text);
        }
    }

    #[test]
    fn a_prefix_is_split_at_a_slash() {
        let path = [vec![b'a'; 90], vec![b'b'; 90]].join(&b'/');
        let (head, tail) = split_prefix(&path).unwrap();
        assert_eq!((head.len(), tail.len()), (90, 90));
        assert!(split_prefix(&[b'x'; 200]).is_none(), "no slash to split at");
    }
}
