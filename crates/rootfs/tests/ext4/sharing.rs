//! Images with layers in common have chunks in common.

use std::{collections::BTreeSet, fs::File, os::unix::fs::FileExt as _};

use rootfs::Metadata;

use crate::support::{Fixture, Image, read_only, read_write};

const CHUNK: usize = 512 << 10;

/// Contents of a base layer: 500 files of 1 to 240 KiB, 57 MiB in all.
pub(crate) fn base(fixture: &mut Fixture) {
    for nth in 0..500usize {
        let length = 1000 + nth * 7919 % 240_000;
        let bytes: Vec<u8> = (0..length).map(|at| (at / 97 + nth * 31) as u8 | 1).collect();
        fixture.file(format!("base-{nth:04}").as_bytes(), 0, &bytes);
    }
}

fn chunks(file: &File) -> BTreeSet<Vec<u8>> {
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    (0..length.div_ceil(CHUNK))
        .filter_map(|nth| {
            let start = nth * CHUNK;
            let mut bytes = vec![0; CHUNK.min(length - start)];
            file.read_exact_at(&mut bytes, start as u64).unwrap();
            bytes.resize(CHUNK, 0);
            bytes.iter().any(|byte| *byte != 0).then_some(bytes)
        })
        .collect()
}

/// How many of the data chunks of `a` are also in `b`, in per mille.
fn shared(a: &Image, b: &Image) -> usize {
    let (a, b) = (chunks(&a.file), chunks(&b.file));
    a.intersection(&b).count() * 1000 / a.len()
}

#[test]
fn another_top_layer_leaves_the_base_as_it_is() {
    let mut first = Fixture::new();
    base(&mut first);
    first.file(b"top", 1, &[1; 70_000]);
    let mut second = Fixture::new();
    base(&mut second);
    for nth in 0..3000 {
        second.file(format!("other-{nth}").as_bytes(), 1, b"another application");
    }
    let image = first.image(&read_only());
    // Metadata and the top layer are a few of the 115 chunks.
    let same = shared(&image, &second.image(&read_only()));
    assert!(same >= 950, "{same} of 1000 chunks");
    // Other size, other profile, and so backups in other places.
    let same = shared(&image, &second.image(&read_write(200 << 20, 100_000)));
    assert!(same >= 950, "{same} of 1000 chunks");
}

#[test]
fn a_file_that_is_gone_costs_its_own_chunks_only() {
    let mut first = Fixture::new();
    base(&mut first);
    let mut second = Fixture::new();
    base(&mut second);
    second.tree.remove(b"base-0005").unwrap();
    second.tree.remove(b"base-0400").unwrap();
    let same = shared(&first.image(&read_only()), &second.image(&read_only()));
    assert!(same >= 950, "{same} of 1000 chunks");
}

#[test]
fn a_layer_that_is_mostly_gone_takes_no_more_than_it_needs() {
    let mut fixture = Fixture::new();
    base(&mut fixture);
    for nth in 0..500 {
        if nth % 40 != 0 {
            fixture.tree.remove(format!("base-{nth:04}").as_bytes()).unwrap();
        }
    }
    let size = fixture.image(&read_only()).file.metadata().unwrap().len();
    let needed: u64 = (0..500u64)
        .step_by(40)
        .map(|nth| 1000 + nth * 7919 % 240_000 + 4096)
        .sum();
    assert!(size < needed * 2 + (2 << 20), "{size} bytes for {needed}");
}

#[test]
fn data_starts_on_a_chunk_boundary_and_follows_the_pack() {
    let mut fixture = Fixture::new();
    base(&mut fixture);
    fixture.file(b"top", 1, &[1; 70_000]);
    let plan = fixture.plan(&read_only());
    let copies = plan.copies();
    // Each layer is one run, from one chunk boundary to the next: nothing is in between.
    assert_eq!(copies.len(), 2, "{copies:?}");
    assert!(
        copies
            .iter()
            .all(|copy| copy.image_offset.is_multiple_of(CHUNK as u64) && copy.pack_offset == 0)
    );
    // Renaming or changing metadata does not move data.
    let id = fixture.tree.lookup(b"base-0001").unwrap();
    fixture.tree.set_metadata(id, Metadata::root(0o600));
    assert_eq!(fixture.plan(&read_only()).copies(), copies);
}
