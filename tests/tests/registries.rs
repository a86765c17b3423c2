//! What an operator says about registries: whom to trust by which certificate, and how long a pull may take.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use builderd::proto::BuildState;
use builderd_e2e::{api::Api, daemon::Daemon, docker_registry::DockerRegistry, parts};
use test_support::{
    image::{BuiltImage, Image, Layer},
    lab::{self, Missing},
    registry::{Misbehaviour, Registry},
};

fn sample() -> BuiltImage {
    Image::new()
        .layer(&Layer::new().file("bin/sh", b"#!"))
        .cmd(&["/bin/sh"])
        .build()
}

fn needed() -> Result<PathBuf, Missing> {
    for program in ["docker-registry", "skopeo", "openssl"] {
        lab::program(program, program)?;
    }
    parts::builderd()
}

fn build(builderd: &Path, reference: &str, place: &Path, arguments: &[&OsStr]) -> Output {
    Command::new(builderd)
        .args(["build", reference, "--force", "--output"])
        .arg(place.join("image.ext4"))
        .arg("--cache-dir")
        .arg(place.join("cache"))
        .args(arguments)
        .env("DOCKER_CONFIG", place)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_an_own_authority_is_trusted_by_its_directory() {
    let builderd = match needed() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let place = tempfile::tempdir().unwrap();
    let certificates = place.path().join("certs.d");
    let registry = DockerRegistry::start_with_tls(&certificates).unwrap();
    let layout = place.path().join("layout");
    sample().write_oci_layout(&layout, "1").unwrap();
    let reference = registry.push(&layout, "team/app", "oci").unwrap();

    let output = build(&builderd, &reference, place.path(), &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("failed to connect to registry"),
        "{said}"
    );
    let directory = [OsStr::new("--certs-dir"), certificates.as_os_str()];
    let output = build(&builderd, &reference, place.path(), &directory);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let state = tempfile::tempdir().unwrap();
    let settings = [("DOCKER_CERTS_DIR", certificates.to_str().unwrap())];
    let daemon = Daemon::start(&builderd, state.path(), &settings).unwrap();
    let api = Api::new(daemon.address()).unwrap();
    let build_id = api.create(&reference).await.unwrap();
    let built = api.finish(&build_id, |_| {}).await.unwrap();
    assert_eq!(
        built.state(),
        BuildState::Completed,
        "{}\n{}",
        built.error_message,
        daemon.log()
    );
    drop(daemon);

    // Half of a pair is a mistake that is found at the start, not at the first pull.
    let (_, host) = reference
        .split_once("/team")
        .map(|(host, rest)| (rest, host))
        .unwrap();
    fs::remove_file(certificates.join(host).join("client.key")).unwrap();
    let refused = Daemon::start(&builderd, state.path(), &settings)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("DOCKER_CERTS_DIR"), "{refused}");
    let output = build(&builderd, &reference, place.path(), &directory);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("--certs-dir") && said.contains("client.cert has no key beside it"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_takes_longer_than_its_time_fails_and_says_so() {
    let builderd = match parts::builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let registry = Registry::start().unwrap();
    let image = sample();
    let reference = registry.publish("team/app", "1", &image);
    registry.misbehave(&image.layers[0].digest, Misbehaviour::StallAt(1));
    let state = tempfile::tempdir().unwrap();
    let settings = [("DOCKER_PULL_TIMEOUT", "2s")];
    let daemon = Daemon::start(&builderd, state.path(), &settings).unwrap();
    let api = Api::new(daemon.address()).unwrap();
    let build_id = api.create(&reference).await.unwrap();
    let built = api.finish(&build_id, |_| {}).await.unwrap();
    assert_eq!(built.state(), BuildState::Failed);
    assert!(
        built.error_message.contains("longer than the 2 seconds"),
        "{}",
        built.error_message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_fallback_what_the_mirror_lacks_is_not_found() {
    let builderd = match parts::builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let mirror = Registry::start().unwrap();
    let url = format!("http://{}", mirror.host());
    let state = tempfile::tempdir().unwrap();
    let settings = [
        ("DOCKER_REGISTRY_MIRROR", url.as_str()),
        ("DOCKER_MIRROR_FALLBACK", "false"),
    ];
    let daemon = Daemon::start(&builderd, state.path(), &settings).unwrap();
    let api = Api::new(daemon.address()).unwrap();
    let build_id = api.create("not-in-the-mirror:1").await.unwrap();
    let built = api.finish(&build_id, |_| {}).await.unwrap();
    assert_eq!(built.state(), BuildState::Failed);
    assert!(
        built.error_message.contains("not found") || built.error_message.contains("no such"),
        "{}",
        built.error_message
    );
    assert!(mirror.count_requests("not-in-the-mirror") > 0);

    // On the command line for any registry: the image's own has it and is not asked.
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample());
    let place = tempfile::tempdir().unwrap();
    let arguments = ["--plain-http", "--mirror", &url].map(OsStr::new);
    let output = build(
        &builderd,
        &reference,
        place.path(),
        &[&arguments[..], &[OsStr::new("--no-mirror-fallback")]].concat(),
    );
    assert!(!output.status.success());
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());
    let output = build(&builderd, &reference, place.path(), &arguments);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
