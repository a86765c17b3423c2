//! Mirrors: asked first, anonymously, and left when they fail, in the middle of a layer too.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use oci_fetch::{Client, ClientConfig, Digest, FetchErrorKind};

async fn stopped() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

fn with_mirrors(config: ClientConfig, registry: &str, mirrors: &[&str]) -> ClientConfig {
    mirrors.iter().fold(config, |config, mirror| {
        config.with_mirror(registry, &format!("http://{mirror}")).unwrap()
    })
}

/// A registry that wants a password.
async fn private(image: &TestImage) -> Server {
    Server::with_image(image, |seen| {
        (seen.authorization() != Some("Basic YWxpY2U6YQ==")).then(|| Reply::challenge("Basic realm=x"))
    })
    .await
}

#[tokio::test]
async fn a_mirror_that_has_the_image_serves_it_alone_and_sees_no_credential() {
    let image = TestImage::one_layer(100_000);
    let origin = private(&image).await;
    let registry = origin.address.to_string();
    let mut store = Store::default();
    store.publish("app", "1", &image);
    // The registry's name is in the query, which the test's store does not know.
    let mirror = Server::start(Store::default(), move |seen| {
        let path = seen
            .path
            .strip_suffix(&format!("?ns={}", registry.replace(':', "%3A")))?;
        Some(store.reply(&Seen {
            path: path.to_owned(),
            ..seen.clone()
        }))
    })
    .await;
    let registry = origin.address.to_string();
    let cache = tempfile::tempdir().unwrap();
    let config = with_mirrors(
        origin.config(cache.path()),
        &registry,
        &[&mirror.address.to_string()],
    );
    let client = Client::new(config).unwrap();
    let layers = pull_with(&client, &origin.source("app:1"), &as_user("t", "alice", "a"))
        .await
        .unwrap();
    assert_eq!(layers, image.layers);
    assert!(origin.log().is_empty());
    assert_eq!(mirror.log().len(), 3);
    assert!(mirror.log().iter().all(|seen| seen.authorization().is_none()));
}

#[tokio::test]
async fn mirrors_that_fail_are_passed_over_and_the_registry_answers() {
    let image = TestImage::one_layer(100_000);
    let origin = private(&image).await;
    let registry = origin.address.to_string();
    let down = stopped().await;
    let empty = Server::start(Store::default(), |_| None).await;
    let broken = Server::start(Store::default(), |_| Some(Reply::new(503))).await;
    let strict = Server::start(Store::default(), |_| Some(Reply::challenge("Basic realm=mirror"))).await;
    let lying = Server::start(Store::default(), |_| Some(Reply::ok("text/html", "<html>"))).await;
    let addresses: Vec<String> = [&empty, &broken, &strict, &lying]
        .iter()
        .map(|server| server.address.to_string())
        .collect();
    let mut mirrors: Vec<&str> = addresses.iter().map(String::as_str).collect();
    mirrors.push(&down);
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(with_mirrors(origin.config(cache.path()), &registry, &mirrors)).unwrap();
    let context = as_user("t", "alice", "a");
    assert_eq!(
        pull_with(&client, &origin.source("app:1"), &context)
            .await
            .unwrap(),
        image.layers
    );
    assert!(strict.log().iter().all(|seen| seen.authorization().is_none()));
    // One that fails is left in peace for a while, one that merely lacks an image is not.
    let (broken_before, empty_before) = (broken.log().len(), empty.log().len());
    assert_eq!(broken_before, 2);
    client
        .resolve(&origin.source("app:1"), &amd64(), &context)
        .await
        .unwrap();
    assert_eq!(
        (broken.log().len(), empty.log().len()),
        (broken_before, empty_before + 1)
    );
    // The registry's own verdict stands.
    let error = client
        .resolve(&origin.source("app:1"), &amd64(), &as_tenant("t"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), &FetchErrorKind::Unauthorized);
}

#[tokio::test]
async fn a_mirror_that_breaks_in_mid_layer_is_replaced_by_the_registry() {
    let image = TestImage::one_layer(600_000);
    let origin = Server::with_image(&image, |_| None).await;
    let registry = origin.address.to_string();
    let digest = Digest::sha256(&image.layers[0]).to_string();
    let layer = image.layers[0].clone();
    let mut store = Store::default();
    store.publish("app", "1", &image);
    let mirror = Server::start(Store::default(), move |seen| {
        let path = seen.path.split('?').next().unwrap().to_owned();
        if path.ends_with(&digest) {
            return Some(match seen.nth {
                0 => Reply::ok("x", layer.clone()).manner(Manner::CutAt(200_000)),
                _ => Reply::new(500),
            });
        }
        Some(store.reply(&Seen { path, ..seen.clone() }))
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let config = with_mirrors(
        origin.config(cache.path()),
        &registry,
        &[&mirror.address.to_string()],
    );
    let client = Client::new(config).unwrap();
    let layers = pull_with(&client, &origin.source("app:1"), &as_tenant("t"))
        .await
        .unwrap();
    assert_eq!(layers, image.layers);
    let asked = origin.log();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].range(), Some((200_000, Some(599_999))));
}

#[tokio::test]
async fn without_fallback_the_registry_is_never_asked() {
    let image = TestImage::one_layer(100);
    let origin = Server::with_image(&image, |_| None).await;
    let registry = origin.address.to_string();
    let empty = Server::start(Store::default(), |_| None).await;
    let cache = tempfile::tempdir().unwrap();
    let config = with_mirrors(
        origin.config(cache.path()),
        &registry,
        &[&empty.address.to_string()],
    )
    .without_mirror_fallback(&registry)
    .unwrap();
    let client = Client::new(config).unwrap();
    assert_eq!(
        kind(resolve(&client, &origin.source("app:1")).await),
        FetchErrorKind::NotFound
    );
    assert!(origin.log().is_empty());
    for mirror in ["http://host/path", "ftp://host", "https://user@host", ""] {
        assert!(
            ClientConfig::new("unused")
                .with_mirror("docker.io", mirror)
                .is_err(),
            "{mirror}"
        );
    }
}
