//! Random archives, random bytes, and archives cut or changed anywhere.

use proptest::prelude::*;

use super::super::{
    EntryKind, LayerIndex, LayerLimits, fuzzing, index_layer,
    testing::{Archive, Header, index, pax_record},
};
use crate::{DeviceNumber, Metadata, Timestamp, Xattrs};

/// An entry as it should come out, with its content.
#[derive(Clone, Debug)]
struct Model {
    path: Vec<u8>,
    kind: ModelKind,
    metadata: Metadata,
    /// Whether to write long names the GNU way, and numbers in base-256, rather than in PAX records.
    gnu: bool,
}

#[derive(Clone, Debug)]
enum ModelKind {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharacterDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(
        any::<u8>().prop_filter("no NUL, no slash", |byte| !matches!(byte, 0 | b'/')),
        1..120,
    )
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(name(), 1..4).prop_map(|names| names.join(&b'/'))
}

/// Blocks of zeros and of data in any order, with an end that is not aligned.
fn content() -> impl Strategy<Value = Vec<u8>> {
    (
        prop::collection::vec(any::<bool>(), 0..12),
        0_usize..5000,
        any::<u8>(),
    )
        .prop_map(|(blocks, tail, byte)| {
            let mut content: Vec<u8> = blocks
                .iter()
                .flat_map(|data| [u8::from(*data) * 7; 4096])
                .collect();
            content.resize(content.len() + tail, byte);
            content
        })
}

fn kind() -> impl Strategy<Value = ModelKind> {
    let device = (0_u32..4096, 0_u32..1 << 20).prop_map(|(major, minor)| DeviceNumber { major, minor });
    prop_oneof![
        2 => Just(ModelKind::Directory),
        5 => content().prop_map(ModelKind::File),
        1 => path().prop_map(ModelKind::Symlink),
        1 => path().prop_map(ModelKind::HardLink),
        1 => device.clone().prop_map(ModelKind::CharacterDevice),
        1 => device.prop_map(ModelKind::BlockDevice),
        1 => Just(ModelKind::Fifo),
    ]
}

fn model() -> impl Strategy<Value = Model> {
    let xattrs = prop::collection::btree_map(
        name()
            .prop_map(|name| [&b"user."[..], &name].concat())
            .prop_filter("a record's keyword ends at =", |name| !name.contains(&b'=')),
        prop::collection::vec(any::<u8>(), 0..200),
        0..4,
    );
    let time = (
        -(1_i64 << 40)..1 << 40,
        prop_oneof![Just(0), 0_u32..1_000_000_000],
    );
    (
        path(),
        kind(),
        (0_u16..0o10000, any::<u32>(), any::<u32>(), time, xattrs),
        any::<bool>(),
    )
        .prop_map(
            |(path, kind, (mode, uid, gid, (seconds, nanoseconds), xattrs), gnu)| {
                // GNU's own format has neither attributes nor fractions.
                let (nanoseconds, xattrs) = if gnu {
                    (0, Xattrs::new())
                } else {
                    (nanoseconds, xattrs)
                };
                let mtime = Timestamp { seconds, nanoseconds };
                Model {
                    path,
                    kind,
                    metadata: Metadata {
                        mode,
                        uid,
                        gid,
                        mtime,
                        xattrs,
                    },
                    gnu,
                }
            },
        )
}

fn pax_time(time: Timestamp) -> String {
    if time.seconds >= 0 {
        return format!("{}.{:09}", time.seconds, time.nanoseconds);
    }
    let total = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let magnitude = total.unsigned_abs();
    format!("-{}.{:09}", magnitude / 1_000_000_000, magnitude % 1_000_000_000)
}

fn write(archive: Archive, model: &Model) -> Archive {
    let (type_flag, body, target) = match &model.kind {
        ModelKind::Directory => (b'5', &[][..], &[][..]),
        ModelKind::File(content) => (b'0', &content[..], &[][..]),
        ModelKind::Symlink(target) => (b'2', &[][..], &target[..]),
        ModelKind::HardLink(target) => (b'1', &[][..], &target[..]),
        ModelKind::CharacterDevice(_) => (b'3', &[][..], &[][..]),
        ModelKind::BlockDevice(_) => (b'4', &[][..], &[][..]),
        ModelKind::Fifo => (b'6', &[][..], &[][..]),
    };
    let first = |bytes: &'_ [u8]| bytes[..bytes.len().min(100)].to_vec();
    let Metadata {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    } = &model.metadata;
    let mut archive = archive;
    let mut header = if model.gnu {
        if model.path.len() > 100 {
            archive = archive.extension(b'L', &[&model.path[..], b"\0"].concat());
        }
        if target.len() > 100 {
            archive = archive.extension(b'K', &[target, b"\0"].concat());
        }
        let header = Header::gnu(type_flag, &first(&model.path));
        let header = header.base_256(108, 8, i64::from(*uid));
        let header = header.base_256(116, 8, i64::from(*gid));
        header.base_256(136, 12, mtime.seconds)
    } else {
        let mut records = [
            pax_record(b"path", &model.path),
            pax_record(b"uid", uid.to_string().as_bytes()),
            pax_record(b"gid", gid.to_string().as_bytes()),
            pax_record(b"mtime", pax_time(*mtime).as_bytes()),
        ]
        .concat();
        if !target.is_empty() {
            records.extend(pax_record(b"linkpath", target));
        }
        for (name, value) in xattrs {
            records.extend(pax_record(&[b"SCHILY.xattr.", &name[..]].concat(), value));
        }
        archive = archive.extension(b'x', &records);
        Header::ustar(type_flag, b"see PAX")
    };
    header = header
        .link(&first(target))
        .mode(u64::from(*mode))
        .size(body.len() as u64);
    if let ModelKind::CharacterDevice(number) | ModelKind::BlockDevice(number) = &model.kind {
        header = header.device(u64::from(number.major), u64::from(number.minor));
    }
    archive.with_body(header, body)
}

