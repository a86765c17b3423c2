//! A finished image is registered with assetmanagerd, under either name of the service; without it builds go on.

use builderd::proto::BuildState;
use builderd_e2e::{
    api::{Api, TENANT},
    daemon::Daemon,
    parts,
};
use test_support::{
    assetmanagerd::{Code, FakeAssetManager, Request, proto::AssetType},
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
        assets.fail_times(0, Code::Ok);
        assert_eq!(
            build.state(),
            BuildState::Completed,
            "{}\n{}",
            build.error_message,
            daemon.log()
        );
        assert_eq!(build.asset_id, "");
    }
}
