//! The registry answers as the distribution specification says, and misbehaves only as told.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::time::Duration;

use reqwest::{Client, StatusCode};
use test_support::{
    image::{BuiltImage, Image, Layer, digest},
    registry::{Authentication, Misbehaviour, Registry},
};

const LIMIT: Duration = Duration::from_secs(20);

fn sample() -> BuiltImage {
    Image::new().layer(&Layer::new().file("hello", b"world")).build()
}

/// A registry with one image, the URL of its manifest and that of its layer.
fn registry(authentication: Authentication) -> (Registry, BuiltImage, String, String) {
    let registry = Registry::start_with(authentication).unwrap();
    let image = sample();
    registry.publish("team/app", "1", &image);
    let base = format!("http://{}/v2/team/app", registry.host());
    let (manifest, blob) = (
        format!("{base}/manifests/1"),
        format!("{base}/blobs/{}", image.layers[0].digest),
    );
    (registry, image, manifest, blob)
}

#[tokio::test]
async fn manifests_and_blobs_are_served_by_tag_digest_and_range() {
    let (registry, image, manifest_url, blob_url) = registry(Authentication::None);
    let client = Client::new();
    let manifest = client.get(&manifest_url).send().await.unwrap();
    assert_eq!(
        manifest.headers()["docker-content-digest"],
        image.manifest_digest.as_str()
    );
    assert_eq!(
        manifest.headers()["content-type"],
        image.manifest().media_type.as_str()
    );
    assert_eq!(manifest.bytes().await.unwrap(), *image.manifest().bytes);
    let by_digest = manifest_url.replace("manifests/1", &format!("manifests/{}", image.manifest_digest));
    assert_eq!(
        client.head(&by_digest).send().await.unwrap().status(),
        StatusCode::OK
    );

    let blob = client.get(&blob_url).send().await.unwrap().bytes().await.unwrap();
    assert_eq!(digest(&blob), image.layers[0].digest);
    let part = client
        .get(&blob_url)
        .header("range", "bytes=10-")
        .send()
        .await
        .unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap(), blob.slice(10..));
    let beyond = client
        .get(&blob_url)
        .header("range", "bytes=999999-")
        .send()
        .await
        .unwrap();
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);

    let missing = client
        .get(manifest_url.replace("manifests/1", "manifests/2"))
        .send()
        .await
        .unwrap();
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    assert!(missing.text().await.unwrap().contains("MANIFEST_UNKNOWN"));
    let logged = registry.requests();
    assert_eq!(
        logged.iter().map(|request| request.status).collect::<Vec<_>>(),
        [200, 200, 200, 206, 416, 404]
    );
    assert_eq!(logged[3].headers["range"], "bytes=10-");
}

#[tokio::test]
async fn basic_authentication_lets_in_only_the_right_password() {
    let (_registry, _, manifest, _) = registry(Authentication::basic("ann", "secret"));
    let client = Client::new();
    for (password, status) in [(None, 401), (Some("wrong"), 401), (Some("secret"), 200)] {
        let mut request = client.get(&manifest);
        if let Some(password) = password {
            request = request.basic_auth("ann", Some(password));
        }
        assert_eq!(request.send().await.unwrap().status(), status, "{password:?}");
    }
}

