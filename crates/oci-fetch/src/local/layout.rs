//! The OCI image layout, over a directory or an archive.
//!
//! Source: OCI image-spec 1.1, image-layout.md.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{FetchError, FetchErrorKind};
use crate::image::{Image, ImageAccess, Origin, pair_layers, parse_config};
use crate::json;
use crate::local::archive::Archive;
use crate::local::{LocalBlob, open_error, open_regular};
use crate::manifest::{self, Document, IndexEntry, MAX_DOCUMENT_BYTES};
use crate::platform::Platform;
use crate::select;

/// A place with `oci-layout`, `index.json` and `blobs/`.
pub(super) trait Layout {
    /// A file by its fixed name or a blob's path; `None` when there is none.
    fn file(&self, name: &str) -> Result<Option<LocalBlob>, FetchError>;
}

pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, FetchError> {
        let metadata = std::fs::metadata(path).map_err(|error| open_error(path, error))?;
        if !metadata.is_dir() {
            return Err(FetchError::invalid(format!(
                "{} is not a directory",
                path.display()
            )));
        }
        Ok(Self {
            path: path.to_owned(),
        })
    }
}

impl Layout for Directory {
    fn file(&self, name: &str) -> Result<Option<LocalBlob>, FetchError> {
        // `name` is a constant or made of a validated digest.
        match open_regular(&self.path.join(name)) {
            Ok((file, size_bytes)) => Ok(Some(LocalBlob {
                file: Arc::new(file),
                offset: 0,
                size_bytes,
            })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(open_error(&self.path.join(name), error)),
        }
    }
}

impl Layout for Archive {
    fn file(&self, name: &str) -> Result<Option<LocalBlob>, FetchError> {
        Ok(self.blob(name))
    }
}

#[derive(Deserialize)]
struct LayoutMarker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

pub(super) fn resolve(
    layout: &impl Layout,
    reference: String,
    selector: Option<&str>,
    platform: &Platform,
) -> Result<Image, FetchError> {
    let marker = required(layout, "oci-layout")?.read_all(4096, "oci-layout")?;
    let marker: LayoutMarker = json::parse(&marker, "oci-layout")?;
    if !marker.version.starts_with("1.") {
        return Err(FetchError::unsupported("image layout is not of version 1"));
    }
    let index = required(layout, "index.json")?.read_all(MAX_DOCUMENT_BYTES, "index.json")?;
    let entries = manifest::parse_layout_index(&index)?;
    let entry = choose(&entries, selector, platform)?;
    let (manifest_digest, bytes, manifest) = follow(layout, entry, platform)?;

    let config_bytes = document(
        layout,
        &manifest.config.digest,
        manifest.config.size_bytes,
        "image config",
    )?;
    let config = parse_config(&config_bytes)?;
    select::check_platform(&config.platform, platform)?;
    let config_digest = manifest.config.digest.clone();
    let layers = pair_layers(manifest, config.diff_ids)?;
    let blobs = layers
        .iter()
        .map(|layer| {
            let found = blob(layout, &layer.digest, "layer")?;
            if found.size_bytes != layer.size_bytes {
                return Err(wrong_size("layer", &layer.digest));
            }
            Ok(found)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Image {
        reference,
        manifest_digest,
        platform: config.platform,
        config: config.config,
        config_bytes: config_bytes.into(),
        config_digest,
        manifest_bytes: bytes.into(),
        access: Arc::new(ImageAccess {
            layers: layers.clone(),
            origin: Origin::Local(blobs),
        }),
        layers,
    })
}

/// The one entry of `index.json` that selector and platform leave.
fn choose<'a>(
    entries: &'a [IndexEntry],
    selector: Option<&str>,
    platform: &Platform,
) -> Result<&'a IndexEntry, FetchError> {
    let wanted_digest = selector.and_then(|text| text.parse::<Digest>().ok());
    let named: Vec<&IndexEntry> = entries
        .iter()
        .filter(|entry| match (&wanted_digest, selector) {
            (Some(digest), _) => entry.descriptor.digest == *digest,
            (None, Some(tag)) => entry.name.as_deref() == Some(tag),
            (None, None) => true,
        })
        .collect();
    if named.is_empty() {
        return Err(FetchError::not_found(match selector {
            Some(_) => "image layout has no image of this name",
            None => "image layout holds no image",
        }));
    }
    let best = select::best(named.iter().copied(), platform)?;
    let rank = select::rank(best, platform);
    let is_ambiguous = named.iter().any(|other| {
        select::rank(other, platform) == rank && other.descriptor.digest != best.descriptor.digest
    });
    if is_ambiguous {
        return Err(FetchError::invalid(
            "image layout holds several images; add :TAG or @DIGEST to choose one",
        ));
    }
    Ok(best)
}

/// From an entry of `index.json`, through at most two indexes, to the image's manifest.
fn follow(
    layout: &impl Layout,
    entry: &IndexEntry,
    platform: &Platform,
) -> Result<(Digest, Vec<u8>, manifest::Manifest), FetchError> {
    let mut descriptor = entry.descriptor.clone();
    for _ in 0..=select::MAX_NESTED_INDEXES + 1 {
        let bytes = document(layout, &descriptor.digest, descriptor.size_bytes, "manifest")?;
        match manifest::parse(&bytes, Some(&descriptor.media_type))? {
            Document::Manifest(manifest) => return Ok((descriptor.digest, bytes, manifest)),
            Document::Index(entries) => {
                descriptor = select::best(entries.iter(), platform)?.descriptor.clone();
            }
        }
    }
    Err(select::nested_too_deep())
}

fn document(
    layout: &impl Layout,
    digest: &Digest,
    size_bytes: u64,
    what: &str,
) -> Result<Vec<u8>, FetchError> {
    let blob = blob(layout, digest, what)?;
    if blob.size_bytes != size_bytes {
        return Err(wrong_size(what, digest));
    }
    blob.read_verified(digest, MAX_DOCUMENT_BYTES, what)
}

fn blob(layout: &impl Layout, digest: &Digest, what: &str) -> Result<LocalBlob, FetchError> {
    layout
        .file(&format!("blobs/{}/{}", digest.algorithm(), digest.hex()))?
        .ok_or_else(|| FetchError::not_found(format!("image layout has no {what} {digest}")))
}

fn wrong_size(what: &str, digest: &Digest) -> FetchError {
    FetchError::new(
        FetchErrorKind::DigestMismatch,
        format!("{what} {digest} does not have the size its manifest gives"),
    )
}

fn required(layout: &impl Layout, name: &str) -> Result<LocalBlob, FetchError> {
    layout.file(name)?.ok_or_else(|| {
        FetchError::not_found(format!(
            "image layout has no file {name}; is it an OCI image layout?"
        ))
    })
}
