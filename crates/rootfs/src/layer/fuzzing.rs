//! What the fuzz targets run, as plain functions that `cargo test` runs over the corpus, too.

use super::{EntryKind, LayerIndex, LayerLimits, index_layer};

/// Small enough that memory out of bounds shows.
fn limits() -> LayerLimits {
    LayerLimits {
        max_entries: 4096,
        max_output_bytes: 16 << 20,
        max_index_bytes: 4 << 20,
        max_sparse_segments: 1024,
        ..LayerLimits::default()
    }
}

/// A layer's bytes to an index. What is accepted must survive being written and read back with every check.
///
/// # Panics
/// When it does not.
pub fn layer(data: &[u8]) {
    let limits = limits();
    let mut pack = Vec::new();
    let Ok(index) = index_layer(data, &mut pack, &limits) else {
        return;
    };
    assert_eq!(
        index.pack_size_bytes,
        pack.len() as u64,
        "the pack is as long as the index says"
    );
    // Every byte of the pack stems from a block of the archive; at worst each block makes a block of the pack.
    assert!(
        pack.len() as u64 <= index.uncompressed_size_bytes * 8,
        "the pack does not outgrow the layer"
    );
    round_trip(&index, &limits);
}

/// An index' bytes to an index, the digest at its end put right: a fuzzer would not get past it.
///
/// # Panics
/// When what is accepted breaks an invariant or changes when it is written and read back.
pub fn index(data: &[u8]) {
    use sha2::{Digest, Sha256};

    let limits = limits();
    let sealed = [data, &Sha256::digest(data)].concat();
    let Ok(index) = LayerIndex::read_from(&sealed[..], &limits) else {
        return;
    };
    for entry in &index.entries {
        assert!(!entry.path.contains(&0), "paths have no NUL");
        assert!(entry.metadata.mode <= 0o7777, "modes are permissions");
        if let EntryKind::File(body) = &entry.kind {
            let mut end = 0;
            for extent in &body.extents {
                assert!(
                    extent.length > 0 && extent.logical_offset >= end,
                    "extents ascend"
                );
                end = extent.logical_offset + extent.length;
                assert!(
                    extent.pack_offset + extent.length <= index.pack_size_bytes,
                    "extents lie in the pack"
                );
            }
            assert!(end <= body.size, "extents lie in the file");
        }
    }
    round_trip(&index, &limits);
}

fn round_trip(index: &LayerIndex, limits: &LayerLimits) {
    let mut bytes = Vec::new();
    index.write_to(&mut bytes).expect("a vector takes everything");
    let again = LayerIndex::read_from(&bytes[..], limits).expect("what was accepted is valid");
    assert_eq!(&again, index, "nothing changes on the way");
}
