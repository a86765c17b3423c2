//! Images, and what a healthy registry has of them.

use std::collections::HashMap;

use oci_fetch::Digest;
use serde_json::json;

use super::exchange::{Reply, Seen};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What a healthy registry has: paths without `/v2/`, content types, bytes.
#[derive(Default, Clone)]
pub struct Store {
    files: HashMap<String, (String, Vec<u8>)>,
}

/// An image of layers that are not tars; nothing here looks into them.
#[derive(Clone)]
pub struct TestImage {
    pub layers: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl TestImage {
    pub fn new(layers: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|layer| Digest::sha256(layer).to_string())
            .collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": {"Cmd": ["/hello"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::sha256(bytes).to_string(), "size": bytes.len()});
        let described: Vec<_> = layers
            .iter()
            .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": described,
        });
        Self {
            layers: layers.to_vec(),
            config,
            manifest: manifest.to_string().into_bytes(),
        }
    }

    pub fn one_layer(length: usize) -> Self {
        Self::new(&[noise(length, 1)])
    }

    /// The manifest with something changed, the digests left as they are.
    pub fn edit(&mut self, change: impl FnOnce(&mut serde_json::Value)) {
        let mut manifest = serde_json::from_slice(&self.manifest).unwrap();
        change(&mut manifest);
        self.manifest = manifest.to_string().into_bytes();
    }
}

impl Store {
    pub fn publish(&mut self, repository: &str, tag: &str, image: &TestImage) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.blob(repository, blob);
        }
        self.manifest(repository, tag, MANIFEST, &image.manifest);
    }

    pub fn blob(&mut self, repository: &str, bytes: &[u8]) {
        let path = format!("{repository}/blobs/{}", Digest::sha256(bytes));
        self.files
            .insert(path, ("application/octet-stream".to_owned(), bytes.to_vec()));
    }

    pub fn manifest(&mut self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        for selector in [tag.to_owned(), Digest::sha256(bytes).to_string()] {
            self.files.insert(
                format!("{repository}/manifests/{selector}"),
                (media_type.to_owned(), bytes.to_vec()),
            );
        }
    }

    pub fn reply(&self, seen: &Seen) -> Reply {
        let path = seen.path.strip_prefix("/v2/").unwrap_or_default();
        let Some((content_type, bytes)) = self.files.get(path) else {
            let body = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"secret words of the server"}]}"#;
            return Reply::new(404)
                .header("content-type", "application/json")
                .body(body);
        };
        match seen.range() {
            Some((first, _)) if first >= bytes.len() => Reply::new(416),
            Some((first, last)) => {
                let last = last.unwrap_or(usize::MAX).min(bytes.len() - 1);
                Reply::new(206)
                    .header("content-range", &format!("bytes {first}-{last}/{}", bytes.len()))
                    .body(&bytes[first..=last])
            }
            None => Reply::ok(content_type, bytes.clone()),
        }
    }
}

/// Bytes that do not compress and differ by seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
