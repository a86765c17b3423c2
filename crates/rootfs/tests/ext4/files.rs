//! Large and sparse files, and extent trees of every depth.

use std::os::unix::fs::FileExt as _;

use rootfs::{Metadata, tree::FileContent};

use crate::{
    expect::compare,
    reader::Reader,
    support::{BLOCK, Fixture, Image, all_kinds, read_only, read_write},
};

const GIB: u64 = 1 << 30;

/// A file of `size` bytes whose blocks at `blocks` start with their own number.
pub(crate) fn sparse_file(fixture: &mut Fixture, path: &str, size: u64, blocks: &[u64]) {
    let last = (size - 1) / BLOCK;
    let data: Vec<(u64, Vec<u8>)> = blocks
        .iter()
        .map(|nth| {
            let length = if *nth == last { size - nth * BLOCK } else { BLOCK };
            let mut bytes = vec![0xaa; usize::try_from(length).unwrap()];
            let mark = nth.to_le_bytes();
            let count = mark.len().min(bytes.len());
            bytes[..count].copy_from_slice(&mark[..count]);
            (*nth, bytes)
        })
        .collect();
    let content = fixture.store_sparse(0, size, data.iter().map(|(nth, bytes)| (*nth, &bytes[..])));
    fixture
        .tree
        .put_file(path.as_bytes(), Metadata::root(0o644), content)
        .unwrap();
}

/// Size and blocks of the sparse files that are tried: beyond 4 GiB, beyond 128 GiB, and the largest there is.
pub(crate) const SPARSE_FILES: [(&str, u64, &[u64]); 4] = [
    ("5 GiB", 5 * GIB + 100, &[0, 1, 1_048_575, 1_048_576, 1_310_720]),
    ("200 GiB", 200 * GIB, &[7, 33_554_431, 33_554_432, 52_428_799]),
    ("largest", (1 << 44) - 4096, &[0, 1 << 31, 4_294_967_294]),
    ("one hole", 64 * GIB, &[]),
];

fn data_of(image: &Image, path: &str) -> Vec<(u64, [u8; 8])> {
    let reader = Reader::new(&image.file);
    let number = reader.list()[path.as_bytes()].number;
    let mut blocks = Vec::new();
    for (logical, length, physical) in reader.extents(number).0 {
        for nth in 0..u64::from(length) {
            let mut mark = [0; 8];
            image
                .file
                .read_exact_at(&mut mark, (physical + nth) * BLOCK)
                .unwrap();
            blocks.push((u64::from(logical) + nth, mark));
        }
    }
    blocks
}

#[test]
fn sparse_files_up_to_the_largest_size_keep_their_blocks() {
    for (name, options) in all_kinds() {
        let mut fixture = Fixture::new();
        for (path, size, blocks) in SPARSE_FILES {
            sparse_file(&mut fixture, path, size, blocks);
        }
        let image = fixture.image(&options);
        let stats = Reader::new(&image.file).list();
        for (path, size, blocks) in SPARSE_FILES {
            let path = format!("/{path}");
            assert_eq!(stats[path.as_bytes()].size, size, "{name}: {path}");
            let expected: Vec<(u64, [u8; 8])> = blocks.iter().map(|nth| (*nth, nth.to_le_bytes())).collect();
            assert_eq!(data_of(&image, &path), expected, "{name}: {path}");
        }
        let mut file = image.open().open("/5 GiB").unwrap();
        file.seek_to(1_048_576 * BLOCK).unwrap();
        let mut mark = [0; 8];
        assert_eq!(file.read_bytes(&mut mark).unwrap(), 8);
        assert_eq!(mark, 1_048_576u64.to_le_bytes());
    }
}

#[test]
fn extent_trees_grow_to_the_depth_they_need() {
    for (count, depth) in [(4, 0), (5, 1), (340, 1), (1360, 1), (1361, 2), (5000, 2)] {
        let mut fixture = Fixture::new();
        let blocks: Vec<u64> = (0..count).map(|nth| nth * 2).collect();
        sparse_file(&mut fixture, "file", count * 2 * BLOCK, &blocks);
        let image = fixture.image(&read_only());
        let reader = Reader::new(&image.file);
        let number = reader.list()[&b"/file"[..]].number;
        let (extents, actual) = reader.extents(number);
        assert_eq!((extents.len() as u64, actual), (count, depth), "{count} extents");
        compare(&fixture, &image);
    }
}

#[test]
fn a_run_is_cut_at_the_largest_extent_and_at_backups() {
    // 300 MiB of data, so that backups of the superblock stand in its way at 128 MiB.
    let blocks: Vec<u64> = (0..76_800).collect();
    let mut fixture = Fixture::new();
    sparse_file(&mut fixture, "file", 76_800 * BLOCK, &blocks);
    fixture.inline(b"inline", &[5; 10_000]);
    let image = fixture.image(&read_write(0, 0));
    let marks = data_of(&image, "/file");
    assert!(
        marks
            .iter()
            .zip(0..)
            .all(|((logical, mark), nth)| *logical == nth && *mark == nth.to_le_bytes())
    );
    assert_eq!(marks.len(), 76_800);
    let reader = Reader::new(&image.file);
    let (extents, _) = reader.extents(reader.list()[&b"/file"[..]].number);
    assert!(extents.len() > 2, "{extents:?}");
}

#[test]
fn two_files_that_share_blocks_of_a_pack_get_copies() {
    let mut fixture = Fixture::new();
    let content = fixture.store(0, &[9; 20_000]);
    let part = FileContent {
        size_bytes: 8192,
        ..content.clone()
    };
    let rootfs::tree::Content::Packed { pack, extents } = &part.content else {
        unreachable!()
    };
    let mut extent = extents[0];
    extent.pack_offset += 4096;
    extent.length = 8192;
    let part = FileContent {
        size_bytes: 8192,
        content: rootfs::tree::Content::Packed {
            pack: *pack,
            extents: vec![extent].into(),
        },
    };
    for (path, content) in [("a", content.clone()), ("b", content), ("c", part)] {
        fixture
            .tree
            .put_file(path.as_bytes(), Metadata::root(0o644), content)
            .unwrap();
    }
    let image = fixture.image(&read_only());
    compare(&fixture, &image);
}

#[test]
fn an_image_beyond_16_tib_is_decided_with_64_bit_block_numbers() {
    let fixture = Fixture::new();
    let below = fixture.plan(&read_write((1 << 44) - (4 << 30), 0));
    let above = fixture.plan(&read_write(1 << 44, 0));
    assert!(below.size_bytes() < 1 << 44 && above.size_bytes() > 1 << 44);
}
