//! One case for each thing on which image builders are known to differ.

use super::super::{
    LayerErrorKind,
    testing::{Archive, Header, index, message, pax_record},
};
use crate::{Metadata, Xattrs};

/// What an archive says, or with which words it is refused.
enum Expect {
    Lines(&'static [&'static str]),
    Refused(&'static str),
}
use Expect::{Lines, Refused};

fn check(cases: Vec<(&str, Vec<u8>, Expect)>) {
    for (name, archive, expected) in cases {
        match (index(&archive), expected) {
            (Ok(indexed), Lines(lines)) => assert_eq!(indexed.lines(), lines, "{name}"),
            (Err(error), Refused(words)) => {
                let message = message(&error);
                assert!(message.contains(words), "{name}: {message}");
            }
            (Ok(indexed), Refused(_)) => panic!("{name}: accepted as {:?}", indexed.lines()),
            (Err(error), Lines(_)) => panic!("{name}: refused: {}", message(&error)),
        }
    }
}

/// The metadata of the only entry.
fn metadata(archive: &[u8]) -> Metadata {
    let mut indexed = index(archive).unwrap();
    assert_eq!(indexed.index.entries.len(), 1);
    indexed.index.entries.remove(0).metadata
}

fn file(name: &[u8]) -> Header {
    Header::ustar(b'0', name)
}

#[test]
fn every_type_of_entry() {
    check(vec![(
        "all types",
        Archive::new()
            .header(Header::ustar(b'5', b"d/"))
            .file(b"d/f", b"hello")
            .with_body(Header::ustar(b'7', b"contiguous").size(2), b"hi")
            .header(Header::ustar(b'2', b"s").link(b"../up"))
            .header(Header::ustar(b'1', b"h").link(b"d/f"))
            .header(Header::ustar(b'3', b"c").device(8, 300))
            .header(Header::ustar(b'4', b"b").device(4095, 1_048_575))
            .header(Header::ustar(b'6', b"p"))
            .end(),
        Lines(&[
            "dir d/",
            "file d/f hello",
            "file contiguous hi",
            "symlink s ../up",
            "link h d/f",
            "char c 8:300",
            "block b 4095:1048575",
            "fifo p",
        ]),
    )]);
}

#[test]
fn whiteouts_and_odd_paths_are_kept_as_they_stand() {
    check(vec![(
        "the fold interprets, not the index",
        Archive::new()
            .file(b"d/.wh.f", b"")
            .file(b"d/.wh..wh..opq", b"")
            .file(b"/abs", b"")
            .file(b"a/../../b", b"")
            .file(b"x//./y", b"")
            .header(Header::ustar(b'5', b"./"))
            .header(Header::ustar(b'5', b""))
            .file(b"\xff\xfe not UTF-8", b"")
            .file(b"same", b"1")
            .file(b"same", b"2")
            .end(),
        Lines(&[
            "file d/.wh.f ",
            "file d/.wh..wh..opq ",
            "file /abs ",
            "file a/../../b ",
            "file x//./y ",
            "dir ./",
            "dir ",
            r"file \xff\xfe not UTF-8 ",
            "file same 1",
            "file same 2",
        ]),
    )]);
}

