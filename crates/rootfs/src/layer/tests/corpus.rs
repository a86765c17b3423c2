//! The fuzz targets over the corpus, so that what a fuzzer once found stays fixed.

use std::{fs, path::Path};

use super::super::fuzzing;

fn replay(target: &str, run: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        run(&fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 0, "the corpus {} is empty", directory.display());
}

#[test]
fn layers() {
    replay("layer", fuzzing::layer);
}

#[test]
fn indexes() {
    replay("index", fuzzing::index);
}
