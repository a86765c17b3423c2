//! Sparse files, in all the forms that GNU tar has had.

use super::super::super::testing::{Archive, Header, index, message};

/// A file of 12,300 bytes whose bytes 512..1024 and 8192..12300 are data. Its second half has unaligned parts.
const SIZE: usize = 12_300;

fn data() -> Vec<u8> {
    (0..512 + 4108_u32).map(|at| (at % 251) as u8 + 1).collect()
}

fn content() -> Vec<u8> {
    let mut content = vec![0; SIZE];
    content[512..1024].copy_from_slice(&data()[..512]);
    content[8192..].copy_from_slice(&data()[512..]);
    content
}

/// The map and realsize of an old GNU header.
fn gnu_sparse(map: &[(u64, u64)], goes_on: bool, real_size: u64) -> Header {
    let mut header = Header::gnu(b'S', b"sparse").base_256(483, 12, i64::try_from(real_size).unwrap());
    for (at, (offset, length)) in map.iter().enumerate() {
        header = header
            .octal(386 + 24 * at, 12, *offset)
            .octal(398 + 24 * at, 12, *length);
    }
    header.bytes(482, &[u8::from(goes_on)])
}

fn extension_block(map: &[(u64, u64)], goes_on: bool) -> [u8; 512] {
    let mut header = Header([0; 512]);
    for (at, (offset, length)) in map.iter().enumerate() {
        header = header
            .octal(24 * at, 12, *offset)
            .octal(12 + 24 * at, 12, *length);
    }
    header.bytes(504, &[u8::from(goes_on)]).0
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn all_forms_give_the_same_file() {
    let file = |header: Header| header.size(4620);
    let size = SIZE as u64;
    let map_1_0 = padded(b"2\n512\n512\n8192\n4108\n".to_vec());
    // 30 segments: 4 in the header, 21 and 5 in two extension blocks. All but the real ones are empty.
    let many: Vec<_> = (0..28)
        .map(|_| (0, 0))
        .chain([(512, 512), (8192, 4108)])
        .collect::<Vec<(u64, u64)>>();
    let cases = [
        (
            "old GNU, ended by its empty last segment",
            Archive::new().with_body(
                file(gnu_sparse(&[(512, 512), (8192, 4108), (size, 0)], false, size)),
                &data(),
            ),
        ),
        (
            "old GNU, with extension blocks",
            Archive::new()
                .header(file(gnu_sparse(&many[..4], true, size)))
                .raw(&extension_block(&many[4..25], true))
                .raw(&extension_block(&many[25..], false))
                .raw(&padded(data())),
        ),
        (
            "PAX 0.0",
            Archive::new()
                .pax(&[
                    ("GNU.sparse.size", b"12300"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.offset", b"512"),
                    ("GNU.sparse.numbytes", b"512"),
                    ("GNU.sparse.offset", b"8192"),
                    ("GNU.sparse.numbytes", b"4108"),
                ])
                .with_body(file(Header::ustar(b'0', b"sparse")), &data()),
        ),
        (
            "PAX 0.1",
            Archive::new()
                .pax(&[
                    ("GNU.sparse.size", b"12300"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.name", b"sparse"),
                    ("GNU.sparse.map", b"512,512,8192,4108"),
                ])
                .with_body(file(Header::ustar(b'0', b"GNUSparseFile.1/sparse")), &data()),
        ),
        (
            "PAX 1.0",
            Archive::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"sparse"),
                    ("GNU.sparse.realsize", b"12300"),
                    ("path", b"GNUSparseFile.1/sparse"),
                ])
                .with_body(
                    Header::ustar(b'0', b"GNUSparseFile.1/sparse").size(4620 + 512),
                    &[&map_1_0[..], &data()].concat(),
                ),
        ),
    ];
    for (name, archive) in cases {
        let indexed = match index(&archive.file(b"next", b"n").end()) {
            Ok(indexed) => indexed,
            Err(error) => panic!("{name}: {}", message(&error)),
        };
        assert_eq!(
            indexed.lines(),
            ["file sparse 12300 bytes", "file next n"],
            "{name}"
        );
        assert_eq!(indexed.content(&indexed.index.entries[0]), content(), "{name}");
        // The hole between is not in the pack: blocks 0, 2 and 3 of the file, and one for the other file.
        assert_eq!(indexed.index.pack_size_bytes, 4 * 4096, "{name}");
    }
}

