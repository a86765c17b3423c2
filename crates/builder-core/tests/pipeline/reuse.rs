//! The second build of the same image: copied when it can be, made anew when it cannot.

use std::{
    fs::{self, File, FileTimes},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use builder_core::{
    BuildErrorKind,
    event::Level,
    pipeline::BuildLimits,
    request::{BuildRequest, LayerMode, Profile, RegistryCredentials, Secret},
};
use sha2::{Digest as _, Sha256};
use test_support::registry::{Authentication, Registry};

use crate::common::{Ended, Site, request, sample};

fn reused(ended: &Ended) -> bool {
    ended
        .lines(Level::Info)
        .iter()
        .any(|line| line.starts_with("Reused the image"))
}

fn sum(path: &Path) -> String {
    hex::encode(Sha256::digest(fs::read(path).unwrap()))
}

/// A site and a request for its only image.
fn local() -> (Site, BuildRequest) {
    let site = Site::reusing();
    let layout = site.directory.path().join("layout");
    sample().build().write_oci_layout(&layout, "latest").unwrap();
    (site, request(&format!("oci:{}:latest", layout.display())))
}

#[tokio::test]
async fn the_same_image_is_copied_and_says_so() {
    let (site, request) = local();
    let first = site.build(&request, "first.ext4").await;
    assert!(!reused(&first));
    let workers = site.workers.ids.lock().unwrap().len();

    let second = site.build(&request, "second.ext4").await;
    assert!(reused(&second), "{:?}", second.lines(Level::Debug));
    assert_eq!(
        site.workers.ids.lock().unwrap().len(),
        workers,
        "no worker was needed"
    );
    let (one, two) = (first.outcome(), second.outcome());
    assert_eq!((one.size_bytes, &one.checksum), (two.size_bytes, &two.checksum));
    assert_eq!(one.metadata, two.metadata);
    assert_eq!(sum(&two.image_path), two.checksum);
    assert_eq!(
        fs::read(&one.metadata_path).unwrap(),
        fs::read(&two.metadata_path).unwrap()
    );
    // States and figures are those of any build; what no worker used is not claimed.
    assert_eq!(first.states(), second.states());
    assert!(second.percentages().is_sorted());
    assert_eq!(two.metrics.original_size_bytes, one.metrics.original_size_bytes);
    assert_eq!(two.metrics.memory_peak_bytes, None);
    assert_eq!(two.metrics.pulled_bytes, Some(0));
    // A copy: neither a link, nor changed by what a guest writes to the other.
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_ne!(inode(&one.image_path), inode(&two.image_path));
    assert_eq!(fs::metadata(&one.image_path).unwrap().nlink(), 1);
    let image = File::options().write(true).open(&one.image_path).unwrap();
    image.write_all_at(b"a guest was here", 0).unwrap();
    assert_eq!(sum(&two.image_path), two.checksum);

    // Also onto itself.
    let third = site.build(&request, "second.ext4").await;
    assert!(reused(&third));
    assert_eq!(sum(&third.outcome().image_path), two.checksum);
}

#[tokio::test]
async fn what_decides_the_bytes_decides_the_reuse() {
    type Change = fn(&mut BuildRequest);
    let cases: [(&str, Change, bool); 6] = [
        ("nothing", |_| {}, true),
        (
            "the name of the build",
            |request| request.build_name = "x".to_owned(),
            true,
        ),
        (
            "the profile",
            |request| request.target.profile = Profile::ReadOnly,
            false,
        ),
        (
            "free space",
            |request| request.target.free_space_bytes += 4096,
            false,
        ),
        (
            "the mode",
            |request| request.target.layer_mode = LayerMode::Docker,
            false,
        ),
        (
            "the command",
            |request| request.target.runtime.command = vec!["x".to_owned()],
            false,
        ),
    ];
    let (site, base) = local();
    site.build(&base, "first.ext4").await.outcome();
    for (name, change, expected) in cases {
        let mut request = base.clone();
        change(&mut request);
        let ended = site.build(&request, "other.ext4").await;
        ended.outcome();
        assert_eq!(reused(&ended), expected, "{name}");
    }
    let mut other_tenant = base.clone();
    other_tenant.tenant.tenant_id = "bob".parse().unwrap();
    assert!(!reused(&site.build(&other_tenant, "bob.ext4").await));
}

#[tokio::test]
async fn an_image_that_is_not_what_it_was_is_made_anew() {
    type Change = fn(&Path);
    let cases: [(&str, Change, &str); 4] = [
        (
            "written to by a guest",
            |image| {
                let file = File::options().write(true).open(image).unwrap();
                file.write_all_at(b"x", 4096).unwrap();
                file.set_times(FileTimes::new().set_modified(std::time::UNIX_EPOCH))
                    .unwrap();
            },
            "was written to since",
        ),
        (
            "damaged without a trace",
            |image| {
                let file = File::options().write(true).open(image).unwrap();
                let before = file.metadata().unwrap().modified().unwrap();
                file.write_all_at(b"x", 5000).unwrap();
                file.set_times(FileTimes::new().set_modified(before)).unwrap();
            },
            "does not have the checksum any more",
        ),
        (
            "cut off",
            |image| fs::write(image, b"").unwrap(),
            "was written to since",
        ),
        ("deleted", |image| fs::remove_file(image).unwrap(), ""),
    ];
    for (name, change, word) in cases {
        let (site, request) = local();
        let first = site.build(&request, "first.ext4").await;
        let expected = first.outcome().checksum.clone();
        change(&first.outcome().image_path);

        let second = site.build(&request, "second.ext4").await;
        assert!(!reused(&second), "{name}");
        assert_eq!(second.outcome().checksum, expected, "{name}");
        assert_eq!(sum(&second.outcome().image_path), expected, "{name}");
        let said = second.lines(Level::Info).iter().any(|line| line.contains(word));
        assert!(said, "{name}: {:?}", second.lines(Level::Info));
        // The new one takes its place.
        let third = site.build(&request, "third.ext4").await;
        assert!(reused(&third), "{name}");
        assert_eq!(sum(&third.outcome().image_path), expected, "{name}");
    }
}

#[tokio::test]
async fn who_may_not_pull_gets_no_copy_either() {
    let registry = Registry::start_with(Authentication::basic("robot", "hunter2")).unwrap();
    let reference = registry.publish("team/app", "1", &sample().build());
    let site = Site::reusing();
    let mut request = request(&reference);
    request.source.credentials = Some(RegistryCredentials {
        username: "robot".to_owned(),
        password: Secret::new("hunter2".to_owned()),
        ..RegistryCredentials::default()
    });
    site.build(&request, "first.ext4").await.outcome();
    assert!(reused(&site.build(&request, "second.ext4").await));

    request.source.credentials = None;
    let refused = site.build(&request, "third.ext4").await;
    assert_eq!(*refused.error().kind(), BuildErrorKind::Unauthorized);
    assert!(!site.output("third.ext4").exists());
}

#[tokio::test]
async fn limits_hold_for_a_copy_as_for_any_image() {
    let (mut site, request) = local();
    let size = site.build(&request, "first.ext4").await.outcome().size_bytes;
    for (name, set) in [
        (
            "image",
            (|limits, size| limits.max_image_bytes = Some(size - 1)) as fn(&mut BuildLimits, u64),
        ),
        ("disk", |limits, _| limits.max_disk_bytes = Some(400_000)),
    ] {
        site.config.limits = BuildLimits::default();
        set(&mut site.config.limits, size);
        let ended = site.build(&request, "second.ext4").await;
        assert_eq!(*ended.error().kind(), BuildErrorKind::LimitExceeded, "{name}");
        assert!(!site.output("second.ext4").exists(), "{name}");
    }
}
