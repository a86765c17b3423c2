//! The format, and everything that a hostile index may say.

use sha2::{Digest, Sha256};

use super::*;
use crate::{Timestamp, Xattrs, layer::testing::message};

fn entry(path: &[u8], kind: EntryKind) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        metadata: Metadata::root(0o644),
    }
}

fn index(entries: Vec<Entry>) -> LayerIndex {
    LayerIndex {
        diff_id: [7; 32],
        uncompressed_size_bytes: 4096,
        pack_size_bytes: 16_384,
        entries,
    }
}

fn file(size: u64, extents: &[(u64, u64, u64)]) -> Entry {
    let extents = extents
        .iter()
        .map(|&(logical_offset, pack_offset, length)| BodyExtent {
            logical_offset,
            pack_offset,
            length,
        })
        .collect();
    entry(b"f", EntryKind::File(Body { size, extents }))
}

fn written(index: &LayerIndex) -> Vec<u8> {
    let mut bytes = Vec::new();
    index.write_to(&mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<LayerIndex, IndexError> {
    LayerIndex::read_from(bytes, &LayerLimits::default())
}

/// Content with its digest.
fn sealed(content: &[u8]) -> Vec<u8> {
    [content, &Sha256::digest(content)].concat()
}

#[test]
fn every_kind_of_entry_survives() {
    let number = DeviceNumber {
        major: 4095,
        minor: 1_048_575,
    };
    let mut fancy = entry(b"\xff/fancy", EntryKind::Fifo);
    fancy.metadata = Metadata {
        mode: 0o7777,
        uid: u32::MAX,
        gid: u32::MAX,
        mtime: Timestamp {
            seconds: i64::MIN,
            nanoseconds: 999_999_999,
        },
        xattrs: Xattrs::from([(b"user.a".to_vec(), vec![0, 255]), (b"user.b".to_vec(), vec![])]),
    };
    let index = index(vec![
        fancy,
        entry(b"", EntryKind::Directory),
        file(0, &[]),
        file(4097, &[(0, 0, 4097)]),
        file(
            1 << 43,
            &[(4096, 8192, 4096), (8192, 0, 4096), (1 << 42, 12_288, 4096)],
        ),
        entry(b"s", EntryKind::Symlink(b"\xfe/../x".to_vec())),
        entry(b"h", EntryKind::HardLink(b"f".to_vec())),
        entry(b"c", EntryKind::CharacterDevice(number)),
        entry(b"b", EntryKind::BlockDevice(number)),
    ]);
    assert_eq!(read(&written(&index)).unwrap(), index);
    assert_eq!(
        written(&index),
        written(&index.clone()),
        "the same index gives the same bytes"
    );
}

#[test]
fn many_extents_survive() {
    let extents: Vec<_> = (0..5000).map(|at| (at * 8192, at * 4096, 4096)).collect();
    let mut index = index(vec![file(5000 * 8192, &extents)]);
    index.pack_size_bytes = 5000 * 4096;
    assert_eq!(read(&written(&index)).unwrap(), index);
}

/// Caches outlive builds: when this fails, raise `FORMAT_VERSION` and put the new digest here.
#[test]
fn the_format_is_what_it_was() {
    let index = index(vec![
        file(5000, &[(4096, 0, 904)]),
        entry(b"s", EntryKind::Symlink(b"t".to_vec())),
    ]);
    let digest = hex::encode(Sha256::digest(written(&index)));
    assert_eq!(
        (LayerIndex::FORMAT_VERSION, digest.as_str()),
        (
            1,
            "ad9e94edf81ab75dce2cccd6c0824df77cdc9e3a2192638f7a9115caa98e6fb3"
        )
    );
}

#[test]
fn damage_is_found() {
    let bytes = written(&index(vec![
        file(5000, &[(0, 0, 5000)]),
        entry(b"d", EntryKind::Directory),
    ]));
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "cut to {length}");
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(read(&changed).is_err(), "changed at {at}");
    }
    assert!(matches!(
        read(&[&bytes[..], b"x"].concat()),
        Err(IndexError::TrailingBytes)
    ));
    assert!(matches!(read(b"something else"), Err(IndexError::NotAnIndex)));
    let mut other = bytes.clone();
    other[8] = 99;
    assert!(matches!(read(&other), Err(IndexError::Version { found: 99 })));
}