fn compressed(archive: &[u8], how: u8) -> Vec<u8> {
    use std::io::Write;
    match how % 3 {
        0 => archive.to_vec(),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(archive).unwrap();
            encoder.finish().unwrap()
        }
        _ => zstd::encode_all(archive, 1).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_written_is_what_is_read(models in prop::collection::vec(model(), 0..12), how in any::<u8>()) {
        let archive = models.iter().fold(Archive::new(), write).end();
        let indexed = index(&compressed(&archive, how)).unwrap();
        prop_assert_eq!(indexed.index.entries.len(), models.len());
        for (entry, model) in indexed.index.entries.iter().zip(&models) {
            prop_assert_eq!(&entry.path, &model.path);
            prop_assert_eq!(&entry.metadata, &model.metadata);
            match (&entry.kind, &model.kind) {
                (EntryKind::File(body), ModelKind::File(content)) => {
                    prop_assert_eq!(body.size, content.len() as u64);
                    prop_assert_eq!(&indexed.content(entry), content);
                    // A block that is zero is never in the pack.
                    let blocks = content.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count();
                    let kept: u64 = body.extents.iter().map(|extent| extent.length.div_ceil(4096)).sum();
                    prop_assert_eq!(kept, blocks as u64);
                }
                (EntryKind::Symlink(found), ModelKind::Symlink(target))
                | (EntryKind::HardLink(found), ModelKind::HardLink(target)) => prop_assert_eq!(found, target),
                (EntryKind::CharacterDevice(found), ModelKind::CharacterDevice(number))
                | (EntryKind::BlockDevice(found), ModelKind::BlockDevice(number)) => prop_assert_eq!(found, number),
                (EntryKind::Directory, ModelKind::Directory) | (EntryKind::Fifo, ModelKind::Fifo) => {}
                (found, model) => prop_assert!(false, "{:?} for {:?}", found, model),
            }
        }
        let mut bytes = Vec::new();
        indexed.index.write_to(&mut bytes).unwrap();
        prop_assert_eq!(LayerIndex::read_from(&bytes[..], &LayerLimits::default()).unwrap(), indexed.index);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), magic in 0_usize..4) {
        let magics: [&[u8]; 4] = [&[], &[0x1f, 0x8b, 8, 0], &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18]];
        fuzzing::layer(&[magics[magic], &bytes].concat());
        fuzzing::index(&bytes);
    }

    #[test]
    fn changed_archives_never_panic(
        models in prop::collection::vec(model(), 1..5),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..8),
    ) {
        let mut archive = models.iter().fold(Archive::new(), write).end();
        for (at, byte, fix_checksum) in changes {
            let at = at.index(archive.len());
            archive[at] = byte;
            // With the checksum put right, as if the change were in a header, more of the reader is reached.
            if fix_checksum {
                let block = at / 512 * 512;
                let mut header = Header([0; 512]);
                header.0.copy_from_slice(&archive[block..block + 512]);
                archive[block..block + 512].copy_from_slice(&header.build());
            }
        }
        fuzzing::layer(&archive);
    }
}

#[test]
fn a_layer_cut_anywhere_gives_an_error_or_fewer_entries() {
    let archive = Archive::new()
        .pax(&[("path", b"from/pax"), ("SCHILY.xattr.user.a", b"b")])
        .with_body(Header::ustar(b'0', b"x").size(700), &[5; 700])
        .extension(b'L', b"long\0")
        .header(Header::gnu(b'5', b"l"))
        .header(Header::ustar(b'2', b"s").link(b"t"))
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"9000"),
        ])
        .with_body(Header::ustar(b'0', b"x").size(512 + 100), &{
            let mut body = b"1\n8000\n100\n".to_vec();
            body.resize(612, 0);
            body[512..].fill(9);
            body
        })
        .end();
    let whole = index(&archive).unwrap().lines();
    assert_eq!(whole.len(), 4);
    for how in 0..3 {
        let layer = compressed(&archive, how);
        for length in 0..layer.len() {
            match index_layer(&layer[..length], &mut Vec::new(), &LayerLimits::default()) {
                // Compressed data says where it ends, except that nothing at all is an empty layer.
                Ok(index) => {
                    assert!(
                        how == 0 || length == 0,
                        "compressed data cut at {length} was accepted"
                    );
                    assert!(index.entries.len() <= whole.len());
                    assert_eq!(index.uncompressed_size_bytes, length as u64);
                }
                Err(error) => {
                    // Where a magic number is cut, the rest is taken for a truncated archive.
                    assert_eq!(
                        error.kind(),
                        super::super::LayerErrorKind::Truncated,
                        "{error} at {length}"
                    );
                }
            }
        }
    }
}
