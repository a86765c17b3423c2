//! The same images, pulled by `oci-fetch` and by `oci-client` from Debian's docker-registry.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::process::Command;

use common::docker_registry::{DockerRegistry, http, push};
use common::*;
use oci_client::client::{ClientConfig as TheirConfig, ClientProtocol, linux_amd64_resolver};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_fetch::{Client, ClientConfig, Digest, PullContext, Ranges};
use serde_json::json;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What a client makes of an image.
#[derive(Debug, PartialEq, Eq)]
struct Pulled {
    manifest_digest: String,
    config: serde_json::Value,
    /// Digests and bytes, bottom layer first.
    layers: Vec<(String, Vec<u8>)>,
}

async fn ours(address: &str, name: &str, context: &PullContext) -> Option<Pulled> {
    let cache = tempfile::tempdir().unwrap();
    // Small ranges, so that blobs come in several.
    let config = quick(ClientConfig::new(cache.path()))
        .with_plain_http(address)
        .unwrap()
        .with_ranges(Ranges {
            connections: 4,
            min_blob_bytes: 1 << 20,
            range_bytes: 512 << 10,
            one_connection_time: std::time::Duration::ZERO,
        });
    let client = Client::new(config).unwrap();
    let source = format!("{address}/{name}").parse().unwrap();
    let image = client.resolve(&source, &amd64(), context).await.ok()?;
    let bytes = pull_with(&client, &source, context).await.ok()?;
    let digests = image.layers.iter().map(|layer| layer.digest.to_string());
    Some(Pulled {
        manifest_digest: image.manifest_digest.to_string(),
        config: serde_json::from_slice(&image.config_bytes).unwrap(),
        layers: digests.zip(bytes).collect(),
    })
}

async fn theirs(address: &str, name: &str, auth: &RegistryAuth) -> Option<Pulled> {
    let client = oci_client::Client::new(TheirConfig {
        protocol: ClientProtocol::Http,
        platform_resolver: Some(Box::new(linux_amd64_resolver)),
        ..TheirConfig::default()
    });
    let reference = format!("{address}/{name}").parse().unwrap();
    let (manifest, manifest_digest, config) = client.pull_manifest_and_config(&reference, auth).await.ok()?;
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        let layer: &OciDescriptor = layer;
        let mut bytes = Vec::new();
        client.pull_blob(&reference, layer, &mut bytes).await.ok()?;
        layers.push((layer.digest.clone(), bytes));
    }
    Some(Pulled {
        manifest_digest,
        config: serde_json::from_str(&config).unwrap(),
        layers,
    })
}

/// Puts a manifest of any kind under a tag or its digest.
async fn put(address: &str, reference: &str, media_type: &str, body: Vec<u8>) {
    let answer = http()
        .put(format!("http://{address}/v2/team/app/manifests/{reference}"))
        .header("content-type", media_type)
        .body(body)
        .send()
        .await
        .unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

/// The same image with Docker's media types.
fn as_docker(image: &TestImage) -> Vec<u8> {
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["mediaType"] = DOCKER_MANIFEST.into();
    manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
    }
    manifest.to_string().into_bytes()
}

/// An index with the image for linux/amd64 behind another platform, and an attestation.
fn index(media_type: &str, manifest_type: &str, manifest: &[u8]) -> Vec<u8> {
    let entry = |architecture: &str| {
        json!({
            "mediaType": manifest_type, "digest": Digest::sha256(manifest).to_string(), "size": manifest.len(),
            "platform": {"os": if architecture == "unknown" { "unknown" } else { "linux" }, "architecture": architecture},
        })
    };
    json!({
        "schemaVersion": 2, "mediaType": media_type,
        "manifests": [entry("s390x"), entry("amd64"), entry("unknown")],
    })
    .to_string()
    .into_bytes()
}

#[tokio::test]
async fn both_pull_the_same_bytes() {
    let Some(registry) = DockerRegistry::start_plain() else {
        return;
    };
    let address = registry.address.as_str();
    let image = TestImage::new(&[
        noise(3 << 20, 1),
        noise(1000, 2),
        noise(3 << 20, 1),
        noise(2 << 20, 4),
    ]);
    registry.push("team/app", &image).await;
    let docker = as_docker(&image);
    put(address, "docker", DOCKER_MANIFEST, docker.clone()).await;
    put(address, "index", INDEX, index(INDEX, MANIFEST, &image.manifest)).await;
    put(
        address,
        "list",
        DOCKER_LIST,
        index(DOCKER_LIST, DOCKER_MANIFEST, &docker),
    )
    .await;
    let digest = Digest::sha256(&image.manifest);
    for name in [
        "team/app:1".to_owned(),
        format!("team/app@{digest}"),
        "team/app:docker".to_owned(),
        "team/app:index".to_owned(),
        "team/app:list".to_owned(),
    ] {
        let own = ours(address, &name, &as_tenant("t")).await.expect("we pull it");
        let other = theirs(address, &name, &RegistryAuth::Anonymous).await;
        assert_eq!(other.as_ref(), Some(&own), "{name}");
        let bytes: Vec<_> = own.layers.into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(bytes, image.layers, "{name}");
    }
    for name in ["team/app:absent", "team/other:1"] {
        assert_eq!(ours(address, name, &as_tenant("t")).await, None, "{name}");
        assert_eq!(
            theirs(address, name, &RegistryAuth::Anonymous).await,
            None,
            "{name}"
        );
    }
}

#[tokio::test]
async fn both_refuse_a_blob_that_was_changed_in_the_storage() {
    let Some(registry) = DockerRegistry::start_plain() else {
        return;
    };
    let image = TestImage::new(&[noise(2 << 20, 1)]);
    registry.push("team/app", &image).await;
    let hex = Digest::sha256(&image.layers[0]).hex().to_owned();
    let data = registry.directory.path().join(format!(
        "data/docker/registry/v2/blobs/sha256/{}/{hex}/data",
        &hex[..2]
    ));
    let mut changed = image.layers[0].clone();
    changed[1 << 20] ^= 1;
    std::fs::write(data, changed).unwrap();
    let address = registry.address.as_str();
    assert_eq!(ours(address, "team/app:1", &as_tenant("t")).await, None);
    assert_eq!(
        theirs(address, "team/app:1", &RegistryAuth::Anonymous).await,
        None
    );
}

#[tokio::test]
async fn both_send_a_password_and_are_refused_without_the_right_one() {
    let auth = "auth: {htpasswd: {realm: test, path: DIRECTORY/htpasswd}}";
    let write_passwords = |directory: &Path| {
        let lines = Command::new("/usr/bin/htpasswd")
            .args(["-nbB", "-C", "4", "alice", "secret"])
            .output()
            .unwrap();
        std::fs::write(directory.join("htpasswd"), lines.stdout).unwrap();
    };
    let Some(registry) = DockerRegistry::start(&["/usr/bin/htpasswd"], "", auth, write_passwords) else {
        return;
    };
    let address = registry.address.as_str();
    let image = TestImage::new(&[noise(2 << 20, 1)]);
    let base = format!("http://{address}");
    push(&http(), &base, Some(("alice", "secret")), "team/app", &image).await;
    for (password, is_right) in [("secret", true), ("wrong", false)] {
        let own = ours(address, "team/app:1", &as_user("t", "alice", password)).await;
        let auth = RegistryAuth::Basic("alice".to_owned(), password.to_owned());
        let other = theirs(address, "team/app:1", &auth).await;
        assert_eq!(own.is_some(), is_right, "{password}");
        assert_eq!(own, other, "{password}");
    }
}
