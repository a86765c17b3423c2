//! Reads OCI image layouts that this machine made, and puts a layer on top of one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use test_support::image::{Compression, Layer};

/// Names the image in a layout's index.
const TAG: &str = "org.opencontainers.image.ref.name";

/// One image of a layout.
pub(crate) struct Image {
    directory: PathBuf,
    manifest_path: PathBuf,
    manifest: Value,
    config: Value,
}

/// One layer of an image.
pub(crate) struct LayerBlob {
    pub(crate) path: PathBuf,
    pub(crate) media_type: String,
    pub(crate) diff_id: String,
}

impl Image {
    /// Opens the image `tag` of a layout.
    pub(crate) fn open(directory: &Path, tag: &str) -> anyhow::Result<Self> {
        let index = read(&directory.join("index.json"))?;
        let descriptor = index["manifests"]
            .as_array()
            .and_then(|images| images.iter().find(|image| image["annotations"][TAG] == tag))
            .with_context(|| format!("{} has no image {tag}", directory.display()))?;
        let manifest_path = blob(directory, &descriptor["digest"])?;
        let manifest = read(&manifest_path)?;
        let config = read(&blob(directory, &manifest["config"]["digest"])?)?;
        Ok(Self {
            directory: directory.to_owned(),
            manifest_path,
            manifest,
            config,
        })
    }

    /// Its layers, the bottom one first.
    pub(crate) fn layers(&self) -> anyhow::Result<Vec<LayerBlob>> {
        let layers = self.manifest["layers"].as_array().context("no layers")?;
        let diff_ids = self.config["rootfs"]["diff_ids"]
            .as_array()
            .context("no diff_ids")?;
        layers
            .iter()
            .zip(diff_ids)
            .map(|(layer, diff_id)| {
                Ok(LayerBlob {
                    path: blob(&self.directory, &layer["digest"])?,
                    media_type: text(&layer["mediaType"])?,
                    diff_id: text(diff_id)?,
                })
            })
            .collect()
    }

    /// The manifest, byte for byte, and the digest of the configuration.
    pub(crate) fn documents(&self) -> anyhow::Result<(Vec<u8>, String)> {
        Ok((
            fs::read(&self.manifest_path)?,
            text(&self.manifest["config"]["digest"])?,
        ))
    }

    /// Where the configuration is.
    pub(crate) fn config_path(&self) -> anyhow::Result<PathBuf> {
        blob(&self.directory, &self.manifest["config"]["digest"])
    }

    /// Bytes of all layers as they are stored.
    pub(crate) fn compressed_bytes(&self) -> u64 {
        self.manifest["layers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|layer| layer["size"].as_u64())
            .sum()
    }
}

/// Adds the image `tag`: the image `base` of the layout and one layer above it.
pub(crate) fn stack(directory: &Path, base: &str, top: &Layer, tag: &str) -> anyhow::Result<()> {
    let Image {
        mut manifest,
        mut config,
        ..
    } = Image::open(directory, base)?;
    let tar = top.to_tar();
    let packed = Compression::Gzip.pack(&tar);
    let layers = manifest["layers"].as_array_mut().context("no layers")?;
    let media_type = match layers.first() {
        // Docker's manifests have Docker's layers.
        Some(layer) if text(&layer["mediaType"])?.contains("docker") => Compression::Gzip.docker_media_type(),
        _ => Compression::Gzip.oci_media_type(),
    };
    layers.push(json!({
        "mediaType": media_type,
        "digest": write(directory, &packed)?,
        "size": packed.len(),
    }));
    let diff_ids = config["rootfs"]["diff_ids"]
        .as_array_mut()
        .context("no diff_ids")?;
    diff_ids.push(digest(&tar).into());
    if let Some(history) = config["history"].as_array_mut() {
        history.push(json!({ "created_by": "a small layer on top" }));
    }
    let config = serde_json::to_vec(&config)?;
    manifest["config"]["digest"] = write(directory, &config)?.into();
    manifest["config"]["size"] = config.len().into();
    let manifest_bytes = serde_json::to_vec(&manifest)?;
    let descriptor = json!({
        "mediaType": manifest["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json"),
        "digest": write(directory, &manifest_bytes)?,
        "size": manifest_bytes.len(),
        "annotations": { TAG: tag },
    });
    let path = directory.join("index.json");
    let mut index = read(&path)?;
    let images = index["manifests"]
        .as_array_mut()
        .context("an index without manifests")?;
    images.retain(|image| image["annotations"][TAG] != tag);
    images.push(descriptor);
    fs::write(&path, serde_json::to_vec(&index)?)?;
    Ok(())
}

fn write(directory: &Path, bytes: &[u8]) -> anyhow::Result<String> {
    let digest = digest(bytes);
    fs::write(blob(directory, &digest.as_str().into())?, bytes)?;
    Ok(digest)
}

/// `sha256:` and the hash in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn blob(directory: &Path, digest: &Value) -> anyhow::Result<PathBuf> {
    let digest = text(digest)?;
    let hex = digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .with_context(|| format!("{digest} is no SHA-256 digest"))?;
    Ok(directory.join("blobs/sha256").join(hex))
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(value
        .as_str()
        .with_context(|| format!("{value} is no string"))?
        .to_owned())
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stacked_image_shares_all_but_its_top_layer() {
        let directory = tempfile::tempdir().unwrap();
        test_support::image::Image::new()
            .layer(&Layer::new().file("base", "below"))
            .build()
            .write_oci_layout(directory.path(), "1")
            .unwrap();
        stack(directory.path(), "1", &Layer::new().file("top", "above"), "2").unwrap();
        let layers = |tag| Image::open(directory.path(), tag).unwrap().layers().unwrap();
        let (base, both) = (layers("1"), layers("2"));
        assert_eq!((base.len(), both.len()), (1, 2));
        assert_eq!(base[0].path, both[0].path);
        let mut tar = Vec::new();
        let packed = fs::read(&both[1].path).unwrap();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut tar).unwrap();
        assert_eq!(digest(&tar), both[1].diff_id);
    }
}
