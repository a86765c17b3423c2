//! What skopeo makes of the same image.

use std::process::Command;

use oci_fetch::{Client, Digest};

use crate::client;
use crate::common::docker_registry::DockerRegistry;
use crate::common::*;

/// A real, if small, gzip-compressed tar layer, and the digest of the tar.
fn tar_layer(name: &str, content: &[u8]) -> (Vec<u8>, Digest) {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).unwrap();
    let tar = builder.into_inner().unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &tar).unwrap();
    (encoder.finish().unwrap(), Digest::sha256(&tar))
}

#[tokio::test]
async fn what_skopeo_writes_is_the_same_image_in_every_form() {
    let Some(registry) = DockerRegistry::start(&["/usr/bin/skopeo"], "", "", |_| ()) else {
        return;
    };
    let (layers, diff_ids): (Vec<_>, Vec<_>) = [
        tar_layer("a", b"one"),
        tar_layer("b", &noise(100_000, 3)),
        tar_layer("a", b"one"),
    ]
    .into_iter()
    .unzip();
    let mut image = TestImage::new(&layers);
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64", "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>()},
    });
    image.config = config.to_string().into_bytes();
    let (digest, size) = (Digest::sha256(&image.config).to_string(), image.config.len());
    image.edit(|manifest| {
        manifest["config"]["digest"] = digest.into();
        manifest["config"]["size"] = size.into();
    });
    registry.push("app", &image).await;
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(client(cache.path(), &registry.address)).unwrap();
    let source = format!("{}/app:1", registry.address).parse().unwrap();
    let expected = resolve(&client, &source).await.unwrap();
    for (form, is_compressed) in [
        (format!("oci:{place}/layout:1"), true),
        (format!("oci-archive:{place}/oci.tar:1"), true),
        (
            format!("docker-archive:{place}/docker.tar:example.com/app:1"),
            false,
        ),
    ] {
        let status = Command::new("skopeo")
            .args([
                "copy",
                "-q",
                "--src-tls-verify=false",
                &format!("docker://{}/app:1", registry.address),
                &form,
            ])
            .output()
            .unwrap();
        assert!(
            status.status.success(),
            "{form}: {}",
            String::from_utf8_lossy(&status.stderr)
        );
        let found = resolve(&client, &form.parse().unwrap()).await.unwrap();
        let digests = |image: &oci_fetch::Image| -> Vec<Digest> {
            image.layers.iter().map(|layer| layer.diff_id.clone()).collect()
        };
        assert_eq!(digests(&found), digests(&expected), "{form}");
        assert_eq!(found.config, expected.config, "{form}");
        let blobs = pull_with(&client, &form.parse().unwrap(), &as_tenant("t"))
            .await
            .unwrap();
        if is_compressed {
            assert_eq!(found.manifest_digest, expected.manifest_digest, "{form}");
            assert_eq!(blobs, layers, "{form}");
        } else {
            assert_eq!(
                blobs.iter().map(|blob| Digest::sha256(blob)).collect::<Vec<_>>(),
                diff_ids,
                "{form}"
            );
        }
    }
}
