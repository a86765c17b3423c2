use std::{fs::File, process::Command};

use super::*;
use crate::{
    Metadata, Tree,
    ext4::{Native, plan},
    image::{ImageBackend as _, ImageOptions, Profile},
    pack::Packs,
    tree::FileContent,
};

/// A name of 255 bytes, of which 15 fill a leaf.
fn name(nth: u32) -> Vec<u8> {
    let mut name = nth.to_string().into_bytes();
    name.resize(255, b'-');
    name
}

/// 14 names, two that have the same hash, and 30 more, in the order of their hashes: the two stand on both sides of
/// the border between the first two leaves. Among 300,000 names, some 20 pairs have the same 31-bit hash.
fn collision_at_a_border(seed: [u32; 4]) -> Vec<Vec<u8>> {
    let mut hashes: Vec<(u32, u32)> = (0..300_000)
        .map(|nth| (hash::half_md4(&name(nth), seed).major, nth))
        .collect();
    hashes.sort_unstable();
    let pair = (14..hashes.len() - 40)
        .find(|at| hashes[*at].0 == hashes[at + 1].0)
        .unwrap();
    hashes[pair - 14..pair + 32]
        .iter()
        .map(|(_, nth)| name(*nth))
        .collect()
}

fn options() -> ImageOptions {
    let mut options = ImageOptions::new([3; 32]);
    options.profile = Profile::ReadOnly;
    options
}

#[test]
fn equal_hashes_continue_in_the_next_leaf() {
    let names = collision_at_a_border([1, 2, 3, 4]);
    let mut entries: Vec<Entry<'_>> = names.iter().map(|name| Entry::new(name, 5)).collect();
    entries.sort_unstable_by_key(|entry| entry.name);
    let layout = lay_out(&mut entries, [1, 2, 3, 4]).unwrap();
    assert_eq!(layout, Layout::Index(vec![0, 15, 30, 45]));
    let seed = Checksum::START;
    let directory = Directory {
        number: 12,
        parent: 2,
        entries: &entries,
        layout: &layout,
        seed,
    };
    let mut blocks: Vec<Box<BlockBytes>> = Vec::new();
    directory
        .encode(
            |_| (13, 1),
            |block| {
                blocks.push(Box::new(*block));
                Ok::<(), ()>(())
            },
        )
        .unwrap();
    assert_eq!(blocks.len(), 5);
    let hashes: Vec<u32> = blocks[0][40..64]
        .as_chunks::<8>()
        .0
        .iter()
        .map(|row| u32::from_le_bytes([row[0], row[1], row[2], row[3]]))
        .collect();
    assert_eq!(hashes.iter().map(|hash| hash & 1).collect::<Vec<_>>(), [1, 0, 0]);
    assert_eq!(hashes[0] & !1, entries[14].hash);
}

#[test]
fn a_collision_across_leaves_is_clean_and_found() {
    let names = collision_at_a_border(plan(&Tree::new(), &options()).unwrap().hash_seed);
    let mut tree = Tree::new();
    tree.create_directories(b"d", &Metadata::root(0o755)).unwrap();
    for name in &names {
        let path = [b"d/", &name[..]].concat();
        tree.put_file(&path, Metadata::root(0o644), FileContent::inline(*b""))
            .unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    Native.write(&tree, &Packs::new(), &options(), &file).unwrap();
    match Command::new("e2fsck").arg("-fn").arg(&path).output() {
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        ),
        Err(_) => drop(std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("skipped: e2fsck is not installed\n"),
        )),
    }
    // The first of the pair is in the leaf that the hash leads to, the second in the one that the bit leads on to.
    let mount = directory.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount")
        .args(["-o", "loop,ro"])
        .arg(&path)
        .arg(&mount)
        .output();
    if mounted.is_ok_and(|output| output.status.success()) {
        let is_missing = |name: &&Vec<u8>| !mount.join("d").join(std::str::from_utf8(name).unwrap()).exists();
        let missing = names.iter().filter(is_missing).count();
        assert!(Command::new("umount").arg(&mount).status().unwrap().success());
        assert_eq!(missing, 0, "names that the kernel does not find");
    } else {
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("skipped: mounting needs root\n"),
        );
    }
}

#[test]
fn more_leaves_than_two_levels_hold_are_refused() {
    // Only the count matters, so the same name stands for all.
    let name = [b'x'; 255];
    let mut entries = vec![Entry::new(&name, 1); MAX_LEAVES * 15 + 1];
    assert_eq!(lay_out(&mut entries, [0; 4]), Err(TooManyNames));
}
