//! Hash trees of read-only images: the right ones, wherever the leaf hashes came from.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use builder_core::{
    build::ImageMetadata,
    event::Event,
    pipeline::Outcome,
    request::{BuildRequest, Profile},
};
use test_support::lab;

use crate::common::{Site, files_below, request, sample};

/// A site and a request for a read-only image.
fn read_only() -> (Site, BuildRequest) {
    let site = Site::new();
    let layout = site.directory.path().join("layout");
    sample().build().write_oci_layout(&layout, "1").unwrap();
    let mut request = request(&format!("oci:{}:1", layout.display()));
    request.target.profile = Profile::ReadOnly;
    (site, request)
}

fn leaves(site: &Site) -> Vec<PathBuf> {
    let all = files_below(&site.directory.path().join("workspace/cache/packs"));
    all.into_iter().filter(|path| path.ends_with("leaves")).collect()
}

/// The tree that the whole image gives when all of it is read, against what was published.
pub(crate) fn assert_tree(outcome: &Outcome, case: &str) {
    let metadata = &outcome.metadata;
    let copy = tempfile::tempfile().unwrap();
    let mut source = File::open(&outcome.image_path).unwrap();
    std::io::copy(&mut source, &mut &copy).unwrap();
    let expected = rootfs::verity::append(&copy, metadata.verity_hash_offset).unwrap();
    assert_eq!(
        metadata.verity_root_hash,
        hex::encode(expected.root_hash),
        "{case}"
    );
    assert_eq!(metadata.verity_salt, hex::encode(expected.salt), "{case}");
    assert_eq!(
        outcome.size_bytes,
        metadata.verity_hash_offset + expected.hash_area_bytes,
        "{case}"
    );
    assert_eq!(
        outcome.size_bytes,
        fs::metadata(&outcome.image_path).unwrap().len(),
        "{case}"
    );
    let beside: ImageMetadata = serde_json::from_slice(&fs::read(&outcome.metadata_path).unwrap()).unwrap();
    assert_eq!(beside, *metadata, "{case}");
}

#[tokio::test]
async fn a_read_only_image_has_a_hash_tree_however_its_leaves_were_come_by() {
    let (mut site, request) = read_only();
    let first = site.build(&request, "first.ext4").await;
    assert_tree(first.outcome(), "new packs");
    assert_eq!(leaves(&site).len(), 3, "one for each layer");
    // A client that follows sees the tree before the build has ended.
    let told = first.events.iter().rev().find_map(|event| match event {
        Event::Metadata(metadata) => Some(metadata.verity_root_hash.clone()),
        _ => None,
    });
    assert_eq!(told.as_ref(), Some(&first.outcome().metadata.verity_root_hash));

    type Change = fn(&Path);
    let cases: [(&str, Change); 4] = [
        ("kept", |_| {}),
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("torn", |path| {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(50)
                .unwrap()
        }),
        ("spoiled", |path| {
            let mut bytes = fs::read(path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(path, bytes).unwrap();
        }),
    ];
    for (case, change) in cases {
        leaves(&site).iter().for_each(|path| change(path));
        let again = site.build(&request, "again.ext4").await;
        assert_tree(again.outcome(), case);
        assert_eq!(again.outcome().checksum, first.outcome().checksum, "{case}");
        assert_eq!(leaves(&site).len(), 3, "{case}");
    }
    // Where nothing is kept.
    let workspace = site.directory.path().join("workspace");
    site.config.packs = builder_core::PackCache::open(&workspace, None).unwrap();
    let uncached = site.build(&request, "uncached.ext4").await;
    assert_eq!(uncached.outcome().checksum, first.outcome().checksum);
}

#[tokio::test]
async fn a_copied_image_brings_its_hash_tree_along() {
    let (mut site, request) = read_only();
    let workspace = site.directory.path().join("workspace");
    site.config.images = Some(builder_core::ImageCache::open(&workspace).unwrap());
    let first = site.build(&request, "first.ext4").await;
    let second = site.build(&request, "second.ext4").await;
    assert_eq!(second.outcome().metadata, first.outcome().metadata);
    assert_eq!(
        second.outcome().metrics.memory_peak_bytes,
        None,
        "no worker wrote it"
    );
    assert_tree(second.outcome(), "copied");
}

#[tokio::test]
async fn without_a_tree_the_file_system_is_the_same_and_nothing_claims_one() {
    let (site, mut request) = read_only();
    let with = site.build(&request, "with.ext4").await;
    request.target.verity = false;
    let without = site.build(&request, "without.ext4").await;
    let file_system = fs::read(&without.outcome().image_path).unwrap();
    let whole = fs::read(&with.outcome().image_path).unwrap();
    assert!(whole.starts_with(&file_system));
    assert_eq!(
        file_system.len() as u64,
        with.outcome().metadata.verity_hash_offset
    );
    assert!(whole.len() > file_system.len());

    request.target.verity = true;
    request.target.profile = Profile::ReadWrite;
    let written_to = site.build(&request, "rw.ext4").await;
    for (case, outcome) in [("without", without.outcome()), ("rw", written_to.outcome())] {
        let metadata = &outcome.metadata;
        let claims = (
            &*metadata.verity_root_hash,
            &*metadata.verity_salt,
            metadata.verity_hash_offset,
        );
        assert_eq!(claims, ("", "", 0), "{case}");
    }
}

#[tokio::test]
async fn veritysetup_agrees_until_a_byte_changes() {
    let veritysetup = match lab::program("veritysetup", "cryptsetup-bin") {
        Ok(program) => program,
        Err(missing) => return lab::skip(missing),
    };
    let (site, request) = read_only();
    let ended = site.build(&request, "ro.ext4").await;
    let outcome = ended.outcome();
    let agrees = || {
        Command::new(&veritysetup)
            .arg("verify")
            .args([&outcome.image_path, &outcome.image_path])
            .arg(&outcome.metadata.verity_root_hash)
            .arg(format!("--hash-offset={}", outcome.metadata.verity_hash_offset))
            .output()
            .unwrap()
    };
    let output = agrees();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut bytes = fs::read(&outcome.image_path).unwrap();
    bytes[70_000] ^= 1;
    fs::write(&outcome.image_path, bytes).unwrap();
    assert!(!agrees().status.success());
}