#[test]
fn names_come_from_four_places() {
    let long = [&b"d/".repeat(80)[..], b"name"].concat();
    let long_target = b"t/".repeat(90);
    let star = |header: Header| header.bytes(508, b"tar\0");
    let old_go = Header::gnu(b'0', b"name").text(345, 155, b"a/prefix");
    check(vec![
        (
            "ustar prefix",
            Archive::new()
                .header(file(b"name").text(345, 155, b"some/prefix"))
                .end(),
            Lines(&["file some/prefix/name "]),
        ),
        (
            "a name of 100 bytes has no NUL",
            Archive::new().header(file(&[b'n'; 100])).end(),
            Lines(&[
                "file nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn ",
            ]),
        ),
        (
            "star's prefix is shorter, its times are none",
            Archive::new()
                .header(star(
                    file(b"name").text(345, 131, b"pre").bytes(476, b"00000001750 "),
                ))
                .end(),
            Lines(&["file pre/name "]),
        ),
        (
            "V7 has no prefix",
            Archive::new()
                .header(Header::v7(b'0', b"name").text(345, 155, b"junk"))
                .end(),
            Lines(&["file name "]),
        ),
        (
            "GNU has times where the prefix would be",
            Archive::new()
                .header(Header::gnu(b'0', b"name").text(345, 12, b"00000001750").text(
                    357,
                    12,
                    b"00000001750",
                ))
                .end(),
            Lines(&["file name "]),
        ),
        (
            "the GNU headers of Go before 1.8 have a prefix all the same",
            Archive::new().header(old_go).end(),
            Lines(&["file a/prefix/name "]),
        ),
        (
            "PAX path and linkpath",
            Archive::new()
                .pax(&[("path", b"long/path"), ("linkpath", b"long/target")])
                .header(Header::ustar(b'2', b"short").link(b"short"))
                .end(),
            Lines(&["symlink long/path long/target"]),
        ),
        (
            "an empty PAX path means the header's",
            Archive::new()
                .pax(&[("path", b"gone"), ("path", b"")])
                .header(file(b"name"))
                .end(),
            Lines(&["file name "]),
        ),
        (
            "a PAX path with a slash at its end on a file",
            Archive::new().pax(&[("path", b"f/")]).header(file(b"f")).end(),
            Lines(&["file f/ "]),
        ),
        (
            "GNU long name and long link, ended by NUL or not",
            Archive::new()
                .extension(b'L', &[&long[..], b"\0"].concat())
                .extension(b'K', &long_target)
                .header(Header::gnu(b'2', &long[..100]).link(&long_target[..100]))
                .end(),
            Lines(&[concat!(
                "symlink d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/",
                "d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/name ",
                "t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/",
                "t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/t/"
            )]),
        ),
        (
            "a NUL ends a GNU long name, as it ends every header field",
            Archive::new()
                .extension(b'L', b"seen\0unseen")
                .header(Header::gnu(b'0', b"n"))
                .end(),
            Lines(&["file seen "]),
        ),
    ]);
}

#[test]
fn what_readers_disagree_on_is_refused() {
    let gnu = || Header::gnu(b'0', b"name");
    check(vec![
        (
            "two GNU long names",
            Archive::new()
                .extension(b'L', b"a")
                .extension(b'L', b"b")
                .header(gnu())
                .end(),
            Refused("two GNU long names stand before one entry"),
        ),
        (
            "two GNU long link targets",
            Archive::new()
                .extension(b'K', b"a")
                .extension(b'K', b"b")
                .header(gnu())
                .end(),
            Refused("two GNU long link targets"),
        ),
        (
            "two PAX headers",
            Archive::new()
                .pax(&[("path", b"a")])
                .pax(&[("mtime", b"1")])
                .header(gnu())
                .end(),
            Refused("two PAX headers"),
        ),
        (
            "PAX path and GNU long name that differ",
            Archive::new()
                .pax(&[("path", b"a")])
                .extension(b'L', b"b")
                .header(gnu())
                .end(),
            Refused("disagree on the path"),
        ),
        (
            "PAX path and GNU long name that agree",
            Archive::new()
                .extension(b'L', b"a\0")
                .pax(&[("path", b"a")])
                .header(gnu())
                .end(),
            Lines(&["file a "]),
        ),
        (
            "long link target after a PAX path: they do not touch",
            Archive::new()
                .pax(&[("path", b"a")])
                .extension(b'K', b"target")
                .header(Header::gnu(b'2', b"n").link(b"t"))
                .end(),
            Lines(&["symlink a target"]),
        ),
        (
            "PAX linkpath and GNU long link target that differ",
            Archive::new()
                .pax(&[("linkpath", b"a")])
                .extension(b'K', b"b")
                .header(Header::gnu(b'2', b"n").link(b"t"))
                .end(),
            Refused("disagree on the link target"),
        ),
        (
            "an extension at the end",
            Archive::new().pax(&[("path", b"a")]).end(),
            Refused("an extended header belongs to no entry"),
        ),
        (
            "an extension before a global header",
            Archive::new()
                .pax(&[("path", b"a")])
                .extension(b'g', b"")
                .header(gnu())
                .end(),
            Refused("an extended header belongs to no entry"),
        ),
        (
            "a lone zero block",
            Archive::new().raw(&[0; 512]).file(b"f", b"").end(),
            Refused("single zero block"),
        ),
    ]);
}

