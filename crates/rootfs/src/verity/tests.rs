use std::{io::Write as _, sync::Arc};

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::pack::Pack;

#[test]
fn the_salt_is_what_it_is_said_to_be() {
    assert_eq!(SALT[..], Sha256::digest(b"builderd dm-verity salt 1")[..]);
}

#[test]
fn blocks_of_zeros_are_told_without_hashing() {
    let hashes: Vec<Hash> = hash_blocks(&[0; 5000]).collect();
    assert_eq!(hashes, [zero_hash(); 2]);
    let plain = Sha256::new()
        .chain_update(SALT)
        .chain_update([0; 4096])
        .finalize();
    assert_eq!(zero_hash()[..], plain[..]);
}

#[test]
fn sizes_follow_from_the_number_of_blocks() {
    // Data blocks, blocks of the area: the superblock and all levels.
    let cases = [
        (1u64, 1u64),
        (2, 2),
        (128, 2),
        (129, 1 + 2 + 1),
        (128 * 128, 1 + 128 + 1),
        (128 * 128 + 1, 1 + 129 + 2 + 1),
    ];
    for (blocks, area) in cases {
        assert_eq!(hash_area_bytes(blocks * 4096), Some(area * 4096), "{blocks}");
    }
    assert_eq!(hash_area_bytes(0), None);
    assert_eq!(hash_area_bytes(4097), None);
    // No file is too large for it.
    assert!(hash_area_bytes(1 << 62).is_some());
}

/// A file of so many blocks, a few of them not zero.
fn file(blocks: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(blocks * 4096).unwrap();
    for nth in (0..blocks).filter(|nth| nth % 5 == 0 && (nth / 200) % 2 == 0) {
        file.write_all_at(&[nth.to_le_bytes()[0] | 1; 100], nth * 4096 + 7)
            .unwrap();
    }
    file
}

#[test]
fn appending_again_changes_nothing() {
    let image = file(1000);
    let first = append(&image, 1000 * 4096).unwrap();
    let bytes = contents(&image);
    assert_eq!(bytes.len() as u64, first.hash_offset + first.hash_area_bytes);
    image.write_all_at(&[9; 5000], 1_000_000_000).unwrap();
    assert_eq!(append(&image, 1000 * 4096).unwrap(), first);
    assert_eq!(contents(&image), bytes);
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_is_no_file_system_is_refused() {
    for (size, kind) in [
        (0, io::ErrorKind::InvalidInput),
        (4095, io::ErrorKind::InvalidInput),
        (1001 * 4096, io::ErrorKind::UnexpectedEof),
    ] {
        assert_eq!(append(&file(1000), size).unwrap_err().kind(), kind, "{size}");
    }
}

/// The tree as it is defined, level by level in memory.
fn naive_root(file: &File, blocks: u64) -> Hash {
    let bytes = contents(file);
    let mut level: Vec<Hash> = bytes[..usize::try_from(blocks * 4096).unwrap()]
        .chunks(4096)
        .map(|block| {
            Sha256::new()
                .chain_update(SALT)
                .chain_update(block)
                .finalize()
                .into()
        })
        .collect();
    while level.len() > 1 {
        level = level
            .chunks(128)
            .map(|hashes| {
                let mut block = hashes.as_flattened().to_vec();
                block.resize(4096, 0);
                Sha256::new()
                    .chain_update(SALT)
                    .chain_update(block)
                    .finalize()
                    .into()
            })
            .collect();
    }
    level[0]
}

#[test]
fn trees_of_all_heights_are_those_of_the_definition() {
    for blocks in [1, 2, 127, 128, 129, 500, 16_384, 16_385, 16_600] {
        let image = file(blocks);
        let verity = append(&image, blocks * 4096).unwrap();
        assert_eq!(verity.root_hash, naive_root(&image, blocks), "{blocks} blocks");
    }
}

/// Leaves of a tree in memory, pushed in runs.
fn tree_of(leaves: &[Option<u8>], runs: &[usize]) -> Vec<u8> {
    let geometry = Geometry::of(leaves.len() as u64 * 4096).unwrap();
    let sink = tempfile::tempfile().unwrap();
    sink.set_len(leaves.len() as u64 * 4096 + geometry.area_bytes())
        .unwrap();
    let mut tree = TreeWriter::new(geometry, &sink);
    let hash = |leaf: &Option<u8>| leaf.map_or(zero_hash(), |byte| hash_block(&[byte; 4096]));
    let mut rest = leaves;
    let mut runs = runs.iter().cycle();
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(rest.len().min(runs.next().copied().unwrap_or(1).max(1)));
        if head.iter().all(Option::is_none) {
            tree.push(Leaves::Zeros(head.len() as u64)).unwrap();
        } else {
            let hashes: Vec<Hash> = head.iter().map(hash).collect();
            tree.push(Leaves::Hashes(&hashes)).unwrap();
        }
        rest = tail;
    }
    tree.finish().unwrap();
    contents(&sink)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_portions_in_which_leaves_come_do_not_matter(
        areas in prop::collection::vec((prop::option::of(1u8..4), 1usize..400), 1..12),
        runs in prop::collection::vec(1usize..300, 1..6),
    ) {
        let leaves: Vec<Option<u8>> = areas
            .iter()
            .flat_map(|(byte, count)| std::iter::repeat_n(*byte, *count))
            .collect();
        prop_assert_eq!(tree_of(&leaves, &runs), tree_of(&leaves, &[1]));
    }

    #[test]
    fn kept_hashes_read_back_or_are_refused(blocks in 0u64..300, cut in 0usize..12_000, flip in any::<prop::sample::Index>()) {
        let hashes = LeafHashes::of_pack(&pack(blocks), blocks * 4096).unwrap();
        let mut bytes = Vec::new();
        hashes.write_to(&mut bytes).unwrap();
        prop_assert_eq!(bytes.len() as u64, 84 + 32 * blocks);
        prop_assert_eq!(&LeafHashes::read_from(&bytes[..], blocks * 4096).unwrap(), &hashes);
        let end = cut % bytes.len();
        prop_assert!(LeafHashes::read_from(&bytes[..end], blocks * 4096).is_err());
        let at = flip.index(bytes.len());
        bytes[at] ^= 1;
        prop_assert!(LeafHashes::read_from(&bytes[..], blocks * 4096).is_err());
    }
}

