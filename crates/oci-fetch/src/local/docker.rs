//! What `docker save` writes, in its old layout (`ID/layer.tar`) and its new one (`blobs/sha256/…`).
//!
//! Source: moby, image/spec/v1.2.md, "Combined Image JSON + Filesystem Changeset Format".

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::Deserialize;

use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{FetchError, FetchErrorKind};
use crate::image::{Image, ImageAccess, LayerDescriptor, Origin, parse_config};
use crate::json;
use crate::local::LocalBlob;
use crate::local::archive::{Archive, is_compressed};
use crate::manifest::{MAX_DOCUMENT_BYTES, MAX_LAYERS};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::select;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn resolve(
    archive: &Archive,
    reference: String,
    selector: Option<&str>,
    platform: &Platform,
) -> Result<Image, FetchError> {
    let manifest = archive.blob("manifest.json").ok_or_else(|| {
        FetchError::not_found("archive has no manifest.json; it was not written by docker save 1.10 or later")
    })?;
    let manifest = manifest.read_all(MAX_DOCUMENT_BYTES, "manifest.json")?;
    let images: Vec<SavedImage> = json::parse_list(&manifest, "manifest.json")?;
    let image = choose(&images, selector)?;
    if image.layers.len() > MAX_LAYERS {
        return Err(FetchError::limit(format!(
            "image has {} layers, more than {MAX_LAYERS}",
            image.layers.len()
        )));
    }

    let config_bytes = archive
        .blob(&image.config)
        .ok_or_else(|| FetchError::not_found("archive lacks the config that its manifest.json names"))?
        .read_all(MAX_DOCUMENT_BYTES, "image config")?;
    let config_digest = Digest::sha256(&config_bytes);
    if let Some(claimed) = digest_in_name(&image.config)
        && claimed != config_digest
    {
        return Err(FetchError::new(
            FetchErrorKind::DigestMismatch,
            format!("image config does not have the digest {claimed}"),
        ));
    }
    let config = parse_config(&config_bytes)?;
    select::check_platform(&config.platform, platform)?;
    if config.diff_ids.len() != image.layers.len() {
        return Err(FetchError::protocol(format!(
            "manifest.json has {} layers, but the image config has {} diff_ids",
            image.layers.len(),
            config.diff_ids.len()
        )));
    }
    let mut layers = Vec::with_capacity(image.layers.len());
    let mut blobs = Vec::with_capacity(image.layers.len());
    for (name, diff_id) in image.layers.iter().zip(config.diff_ids) {
        let blob = archive
            .blob(name)
            .ok_or_else(|| FetchError::not_found("archive lacks a layer that its manifest.json names"))?;
        layers.push(describe(&blob, diff_id)?);
        blobs.push(blob);
    }
    Ok(Image {
        reference,
        // The archive has no manifest in the registry's sense; the image ID is what Docker users know the image by.
        manifest_digest: config_digest.clone(),
        platform: config.platform,
        config: config.config,
        config_bytes: config_bytes.into(),
        config_digest,
        manifest_bytes: Arc::from([]),
        access: Arc::new(ImageAccess {
            layers: layers.clone(),
            origin: Origin::Local(blobs),
        }),
        layers,
    })
}

fn choose<'a>(images: &'a [SavedImage], selector: Option<&str>) -> Result<&'a SavedImage, FetchError> {
    let Some(selector) = selector else {
        return match images {
            [] => Err(FetchError::not_found("archive holds no image")),
            [image] => Ok(image),
            _ => Err(FetchError::invalid(
                "archive holds several images; add :REFERENCE to choose one",
            )),
        };
    };
    let wanted: Reference = selector.parse()?;
    let has_tag = |image: &&SavedImage| {
        image
            .repo_tags
            .iter()
            .flatten()
            .any(|tag| tag.parse::<Reference>().is_ok_and(|tag| tag == wanted))
    };
    images
        .iter()
        .find(has_tag)
        .ok_or_else(|| FetchError::not_found("archive has no image of this name"))
}

/// A plain layer's digest is its diff_id. A compressed one, as tools other than Docker write it, is hashed here: the name
/// in the archive may be either digest.
fn describe(blob: &LocalBlob, diff_id: Digest) -> Result<LayerDescriptor, FetchError> {
    let read_error = |error| FetchError::io("failed to read a layer of the archive", error);
    let mut magic = [0; 4];
    let is_whole = blob.size_bytes >= 4;
    if is_whole {
        blob.file
            .read_exact_at(&mut magic, blob.offset)
            .map_err(read_error)?;
    }
    let (digest, media_type) = if is_whole && is_compressed(&magic) {
        let media_type = match magic {
            [0x1f, 0x8b, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
            [0x28, ..] => "application/vnd.oci.image.layer.v1.tar+zstd",
            _ => {
                return Err(FetchError::unsupported(
                    "layer is compressed with neither gzip nor zstd",
                ));
            }
        };
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut reader = RangeReader { blob, position: 0 };
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = reader.read(&mut buffer).map_err(read_error)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        (hasher.finish(), media_type)
    } else {
        (diff_id.clone(), "application/vnd.oci.image.layer.v1.tar")
    };
    Ok(LayerDescriptor {
        digest,
        size_bytes: blob.size_bytes,
        media_type: media_type.to_owned(),
        diff_id,
    })
}

struct RangeReader<'a> {
    blob: &'a LocalBlob,
    position: u64,
}

impl Read for RangeReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.blob.size_bytes - self.position).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let read = self
            .blob
            .file
            .read_at(&mut buffer[..length], self.blob.offset + self.position)?;
        if read == 0 && length > 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.position += read as u64;
        Ok(read)
    }
}

/// The digest that a config's name stands for: `HEX.json` in the old layout, `blobs/sha256/HEX` in the new one.
fn digest_in_name(name: &str) -> Option<Digest> {
    let hex = name
        .strip_suffix(".json")
        .or_else(|| name.strip_prefix("blobs/sha256/"))?;
    format!("sha256:{hex}").parse().ok()
}
