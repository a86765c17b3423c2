//! What is kept of layers, and for whom.

use std::{fs, os::unix::fs::FileExt, sync::Arc};

use builder_core::{
    BuildErrorKind,
    build::BuildIsolation,
    event::Level,
    worker::{Launcher, WorkerSpec},
};
use test_support::registry::Registry;

use crate::common::{Recorded, Site, request, sample};

/// A launcher that says of which level its boxes are.
#[derive(Debug)]
struct Claiming {
    level: u8,
    launcher: Arc<Recorded>,
}

impl Launcher for Claiming {
    fn isolation(&self) -> Option<BuildIsolation> {
        Some(BuildIsolation {
            sandbox_level: self.level,
            ..BuildIsolation::default()
        })
    }

    fn launch(&self, spec: WorkerSpec) -> Result<sandbox::Child, sandbox::LaunchError> {
        self.launcher.launch(spec)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_level_3_a_tenant_uses_no_pack_of_another_and_at_level_2_it_does() {
    for (level, indexed_by_bob) in [(2, 0), (3, 3)] {
        let mut site = Site::new();
        site.config.launcher = Arc::new(Claiming {
            level,
            launcher: Arc::clone(&site.workers),
        });
        let registry = Registry::start().unwrap();
        let of_alice = request(&registry.publish("team/app", "1", &sample().build()));
        let mut of_bob = of_alice.clone();
        of_bob.tenant.tenant_id = "bob".parse().unwrap();
        let first = site.build(&of_alice, "1.ext4").await;
        assert_eq!(first.indexed_and_cached(), (3, 0), "level {level}");
        let second = site.build(&of_bob, "2.ext4").await;
        assert_eq!(
            second.indexed_and_cached(),
            (indexed_by_bob, 3 - indexed_by_bob),
            "level {level}"
        );
        let again = site.build(&of_bob, "3.ext4").await;
        assert_eq!(again.indexed_and_cached(), (0, 3), "level {level}");
        assert_eq!(first.outcome().checksum, second.outcome().checksum);
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
