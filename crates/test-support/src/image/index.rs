//! Several images under one name.

use serde_json::{Value, json};

use super::{BuiltImage, Format, Manifest, build::to_bytes, digest};

/// An OCI index, or a Docker manifest list: several images under one name, chosen by platform.
#[derive(Clone, Debug, Default)]
#[must_use = "each call gives the extended value back"]
pub struct ImageIndex {
    images: Vec<(BuiltImage, Option<Value>)>,
    docker: bool,
}

impl ImageIndex {
    /// An OCI index without images.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an image under its own platform.
    pub fn image(self, image: &BuiltImage) -> Self {
        let (os, architecture, variant) = &image.platform;
        let mut platform = json!({ "os": os, "architecture": architecture });
        if let Some(variant) = variant {
            platform["variant"] = variant.as_str().into();
        }
        self.image_as(image, Some(platform))
    }

    /// Adds an image with any `platform` member, or with none. Buildkit's attestations, for one, have
    /// `{"os": "unknown", "architecture": "unknown"}`.
    pub fn image_as(mut self, image: &BuiltImage, platform: Option<Value>) -> Self {
        self.images.push((image.clone(), platform));
        self
    }

    /// Which documents are written: [`Format::Docker`] makes a manifest list, anything else an OCI index.
    pub fn format(mut self, format: Format) -> Self {
        self.docker = format == Format::Docker;
        self
    }

    /// The index with everything that it refers to.
    #[must_use]
    pub fn build(&self) -> BuiltImage {
        let media_type = if self.docker {
            "application/vnd.docker.distribution.manifest.list.v2+json"
        } else {
            "application/vnd.oci.image.index.v1+json"
        };
        let mut built = BuiltImage {
            manifest_digest: String::new(),
            manifests: std::collections::BTreeMap::new(),
            blobs: std::collections::BTreeMap::new(),
            layers: Vec::new(),
            config_digest: String::new(),
            platform: ("linux".into(), "amd64".into(), None),
        };
        let mut descriptors = Vec::new();
        for (image, platform) in &self.images {
            let manifest = image.manifest();
            let mut descriptor = json!({
                "mediaType": manifest.media_type,
                "digest": image.manifest_digest,
                "size": manifest.bytes.len(),
            });
            if let Some(platform) = platform {
                descriptor["platform"] = platform.clone();
            }
            descriptors.push(descriptor);
            built.manifests.extend(image.manifests.clone());
            built.blobs.extend(image.blobs.clone());
        }
        let index =
            to_bytes(&json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": descriptors }));
        built.manifest_digest = digest(&index);
        built.manifests.insert(
            built.manifest_digest.clone(),
            Manifest {
                media_type: media_type.into(),
                bytes: index.into(),
            },
        );
        built
    }
}
