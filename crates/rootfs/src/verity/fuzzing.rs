//! What the fuzz target runs, as a plain function that `cargo test` runs, too.

use super::LeafHashes;
use crate::pack::BLOCK_SIZE;

/// Reads kept leaf hashes, for a pack of as many blocks as the first byte says.
///
/// # Panics
/// When what was read is not written as it was.
pub fn leaf_hashes(data: &[u8]) {
    let Some((blocks, kept)) = data.split_first() else {
        return;
    };
    let Ok(hashes) = LeafHashes::read_from(kept, u64::from(*blocks) * BLOCK_SIZE) else {
        return;
    };
    assert_eq!(hashes.blocks(), u64::from(*blocks));
    let mut written = Vec::new();
    hashes.write_to(&mut written).expect("memory takes everything");
    assert_eq!(written, kept, "there is one form");
}

#[cfg(test)]
mod tests {
    use crate::{
        corpus::{self, Seed},
        pack::Pack,
        verity::LeafHashes,
    };

    fn seeds() -> Vec<Seed> {
        [("none", 0u8), ("three", 3)]
            .into_iter()
            .map(|(name, blocks)| {
                let bytes = vec![7; usize::from(blocks) * 4096];
                let size = bytes.len() as u64;
                let hashes = LeafHashes::of_pack(&Pack::Memory(bytes.into()), size).unwrap();
                let mut seed = vec![blocks];
                hashes.write_to(&mut seed).unwrap();
                (name, seed)
            })
            .collect()
    }

    #[test]
    fn seeds_and_corpus() {
        corpus::replay("leaf_hashes", &seeds(), super::leaf_hashes);
    }

    #[test]
    #[ignore = "writes into the source tree"]
    fn write_seeds() {
        corpus::write("leaf_hashes", &seeds());
    }
}