#[test]
fn broken_invariants_are_found() {
    let with = |change: fn(&mut Metadata)| {
        let mut entry = entry(b"f", EntryKind::Fifo);
        change(&mut entry.metadata);
        entry
    };
    let device = |major, minor| entry(b"c", EntryKind::CharacterDevice(DeviceNumber { major, minor }));
    let cases: Vec<(&str, Entry, &str)> = vec![
        ("extent of no bytes", file(4096, &[(0, 0, 0)]), "an extent"),
        (
            "extent not aligned in the file",
            file(8192, &[(512, 0, 4096)]),
            "an extent",
        ),
        (
            "extent not aligned in the pack",
            file(8192, &[(0, 512, 4096)]),
            "an extent",
        ),
        (
            "extent of odd length in the middle",
            file(8192, &[(0, 0, 100), (4096, 4096, 4096)]),
            "an extent",
        ),
        (
            "extents in the wrong order",
            file(8192, &[(4096, 0, 4096), (0, 4096, 4096)]),
            "an extent",
        ),
        (
            "extents that overlap",
            file(12_288, &[(0, 0, 8192), (4096, 8192, 4096)]),
            "an extent",
        ),
        ("extent beyond the file", file(4095, &[(0, 0, 4096)]), "an extent"),
        (
            "extent beyond the pack",
            file(8192, &[(0, 12_288, 8192)]),
            "an extent",
        ),
        (
            "extent whose padding is beyond the pack",
            file(1, &[(0, 16_384, 1)]),
            "an extent",
        ),
        (
            "extent that overflows in the file",
            file(4096, &[(u64::MAX - 4095, 0, 4096)]),
            "an extent",
        ),
        (
            "extent that overflows in the pack",
            file(4096, &[(0, u64::MAX - 4095, 4096)]),
            "an extent",
        ),
        (
            "extent of huge length",
            file(4096, &[(0, 0, u64::MAX)]),
            "an extent",
        ),
        ("file too large", file(1 << 44, &[]), "bytes in a file"),
        (
            "type bits in the mode",
            with(|metadata| metadata.mode = 0o10000),
            "the mode",
        ),
        (
            "a billion nanoseconds",
            with(|metadata| metadata.mtime.nanoseconds = 1_000_000_000),
            "nanoseconds",
        ),
        (
            "attribute without a name",
            with(|metadata| drop(metadata.xattrs.insert(vec![], vec![]))),
            "extended attribute is malformed",
        ),
        (
            "attribute too large",
            with(|metadata| drop(metadata.xattrs.insert(b"user.a".to_vec(), vec![0; 65_537]))),
            "bytes in an extended attribute",
        ),
        (
            "NUL in the path",
            entry(b"a\0b", EntryKind::Fifo),
            "path contains a NUL",
        ),
        (
            "name too long",
            entry(&[b'n'; 256], EntryKind::Fifo),
            "bytes in a name",
        ),
        (
            "path too deep",
            entry(&b"d/".repeat(256), EntryKind::Fifo),
            "depth of a path",
        ),
        (
            "link to nothing",
            entry(b"l", EntryKind::HardLink(vec![])),
            "no target",
        ),
        (
            "NUL in a target",
            entry(b"l", EntryKind::Symlink(b"a\0".to_vec())),
            "link target contains a NUL",
        ),
        (
            "target too long",
            entry(b"l", EntryKind::Symlink(vec![b't'; 4097])),
            "bytes in a path",
        ),
        ("major number", device(4096, 0), "out of range"),
        ("minor number", device(0, 1 << 20), "out of range"),
    ];
    for (name, entry, words) in cases {
        let good = file(1, &[(0, 0, 1)]);
        let error = read(&written(&index(vec![good, entry]))).expect_err(name);
        assert!(
            matches!(error, IndexError::InvalidEntry { number: 1, .. }),
            "{name}: {error}"
        );
        assert!(message(&error).contains(words), "{name}: {}", message(&error));
    }
    let mut odd_pack = index(vec![]);
    odd_pack.pack_size_bytes = 100;
    assert!(message(&read(&written(&odd_pack)).unwrap_err()).contains("size of the pack"));
}

