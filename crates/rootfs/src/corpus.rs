//! The fuzz targets over their corpus and over the seeds, so that what a fuzzer once found stays fixed.
//!
//! `cargo test -p rootfs --lib -- --ignored write_seeds` writes the seeds where `cargo fuzz` looks for them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A seed's name and its bytes.
pub(crate) type Seed = (&'static str, Vec<u8>);

/// Seeds from constants.
pub(crate) fn owned(seeds: &[(&'static str, &[u8])]) -> Vec<Seed> {
    seeds.iter().map(|(name, seed)| (*name, seed.to_vec())).collect()
}

/// Runs a target over its seeds and over everything in its corpus.
pub(crate) fn replay(target: &str, seeds: &[Seed], run: impl Fn(&[u8])) {
    for (_, seed) in seeds {
        run(seed);
    }
    let mut count = 0;
    for entry in fs::read_dir(directory(target)).unwrap() {
        run(&fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0, "the corpus of {target} is empty");
}

/// Writes the seeds into the corpus.
pub(crate) fn write(target: &str, seeds: &[Seed]) {
    fs::create_dir_all(directory(target)).unwrap();
    for (name, seed) in seeds {
        fs::write(directory(target).join(format!("seed-{name}")), seed).unwrap();
    }
}

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}
