//! Images of Docker Hub come from the mirror that the operator named.

use builderd::proto::BuildState;
use builderd_e2e::{api::Api, daemon::Daemon, parts};
use test_support::{
    image::{Image, Layer},
    lab,
    registry::Registry,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_short_name_is_pulled_from_the_mirror() {
    let builderd = match parts::builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let mirror = Registry::start().unwrap();
    let image = Image::new()
        .layer(&Layer::new().file("bin/sh", b"#!"))
        .cmd(&["/bin/sh"])
        .build();
    mirror.publish("library/only-in-the-mirror", "1", &image);
    let state = tempfile::tempdir().unwrap();
    let url = format!("http://{}", mirror.host());
    let settings = [("DOCKER_REGISTRY_MIRROR", url.as_str())];
    let daemon = Daemon::start(&builderd, state.path(), &settings).unwrap();
    let api = Api::new(daemon.address()).unwrap();
    let build_id = api.create("only-in-the-mirror:1").await.unwrap();
    let build = api.finish(&build_id, |_| {}).await.unwrap();
    assert_eq!(
        build.state(),
        BuildState::Completed,
        "{}\n{}",
        build.error_message,
        daemon.log()
    );
    assert!(
        mirror
            .requests()
            .iter()
            .any(|request| request.query == "ns=docker.io"),
        "{:?}",
        mirror.requests()
    );
    drop(daemon);

    let state = tempfile::tempdir().unwrap();
    let settings = [("DOCKER_REGISTRY_MIRROR", "http://mirror/with/a/path")];
    let refused = Daemon::start(&builderd, state.path(), &settings)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("UNKEY_BUILDERD_DOCKER_REGISTRY_MIRROR"),
        "{refused}"
    );
}
