//! Against Debian's docker-registry: plain, Basic, token authentication, TLS with an own authority and client certificates,
//! a cold pull-through cache, the redirect middleware; and beside skopeo.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

#[path = "../common/mod.rs"]
mod common;
mod skopeo;
mod tls;
mod tokens;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::docker_registry::{DockerRegistry, http, push};
use common::*;
use oci_fetch::{Client, ClientConfig, Digest, FetchErrorKind, Ranges};

fn image() -> TestImage {
    TestImage::new(&[noise(3 << 20, 1), noise(1000, 2), noise(3 << 20, 1)])
}

fn client(cache: &Path, address: &str) -> ClientConfig {
    quick(ClientConfig::new(cache))
        .with_plain_http(address)
        .unwrap()
        .with_ranges(Ranges {
            connections: 4,
            min_blob_bytes: 1 << 20,
            range_bytes: 512 << 10,
            one_connection_time: std::time::Duration::ZERO,
        })
}

#[tokio::test]
async fn a_plain_registry_serves_by_tag_digest_and_range() {
    let Some(registry) = DockerRegistry::start_plain() else {
        return;
    };
    let image = image();
    registry.push("team/app", &image).await;
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(client(cache.path(), &registry.address)).unwrap();
    let digest = Digest::sha256(&image.manifest);
    for name in [
        "team/app:1".to_owned(),
        format!("team/app@{digest}"),
        format!("team/app:1@{digest}"),
    ] {
        let source = format!("{}/{name}", registry.address).parse().unwrap();
        assert_eq!(
            pull_with(&client, &source, &as_tenant("t")).await.unwrap(),
            image.layers,
            "{name}"
        );
        client.shrink_cache(0).await.unwrap();
    }
    for name in ["team/app:2", "team/other:1"] {
        let source = format!("{}/{name}", registry.address).parse().unwrap();
        assert_eq!(
            kind(resolve(&client, &source).await),
            FetchErrorKind::NotFound,
            "{name}"
        );
    }
}

#[tokio::test]
async fn basic_authentication_with_bcrypt() {
    let auth = "auth: {htpasswd: {realm: test, path: DIRECTORY/htpasswd}}";
    let Some(registry) = DockerRegistry::start(&["/usr/bin/htpasswd"], "", auth, |directory| {
        let lines = Command::new("/usr/bin/htpasswd")
            .args(["-nbB", "-C", "4", "alice", "secret"])
            .output()
            .unwrap();
        std::fs::write(directory.join("htpasswd"), lines.stdout).unwrap();
    }) else {
        return;
    };
    let image = image();
    push(
        &http(),
        &format!("http://{}", registry.address),
        Some(("alice", "secret")),
        "app",
        &image,
    )
    .await;
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(client(cache.path(), &registry.address)).unwrap();
    let source = format!("{}/app:1", registry.address).parse().unwrap();
    assert_eq!(
        pull_with(&client, &source, &as_user("t", "alice", "secret"))
            .await
            .unwrap(),
        image.layers
    );
    // What is in the cache now is nobody else's.
    assert_eq!(
        kind(pull_with(&client, &source, &as_tenant("t")).await),
        FetchErrorKind::Unauthorized
    );
    assert_eq!(
        kind(pull_with(&client, &source, &as_user("t", "alice", "x")).await),
        FetchErrorKind::Unauthorized
    );
}

#[tokio::test]
async fn a_cold_pull_through_cache_answers_ranges_with_the_whole() {
    let Some(upstream) = DockerRegistry::start_plain() else {
        return;
    };
    let image = image();
    upstream.push("app", &image).await;
    let Some(proxy) = DockerRegistry::start(
        &[],
        "",
        &format!("proxy: {{remoteurl: http://{}}}", upstream.address),
        |_| (),
    ) else {
        return;
    };
    let source = format!("{}/app:1", proxy.address).parse().unwrap();
    for turn in ["cold", "warm"] {
        let cache = tempfile::tempdir().unwrap();
        let client = Client::new(client(cache.path(), &proxy.address)).unwrap();
        assert_eq!(
            pull_with(&client, &source, &as_tenant("t")).await.unwrap(),
            image.layers,
            "{turn}"
        );
    }
}

#[tokio::test]
async fn layers_may_come_from_a_storage_that_the_registry_redirects_to() {
    let image = image();
    let blobs: Vec<_> = image.layers.iter().chain([&image.config]).cloned().collect();
    let storage = Server::start(Store::default(), move |seen| {
        let blob = blobs
            .iter()
            .find(|blob| seen.path.contains(Digest::sha256(blob).hex()))?;
        let mut store = Store::default();
        store.blob("x", blob);
        let path = format!("/v2/x/blobs/{}", Digest::sha256(blob));
        Some(store.reply(&Seen { path, ..seen.clone() }))
    })
    .await;
    let rest = format!(
        "middleware: {{storage: [{{name: redirect, options: {{baseurl: 'http://{}'}}}}]}}",
        storage.address
    );
    let Some(registry) = DockerRegistry::start(&[], "", &rest, |_| ()) else {
        return;
    };
    registry.push("app", &image).await;
    let source = format!("{}/app:1", registry.address).parse().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let config = client(cache.path(), &registry.address)
        .with_plain_http(&storage.address.to_string())
        .unwrap();
    let client = Client::new(config).unwrap();
    assert_eq!(
        pull_with(&client, &source, &as_tenant("t")).await.unwrap(),
        image.layers
    );
    assert!(storage.log().iter().any(|seen| seen.range().is_some()));
}

#[tokio::test]
async fn the_example_makes_a_layout_that_resolves() {
    let Some(registry) = DockerRegistry::start_plain() else {
        return;
    };
    let image = image();
    registry.push("app", &image).await;
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
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("layout");
    let output = tokio::task::spawn_blocking({
        let (source, target) = (format!("{}/app:1", registry.address), target.clone());
        move || {
            Command::new(program)
                .arg(source)
                .arg(target)
                .arg("linux/amd64")
                .output()
                .unwrap()
        }
    })
    .await
    .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(ClientConfig::new(cache.path())).unwrap();
    let source = format!("oci:{}", target.display()).parse().unwrap();
    assert_eq!(
        pull_with(&client, &source, &as_tenant("t")).await.unwrap(),
        image.layers
    );
}
