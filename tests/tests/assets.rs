//! A finished image is registered with assetmanagerd, under either name of the service; without it builds go on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};

use builderd::proto::{BuildJob, BuildState};
use builderd_e2e::{
    api::{Api, TENANT},
    daemon::Daemon,
    parts,
};
use test_support::{
    assetmanagerd::{Code, FakeAssetManager, Misbehaviour, Request, proto::AssetType},
    image::{Image, Layer},
    lab,
    registry::Registry,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_image_is_registered_under_either_name_of_the_service() {
    let builderd = match parts::builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let registry = Registry::start().unwrap();
    let image = Image::new()
        .layer(&Layer::new().file("bin/sh", b"#!"))
        .cmd(&["/bin/sh"])
        .build();
    let reference = registry.publish("team/app", "1", &image);
    let assets = FakeAssetManager::start().unwrap();
    let endpoint = assets.endpoint();
    for package in ["asset.v1", "deploy.assetmanagerd.v1"] {
        let state = tempfile::tempdir().unwrap();
        let settings = [
            ("ASSETMANAGER_ENABLED", "true"),
            ("ASSETMANAGER_ENDPOINT", &endpoint),
            ("ASSETMANAGER_SERVICE", package),
        ];
        let daemon = Daemon::start(&builderd, state.path(), &settings).unwrap();
        let api = Api::new(daemon.address()).unwrap();
        let build_id = api.create(&reference).await.unwrap();
        let build = api.finish(&build_id, |_| {}).await.unwrap();
        assert_eq!(
            build.state(),
            BuildState::Completed,
            "{}\n{}",
            build.error_message,
            daemon.log()
        );

        let build = registered(&api, &build_id).await;
        let call = assets.calls().pop().unwrap();
        assert_eq!((call.package, call.tenant_id.as_deref()), (package, Some(TENANT)));
        let Request::Register(asked) = call.request else {
            panic!("{call:?}")
        };
        assert_eq!(asked.r#type(), AssetType::Rootfs);
        assert_eq!(
            (asked.size_bytes, &asked.checksum),
            (build.rootfs_size_bytes, &build.rootfs_checksum)
        );
        assert_eq!(
            (asked.build_id.as_str(), asked.labels["docker_image"].as_str()),
            (&*build_id, &*reference)
        );
        assert!(
            build.rootfs_path.ends_with(&asked.location) && !asked.location.starts_with('/'),
            "{asked:?}"
        );
        assert!(
            assets.assets().contains_key(&build.asset_id),
            "{:?}",
            build.asset_id
        );

        // An image is not lost because nobody takes note of it.
        assets.fail_times(100, Code::Unavailable);
        let build_id = api.create(&reference).await.unwrap();
        let build = api.finish(&build_id, |_| {}).await.unwrap();
        assert_eq!(
            build.state(),
            BuildState::Completed,
            "{}\n{}",
            build.error_message,
            daemon.log()
        );
        assert_eq!(build.asset_id, "");
        // And becomes known as soon as somebody does.
        assets.misbehave(0, Misbehaviour::Hang);
        let build = registered(&api, &build_id).await;
        assert!(assets.assets().contains_key(&build.asset_id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_between_image_and_registration_registers_once() {
    let builderd = match parts::builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let registry = Registry::start().unwrap();
    let image = Image::new()
        .layer(&Layer::new().file("bin/sh", b"#!"))
        .cmd(&["/bin/sh"])
        .build();
    let reference = registry.publish("team/app", "1", &image);
    // What the call met during which the daemon was killed, and how it registers.
    for (how, method) in [
        (Misbehaviour::Hang, "register"),
        (Misbehaviour::LoseAnswer, "register"),
        (Misbehaviour::LoseAnswer, "upload"),
    ] {
        let assets = FakeAssetManager::start().unwrap();
        let endpoint = assets.endpoint();
        let settings = [
            ("ASSETMANAGER_ENABLED", "true"),
            ("ASSETMANAGER_ENDPOINT", &endpoint),
            ("ASSETMANAGER_METHOD", method),
        ];
        let state = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::start(&builderd, state.path(), &settings).unwrap();
        let api = Api::new(daemon.address()).unwrap();
        assets.misbehave(1, how);
        let build_id = api.create(&reference).await.unwrap();
        let build = api.finish(&build_id, |_| {}).await.unwrap();
        assert_eq!(build.state(), BuildState::Completed, "{}", build.error_message);
        let deadline = Instant::now() + PATIENCE;
        while assets.calls().is_empty() {
            assert!(Instant::now() < deadline, "{}", daemon.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        daemon.crash_and_restart().unwrap();
        let api = Api::new(daemon.address()).unwrap();
        let build = registered(&api, &build_id).await;
        let known: Vec<String> = assets.assets().into_keys().collect();
        assert_eq!(known, [build.asset_id], "{how:?} {method}");
    }
}

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until assetmanagerd knows the image of a build.
async fn registered(api: &Api, build_id: &str) -> BuildJob {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let build = api.build(build_id).await.unwrap();
        if !build.asset_id.is_empty() {
            return build;
        }
        assert!(Instant::now() < deadline, "{build_id} is not registered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
