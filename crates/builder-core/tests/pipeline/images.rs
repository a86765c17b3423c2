//! Images from every source, in every mode.

use std::fs;

use builder_core::{
    BuildErrorKind, build::BuildState, build::ImageMetadata, event::Level, request::Backend,
    request::InitStrategy, request::LayerMode, request::Profile,
};
use ext4_view::Ext4;
use sha2::{Digest as _, Sha256};
use test_support::{image::Image, image::Layer, registry::Registry};

use crate::common::{INIT, Site, host_architecture, noise, request, sample};

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
async fn privileged_the_reference_backend_makes_the_same_tree_or_says_what_it_lacks() {
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