#[test]
fn a_file_of_holes_takes_no_room() {
    let tib = 1_u64 << 40;
    let archive = Archive::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"holes"),
            ("GNU.sparse.realsize", tib.to_string().as_bytes()),
        ])
        .with_body(Header::ustar(b'0', b"x").size(512), b"0\n")
        .header(
            gnu_sparse(&[], false, tib)
                .base_256(386, 12, 1 << 40)
                .octal(398, 12, 0),
        )
        .end();
    let indexed = index(&archive).unwrap();
    assert_eq!(
        indexed.lines(),
        [
            format!("file holes {tib} bytes"),
            format!("file sparse {tib} bytes")
        ]
    );
    assert_eq!(indexed.index.pack_size_bytes, 0);
}

#[test]
fn maps_that_make_no_sense_are_refused() {
    let gnu = |map: &[(u64, u64)], stored: usize| {
        Archive::new()
            .with_body(gnu_sparse(map, false, 4096).size(stored as u64), &vec![1; stored])
            .end()
    };
    let pax = |records: &[(&str, &[u8])], body: &[u8]| {
        Archive::new()
            .pax(records)
            .with_body(Header::ustar(b'0', b"f").size(body.len() as u64), body)
            .end()
    };
    let v1: [(&str, &[u8]); 3] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"4096"),
    ];
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("overlap", gnu(&[(0, 1024), (512, 512)], 1536), "overlap"),
        ("order", gnu(&[(1024, 512), (0, 512)], 1024), "not in order"),
        ("beyond the end", gnu(&[(3584, 1024)], 1024), "beyond the end"),
        (
            "overflow",
            gnu(&[(0o77_777_777_777, 0o77_777_777_777)], 512),
            "beyond the end",
        ),
        (
            "more stored than mapped",
            gnu(&[(0, 512)], 1024),
            "account for the stored bytes",
        ),
        (
            "less stored than mapped",
            gnu(&[(0, 1024)], 512),
            "account for the stored bytes",
        ),
        (
            "a negative offset",
            Archive::new()
                .header(gnu_sparse(&[], false, 0).bytes(386, &[0xff; 12]))
                .end(),
            "a number in it is not valid",
        ),
        (
            "goes on after its end",
            Archive::new()
                .header(gnu_sparse(&[(0, 0)], true, 0))
                .raw(&[0; 512])
                .end(),
            "goes on after its end",
        ),
        (
            "old form in a header of another kind",
            Archive::new().header(Header::ustar(b'S', b"s")).end(),
            "not a GNU one",
        ),
        (
            "both forms",
            Archive::new().pax(&v1).header(gnu_sparse(&[], false, 0)).end(),
            "given in two forms",
        ),
        (
            "unknown version",
            pax(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")], b""),
            "version is unknown",
        ),
        (
            "no size",
            pax(&[("GNU.sparse.map", b"0,1")], b"x"),
            "size is missing",
        ),
        (
            "a length without its offset",
            pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.numbytes", b"1")], b"x"),
            "do not alternate",
        ),
        (
            "an offset without its length",
            pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.offset", b"1")], b"x"),
            "an offset has no length",
        ),
        (
            "an odd map",
            pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"1,2,3")], b"xx"),
            "an offset has no length",
        ),
        (
            "a wrong number of segments",
            pax(
                &[
                    ("GNU.sparse.size", b"9"),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.map", b"0,1"),
                ],
                b"x",
            ),
            "number of segments is wrong",
        ),
        (
            "a map that never ends",
            pax(&v1, &[b'\n'; 512]),
            "a number in it is not valid",
        ),
        (
            "a number that never ends",
            pax(&v1, &[b'1'; 512]),
            "a number in it is not valid",
        ),
        (
            "a map longer than the body",
            pax(&v1, b"3\n"),
            "longer than the body",
        ),
        (
            "on a symlink",
            Archive::new()
                .pax(&v1)
                .header(Header::ustar(b'2', b"s").link(b"t"))
                .end(),
            "not a file",
        ),
    ];
    for (name, archive, words) in cases {
        let error = index(&archive).expect_err(name);
        assert!(message(&error).contains(words), "{name}: {}", message(&error));
    }
}