#[test]
fn pax_records_are_parsed_strictly() {
    let with = |body: &[u8]| Archive::new().extension(b'x', body).header(file(b"f")).end();
    for (name, archive) in [
        ("no length", with(b"path=a\n")),
        ("length too short", with(b"8 path=a\n")),
        ("length too long", with(b"11 path=a\n")),
        ("length beyond the header", with(b"99 path=a\n")),
        ("length 0", with(b"0 path=a\n")),
        ("signed length", with(b"+9 path=a\n")),
        ("huge length", with(b"99999999999999999999999 path=a\n")),
        ("no newline", with(b"9 path=ab")),
        ("no equals sign", with(b"8 patha\n")),
        ("no keyword", with(b"5 =a\n")),
        ("NULs after the records", with(b"9 path=a\n\0\0\0")),
    ] {
        let error = index(&archive).expect_err(name);
        assert_eq!(error.kind(), LayerErrorKind::Malformed, "{name}");
        assert!(
            message(&error).contains("PAX record is malformed"),
            "{name}: {}",
            message(&error)
        );
    }
    check(vec![
        (
            "NUL in a path",
            with(&pax_record(b"path", b"a\0b")),
            Refused("path contains a NUL byte"),
        ),
        (
            "NUL in a link's target",
            with(&pax_record(b"linkpath", b"a\0b")),
            Refused("linkpath contains a NUL byte"),
        ),
        (
            "NUL in a keyword",
            with(&pax_record(b"pa\0th", b"a")),
            Refused("PAX keyword contains a NUL"),
        ),
        (
            "size that is no number",
            with(&pax_record(b"size", b"0x10")),
            Refused("field size"),
        ),
        (
            "negative size",
            with(&pax_record(b"size", b"-1")),
            Refused("field size"),
        ),
        (
            "size of 65 bits",
            with(&pax_record(b"size", b"18446744073709551616")),
            Refused("field size"),
        ),
        (
            "negative owner",
            with(&pax_record(b"uid", b"-1")),
            Refused("field uid"),
        ),
        (
            "owner of 33 bits",
            with(&pax_record(b"gid", b"4294967296")),
            Refused("field gid"),
        ),
        (
            "time that is none",
            with(&pax_record(b"mtime", b"now")),
            Refused("field mtime"),
        ),
        (
            "unknown keywords",
            with(&pax_record(b"comment", b"x")),
            Lines(&["file f "]),
        ),
    ]);
}

#[test]
fn global_headers_are_skipped_unless_they_redirect() {
    let with = |records: &[(&str, &[u8])]| {
        Archive::new()
            .extension(
                b'g',
                &records
                    .iter()
                    .flat_map(|(k, v)| pax_record(k.as_bytes(), v))
                    .collect::<Vec<_>>(),
            )
            .file(b"f", b"x")
            .end()
    };
    check(vec![
        (
            "a comment, as git archive writes it",
            with(&[("comment", &[b'a'; 40])]),
            Lines(&["file f x"]),
        ),
        ("an owner", with(&[("uid", b"7")]), Lines(&["file f x"])),
        (
            "an attribute",
            with(&[("SCHILY.xattr.user.a", b"b")]),
            Lines(&["file f x"]),
        ),
        (
            "a path",
            with(&[("path", b"g")]),
            Refused("global PAX header sets path"),
        ),
        (
            "a link's target",
            with(&[("linkpath", b"g")]),
            Refused("global PAX header sets linkpath"),
        ),
        (
            "a size",
            with(&[("size", b"0")]),
            Refused("global PAX header sets size"),
        ),
        (
            "a sparse name",
            with(&[("GNU.sparse.name", b"g")]),
            Refused("global PAX header sets GNU.sparse"),
        ),
        (
            "nonsense",
            Archive::new().extension(b'g', b"nonsense").file(b"f", b"x").end(),
            Refused("PAX record is malformed"),
        ),
    ]);
    let kept = metadata(&with(&[("uid", b"7"), ("SCHILY.xattr.user.a", b"b")]));
    assert_eq!((kept.uid, kept.xattrs), (1, Xattrs::new()));
}

