use std::{io::Write as _, os::unix::fs::FileExt as _};

use super::*;

/// A file of whole blocks, each filled with its byte.
fn file(blocks: &[(u8, usize)]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    for (byte, count) in blocks {
        file.write_all(&vec![*byte; count * 4096]).unwrap();
    }
    file
}

fn list(blocks: &[(u8, usize)]) -> ChunkList {
    ChunkList::of_file(&file(blocks)).unwrap()
}

#[test]
fn what_is_shared_is_counted_once_and_zeros_apart() {
    type Blocks = &'static [(u8, usize)];
    /// Name, two images, chunks of each, shared chunks and bytes, zero chunks of each.
    type Case = (&'static str, Blocks, Blocks, [u64; 2], (u64, u64), [u64; 2]);
    const CHUNK: u64 = CHUNK_BYTES;
    let cases: [Case; 7] = [
        (
            "equal",
            &[(1, 256), (2, 128)],
            &[(1, 256), (2, 128)],
            [2, 2],
            (2, 2 * CHUNK),
            [0, 0],
        ),
        (
            "elsewhere",
            &[(1, 128), (2, 128)],
            &[(3, 128), (1, 128)],
            [2, 2],
            (1, CHUNK),
            [0, 0],
        ),
        ("nothing", &[(1, 128)], &[(2, 128)], [1, 1], (0, 0), [0, 0]),
        (
            "not on a boundary",
            &[(1, 128)],
            &[(2, 1), (1, 127)],
            [1, 1],
            (0, 0),
            [0, 0],
        ),
        ("zeros", &[(0, 300), (1, 84)], &[(0, 128)], [1, 0], (0, 0), [2, 1]),
        (
            "a short end",
            &[(1, 130)],
            &[(2, 128), (1, 2)],
            [2, 2],
            (1, 8192),
            [0, 0],
        ),
        (
            "a short end is not a whole one",
            &[(1, 2)],
            &[(1, 2), (0, 126)],
            [1, 1],
            (0, 0),
            [0, 0],
        ),
    ];
    for (name, first, second, counts, shared, zeros) in cases {
        let comparison = list(first).compare(&list(second));
        assert_eq!(
            [comparison.first.chunks, comparison.second.chunks],
            counts,
            "{name}"
        );
        assert_eq!(
            (comparison.shared.chunks, comparison.shared.bytes),
            shared,
            "{name}"
        );
        assert_eq!(
            [comparison.first_zero_chunks, comparison.second_zero_chunks],
            zeros,
            "{name}"
        );
    }
    assert!(
        (list(&[(1, 128)])
            .compare(&list(&[(1, 128), (2, 384)]))
            .percent_of_second()
            - 50.0)
            .abs()
            < 1e-9
    );
    assert!((list(&[(1, 1)]).compare(&list(&[(0, 8)])).percent_of_second() - 100.0).abs() < 1e-9);
}

#[test]
fn a_changed_byte_changes_its_chunk_only() {
    let original = list(&[(7, 400)]);
    let changed = file(&[(7, 400)]);
    changed.write_all_at(&[8], 300 * 4096 + 17).unwrap();
    let changed = ChunkList::of_file(&changed).unwrap();
    let differing: Vec<usize> = (0..4)
        .filter(|nth| original.chunks()[*nth] != changed.chunks()[*nth])
        .collect();
    assert_eq!(differing, [2]);
}

#[test]
fn leaves_in_any_portions_give_the_same_chunks() {
    let whole = list(&[(1, 100), (0, 500), (2, 29)]);
    let mut writer = ChunkWriter::new(629 * 4096);
    let (one, two) = (hash_block(&[1; 4096]), hash_block(&[2; 4096]));
    writer.push(Leaves::Hashes(&[one; 3])).unwrap();
    writer.push(Leaves::Hashes(&[one; 97])).unwrap();
    writer.push(Leaves::Zeros(1)).unwrap();
    writer.push(Leaves::Hashes(&[zero_hash(); 40])).unwrap();
    writer.push(Leaves::Zeros(459)).unwrap();
    writer.push(Leaves::Hashes(&[two; 29])).unwrap();
    assert_eq!(writer.finish(), whole);
}

#[test]
fn a_file_that_is_no_image_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(5000).unwrap();
    let error = ChunkList::of_file(&file).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("5000"), "{error}");
}