#[test]
fn limits_of_the_reader_hold() {
    let entries = vec![
        entry(b"a", EntryKind::Fifo),
        file(20_000, &[(0, 0, 4096), (8192, 4096, 4096)]),
    ];
    let bytes = written(&index(entries));
    let read = |set: fn(&mut LayerLimits)| {
        let mut limits = LayerLimits::default();
        set(&mut limits);
        LayerIndex::read_from(&bytes[..], &limits)
    };
    read(|_| ()).unwrap();
    for (set, words) in [
        (
            (|limits| limits.max_entries = 1) as fn(&mut LayerLimits),
            "number of entries: 2, 1 allowed",
        ),
        (
            |limits| limits.max_output_bytes = 4095,
            "decompressed bytes: 4096, 4095 allowed",
        ),
        (
            |limits| limits.max_output_bytes = 8192,
            "decompressed bytes: 16384, 8192 allowed",
        ),
        (
            |limits| limits.max_file_size_bytes = 19_999,
            "bytes in a file: 20000",
        ),
        (
            |limits| limits.max_index_bytes = 257 + 257 + 47,
            "memory for the index",
        ),
    ] {
        let error = read(set).expect_err(words);
        assert!(message(&error).contains(words), "{}", message(&error));
    }
    read(|limits| limits.max_index_bytes = 257 + 257 + 48).unwrap();
}

#[test]
fn lengths_alone_reserve_nothing() {
    let header = |n_entries: u64| {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(LayerIndex::FORMAT_VERSION.to_le_bytes());
        bytes.extend([0; 48]);
        bytes.extend(n_entries.to_le_bytes());
        bytes
    };
    let record = |record: &Record<'_>| {
        let encoded = postcard::to_stdvec(record).unwrap();
        [&u32::try_from(encoded.len()).unwrap().to_le_bytes()[..], &encoded].concat()
    };
    let file = |extents| Record {
        path: b"f",
        kind: RecordKind::File {
            size: 1 << 40,
            extents,
        },
        metadata: Cow::Owned(Metadata::root(0)),
    };
    for (name, bytes, words) in [
        (
            "a million entries that are not there",
            header(1_000_000),
            "ends too early",
        ),
        (
            "a record of 4 GiB",
            sealed(&[header(1), u32::MAX.to_le_bytes().to_vec()].concat()),
            "cannot be decoded",
        ),
        (
            "a record that is not there",
            sealed(&[header(1), 100_000_u32.to_le_bytes().to_vec()].concat()),
            "ends too early",
        ),
        (
            "a record that is longer than its content",
            {
                let mut long = record(&file(0));
                long[0] += 1;
                sealed(&[header(1), long, vec![0]].concat())
            },
            "cannot be decoded",
        ),
        (
            "a path of 2^60 bytes",
            {
                let encoded = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
                sealed(&[header(1), 9_u32.to_le_bytes().to_vec(), encoded.to_vec()].concat())
            },
            "cannot be decoded",
        ),
        (
            "extents that are not there",
            sealed(&[header(1), record(&file(40_000_000))].concat()),
            "ends too early",
        ),
        (
            "more extents than memory allows",
            sealed(&[header(1), record(&file(u64::MAX))].concat()),
            "memory for the index",
        ),
    ] {
        let message = message(&read(&bytes).expect_err(name));
        assert!(message.contains(words), "{name}: {message}");
    }
}
