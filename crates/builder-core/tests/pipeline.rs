//! Whole builds through real worker processes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{fs, os::unix::fs::FileExt, sync::Arc, time::Duration};

use builder_core::{
    BuildErrorKind,
    build::{BuildState, ImageMetadata},
    event::Level,
    request::{Backend, InitStrategy, LayerMode, Profile, RegistryCredentials, Secret},
};
use common::{INIT, PATIENCE, Site, host_architecture, noise, request, sample};
use ext4_view::Ext4;
use sha2::{Digest as _, Sha256};
use test_support::{
    image::{Compression, Fault, Format, Image, Layer},
    registry::{Authentication, Misbehaviour, Registry},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

fn open(image: &std::path::Path) -> Ext4 {
    Ext4::load_from_path(image).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_layout_becomes_a_file_system_with_its_metadata() {
    let site = Site::new();
    let layout = site.directory.path().join("layout");
    let image = sample().build();
    image.write_oci_layout(&layout, "1").unwrap();
    let reference = format!("oci:{}:1", layout.display());
    let ended = site.build(&request(&reference), "rootfs.ext4").await;
    let outcome = ended.outcome();

    let file_system = open(&outcome.image_path);
    assert_eq!(file_system.read_to_string("/etc/motd").unwrap(), "changed\n");
    assert_eq!(file_system.read_to_string("/etc/motd2").unwrap(), "changed\n");
    assert!(!file_system.exists("/etc/old").unwrap());
    assert_eq!(file_system.read("/usr/bin/tool").unwrap(), noise(300_000, 1));
    assert_eq!(file_system.read("/usr/bin/metald-init").unwrap(), INIT);
    assert_eq!(
        file_system.read_to_string("/container.cmd").unwrap(),
        r#"["/usr/bin/tool","--serve"]"#
    );
    let environment: serde_json::Value =
        serde_json::from_slice(&file_system.read("/container.env").unwrap()).unwrap();
    assert_eq!(environment["env"]["MODE"], "test");
    assert_eq!(environment["working_dir"], "/");
    let owner = file_system.metadata("/etc/motd").unwrap();
    assert_eq!((owner.uid(), owner.gid()), (1000, 1000));

    let bytes = fs::read(&outcome.image_path).unwrap();
    assert_eq!(outcome.size_bytes, bytes.len() as u64);
    assert_eq!(outcome.checksum, hex::encode(Sha256::digest(&bytes)));

    assert_eq!(outcome.metadata_path, site.output("rootfs.metadata.json"));
    let metadata: ImageMetadata = serde_json::from_slice(&fs::read(&outcome.metadata_path).unwrap()).unwrap();
    assert_eq!(metadata, outcome.metadata);
    assert_eq!(metadata.original_image, reference);
    assert_eq!(metadata.image_digest, image.manifest_digest);
    assert_eq!(
        metadata.layers,
        image
            .layers
            .iter()
            .map(|layer| layer.digest.clone())
            .collect::<Vec<_>>()
    );
    assert_eq!(
        metadata.kernel_args,
        "console=ttyS0 reboot=k panic=-1 root=/dev/vda rw init=/usr/bin/metald-init"
    );

    assert_eq!(
        ended.states(),
        [
            BuildState::Pulling,
            BuildState::Extracting,
            BuildState::Building,
            BuildState::Optimizing
        ]
    );
    let percentages = ended.percentages();
    assert!(
        percentages.is_sorted() && percentages.last() == Some(&98),
        "{percentages:?}"
    );
    let metrics = &outcome.metrics;
    assert!(metrics.memory_peak_bytes.unwrap() > 0);
    assert_eq!(metrics.pulled_bytes, Some(0), "a layout is no network");
    assert_eq!(metrics.rootfs_size_bytes, Some(outcome.size_bytes));
    assert!(
        metrics.disk_usage_bytes.unwrap() < outcome.size_bytes,
        "free space is a hole"
    );

    // Nothing but the image and what lies beside it.
    assert_eq!(fs::read_dir(site.output("")).unwrap().count(), 3);
    fs::remove_dir_all(site.output("")).unwrap();
    fs::create_dir(site.output("")).unwrap();
    site.assert_clean("done");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_image_gives_the_same_bytes_wherever_it_comes_from() {
    let image = sample().build();
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &image);
    let mut checksums = Vec::new();
    for source in ["layout", "oci-archive", "docker-archive", "registry"] {
        // A site of its own each: nothing is shared between them.
        let site = Site::new();
        let place = site.directory.path().join("source");
        let uri = match source {
            "layout" => {
                image.write_oci_layout(&place, "1").unwrap();
                format!("oci:{}:1", place.display())
            }
            "oci-archive" => {
                image.write_oci_archive(&place, "1").unwrap();
                format!("oci-archive:{}:1", place.display())
            }
            "docker-archive" => {
                image.write_docker_archive(&place, "team/app:1").unwrap();
                format!("docker-archive:{}", place.display())
            }
            _ => reference.clone(),
        };
        let ended = site.build(&request(&uri), "x.ext4").await;
        let outcome = ended.outcome();
        if source == "registry" {
            let compressed: u64 = image.layers.iter().map(|layer| layer.size_bytes).sum();
            assert_eq!(outcome.metrics.pulled_bytes, Some(compressed));
        }
        checksums.push((source, outcome.checksum.clone()));
    }
    assert!(
        checksums.iter().all(|(_, checksum)| *checksum == checksums[0].1),
        "{checksums:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_backend_makes_the_same_tree_or_says_what_it_lacks() {
    let mut site = Site::new();
    site.config.backend = Backend::Mke2fs;
    let layout = site.directory.path().join("layout");
    sample().build().write_oci_layout(&layout, "1").unwrap();
    let ended = site
        .build(&request(&format!("oci:{}:1", layout.display())), "x.ext4")
        .await;
    match &ended.result {
        Ok(outcome) => {
            let file_system = open(&outcome.image_path);
            assert_eq!(file_system.read_to_string("/etc/motd2").unwrap(), "changed\n");
            assert_eq!(file_system.read("/usr/bin/metald-init").unwrap(), INIT);
            fs::remove_dir_all(site.output("")).unwrap();
        }
        Err(error) => {
            assert_eq!(error.kind(), &BuildErrorKind::BackendUnavailable, "{error}");
            test_support::lab::skip(error);
        }
    }
    site.assert_clean("mke2fs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_image_holds_what_the_layers_say_and_nothing_else() {
    let site = Site::new();
    let layout = site.directory.path().join("layout");
    // Of an architecture that no init is there for.
    let image = sample().platform("linux", "s390x", "").build();
    image.write_oci_layout(&layout, "1").unwrap();
    let mut request = request(&format!("oci:{}:1", layout.display()));
    request.source.platform = Some("linux/s390x".to_owned());

    let refused = site.build(&request, "x.ext4").await;
    assert_eq!(
        refused.error().kind(),
        &BuildErrorKind::InvalidArgument {
            field: "docker_image.platform"
        }
    );
    assert!(
        refused.error().to_string().contains("s390x"),
        "{}",
        refused.error()
    );
    site.assert_clean("another architecture");

    request.target.init = InitStrategy::Raw;
    request.target.profile = Profile::ReadOnly;
    let ended = site.build(&request, "x.ext4").await;
    let outcome = ended.outcome();
    let file_system = open(&outcome.image_path);
    for added in ["/usr/bin/metald-init", "/container.cmd", "/container.env"] {
        assert!(!file_system.exists(added).unwrap(), "{added}");
    }
    assert_eq!(
        outcome.metadata.kernel_args,
        "console=ttyS0 reboot=k panic=-1 root=/dev/vda ro"
    );
    assert_eq!(outcome.metadata.profile, "ro");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_modes_differ_the_log_names_the_entry() {
    let site = Site::new();
    let layout = site.directory.path().join("layout");
    let base = Layer::new()
        .directory("usr", 0o755)
        .directory("usr/lib", 0o755)
        .symlink("lib", "usr/lib");
    let top = Layer::new().file("lib/extra\x1b[2J", b"x");
    let image = Image::new()
        .layer(&base)
        .layer(&top)
        .platform("linux", &host_architecture(), "")
        .build();
    image.write_oci_layout(&layout, "1").unwrap();
    let mut request = request(&format!("oci:{}:1", layout.display()));
    for (mode, through_the_link) in [(LayerMode::Oci, true), (LayerMode::Docker, false)] {
        request.target.layer_mode = mode;
        let ended = site.build(&request, "x.ext4").await;
        let file_system = open(&ended.outcome().image_path);
        assert_eq!(
            file_system.exists("/usr/lib/extra\x1b[2J").unwrap(),
            through_the_link
        );
        let lines = ended.lines(Level::Info);
        let note = lines
            .iter()
            .find(|line| line.contains("lib/extra"))
            .expect("a note in the log");
        assert!(!note.contains('\x1b'), "control characters do not reach the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_build_indexes_and_pulls_nothing() {
    let site = Site::new();
    let registry = Registry::start().unwrap();
    let image = sample().build();
    let reference = registry.publish("team/app", "1", &image);
    let first = site.build(&request(&reference), "1.ext4").await;
    assert_eq!(first.indexed_and_cached(), (3, 0));
    registry.forget_requests();

    let second = site.build(&request(&reference), "2.ext4").await;
    assert_eq!(second.indexed_and_cached(), (0, 3));
    assert_eq!(first.outcome().checksum, second.outcome().checksum);
    assert_eq!(second.outcome().metrics.pulled_bytes, Some(0));
    for layer in &image.layers {
        assert_eq!(registry.count_requests(&layer.digest), 0, "a layer was asked for");
    }
    assert_eq!(
        site.workers.ids.lock().unwrap().len(),
        3 + 1 + 1,
        "only the image is written again"
    );

    // Another tenant shares the packs, but not before it came by the blobs on its own.
    let mut other = request(&reference);
    other.tenant.tenant_id = "bob".parse().unwrap();
    let third = site.build(&other, "3.ext4").await;
    assert_eq!(third.indexed_and_cached(), (0, 3));
    assert_eq!(first.outcome().checksum, third.outcome().checksum);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_without_a_right_to_a_blob_gets_nothing_from_the_cache() {
    let site = Site::new();
    let registry = Registry::start().unwrap();
    let image = sample().build();
    let private = registry.publish("alice/private", "1", &image);
    site.build(&request(&private), "1.ext4").await.outcome();

    // A registry of the attacker's own, whose manifest names the digests without having the blobs.
    let own = Registry::start().unwrap();
    let reference = own.publish("mallory/app", "1", &image);
    for layer in &image.layers {
        own.remove_blob("mallory/app", &layer.digest);
    }
    let mut other = request(&reference);
    other.tenant.tenant_id = "mallory".parse().unwrap();
    let ended = site.build(&other, "2.ext4").await;
    assert_eq!(
        ended.error().kind(),
        &BuildErrorKind::ImageNotFound,
        "{}",
        ended.error()
    );
    assert!(!site.output("2.ext4").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_cache_entry_is_made_anew() {
    let site = Site::new();
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample().build());
    let first = site.build(&request(&reference), "1.ext4").await;
    let entries = site.pack_entries();
    assert_eq!(entries.len(), 3);
    let file = fs::File::options().write(true).open(&entries[0]).unwrap();
    let length = file.metadata().unwrap().len();
    file.write_at(b"\xff", length - 1).unwrap();

    let second = site.build(&request(&reference), "2.ext4").await;
    assert_eq!(second.indexed_and_cached(), (1, 2));
    assert!(
        second.lines(Level::Warn)[0].contains("damaged"),
        "{:?}",
        second.lines(Level::Warn)
    );
    assert_eq!(first.outcome().checksum, second.outcome().checksum);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cache_nothing_is_kept() {
    let mut site = Site::new();
    let workspace = site.directory.path().join("workspace");
    site.config.packs = builder_core::PackCache::open(&workspace, None).unwrap();
    let layout = site.directory.path().join("layout");
    sample().build().write_oci_layout(&layout, "1").unwrap();
    let reference = format!("oci:{}:1", layout.display());
    for name in ["1.ext4", "2.ext4"] {
        let ended = site.build(&request(&reference), name).await;
        ended.outcome();
        assert_eq!(ended.indexed_and_cached(), (3, 0));
    }
    assert_eq!(site.pack_entries().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_images_fail_with_a_word_that_tells_why() {
    let plain = || {
        Layer::new()
            .directory("etc", 0o755)
            .file("etc/motd", noise(50_000, 2))
    };
    let image = || {
        Image::new()
            .layer(&plain())
            .platform("linux", &host_architecture(), "")
    };
    let broken = |fault| image().fault(0, fault).build();
    let cases = [
        (
            "digest",
            broken(Fault::WrongDigest),
            BuildErrorKind::DigestMismatch,
        ),
        (
            "diff_id",
            broken(Fault::WrongDiffId),
            BuildErrorKind::DigestMismatch,
        ),
        (
            "truncated",
            broken(Fault::TruncatedStream),
            BuildErrorKind::CorruptLayer,
        ),
        (
            "corrupt gzip",
            broken(Fault::CorruptStream),
            BuildErrorKind::CorruptLayer,
        ),
        (
            "missing blob",
            broken(Fault::MissingBlob),
            BuildErrorKind::ImageNotFound,
        ),
        (
            "schema 1",
            image().format(Format::DockerSchema1).build(),
            BuildErrorKind::UnsupportedImage,
        ),
        (
            "no archive",
            Image::new()
                .layer_bytes(b"this is no tar archive".repeat(100), Compression::Gzip)
                .platform("linux", &host_architecture(), "")
                .build(),
            BuildErrorKind::CorruptLayer,
        ),
        (
            "a link to nothing",
            Image::new()
                .layer(&Layer::new().hard_link("a", "absent"))
                .platform("linux", &host_architecture(), "")
                .build(),
            BuildErrorKind::CorruptLayer,
        ),
        (
            "the init's place is a directory",
            Image::new()
                .layer(&Layer::new().directory("container.cmd", 0o755))
                .platform("linux", &host_architecture(), "")
                .build(),
            BuildErrorKind::UnsupportedImage,
        ),
    ];
    for (case, image, kind) in cases {
        let site = Site::new();
        let registry = Registry::start().unwrap();
        let reference = registry.publish("team/app", "1", &image);
        let ended = site.build(&request(&reference), "x.ext4").await;
        let error = ended.error();
        assert_eq!(error.kind(), &kind, "{case}: {error} {error:?}");
        assert!(
            !error
                .to_string()
                .contains(&*site.directory.path().to_string_lossy()),
            "{case}: {error}"
        );
        site.assert_clean(case);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_registries_fail_with_a_word_that_tells_why() {
    type Misbehave = fn(&Registry);
    let cases: [(&str, &str, Misbehave, BuildErrorKind); 6] = [
        ("unknown tag", "2", |_| (), BuildErrorKind::ImageNotFound),
        (
            "wants credentials",
            "1",
            |registry| registry.misbehave("/manifests/", Misbehaviour::status(401)),
            BuildErrorKind::Unauthorized,
        ),
        (
            "refuses",
            "1",
            |registry| registry.misbehave("/manifests/", Misbehaviour::status(403)),
            BuildErrorKind::Unauthorized,
        ),
        (
            "asks to come back",
            "1",
            |registry| registry.misbehave("/", Misbehaviour::rate_limited(3600)),
            BuildErrorKind::RateLimited,
        ),
        (
            "is ill",
            "1",
            |registry| registry.misbehave("/", Misbehaviour::status(503)),
            BuildErrorKind::RegistryUnreachable,
        ),
        (
            "flips a bit on the way",
            "1",
            |registry| registry.misbehave("/blobs/", Misbehaviour::FlipBit),
            BuildErrorKind::DigestMismatch,
        ),
    ];
    for (case, tag, misbehave, kind) in cases {
        let site = Site::new();
        let registry = Registry::start().unwrap();
        registry.publish("team/app", "1", &sample().build());
        misbehave(&registry);
        let ended = site
            .build(&request(&registry.reference("team/app", tag)), "x.ext4")
            .await;
        assert_eq!(ended.error().kind(), &kind, "{case}: {}", ended.error());
        site.assert_clean(case);
    }

    let site = Site::new();
    let gone = Registry::start().unwrap().reference("team/app", "1");
    let ended = site.build(&request(&gone), "x.ext4").await;
    assert_eq!(
        ended.error().kind(),
        &BuildErrorKind::RegistryUnreachable,
        "{}",
        ended.error()
    );
    site.assert_clean("nobody listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_a_private_image_and_show_nowhere() {
    let registry = Registry::start_with(Authentication::basic("robot", "hunter2")).unwrap();
    let reference = registry.publish("team/app", "1", &sample().build());
    let site = Site::new();
    let mut request = request(&reference);
    let ended = site.build(&request, "x.ext4").await;
    assert_eq!(ended.error().kind(), &BuildErrorKind::Unauthorized);

    let credentials = |password: &str, registry: &str| {
        Some(RegistryCredentials {
            username: "robot".to_owned(),
            password: Secret::new(password.to_owned()),
            token: Secret::default(),
            registry: registry.to_owned(),
        })
    };
    request.source.credentials = credentials("wrong-hunter2", "");
    let ended = site.build(&request, "x.ext4").await;
    assert_eq!(ended.error().kind(), &BuildErrorKind::Unauthorized);
    assert!(!format!("{:?} {:?}", ended.error(), ended.events).contains("hunter2"));

    request.source.credentials = credentials("hunter2", "elsewhere.example");
    let ended = site.build(&request, "x.ext4").await;
    assert_eq!(
        ended.error().kind(),
        &BuildErrorKind::InvalidArgument {
            field: "docker_image.auth.registry"
        }
    );

    request.source.credentials = credentials("hunter2", &registry.host());
    let ended = site.build(&request, "x.ext4").await;
    ended.outcome();
    assert!(!format!("{:?}", ended.events).contains("hunter2"));
}

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

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_broken_or_hostile_end_the_build_and_nothing_else() {
    for (mode, word) in [
        ("garbage", "answered with garbage"),
        ("endless-line", "answered with garbage"),
        ("chatter", "answered with garbage"),
        ("liar", "answered with garbage"),
        ("silent", "without a result"),
        ("panic", "ended with code 101"),
        ("abort", "signal 6"),
        ("no such mode", "ended with code 1"),
    ] {
        let site = Site::with_worker(mode);
        let layout = site.directory.path().join("layout");
        sample().build().write_oci_layout(&layout, "1").unwrap();
        let request = request(&format!("oci:{}:1", layout.display()));
        let build = site.build(&request, "x.ext4");
        let ended = tokio::time::timeout(PATIENCE, build).await.expect(mode);
        let error = ended.error();
        assert_eq!(error.kind(), &BuildErrorKind::Internal, "{mode}: {error}");
        assert!(error.to_string().contains(word), "{mode}: {error}");
        site.assert_clean(mode);
    }
}

/// A registry that sends half of the first layer and then nothing.
fn stalled() -> (Registry, String) {
    let registry = Registry::start().unwrap();
    let image = sample().build();
    let reference = registry.publish("team/app", "1", &image);
    registry.misbehave(
        &image.layers[0].digest,
        Misbehaviour::StallAt(image.layers[0].size_bytes / 2),
    );
    (registry, reference)
}

/// Runs `act` on another thread when the registry has stalled.
fn when_stalled(
    registry: &Arc<Registry>,
    act: impl FnOnce() + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let registry = Arc::clone(registry);
    std::thread::spawn(move || {
        assert!(registry.wait_for_stalled(1, PATIENCE));
        act();
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_build_ends_at_once_and_leaves_nothing() {
    let site = Site::new();
    let (registry, reference) = stalled();
    let registry = Arc::new(registry);
    let cancel = CancellationToken::new();
    let canceller = {
        let cancel = cancel.clone();
        when_stalled(&registry, move || cancel.cancel())
    };
    let cancelled_at = {
        let cancel = cancel.clone();
        tokio::spawn(async move {
            cancel.cancelled().await;
            Instant::now()
        })
    };
    let ended = site.build_until(&request(&reference), "x.ext4", cancel).await;
    let took = cancelled_at.await.unwrap().elapsed();
    canceller.join().unwrap();
    assert_eq!(ended.error().kind(), &BuildErrorKind::Cancelled);
    assert!(took < Duration::from_secs(1), "{took:?}");
    site.assert_clean("cancelled");
    let registry = Arc::into_inner(registry).unwrap();
    assert!(registry.wait_for_idle(PATIENCE), "the download goes on");

    // And what is left in the caches is good for the next build.
    registry.behave();
    site.build(&request(&reference), "x.ext4").await.outcome();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_takes_too_long_says_so() {
    for mode in ["worker", "hang"] {
        let mut site = Site::with_worker(mode);
        site.config.limits.timeout = Some(Duration::from_millis(500));
        let (_registry, reference) = stalled();
        let started = Instant::now();
        let ended = site.build(&request(&reference), "x.ext4").await;
        assert_eq!(ended.error().kind(), &BuildErrorKind::TimedOut, "{mode}");
        assert!(
            ended.error().to_string().contains("0.5 seconds"),
            "{}",
            ended.error()
        );
        assert!(
            started.elapsed() < Duration::from_secs(3),
            "{mode}: {:?}",
            started.elapsed()
        );
        site.assert_clean(mode);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_is_named_and_the_next_build_works() {
    let site = Site::new();
    let (registry, reference) = stalled();
    let registry = Arc::new(registry);
    let workers = Arc::clone(&site.workers);
    let killer = when_stalled(&registry, move || {
        // The worker of the layer that stalls may be a moment away; the others have ended or will.
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < deadline {
            let ids = workers.ids.lock().unwrap().clone();
            for id in ids {
                let id = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
                let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
            }
            if workers.ids.lock().unwrap().len() >= 3 && workers.none_left() {
                return;
            }
            std::thread::yield_now();
        }
    });
    let ended = site.build(&request(&reference), "x.ext4").await;
    killer.join().unwrap();
    assert_eq!(ended.error().kind(), &BuildErrorKind::Internal);
    assert!(
        ended.error().to_string().contains("was killed (signal 9)"),
        "{}",
        ended.error()
    );
    site.assert_clean("killed");

    registry.behave();
    registry.release();
    site.build(&request(&reference), "x.ext4").await.outcome();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_future_is_dropped_leaves_nothing_either() {
    let site = Site::new();
    let (registry, reference) = stalled();
    let registry = Arc::new(registry);
    let (stalled, is_stalled) = tokio::sync::oneshot::channel();
    let workers = Arc::clone(&site.workers);
    let watcher = when_stalled(&registry, move || {
        // A worker that starts after the look below would be taken for one that was left.
        let deadline = Instant::now() + PATIENCE;
        while workers.ids.lock().unwrap().len() < 3 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        stalled.send(()).unwrap();
    });
    let build_request = request(&reference);
    tokio::select! {
        _ = site.build(&build_request, "x.ext4") => panic!("the registry stalls"),
        _ = is_stalled => {}
    }
    watcher.join().unwrap();
    // Nobody waits for the end of what was dropped, so it may be a moment away.
    let unfinished = site.directory.path().join("workspace/cache/packs/tmp");
    let is_over = || site.workers.none_left() && fs::read_dir(&unfinished).unwrap().count() == 0;
    let deadline = Instant::now() + PATIENCE;
    while !is_over() && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    site.assert_clean("dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_cannot_be_written_fails_before_the_first_request() {
    let site = Site::new();
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample().build());
    let ended = site.build(&request(&reference), "no/such/directory.ext4").await;
    assert_eq!(ended.error().kind(), &BuildErrorKind::OutputNotWritable);
    assert!(registry.requests().is_empty());
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
async fn a_full_disk_is_named_as_such_wherever_it_is() {
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
        site.config.fetch = oci_fetch::Client::new(common::fetch_config(&workspace)).unwrap();
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
async fn twenty_builds_of_one_image_at_once_index_each_layer_once() {
    let site = Arc::new(Site::new());
    let registry = Registry::start().unwrap();
    let image = sample().build();
    let reference = registry.publish("team/app", "1", &image);
    let builds = (0..20).map(|number| {
        let (site, request) = (Arc::clone(&site), request(&reference));
        tokio::spawn(async move { site.build(&request, &format!("{number}.ext4")).await })
    });
    let mut checksums = Vec::new();
    let mut indexed = 0;
    for build in builds.collect::<Vec<_>>() {
        let ended = build.await.unwrap();
        checksums.push(ended.outcome().checksum.clone());
        indexed += ended.indexed_and_cached().0;
    }
    checksums.dedup();
    assert_eq!(checksums.len(), 1);
    assert_eq!(indexed, 3);
    for layer in &image.layers {
        assert_eq!(
            registry.count_requests(&layer.digest),
            1,
            "a layer was pulled more than once"
        );
    }
    assert_eq!(fs::read_dir(site.output("")).unwrap().count(), 60);
}
