//! Layers and a configuration become blobs and a manifest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{Compression, Layer, digest};

/// The document format of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// OCI image manifest.
    #[default]
    Oci,
    /// Docker image manifest, version 2, schema 2.
    Docker,
    /// Docker image manifest, version 2, schema 1 (unsigned): obsolete, with no configuration blob.
    DockerSchema1,
}

/// One thing that is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The bytes stored under the layer's digest have another digest: one bit is flipped after it was computed.
    WrongDigest,
    /// The manifest's size of the layer is one byte more than the blob has.
    WrongSize,
    /// The packed layer ends half way. Digest and size are those of what is there, so only unpacking shows it.
    TruncatedStream,
    /// A bit in the middle of the packed layer is flipped. Digest and size are those of what is there.
    CorruptStream,
    /// The configuration names another `diff_id`.
    WrongDiffId,
    /// The blob is not there at all.
    MissingBlob,
}

/// A manifest or index: its bytes and what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Media type.
    pub media_type: String,
    /// The document, byte for byte.
    pub bytes: Arc<[u8]>,
}

/// One layer of a [`BuiltImage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltLayer {
    /// Digest of the packed layer, as the manifest has it.
    pub digest: String,
    /// Digest of the archive, as it truly is.
    pub diff_id: String,
    /// Media type.
    pub media_type: String,
    /// Bytes of the packed layer, as the manifest has it.
    pub size_bytes: u64,
    /// The archive, as it was before packing.
    pub tar: Arc<[u8]>,
}

/// An image (or an index of images) as a registry holds it.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// Digest of the topmost manifest or index.
    pub manifest_digest: String,
    /// Manifests by digest, the topmost among them.
    pub manifests: BTreeMap<String, Manifest>,
    /// Configurations and layers by the digest under which they are stored (which a [`Fault`] may have made untrue).
    pub blobs: BTreeMap<String, Arc<[u8]>>,
    /// The layers, bottom first. Empty for an index.
    pub layers: Vec<BuiltLayer>,
    /// Digest of the configuration. Empty for an index and for schema 1.
    pub config_digest: String,
    /// `os`, `architecture` and `variant`, as [`Image::platform`] got them.
    pub platform: (String, String, Option<String>),
}

impl BuiltImage {
    /// The topmost manifest or index.
    ///
    /// # Panics
    /// Never for an image that was built here.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.manifests
            .get(&self.manifest_digest)
            .expect("the topmost manifest is always stored")
    }
}

/// An image as code: layers, configuration, format, faults.
#[derive(Clone, Debug)]
#[must_use = "each call gives the extended value back"]
pub struct Image {
    layers: Vec<(Vec<u8>, Compression)>,
    format: Format,
    platform: (String, String, Option<String>),
    config: serde_json::Map<String, Value>,
    faults: Vec<(usize, Fault)>,
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

impl Image {
    /// An OCI image for linux/amd64 without layers, whose configuration says nothing.
    pub fn new() -> Self {
        Self {
            layers: Vec::new(),
            format: Format::Oci,
            platform: ("linux".into(), "amd64".into(), None),
            config: serde_json::Map::new(),
            faults: Vec::new(),
        }
    }

    /// Adds a layer on top, packed with gzip.
    pub fn layer(self, layer: &Layer) -> Self {
        self.layer_as(layer, Compression::Gzip)
    }

    /// Adds a layer on top, packed as told.
    pub fn layer_as(self, layer: &Layer, compression: Compression) -> Self {
        self.layer_bytes(layer.to_tar(), compression)
    }

    /// Adds bytes on top as if they were a tar archive.
    pub fn layer_bytes(mut self, tar: Vec<u8>, compression: Compression) -> Self {
        self.layers.push((tar, compression));
        self
    }

    /// Which documents are written.
    pub const fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Operating system, architecture and variant (`""` for none).
    pub fn platform(mut self, os: &str, architecture: &str, variant: &str) -> Self {
        let variant = (!variant.is_empty()).then(|| variant.to_owned());
        self.platform = (os.into(), architecture.into(), variant);
        self
    }

    /// Sets members of the configuration's `config` object, in the specification's spelling (`Env`, `StopSignal`,
    /// `Healthcheck`, …).
    ///
    /// # Panics
    /// When `members` is not an object.
    pub fn config(mut self, members: Value) -> Self {
        let Value::Object(members) = members else {
            panic!("the configuration is an object")
        };
        self.config.extend(members);
        self
    }

    /// `ENTRYPOINT`.
    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.config(json!({ "Entrypoint": words }))
    }

    /// `CMD`.
    pub fn cmd(self, words: &[&str]) -> Self {
        self.config(json!({ "Cmd": words }))
    }

    /// `ENV`, each `NAME=value`.
    pub fn env(self, variables: &[&str]) -> Self {
        self.config(json!({ "Env": variables }))
    }

    /// `USER`.
    pub fn user(self, user: &str) -> Self {
        self.config(json!({ "User": user }))
    }

    /// `WORKDIR`.
    pub fn working_dir(self, directory: &str) -> Self {
        self.config(json!({ "WorkingDir": directory }))
    }