#[test]
fn sizes_follow_the_type_and_pax() {
    // What a reader that gets the size wrong would take for an entry.
    let hidden = Archive::new().file(b"hidden", b"").0;
    check(vec![
        (
            "PAX size beats a header size of 0",
            Archive::new()
                .pax(&[("size", b"512")])
                .header(file(b"f"))
                .raw(&hidden)
                .file(b"next", b"")
                .end(),
            Lines(&["file f 512 bytes", "file next "]),
        ),
        (
            "PAX size beats a larger header size",
            Archive::new()
                .pax(&[("size", b"0")])
                .header(file(b"f").size(512))
                .raw(&hidden)
                .end(),
            Lines(&["file f ", "file hidden "]),
        ),
        (
            "PAX size replaces a header size that is no number",
            Archive::new()
                .pax(&[("size", b"2")])
                .with_body(file(b"f").text(124, 12, b"many"), b"hi")
                .end(),
            Lines(&["file f hi"]),
        ),
        (
            "no body follows links, directories, devices and FIFOs, whatever size they have",
            Archive::new()
                .header(Header::ustar(b'1', b"h").link(b"f").size(512))
                .header(Header::ustar(b'2', b"s").link(b"f").size(512))
                .header(Header::ustar(b'3', b"c").device(1, 3).size(512))
                .header(Header::ustar(b'4', b"b").device(1, 3).size(512))
                .header(Header::ustar(b'5', b"d").size(512))
                .header(Header::ustar(b'6', b"p").size(512))
                .file(b"f", b"")
                .end(),
            Lines(&[
                "link h f",
                "symlink s f",
                "char c 1:3",
                "block b 1:3",
                "dir d",
                "fifo p",
                "file f ",
            ]),
        ),
        (
            "nor when PAX gives the size",
            Archive::new()
                .pax(&[("size", b"512")])
                .header(Header::ustar(b'2', b"s").link(b"f"))
                .file(b"f", b"")
                .end(),
            Lines(&["symlink s f", "file f "]),
        ),
        (
            "base-256 size",
            Archive::new()
                .with_body(file(b"f").bytes(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x03"), b"abc")
                .end(),
            Lines(&["file f abc"]),
        ),
        (
            "negative size",
            Archive::new().header(file(b"f").bytes(124, &[0xff; 12])).end(),
            Refused("field size"),
        ),
    ]);
}

#[test]
fn old_archives_mark_directories_by_a_slash() {
    check(vec![
        (
            "type NUL with a slash, no body whatever its size",
            Archive::new()
                .header(Header::v7(0, b"d/").size(512))
                .file(b"f", b"")
                .end(),
            Lines(&["dir d/", "file f "]),
        ),
        (
            "type NUL, the slash in a PAX path",
            Archive::new()
                .pax(&[("path", b"e/")])
                .header(Header::ustar(0, b"d"))
                .end(),
            Lines(&["dir e/"]),
        ),
        (
            "type NUL without",
            Archive::new().with_body(Header::v7(0, b"f").size(1), b"x").end(),
            Lines(&["file f x"]),
        ),
        (
            "type 0 with a slash is a file",
            Archive::new().with_body(file(b"f/").size(1), b"x").end(),
            Lines(&["file f/ x"]),
        ),
    ]);
}

#[test]
fn checksums_may_be_of_signed_bytes() {
    let header = file(b"caf\xe9");
    let mut signed = header.build();
    let sum: i64 = signed
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                i64::from(byte.cast_signed())
            }
        })
        .sum();
    signed[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut wrong = header.build();
    wrong[150] ^= 1;
    check(vec![
        (
            "unsigned",
            Archive::new().header(header).end(),
            Lines(&[r"file caf\xe9 "]),
        ),
        (
            "signed",
            Archive::new().raw(&signed).end(),
            Lines(&[r"file caf\xe9 "]),
        ),
        (
            "neither",
            Archive::new().raw(&wrong).end(),
            Refused("checksum is wrong"),
        ),
    ]);
}

mod metadata;
mod sparse;
mod streams;
