//! Owners, modes, times, extended attributes, device numbers.

use super::{
    super::super::{
        EntryKind,
        testing::{Archive, Header, index},
    },
    Expect::{Lines, Refused},
    check, file, metadata,
};
use crate::{DeviceNumber, Timestamp, Xattrs};

#[test]
fn owners_have_32_bits() {
    for (name, archive, expected) in [
        (
            "octal",
            Archive::new().header(file(b"f").octal(108, 8, 70_000).octal(116, 8, 0o7_777_777)),
            (70_000, 2_097_151),
        ),
        (
            "base-256",
            Archive::new().header(
                file(b"f")
                    .bytes(108, b"\x80\0\0\0\xee\x6b\x28\0")
                    .bytes(116, b"\x80\0\0\0\xff\xff\xff\xff"),
            ),
            (4_000_000_000, u32::MAX),
        ),
        (
            "PAX beats the header, user names are ignored",
            Archive::new()
                .pax(&[
                    ("uid", b"4000000000"),
                    ("gid", b"70000"),
                    ("uname", b"root"),
                    ("gname", b"root"),
                ])
                .header(file(b"f").text(265, 32, b"root").text(108, 8, b"none")),
            (4_000_000_000, 70_000),
        ),
    ] {
        let metadata = metadata(&archive.end());
        assert_eq!((metadata.uid, metadata.gid), expected, "{name}");
    }
    check(vec![
        (
            "negative",
            Archive::new().header(file(b"f").bytes(108, &[0xff; 8])).end(),
            Refused("field uid"),
        ),
        (
            "33 bits",
            Archive::new()
                .header(file(b"f").bytes(116, b"\x80\0\0\x01\0\0\0\0"))
                .end(),
            Refused("field gid"),
        ),
    ]);
}

#[test]
fn modes_keep_their_twelve_bits() {
    for (written, expected) in [
        (0o644, 0o644),
        (0o104_755, 0o4755),
        (0o41_777, 0o1777),
        (0o177_777, 0o7777),
    ] {
        assert_eq!(
            metadata(&Archive::new().header(file(b"f").mode(written)).end()).mode,
            expected
        );
    }
}

#[test]
fn times_reach_far_and_fine() {
    let at = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
    let pax = |value: &[u8]| Archive::new().pax(&[("mtime", value)]).header(file(b"f"));
    for (name, archive, expected) in [
        ("octal", Archive::new().header(file(b"f")), at(1000, 0)),
        (
            "missing",
            Archive::new().header(file(b"f").bytes(136, &[0; 12])),
            at(0, 0),
        ),
        (
            "before 1970 in base-256",
            Archive::new().header(file(b"f").bytes(136, &[0xff; 12])),
            at(-1, 0),
        ),
        (
            "2^34 in base-256",
            Archive::new().header(file(b"f").bytes(136, b"\x80\0\0\0\0\0\0\x04\0\0\0\0")),
            at(1 << 34, 0),
        ),
        (
            "PAX, with nanoseconds",
            pax(b"1700000000.123456789"),
            at(1_700_000_000, 123_456_789),
        ),
        ("PAX, before 1970", pax(b"-0.25"), at(-1, 750_000_000)),
        (
            "PAX, beyond what ext4 has",
            pax(b"99999999999"),
            at(99_999_999_999, 0),
        ),
        (
            "other times mean nothing",
            Archive::new()
                .pax(&[("atime", b"5"), ("ctime", b"6")])
                .header(file(b"f")),
            at(1000, 0),
        ),
    ] {
        assert_eq!(metadata(&archive.end()).mtime, expected, "{name}");
    }
}

