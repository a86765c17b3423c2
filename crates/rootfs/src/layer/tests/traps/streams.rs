//! Compression, the end of archives, and bodies in the pack.

use std::io::Write;

use flate2::{GzBuilder, write::GzEncoder};
use sha2::{Digest, Sha256};

use super::super::super::{
    BodyExtent, EntryKind, LayerError, LayerErrorKind,
    testing::{Archive, index, message},
};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Does not compress away.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// Content that does not fit one buffer.
fn archive() -> Vec<u8> {
    Archive::new()
        .file(b"small", b"hello")
        .file(b"large", &noise(700_000))
        .file(b"last", b"x")
        .end()
}

#[test]
fn every_way_of_compressing_gives_the_same_index() {
    let archive = archive();
    let expected = index(&archive).unwrap();
    assert_eq!(expected.index.diff_id, <[u8; 32]>::from(Sha256::digest(&archive)));
    assert_eq!(expected.index.uncompressed_size_bytes, archive.len() as u64);

    let members = |size: usize, compress: fn(&[u8]) -> Vec<u8>| -> Vec<u8> {
        archive.chunks(size).flat_map(compress).collect()
    };
    let skippable = |magic: u8| [&[magic, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"index"].concat();
    let named = {
        let mut encoder = GzBuilder::new()
            .filename("layer.tar")
            .comment("with everything")
            .extra(b"extra".to_vec())
            .mtime(1)
            .write(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&archive).unwrap();
        encoder.finish().unwrap()
    };
    let mut header_crc = vec![0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 3];
    let mut crc = flate2::Crc::new();
    crc.update(&header_crc);
    header_crc.extend_from_slice(&crc.sum().to_le_bytes()[..2]);
    header_crc.extend_from_slice(&gzip(&archive)[10..]);

    for (name, layer) in [
        ("gzip", gzip(&archive)),
        ("gzip with every header field", named),
        ("gzip with a header CRC", header_crc),
        ("gzip of many members", members(1000, gzip)),
        (
            "gzip with empty members",
            [gzip(b""), gzip(&archive), gzip(b"")].concat(),
        ),
        (
            "gzip with zero padding",
            [gzip(&archive), vec![0; 70_000]].concat(),
        ),
        ("zstd", zstd(&archive)),
        ("zstd of many frames", members(100_000, zstd)),
        (
            "zstd that begins with a skippable frame",
            [skippable(0x50), zstd(&archive)].concat(),
        ),
        (
            "zstd with skippable frames between and behind",
            [
                zstd(&archive[..5000]),
                skippable(0x5f),
                zstd(&archive[5000..]),
                skippable(0x5e),
            ]
            .concat(),
        ),
        ("zstd with an empty frame", [zstd(b""), zstd(&archive)].concat()),
    ] {
        match index(&layer) {
            Ok(indexed) => {
                assert_eq!(indexed.index, expected.index, "{name}");
                assert!(indexed.pack == expected.pack, "{name}: the pack differs");
            }
            Err(error) => panic!("{name}: {}", message(&error)),
        }
    }
}

#[test]
fn damaged_compression_is_an_error() {
    let archive = archive();
    let flipped = |mut layer: Vec<u8>, from_end: usize| {
        let at = layer.len() - from_end;
        layer[at] ^= 1;
        layer
    };
    let cut = |mut layer: Vec<u8>, count: usize| {
        layer.truncate(layer.len() - count);
        layer
    };
    for (name, layer, kind) in [
        ("gzip CRC", flipped(gzip(&archive), 8), LayerErrorKind::Corrupt),
        ("gzip length", flipped(gzip(&archive), 1), LayerErrorKind::Corrupt),
        (
            "gzip with junk behind",
            [gzip(&archive), b"junk".to_vec()].concat(),
            LayerErrorKind::Corrupt,
        ),
        (
            "gzip with junk behind zeros",
            [gzip(&archive), b"\0\0junk".to_vec()].concat(),
            LayerErrorKind::Corrupt,
        ),
        (
            "gzip with reserved flags",
            [&[0x1f, 0x8b, 8, 0x20][..], &[0; 600]].concat(),
            LayerErrorKind::Corrupt,
        ),
        (
            "gzip of broken blocks",
            [&gzip(b"")[..10], &[0xff; 50]].concat(),
            LayerErrorKind::Corrupt,
        ),
        (
            "gzip without its trailer",
            cut(gzip(&archive), 8),
            LayerErrorKind::Truncated,
        ),
        (
            "gzip cut in the data",
            cut(gzip(&archive), 5000),
            LayerErrorKind::Truncated,
        ),
        (
            "gzip cut in the second header",
            [gzip(&archive), vec![0x1f, 0x8b, 8]].concat(),
            LayerErrorKind::Truncated,
        ),
        (
            "only gzip's magic",
            vec![0x1f, 0x8b, 8],
            LayerErrorKind::Truncated,
        ),
        (
            "zstd with junk behind",
            [zstd(&archive), b"junk".to_vec()].concat(),
            LayerErrorKind::Corrupt,
        ),
        (
            "zstd cut in the data",
            cut(zstd(&archive), 5000),
            LayerErrorKind::Truncated,
        ),
        (
            "zstd cut in its header",
            zstd(&archive)[..5].to_vec(),
            LayerErrorKind::Truncated,
        ),
        (
            "zstd cut in a skippable frame",
            vec![0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1],
            LayerErrorKind::Truncated,
        ),
    ] {
        let error = index(&layer).expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {}", message(&error));
    }
}

#[test]
fn a_zstd_window_beyond_128_mib_is_refused() {
    let frame = |window_log: u8| {
        // RFC 8878: magic, a frame header descriptor of 0, the window descriptor, and a last raw block of one byte.
        let descriptor = (window_log - 10) << 3;
        [&[0x28, 0xb5, 0x2f, 0xfd, 0, descriptor, 0x09, 0, 0][..], b"x"].concat()
    };
    let error = index(&frame(28)).unwrap_err();
    assert_eq!(error.kind(), LayerErrorKind::Corrupt);
    assert!(message(&error).contains("too much memory"), "{}", message(&error));
    // A window of 128 MiB is fine; one byte is no archive.
    assert_eq!(index(&frame(27)).unwrap_err().kind(), LayerErrorKind::Truncated);
}

#[test]
fn other_compressions_are_refused_by_name() {
    for (name, start) in [
        ("bzip2", &b"BZh91AY&SY"[..]),
        ("xz", b"\xfd7zXZ\0"),
        ("lz4", b"\x04\x22\x4d\x18"),
        ("lzip", b"LZIP"),
        ("compress", b"\x1f\x9d\x90"),
        ("zip", b"PK\x03\x04"),
        ("7z", b"7z\xbc\xaf\x27\x1c"),
        ("lzma", b"\x5d\0\0\x80"),
    ] {
        let layer = [start, &[7; 1000]].concat();
        match index(&layer) {
            Err(LayerError::UnsupportedCompression { name: found }) => assert_eq!(found, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn an_archive_whose_first_name_looks_like_a_magic_number_is_an_archive() {
    let indexed = index(&Archive::new().file(b"BZh", b"x").end()).unwrap();
    assert_eq!(indexed.lines(), ["file BZh x"]);
}

#[test]
fn archives_end_in_many_ways() {
    let file = || Archive::new().file(b"f", b"content");
    let mut unpadded = file().0;
    unpadded.truncate(512 + 7);
    for (name, archive) in [
        ("two zero blocks", file().end()),
        ("one zero block", file().raw(&[0; 512]).0),
        ("no zero blocks", file().0),
        ("no padding behind the last body", unpadded),
        ("zeros behind the end", file().raw(&[0; 10_240]).0),
        (
            "junk behind the end",
            [file().end(), b"junk that is no entry".to_vec()].concat(),
        ),
        (
            "an archive behind the end",
            [file().end(), Archive::new().file(b"g", b"").end()].concat(),
        ),
    ] {
        let indexed = match index(&archive) {
            Ok(indexed) => indexed,
            Err(error) => panic!("{name}: {}", message(&error)),
        };
        assert_eq!(indexed.lines(), ["file f content"], "{name}");
        assert_eq!(
            indexed.index.diff_id,
            <[u8; 32]>::from(Sha256::digest(&archive)),
            "{name}: all bytes count"
        );
        assert_eq!(
            indexed.index.uncompressed_size_bytes,
            archive.len() as u64,
            "{name}"
        );
    }
}

#[test]
fn empty_layers_are_layers() {
    for (name, layer) in [
        ("nothing", Vec::new()),
        ("two zero blocks", vec![0; 1024]),
        ("two zero blocks, gzip", gzip(&[0; 1024])),
        ("nothing, gzip", gzip(b"")),
        ("nothing, zstd", zstd(b"")),
    ] {
        let indexed = index(&layer).unwrap();
        assert!(
            indexed.index.entries.is_empty() && indexed.pack.is_empty(),
            "{name}"
        );
    }
}

#[test]
fn archives_that_end_too_early_are_errors() {
    let whole = Archive::new().file(b"f", &[1; 600]).0;
    for (name, archive, path) in [
        ("in a header", [&whole[..], &[b'x'; 100]].concat(), &b""[..]),
        ("before a body", whole[..512].to_vec(), b"f"),
        ("in a body", whole[..1000].to_vec(), b"f"),
        (
            "in a PAX header",
            Archive::new().pax(&[("path", &[b'p'; 900])]).0[..600].to_vec(),
            b"extension",
        ),
        (
            "behind a PAX header",
            Archive::new().pax(&[("path", b"p")]).0,
            b"",
        ),
    ] {
        match index(&archive) {
            Err(LayerError::TruncatedArchive { path: found, offset }) => {
                assert_eq!((&found[..], offset), (path, archive.len() as u64), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn bodies_lie_in_the_pack_without_their_zero_blocks() {
    let zeros = [0; 4096];
    let data = [7; 4096];
    let mut tail_zero = vec![7; 4096];
    tail_zero.extend([0; 100]);
    let extent = |logical_offset, pack_offset, length| BodyExtent {
        logical_offset,
        pack_offset,
        length,
    };
    for (name, body, extents, pack_size) in [
        ("empty", vec![], vec![], 0),
        ("one byte", vec![7], vec![extent(0, 0, 1)], 4096),
        ("one block", data.to_vec(), vec![extent(0, 0, 4096)], 4096),
        (
            "a block and a byte",
            [&data[..], b"x"].concat(),
            vec![extent(0, 0, 4097)],
            8192,
        ),
        ("only zeros", vec![0; 10_000], vec![], 0),
        ("one zero byte", vec![0], vec![], 0),
        (
            "zeros between",
            [data, zeros, data].concat(),
            vec![extent(0, 0, 4096), extent(8192, 4096, 4096)],
            8192,
        ),
        (
            "zeros first",
            [zeros, data].concat(),
            vec![extent(4096, 0, 4096)],
            4096,
        ),
        ("zeros at the end", tail_zero, vec![extent(0, 0, 4096)], 4096),
        (
            "a last byte after zeros",
            [&[0; 4095][..], b"x"].concat(),
            vec![extent(0, 0, 4096)],
            4096,
        ),
    ] {
        let indexed = index(&Archive::new().file(b"f", &body).end()).unwrap();
        let EntryKind::File(found) = &indexed.index.entries[0].kind else {
            panic!("{name}")
        };
        assert_eq!(found.extents, extents, "{name}");
        assert_eq!(indexed.index.pack_size_bytes, pack_size, "{name}");
        assert_eq!(indexed.content(&indexed.index.entries[0]), body, "{name}");
    }
}

#[test]
fn bodies_of_all_sizes_come_out_whole_and_in_order() {
    // Around the sizes of buffers and blocks, each file at another place in the stream's buffers.
    let sizes = [
        1, 4095, 4096, 4097, 131_071, 131_072, 131_073, 135_168, 262_144, 262_145, 700_001, 5, 3_000_000, 9,
    ];
    let mut archive = Archive::new();
    for size in sizes {
        archive = archive.file(b"f", &noise(size));
    }
    let indexed = index(&archive.end()).unwrap();
    for (entry, size) in indexed.index.entries.iter().zip(sizes) {
        assert!(indexed.content(entry) == noise(size), "{size} bytes");
    }
}

#[test]
fn the_same_blob_gives_the_same_index_and_pack_however_it_arrives() {
    /// Gives a few bytes at a time, as a slow download does.
    struct Dribble<'a>(&'a [u8], usize);
    impl std::io::Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = buffer.len().min(self.1).min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }
    let archive = archive();
    for layer in [archive.clone(), gzip(&archive), zstd(&archive)] {
        let expected = index(&layer).unwrap();
        for step in [1, 511, 4097] {
            let mut pack = Vec::new();
            let limits = super::super::super::LayerLimits::default();
            let found = super::super::super::index_layer(Dribble(&layer, step), &mut pack, &limits).unwrap();
            assert_eq!(found, expected.index);
            assert!(pack == expected.pack);
        }
    }
}