fn pack(blocks: u64) -> Pack {
    Pack::Memory(contents(&file(blocks)).into())
}

#[test]
fn kept_hashes_that_are_not_of_this_pack_are_refused_by_name() {
    let hashes = LeafHashes::of_pack(&pack(3), 3 * 4096).unwrap();
    let mut bytes = Vec::new();
    hashes.write_to(&mut bytes).unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        bytes
    };
    let longer = [&bytes[..], &[0]].concat();
    let cases: [(&str, Vec<u8>, u64, &str); 7] = [
        (
            "another pack",
            bytes.clone(),
            4 * 4096,
            "of 3 blocks, the pack has 4",
        ),
        ("no pack", bytes.clone(), 4095, "of 3 blocks, the pack has 0"),
        ("a later version", with(8, 2), 3 * 4096, "version 2, expected 1"),
        ("another salt", with(12, 0), 3 * 4096, "another salt"),
        ("something else", with(0, b'R'), 3 * 4096, "no leaf hashes"),
        ("damage", with(60, 1), 3 * 4096, "damaged"),
        ("more", longer, 3 * 4096, "follows the end"),
    ];
    for (name, bytes, size, message) in cases {
        let error = LeafHashes::read_from(&bytes[..], size).unwrap_err();
        assert!(error.to_string().contains(message), "{name}: {error}");
    }
}

#[test]
fn a_count_that_promises_too_much_takes_no_memory() {
    let mut bytes = Vec::new();
    LeafHashes::of_pack(&pack(0), 0)
        .unwrap()
        .write_to(&mut bytes)
        .unwrap();
    bytes[44..52].copy_from_slice(&(1u64 << 50).to_le_bytes());
    let error = LeafHashes::read_from(&bytes[..], 1 << 62).unwrap_err();
    assert!(matches!(error, LeafHashesError::Truncated), "{error}");
}

#[test]
fn a_changed_pack_is_found() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![5; 2_000_000 / 4096 * 4096]).unwrap();
    let size = file.metadata().unwrap().len();
    let file = Arc::new(file);
    let pack = Pack::File(Arc::clone(&file));
    let hashes = LeafHashes::of_pack(&pack, size).unwrap();
    assert!(hashes.verify(&pack).unwrap());
    file.write_all_at(&[6], 1_500_000).unwrap();
    assert!(!hashes.verify(&pack).unwrap(), "a byte");
    file.write_all_at(&[5], 1_500_000).unwrap();
    assert!(hashes.verify(&pack).unwrap());
    file.set_len(size - 4096).unwrap();
    assert!(!hashes.verify(&pack).unwrap(), "the end");
}

#[test]
fn the_kernel_is_told_where_everything_is() {
    let image = file(1000);
    let verity = append(&image, 1000 * 4096).unwrap();
    let (root, salt) = (hex::encode(verity.root_hash), hex::encode(SALT));
    assert_eq!(
        verity.kernel_argument("/dev/vda"),
        format!(
            "dm-mod.create=\"rootfs,,,ro,0 8000 verity 1 /dev/vda /dev/vda 4096 4096 1000 1001 sha256 {root} {salt}\" \
             root=/dev/dm-0 ro"
        )
    );
}

#[test]
fn hashing_ends_with_the_first_error_of_the_reader() {
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let result = LeafHashes::of_blocks(1 << 30, |_, _| {
        calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Err(std::io::ErrorKind::Interrupted.into())
    });
    assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::Interrupted);
    assert!(calls.into_inner() <= 8, "one for each thread");
}
