//! What a build may use of memory and disk.

use std::fs;

use builder_core::BuildErrorKind;
use test_support::{image::Image, image::Layer, registry::Misbehaviour, registry::Registry};

use crate::common::{PATIENCE, Site, host_architecture, noise, request, sample};

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_before_and_during_the_build() {
    let zeros = Layer::new().file("zeros", vec![0; 3_000_000]);
    let image = sample().layer(&zeros).build();
    type Limit = fn(&mut builder_core::pipeline::BuildLimits);
    let cases: [(&str, Limit, usize, &str); 4] = [
        (
            "compressed",
            |limits| limits.max_compressed_bytes = Some(1000),
            0,
            "compressed",
        ),
        (
            "disk, by the manifest",
            |limits| limits.max_disk_bytes = Some(1000),
            0,
            "disk",
        ),
        (
            "disk, by the layers",
            |limits| limits.max_disk_bytes = Some(2_000_000),
            1,
            "decompressed bytes",
        ),
        (
            "image",
            |limits| limits.max_image_bytes = Some(1_000_000),
            1,
            "bytes",
        ),
    ];
    for (case, limit, blobs_at_least, word) in cases {
        let mut site = Site::new();
        let registry = Registry::start().unwrap();
        let reference = registry.publish("team/app", "1", &image);
        limit(&mut site.config.limits);
        let ended = site.build(&request(&reference), "x.ext4").await;
        let error = ended.error();
        assert_eq!(error.kind(), &BuildErrorKind::LimitExceeded, "{case}: {error}");
        assert!(error.to_string().contains(word), "{case}: {error}");
        let asked: usize = image
            .layers
            .iter()
            .map(|layer| registry.count_requests(&layer.digest))
            .sum();
        assert_eq!(asked > 0, blobs_at_least > 0, "{case}");
        site.assert_clean(case);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_a_worker_is_bounded() {
    let mut site = Site::new();
    site.config.limits.max_memory_bytes = Some(128 << 20);
    // Extended attributes stay in memory, other than the bodies of files.
    let mut greedy = Layer::new();
    for number in 0..800 {
        greedy = greedy
            .file(number.to_string(), b"")
            .xattr("user.much", vec![b'x'; 60_000])
            .xattr("user.more", vec![b'y'; 60_000]);
    }
    let image = Image::new()
        .layer(&greedy)
        .platform("linux", &host_architecture(), "")
        .build();
    let layout = site.directory.path().join("layout");
    image.write_oci_layout(&layout, "1").unwrap();
    let ended = site
        .build(&request(&format!("oci:{}:1", layout.display())), "x.ext4")
        .await;
    assert_eq!(
        ended.error().kind(),
        &BuildErrorKind::LimitExceeded,
        "{}",
        ended.error()
    );
    assert!(ended.error().to_string().contains("memory"), "{}", ended.error());
    site.assert_clean("memory");
}

/// A file system of a few megabytes, unmounted when dropped.
struct TinyDisk(std::path::PathBuf);

impl TinyDisk {
    fn mount(at: std::path::PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tiny"])
            .arg(&at)
            .stderr(std::process::Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(at))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // Lazily: a file that is being closed elsewhere must not leave the mount behind.
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_full_disk_is_named_as_such_wherever_it_is() {
    let registry = Registry::start().unwrap();
    let large = Layer::new().file("noise", noise(5_000_000, 3));
    let image = Image::new()
        .layer(&large)
        .platform("linux", &host_architecture(), "")
        .build();
    let reference = registry.publish("team/large", "1", &image);
    for place in ["output", "workspace/cache/packs/tmp", "workspace/cache/blobs"] {
        let mut site = Site::new();
        let Some(disk) = TinyDisk::mount(site.directory.path().join(place)) else {
            test_support::lab::skip("a tmpfs cannot be mounted (not root)");
            return;
        };
        // Opened anew: what it made in the directory is hidden by the mount.
        let workspace = site.directory.path().join("workspace");
        site.config.fetch = oci_fetch::Client::new(crate::common::fetch_config(&workspace)).unwrap();
        let ended = site.build(&request(&reference), "x.ext4").await;
        let error = ended.error();
        assert_eq!(
            error.kind(),
            &BuildErrorKind::DiskFull,
            "{place}: {error} {error:?}"
        );
        site.assert_clean(place);
        drop(disk);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_fit_one_by_one_are_stopped_when_they_do_not_together() {
    let registry = Registry::start().unwrap();
    let layer = |byte| Layer::new().file("large", vec![byte; 8 << 20]);
    let image = Image::new()
        .layer(&layer(b'a'))
        .layer(&layer(b'b'))
        .platform("linux", &host_architecture(), "")
        .build();
    let reference = registry.publish("team/large", "1", &image);
    // The end of neither ever comes: only what is on disk by then can end the build.
    for layer in &image.layers {
        registry.misbehave(&layer.digest, Misbehaviour::StallAt(layer.size_bytes - 10));
    }
    let mut site = Site::new();
    site.config.limits.max_disk_bytes = Some(12 << 20);
    let request = request(&reference);
    let build = site.build(&request, "x.ext4");
    let ended = tokio::time::timeout(PATIENCE, build)
        .await
        .expect("the build is stopped");
    assert_eq!(*ended.error().kind(), BuildErrorKind::LimitExceeded);
    site.assert_clean("too much together");
    registry.release();
}
