//! Where requests may be led: redirects, names that change their addresses, registries outside of the policy.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use oci_fetch::{Client, Digest, FetchErrorKind};

#[tokio::test]
async fn redirects_carry_no_credential_to_another_origin() {
    let image = TestImage::one_layer(1000);
    let layer = image.layers[0].clone();
    let storage = Server::start(Store::default(), move |_| Some(Reply::ok("x", layer.clone()))).await;
    let target = format!("http://{}/signed?signature=secret", storage.address);
    let good = basic("alice", "a");
    let server = Server::with_image(&image, move |seen| {
        if seen.authorization() != Some(good.as_str()) {
            return Some(Reply::challenge("Basic realm=x"));
        }
        let digest = Digest::sha256(&noise(1000, 1)).to_string();
        seen.path.ends_with(&digest).then(|| Reply::redirect(&target))
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    let context = as_user("t", "alice", "a");
    // Another port of the named host is not reached unless it is named, too.
    assert_eq!(
        kind(pull_with(&client, &server.source("app:1"), &context).await),
        FetchErrorKind::Policy
    );
    assert!(storage.log().is_empty());
    let config = server.config(cache.path());
    let config = config.with_plain_http(&storage.address.to_string()).unwrap();
    let client = Client::new(config).unwrap();
    assert_eq!(
        pull_with(&client, &server.source("app:1"), &context)
            .await
            .unwrap(),
        image.layers
    );
    assert_eq!(storage.log().len(), 1);
    assert_eq!(storage.log()[0].authorization(), None);
}

#[tokio::test]
async fn a_challenge_from_behind_a_redirect_is_not_answered() {
    let image = TestImage::one_layer(1000);
    let storage = Server::start(Store::default(), |_| Some(Reply::challenge("Basic realm=x"))).await;
    let target = format!("http://{}/signed", storage.address);
    let server = Server::with_image(&image, move |seen| {
        seen.path.contains("/blobs/").then(|| Reply::redirect(&target))
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let config = server.config(cache.path());
    let config = config.with_plain_http(&storage.address.to_string()).unwrap();
    let result = pull_with(
        &Client::new(config).unwrap(),
        &server.source("app:1"),
        &as_user("t", "alice", "a"),
    )
    .await;
    assert_eq!(kind(result), FetchErrorKind::Transient);
    assert!(!storage.log().is_empty());
    assert!(storage.log().iter().all(|seen| seen.authorization().is_none()));
}

#[tokio::test]
async fn redirect_loops_chains_and_bad_locations_end() {
    let image = TestImage::one_layer(10);
    for (name, location, expected) in [
        ("loop", "/v2/app/manifests/1", FetchErrorKind::Protocol),
        (
            "downgrade to a file",
            "file:///etc/passwd",
            FetchErrorKind::Policy,
        ),
        (
            "userinfo",
            "http://user:secret@127.0.0.1/",
            FetchErrorKind::Policy,
        ),
        ("another port", "http://127.0.0.1:1/", FetchErrorKind::Policy),
        ("private", "https://10.0.0.1/", FetchErrorKind::Policy),
        (
            "metadata",
            "http://169.254.169.254/latest/meta-data/",
            FetchErrorKind::Policy,
        ),
        ("loopback by name", "http://localhost:1/", FetchErrorKind::Policy),
        ("loopback v6", "http://[::1]:1/", FetchErrorKind::Policy),
        (
            "v4-mapped",
            "http://[::ffff:127.0.0.1]:1/",
            FetchErrorKind::Policy,
        ),
        ("NAT64", "http://[64:ff9b::7f00:1]:1/", FetchErrorKind::Policy),
        ("other loopback", "http://127.0.0.2:1/", FetchErrorKind::Policy),
        ("decimal", "http://2130706434:1/", FetchErrorKind::Policy),
        ("octal", "http://0177.0.0.2:1/", FetchErrorKind::Policy),
        ("hexadecimal", "http://0x7f000002:1/", FetchErrorKind::Policy),
        ("zero", "http://0.0.0.0:1/", FetchErrorKind::Policy),
        ("malformed", "http://[", FetchErrorKind::Protocol),
    ] {
        let server = Server::with_image(&image, move |_| Some(Reply::redirect(location))).await;
        let cache = tempfile::tempdir().unwrap();
        let error = resolve(&server.client(cache.path()), &server.source("app:1"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), &expected, "{name}: {error:?}");
        assert!(!format!("{error:?}").contains("secret"), "{name}");
        assert!(server.log().len() <= 6, "{name}: {}", server.log().len());
    }
    let server = Server::with_image(&image, |_| Some(Reply::new(302))).await;
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(
        kind(resolve(&server.client(cache.path()), &server.source("app:1")).await),
        FetchErrorKind::Protocol
    );
    // Five hops are fine.
    let server = Server::with_image(&image, |seen| {
        let hops = seen.path.matches("/hop").count();
        (hops < 5 && seen.path.starts_with("/v2/app/manifests"))
            .then(|| Reply::redirect(&format!("{}/hop", seen.path)))
            .or_else(|| (hops == 5).then(|| Reply::ok(MANIFEST, TestImage::one_layer(10).manifest)))
    })
    .await;
    resolve(&server.client(cache.path()), &server.source("app:1"))
        .await
        .unwrap();
}

/// Answers with a list of addresses, one after the other.
struct Rebinding {
    answers: Vec<&'static str>,
    asked: AtomicUsize,
}

impl oci_fetch::Resolver for Rebinding {
    fn resolve(
        &self,
        _host: String,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Vec<std::net::IpAddr>>> + Send>> {
        let index = self
            .asked
            .fetch_add(1, Ordering::SeqCst)
            .min(self.answers.len() - 1);
        let answer = self.answers[index].parse().unwrap();
        Box::pin(async move { Ok(vec![answer]) })
    }
}

#[tokio::test]
async fn a_name_that_turns_to_a_private_address_is_not_connected_to() {
    let image = TestImage::one_layer(10);
    let server = Server::with_image(&image, |_| None).await;
    let port = server.address.port();
    let cache = tempfile::tempdir().unwrap();
    for answer in [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "::ffff:127.0.0.1",
        "fd00:ec2::254",
    ] {
        let resolver = Arc::new(Rebinding {
            answers: vec![answer],
            asked: AtomicUsize::new(0),
        });
        let config = quick(oci_fetch::ClientConfig::new(cache.path())).with_resolver(resolver);
        let client = Client::new(config).unwrap();
        let source = format!("rebind.example:{port}/app:1").parse().unwrap();
        let error = resolve(&client, &source).await.unwrap_err();
        assert_eq!(error.kind(), &FetchErrorKind::Policy, "{answer}");
        assert!(
            !format!("{error:?}").contains(answer),
            "what a name resolves to stays inside: {error:?}"
        );
    }
    assert!(server.log().is_empty());
    // A name that the operator has named may be inside, and turns to where nobody may: the check is on every connection.
    let resolver = Arc::new(Rebinding {
        answers: vec!["127.0.0.1", "169.254.169.254"],
        asked: AtomicUsize::new(0),
    });
    let name = format!("rebind.example:{port}");
    for expected in [None, Some(FetchErrorKind::Policy)] {
        // A client of its own each time, or the second request would take the first one's connection.
        let config = quick(oci_fetch::ClientConfig::new(cache.path())).with_resolver(resolver.clone());
        let client = Client::new(config.with_plain_http(&name).unwrap()).unwrap();
        let found = resolve(&client, &format!("{name}/app:1").parse().unwrap()).await;
        assert_eq!(found.err().map(|error| error.kind().clone()), expected);
    }
    // The same name, named by the operator, is fine; a redirect to another name is not.
    let resolver = Arc::new(Rebinding {
        answers: vec!["127.0.0.1"],
        asked: AtomicUsize::new(0),
    });
    let name = format!("rebind.example:{port}");
    let config = || quick(oci_fetch::ClientConfig::new(cache.path())).with_resolver(resolver.clone());
    let client = Client::new(config().with_plain_http(&name).unwrap()).unwrap();
    resolve(&client, &format!("{name}/app:1").parse().unwrap())
        .await
        .unwrap();
    let elsewhere = Server::with_image(&image, move |_| {
        Some(Reply::redirect(&format!("http://other.example:{port}/")))
    })
    .await;
    let name = format!("rebind.example:{}", elsewhere.address.port());
    let client = Client::new(config().with_plain_http(&name).unwrap()).unwrap();
    let error = resolve(&client, &format!("{name}/app:1").parse().unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), &FetchErrorKind::Policy);
}

#[tokio::test]
async fn strangers_reach_no_loopback_registry_and_no_registry_outside_the_policy() {
    let image = TestImage::one_layer(10);
    let server = Server::with_image(&image, |_| None).await;
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(oci_fetch::ClientConfig::new(cache.path())).unwrap();
    assert_eq!(
        kind(resolve(&client, &server.source("app:1")).await),
        FetchErrorKind::Policy
    );
    let policy = oci_fetch::Policy::allowing(["docker.io"]).unwrap();
    let client = server.client(cache.path()).restricted(policy, None);
    assert_eq!(
        kind(resolve(&client, &server.source("app:1")).await),
        FetchErrorKind::Policy
    );
    let client = Client::new(server.config(cache.path()).with_max_image_size(9)).unwrap();
    assert_eq!(
        kind(resolve(&client, &server.source("app:1")).await),
        FetchErrorKind::Limit
    );
    assert_eq!(server.layer_requests(&image).len(), 0);
}
