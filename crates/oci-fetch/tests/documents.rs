//! Manifests, configs and headers that are too large, too odd or lie about themselves.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use oci_fetch::{Digest, FetchErrorKind};

#[tokio::test]
async fn documents_are_bounded() {
    let image = TestImage::one_layer(10);
    for (name, reply) in [
        (
            "endless manifest",
            Reply::ok(MANIFEST, vec![b' '; 1 << 20]).manner(Manner::Endless),
        ),
        ("announced manifest", Reply::ok(MANIFEST, vec![b' '; 5 << 20])),
    ] {
        let server = Server::with_image(&image, move |seen| {
            seen.path.contains("manifests").then(|| reply.clone())
        })
        .await;
        assert_eq!(kind(pull(&server).await), FetchErrorKind::Limit, "{name}");
        assert!(server.sent_bytes() < 32 << 20, "{name}: {}", server.sent_bytes());
    }
    // A config longer than its descriptor says.
    let digest = Digest::sha256(&image.config).to_string();
    let server = Server::with_image(&image, move |seen| {
        seen.path
            .ends_with(&digest)
            .then(|| Reply::ok("x", vec![b' '; 1 << 20]).manner(Manner::Endless))
    })
    .await;
    assert_eq!(kind(pull(&server).await), FetchErrorKind::Limit);
}

#[tokio::test]
async fn an_endless_error_body_is_not_read_on() {
    let image = TestImage::one_layer(10);
    let server = Server::with_image(&image, |_| {
        Some(Reply::new(404).body(vec![b' '; 1 << 16]).manner(Manner::Endless))
    })
    .await;
    assert_eq!(kind(pull(&server).await), FetchErrorKind::NotFound);
    assert!(server.sent_bytes() < 16 << 20);
}

#[tokio::test]
async fn garbage_is_transient_and_huge_headers_are_bounded() {
    let image = TestImage::one_layer(10);
    let many = (0..5000)
        .map(|number| format!("x-{number}: y\r\n"))
        .collect::<String>();
    let long = format!("x-long: {}\r\n", "y".repeat(8 << 20));
    for (name, head) in [
        ("garbage", "\0\u{1}\u{2} garbage\r\n\r\n".to_owned()),
        (
            "many headers",
            format!("HTTP/1.1 200 OK\r\n{many}content-length: 0\r\n\r\n"),
        ),
        (
            "a long header",
            format!("HTTP/1.1 200 OK\r\n{long}content-length: 0\r\n\r\n"),
        ),
        (
            "two lengths",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab".to_owned(),
        ),
        ("nothing", String::new()),
    ] {
        let server = Server::with_image(&image, move |_| Some(Reply::raw(head.clone()))).await;
        assert_eq!(kind(pull(&server).await), FetchErrorKind::Transient, "{name}");
    }
}

#[tokio::test]
async fn a_content_encoding_nobody_asked_for_is_refused() {
    let image = TestImage::one_layer(10);
    let server = Server::with_image(
        &image,
        on_layer(&image, |_, layer| {
            Some(Reply::ok("x", layer).header("content-encoding", "gzip"))
        }),
    )
    .await;
    assert_eq!(kind(pull(&server).await), FetchErrorKind::Protocol);
    assert!(
        server
            .log()
            .iter()
            .all(|seen| seen.headers["accept-encoding"] == "identity")
    );
}

#[tokio::test]
async fn manifests_that_lie_about_themselves_are_refused() {
    let image = TestImage::one_layer(10);
    type Damage = fn(&mut TestImage, &mut String);
    let cases: &[(&str, Damage, FetchErrorKind)] = &[
        (
            "another content type",
            |_, media_type| *media_type = INDEX.to_owned(),
            FetchErrorKind::Protocol,
        ),
        (
            "both shapes",
            |image, _| image.edit(|m| m["manifests"] = serde_json::json!([])),
            FetchErrorKind::Protocol,
        ),
        (
            "schema 1",
            |image, _| image.edit(|m| m["schemaVersion"] = 1.into()),
            FetchErrorKind::Unsupported,
        ),
        (
            "a layer without a diff_id",
            |image, _| image.edit(|m| m["layers"] = serde_json::json!([])),
            FetchErrorKind::Protocol,
        ),
        (
            "another config",
            |image, _| image.edit(|m| m["config"]["digest"] = Digest::sha256(b"x").to_string().into()),
            FetchErrorKind::NotFound,
        ),
        (
            "not JSON",
            |image, _| image.manifest = b"<html>".to_vec(),
            FetchErrorKind::Protocol,
        ),
    ];
    for (name, damage, expected) in cases {
        let mut damaged = image.clone();
        let mut media_type = MANIFEST.to_owned();
        damage(&mut damaged, &mut media_type);
        let mut store = Store::default();
        store.publish("app", "1", &image);
        store.manifest("app", "1", &media_type, &damaged.manifest);
        let server = Server::start(store, |_| None).await;
        assert_eq!(&kind(pull(&server).await), expected, "{name}");
    }
}

#[tokio::test]
async fn a_manifest_of_another_digest_than_asked_for_is_refused() {
    let image = TestImage::one_layer(10);
    let server = Server::with_image(&image, {
        let other = TestImage::one_layer(11).manifest;
        move |seen| {
            seen.path
                .contains("/manifests/sha256:")
                .then(|| Reply::ok(MANIFEST, other.clone()))
        }
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let pinned = server.source(&format!("app:1@{}", Digest::sha256(&image.manifest)));
    assert_eq!(
        kind(resolve(&server.client(cache.path()), &pinned).await),
        FetchErrorKind::DigestMismatch
    );
}