#[tokio::test]
async fn a_token_is_for_the_repositories_that_its_user_may_pull() {
    let authentication =
        Authentication::bearer(&[("ann", "a"), ("bob", "b")]).with_identity_token("id-ann", "ann");
    let (registry, _, manifest, _) = registry(authentication);
    registry.restrict("team/app", "ann");
    let client = Client::new();
    let refused = client.get(&manifest).send().await.unwrap();
    let challenge = refused.headers()["www-authenticate"].to_str().unwrap();
    assert!(
        challenge.contains(r#"scope="repository:team/app:pull""#),
        "{challenge}"
    );

    let token_url = format!(
        "http://{}/token?service=test-registry&scope=repository:team/app:pull",
        registry.host()
    );
    assert_eq!(
        client.get(&token_url).send().await.unwrap().status(),
        401,
        "no anonymous tokens"
    );
    for (user, password, status) in [("ann", "a", 200), ("bob", "b", 401)] {
        let answer = client
            .get(&token_url)
            .basic_auth(user, Some(password))
            .send()
            .await
            .unwrap();
        let token = token_of(&answer.text().await.unwrap());
        assert_eq!(
            client
                .get(&manifest)
                .bearer_auth(&token)
                .send()
                .await
                .unwrap()
                .status(),
            status,
            "{user}"
        );
    }
    let form = "grant_type=refresh_token&refresh_token=id-ann&scope=repository%3Ateam%2Fapp%3Apull";
    let answer = client
        .post(format!("http://{}/token", registry.host()))
        .body(form)
        .send()
        .await
        .unwrap();
    let token = token_of(&answer.text().await.unwrap());
    assert_eq!(
        client
            .get(&manifest)
            .bearer_auth(&token)
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    registry.expire_tokens();
    assert_eq!(
        client
            .get(&manifest)
            .bearer_auth(&token)
            .send()
            .await
            .unwrap()
            .status(),
        401
    );
}

fn token_of(answer: &str) -> String {
    let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
    answer["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_rule_ends_after_as_many_times_as_it_was_made_for() {
    let (registry, _, manifest, _) = registry(Authentication::None);
    registry.misbehave_times(2, "/manifests/", Misbehaviour::rate_limited(7));
    let client = Client::new();
    let first = client.get(&manifest).send().await.unwrap();
    assert_eq!(
        (
            first.status().as_u16(),
            first.headers()["retry-after"].to_str().unwrap()
        ),
        (429, "7")
    );
    assert_eq!(client.get(&manifest).send().await.unwrap().status(), 429);
    assert_eq!(client.get(&manifest).send().await.unwrap().status(), 200);
    assert_eq!(registry.count_requests("/manifests/"), 3);
}

#[tokio::test]
async fn bodies_are_cut_changed_dripped_and_lengthened() {
    let (registry, image, _, blob) = registry(Authentication::None);
    let size = image.layers[0].size_bytes;
    let client = Client::new();
    registry.misbehave_times(1, "/blobs/", Misbehaviour::CutAt(5));
    let answer = client.get(&blob).send().await.unwrap();
    assert_eq!(answer.content_length(), Some(size));
    assert!(answer.bytes().await.is_err(), "the connection breaks");
    for (misbehaviour, length, same) in [
        (Misbehaviour::FlipBit, size, false),
        (
            Misbehaviour::Drip {
                chunk_bytes: 16,
                pause: Duration::from_millis(1),
            },
            size,
            true,
        ),
        (Misbehaviour::Append(b"more".to_vec()), size + 4, false),
        (Misbehaviour::NoContentLength, size, true),
    ] {
        registry.misbehave_times(1, "/blobs/", misbehaviour.clone());
        let bytes = client.get(&blob).send().await.unwrap().bytes().await.unwrap();
        assert_eq!(bytes.len() as u64, length, "{misbehaviour:?}");
        assert_eq!(digest(&bytes) == image.layers[0].digest, same, "{misbehaviour:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_body_goes_on_when_it_is_released() {
    let (registry, image, _, blob) = registry(Authentication::None);
    registry.misbehave("/blobs/", Misbehaviour::StallAt(3));
    let reader = tokio::spawn(async move {
        Client::new()
            .get(&blob)
            .send()
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap()
    });
    assert!(registry.wait_for_stalled(1, LIMIT));
    assert!(!reader.is_finished());
    assert_eq!(registry.in_flight(), 1);
    registry.release();
    assert_eq!(digest(&reader.await.unwrap()), image.layers[0].digest);
    assert!(registry.wait_for_idle(LIMIT));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_is_noticed() {
    let (registry, _, _, blob) = registry(Authentication::None);
    registry.misbehave("/blobs/", Misbehaviour::StallAt(3));
    let reader = tokio::spawn(async move { Client::new().get(&blob).send().await.unwrap().bytes().await });
    assert!(registry.wait_for_stalled(1, LIMIT));
    reader.abort();
    assert!(registry.wait_for_idle(LIMIT));
}
