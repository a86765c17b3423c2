//! The same layers and options give the same bytes, whatever happens around them. A worker has neither the caller's
//! environment nor its umask, so there is no time zone and no locale to vary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::Path;

use builder_core::request::Profile;
use test_support::image::{Image, Layer};

use common::{Site, request};

/// Several layers of several blocks each, of unlike sizes, so that they finish in another order than they began.
fn image() -> Image {
    let mut image = Image::new();
    for layer_idx in 0..9_u32 {
        let n_files = if layer_idx % 3 == 0 { 400 } else { 3 };
        let mut layer = Layer::new().directory(format!("layer{layer_idx}"), 0o755);
        for file_idx in 0..n_files {
            let content = format!("{layer_idx} {file_idx} ").repeat(700);
            layer = layer.file(format!("layer{layer_idx}/file{file_idx}"), content.as_bytes());
        }
        image = image.layer(&layer);
    }
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_parallelism_nor_a_cache_nor_the_target_changes_a_byte() {
    let directory = tempfile::tempdir().unwrap();
    image().build().write_oci_layout(directory.path(), "1").unwrap();
    let source = format!("oci:{}:1", directory.path().display());
    let mut checksums = Vec::new();
    for layers_in_parallel in [1, 2, 8] {
        // Each with a cache of its own: the first build indexes all layers anew.
        let mut site = Site::new();
        site.config.layers_in_parallel = layers_in_parallel;
        let ended = site.build(&request(&source), "a.ext4").await;
        assert_eq!(ended.indexed_and_cached(), (9, 0));
        checksums.push((
            format!("{layers_in_parallel} at a time"),
            ended.outcome().checksum.clone(),
        ));
        let ended = site.build(&request(&source), "b.ext4").await;
        assert_eq!(ended.indexed_and_cached(), (0, 9));
        checksums.push(("from the cache".to_owned(), ended.outcome().checksum.clone()));
    }
    let site = Site::new();
    if let Some(memory) = in_memory() {
        // An absolute name goes where it says.
        let output = memory.path().join("c.ext4");
        let ended = site.build(&request(&source), output.to_str().unwrap()).await;
        checksums.push((
            "on another file system".to_owned(),
            ended.outcome().checksum.clone(),
        ));
    }
    let (_, expected) = &checksums[0];
    for (circumstance, checksum) in &checksums {
        assert_eq!(checksum, expected, "{circumstance}");
    }

    let mut differs = request(&source);
    differs.target.profile = Profile::ReadOnly;
    let ended = site.build(&differs, "d.ext4").await;
    assert_ne!(
        &ended.outcome().checksum,
        expected,
        "the profile is part of the image"
    );
}

/// A directory on a file system of its own kind, where the host has one.
fn in_memory() -> Option<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        test_support::lab::skip("there is no /dev/shm to build in");
        return None;
    }
    tempfile::tempdir_in(memory).ok()
}