#[test]
fn xattrs_come_in_two_encodings() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let acl =
        b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    let xattrs =
        |records: &[(&str, &[u8])]| metadata(&Archive::new().pax(records).header(file(b"f")).end()).xattrs;
    let map = |pairs: &[(&[u8], &[u8])]| -> Xattrs {
        pairs.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
    };
    assert_eq!(
        xattrs(&[
            ("SCHILY.xattr.user.z", b"binary\0with=sign\n"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.system.posix_acl_access", acl),
            ("SCHILY.xattr.user.empty", b""),
        ]),
        map(&[
            (b"security.capability", capability),
            (b"system.posix_acl_access", acl),
            (b"user.empty", b""),
            (b"user.z", b"binary\0with=sign\n"),
        ]),
        "raw values are kept byte for byte"
    );
    assert_eq!(
        xattrs(&[
            ("LIBARCHIVE.xattr.user.a%20b%3Dc", b"aGVsbG8"),
            ("LIBARCHIVE.xattr.user.padded", b"aGVsbG8="),
            ("LIBARCHIVE.xattr.user.empty", b""),
        ]),
        map(&[
            (b"user.a b=c", b"hello"),
            (b"user.empty", b""),
            (b"user.padded", b"hello")
        ]),
        "libarchive's names are percent-encoded, its values base64"
    );
    assert_eq!(
        xattrs(&[
            ("SCHILY.xattr.user.a", b"raw"),
            ("LIBARCHIVE.xattr.user.a", b"b3RoZXI")
        ]),
        map(&[(b"user.a", b"raw")]),
        "of both, the raw one counts, in whatever order"
    );
    assert_eq!(
        xattrs(&[("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.user.a", b"2")]),
        map(&[(b"user.a", b"2")]),
        "the later of two records counts"
    );
    assert_eq!(
        xattrs(&[
            ("SCHILY.acl.access", b"user::rw-,group::r--,other::r--"),
            ("SCHILY.acl.default", b"user::rwx,group::r-x,other::r-x"),
            ("RHT.security.selinux", b"x"),
            ("SCHILY.fflags", b"nodump"),
        ]),
        Xattrs::new(),
        "ACLs as text are ignored, as umoci and containerd do"
    );
    let refused = |record: (&str, &[u8])| Archive::new().pax(&[record]).header(file(b"f")).end();
    check(vec![
        (
            "no name",
            refused(("SCHILY.xattr.", b"x")),
            Refused("extended attribute is malformed"),
        ),
        (
            "a name cut off",
            refused(("LIBARCHIVE.xattr.user.%4", b"")),
            Refused("extended attribute is malformed"),
        ),
        (
            "a name with a NUL",
            refused(("LIBARCHIVE.xattr.user.%00", b"")),
            Refused("extended attribute is malformed"),
        ),
        (
            "a sign among digits",
            refused(("LIBARCHIVE.xattr.user.%+5", b"")),
            Refused("extended attribute is malformed"),
        ),
        (
            "no base64",
            refused(("LIBARCHIVE.xattr.user.a", b"!")),
            Refused("extended attribute is malformed"),
        ),
    ]);
}

#[test]
fn extensions_last_for_one_entry() {
    let archive = Archive::new()
        .pax(&[("path", b"a"), ("mtime", b"5"), ("SCHILY.xattr.user.x", b"y")])
        .header(file(b"f"))
        .header(file(b"g"))
        .end();
    let entries = index(&archive).unwrap().index.entries;
    assert_eq!(
        (&entries[0].path[..], entries[0].metadata.mtime.seconds),
        (&b"a"[..], 5)
    );
    assert_eq!(
        (&entries[1].path[..], entries[1].metadata.mtime.seconds),
        (&b"g"[..], 1000)
    );
    assert!(entries[1].metadata.xattrs.is_empty());
}

#[test]
fn hard_links_keep_their_own_header() {
    let archive = Archive::new()
        .pax(&[("uid", b"5"), ("SCHILY.xattr.user.x", b"y")])
        .header(Header::ustar(b'1', b"h").link(b"f").mode(0o777))
        .end();
    let metadata = metadata(&archive);
    assert_eq!(
        (metadata.mode, metadata.uid, metadata.xattrs.len()),
        (0o777, 5, 1)
    );
}

#[test]
fn devices_and_what_no_image_has() {
    check(vec![
        (
            "0:0 is a device like any other",
            Archive::new()
                .header(Header::ustar(b'3', b"c").device(0, 0))
                .end(),
            Lines(&["char c 0:0"]),
        ),
        (
            "V7 has no device numbers",
            Archive::new().header(Header::v7(b'3', b"c")).end(),
            Lines(&["char c 0:0"]),
        ),
        (
            "major number too large",
            Archive::new()
                .header(Header::ustar(b'4', b"b").device(4096, 0))
                .end(),
            Refused("4096:0 is out of range"),
        ),
        (
            "minor number too large",
            Archive::new()
                .header(Header::ustar(b'4', b"b").device(0, 1 << 20))
                .end(),
            Refused("0:1048576 is out of range"),
        ),
        (
            "GNU directory dump",
            Archive::new().header(Header::gnu(b'D', b"d")).end(),
            Refused("type 'D'"),
        ),
        (
            "volume header",
            Archive::new().header(Header::gnu(b'V', b"v")).end(),
            Refused("type 'V'"),
        ),
        (
            "link to nothing",
            Archive::new().header(Header::ustar(b'1', b"h")).end(),
            Refused("no target"),
        ),
        (
            "symlink to nothing",
            Archive::new().header(Header::ustar(b'2', b"s")).end(),
            Refused("no target"),
        ),
    ]);
    let entry = index(
        &Archive::new()
            .header(Header::ustar(b'3', b"c").device(8, 300))
            .end(),
    )
    .unwrap();
    assert_eq!(
        entry.index.entries[0].kind,
        EntryKind::CharacterDevice(DeviceNumber { major: 8, minor: 300 })
    );
}