    /// `LABEL`, one of them; call again for more.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        let labels = self.config.entry("Labels").or_insert_with(|| json!({}));
        labels[name] = value.into();
        self
    }

    /// Makes one thing wrong with the layer of that index (0 is the bottom).
    pub fn fault(mut self, layer: usize, fault: Fault) -> Self {
        self.faults.push((layer, fault));
        self
    }

    /// The image's blobs and documents. Equal images give equal bytes.
    ///
    /// # Panics
    /// When a fault is about a layer that is not there.
    #[must_use]
    pub fn build(&self) -> BuiltImage {
        if let Some((layer, fault)) = self.faults.iter().find(|(layer, _)| *layer >= self.layers.len()) {
            panic!(
                "{fault:?} is about layer {layer} of an image with {} layers",
                self.layers.len()
            );
        }
        let mut image = BuiltImage {
            manifest_digest: String::new(),
            manifests: BTreeMap::new(),
            blobs: BTreeMap::new(),
            layers: Vec::new(),
            config_digest: String::new(),
            platform: self.platform.clone(),
        };
        for layer_idx in 0..self.layers.len() {
            self.add_layer(layer_idx, &mut image);
        }
        let manifest = match self.format {
            Format::Oci => self.manifest(
                &mut image,
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
            ),
            Format::Docker => self.manifest(
                &mut image,
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
            Format::DockerSchema1 => self.schema1(&image),
        };
        image.manifest_digest = digest(&manifest.bytes);
        image.manifests.insert(image.manifest_digest.clone(), manifest);
        image
    }

    fn add_layer(&self, layer_idx: usize, image: &mut BuiltImage) {
        let faults: Vec<Fault> = self
            .faults
            .iter()
            .filter(|(layer, _)| *layer == layer_idx)
            .map(|(_, fault)| *fault)
            .collect();
        let (tar, compression) = &self.layers[layer_idx];
        let mut packed = compression.pack(tar);
        if faults.contains(&Fault::TruncatedStream) {
            packed.truncate(packed.len() / 2);
        }
        if faults.contains(&Fault::CorruptStream) {
            flip_bit(&mut packed);
        }
        let packed_digest = digest(&packed);
        let size_bytes = packed.len() as u64 + u64::from(faults.contains(&Fault::WrongSize));
        if faults.contains(&Fault::WrongDigest) {
            flip_bit(&mut packed);
        }
        if !faults.contains(&Fault::MissingBlob) {
            image.blobs.insert(packed_digest.clone(), packed.into());
        }
        let media_type = match self.format {
            Format::Oci => compression.oci_media_type(),
            Format::Docker | Format::DockerSchema1 => compression.docker_media_type(),
        };
        image.layers.push(BuiltLayer {
            digest: packed_digest,
            diff_id: digest(tar),
            media_type: media_type.into(),
            size_bytes,
            tar: tar.as_slice().into(),
        });
    }

    fn manifest(&self, image: &mut BuiltImage, media_type: &str, config_media_type: &str) -> Manifest {
        let config = to_bytes(&self.config_document(image));
        image.config_digest = digest(&config);
        let layers: Vec<Value> = image
            .layers
            .iter()
            .map(|layer| json!({ "mediaType": layer.media_type, "digest": layer.digest, "size": layer.size_bytes }))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": { "mediaType": config_media_type, "digest": image.config_digest, "size": config.len() },
            "layers": layers,
        });
        image.blobs.insert(image.config_digest.clone(), config.into());
        Manifest {
            media_type: media_type.into(),
            bytes: to_bytes(&manifest).into(),
        }
    }

    fn config_document(&self, image: &BuiltImage) -> Value {
        let wrong: BTreeSet<usize> = self
            .faults
            .iter()
            .filter(|(_, fault)| *fault == Fault::WrongDiffId)
            .map(|(layer, _)| *layer)
            .collect();
        let diff_ids: Vec<String> = image
            .layers
            .iter()
            .enumerate()
            .map(|(layer_idx, layer)| match wrong.contains(&layer_idx) {
                true => digest(b"another archive"),
                false => layer.diff_id.clone(),
            })
            .collect();
        let (os, architecture, variant) = &self.platform;
        let mut config = json!({
            "architecture": architecture,
            "os": os,
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        if let Some(variant) = variant {
            config["variant"] = variant.as_str().into();
        }
        config
    }

    fn schema1(&self, image: &BuiltImage) -> Manifest {
        // Schema 1 lists the topmost layer first.
        let layers: Vec<Value> = image
            .layers
            .iter()
            .rev()
            .map(|layer| json!({ "blobSum": layer.digest }))
            .collect();
        let history: Vec<Value> = image
            .layers
            .iter()
            .map(|_| json!({ "v1Compatibility": "{\"id\":\"0\"}" }))
            .collect();
        let manifest = json!({
            "schemaVersion": 1,
            "name": "test",
            "tag": "latest",
            "architecture": self.platform.1,
            "fsLayers": layers,
            "history": history,
        });
        let media_type = "application/vnd.docker.distribution.manifest.v1+json";
        Manifest {
            media_type: media_type.into(),
            bytes: to_bytes(&manifest).into(),
        }
    }
}

fn flip_bit(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 0x10;
    }
}

pub(super) fn to_bytes(document: &Value) -> Vec<u8> {
    serde_json::to_vec(document).expect("a JSON value can always be written")
}
