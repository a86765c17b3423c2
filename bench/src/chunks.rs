//! How much two images have in common.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest as _, Sha256};

/// What shares storage shares it in pieces of this size.
const CHUNK_BYTES: usize = 512 << 10;

/// The percentage of the second image's chunks that the first one has, wherever; chunks of zeros are not counted.
pub(crate) fn shared_percent(first: &Path, second: &Path) -> io::Result<f64> {
    let mut known = HashSet::new();
    each_chunk(File::open(first)?, |hash| {
        known.insert(hash);
    })?;
    let (mut n_shared, mut n_chunks) = (0u32, 0u32);
    each_chunk(File::open(second)?, |hash| {
        n_chunks += 1;
        n_shared += u32::from(known.contains(&hash));
    })?;
    Ok(100.0 * f64::from(n_shared) / f64::from(n_chunks.max(1)))
}

fn each_chunk(mut image: impl Read, mut take: impl FnMut([u8; 32])) -> io::Result<()> {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    loop {
        chunk.clear();
        let count = (&mut image).take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        if chunk.iter().any(|byte| *byte != 0) {
            take(Sha256::digest(&chunk).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn chunks_are_found_wherever_they_are_and_zeros_do_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let image = |name: &str, chunks: &[u8]| {
            let bytes: Vec<u8> = chunks.iter().flat_map(|byte| vec![*byte; CHUNK_BYTES]).collect();
            let path = directory.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let first = image("first", &[1, 2, 0, 3]);
        for (name, second, percent) in [
            ("same", &[1, 2, 0, 3][..], 100.0),
            ("moved", &[0, 0, 3, 1], 100.0),
            ("half", &[1, 9, 0, 0], 50.0),
            ("none", &[8, 9], 0.0),
        ] {
            let found = shared_percent(&first, &image(name, second)).unwrap();
            assert!((found - percent).abs() < 1e-9, "{name}: {found}");
        }
    }
}
