//! What is left when the process is killed, and what happens when the disk is full.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::*;
use oci_fetch::{Digest, FetchErrorKind};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_leaves_a_cache_that_the_next_one_resumes() {
    // Cargo builds examples before it runs tests, beside the directory of the test programs.
    let program: PathBuf = std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .join("../examples/pull");
    if !program.exists() {
        skip("the example has not been built");
        return;
    }
    let image = TestImage::one_layer(2 << 20);
    let digest = Digest::sha256(&image.layers[0]);
    let server = Server::with_image(&image, {
        let (digest, layer) = (digest.to_string(), image.layers[0].clone());
        move |seen| {
            (seen.path.ends_with(&digest) && seen.nth == 0)
                .then(|| Reply::ok("x", layer.clone()).manner(Manner::StallAt(1_500_000)))
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("layout.cache");
    let blobs = cache.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let mut process = Command::new(program)
        .args([&format!("{}/app:1", server.address), "layout", "linux/amd64"])
        .current_dir(directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let part = cache.join(part_name(&server, &image.layers[0]));
    let length = || {
        std::fs::metadata(&part)
            .map(|metadata| metadata.len())
            .unwrap_or(0)
    };
    files::until(&blobs, || length() >= 1_500_000).await;
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(length(), 1_500_000);
    assert!(!cache.join("blobs/sha256").join(digest.hex()).exists());

    let client = server.client(&cache);
    let layers = pull_with(&client, &server.source("app:1"), &as_tenant("t"))
        .await
        .unwrap();
    assert_eq!(layers, image.layers);
    let (first, _) = server.layer_requests(&image).last().unwrap().range().unwrap();
    assert!(first > 1_400_000 && first <= 1_500_000, "{first}");
}

/// A file system of one mebibyte, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Option<Self> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "oci-fetch-test"])
            .arg(path)
            .stderr(Stdio::null())
            .status();
        status
            .is_ok_and(|status| status.success())
            .then(|| Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a thread may still have a file open for a moment.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn privileged_a_full_disk_is_an_io_error_and_leaves_no_part() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(directory.path()) else {
        skip("a tmpfs cannot be mounted without root");
        return;
    };
    let image = TestImage::new(&[noise(3 << 20, 1), noise(1000, 2)]);
    let server = Server::with_image(&image, |_| None).await;
    let client = server.client(&disk.0);
    let found = resolve(&client, &server.source("app:1")).await.unwrap();
    let blob = client.open_layer(&found, 0).await.unwrap();
    let error = read_to_verdict(&blob).await;
    assert_eq!(error.kind(), &FetchErrorKind::Io);
    assert!(error.to_string().contains("no space left"), "{error}");
    drop(blob);
    assert_eq!(std::fs::read_dir(disk.0.join("blobs/sha256")).unwrap().count(), 0);
    // There is room for a small one again.
    let blob = client.open_layer(&found, 1).await.unwrap();
    assert_eq!(read(&blob).await.unwrap().0, image.layers[1]);
    drop((blob, client));
}

async fn read_to_verdict(blob: &oci_fetch::Blob) -> oci_fetch::FetchError {
    let mut sink = tokio::io::sink();
    assert!(tokio::io::copy(&mut blob.reader(), &mut sink).await.is_err());
    blob.verified().await.unwrap_err()
}

#[test]
fn a_cache_that_cannot_be_made_is_an_io_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = oci_fetch::ClientConfig::new(file.path().join("below-a-file"));
    assert_eq!(kind(oci_fetch::Client::new(config)), FetchErrorKind::Io);
}
