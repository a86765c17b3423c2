//! Manifests and indexes, parsed so that a document can be taken in one way only.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::FetchError;
use crate::json;
use crate::platform::Platform;

/// No manifest, index or config may be larger: 4 MiB, the floor of what a registry must take.
///
/// Source: OCI distribution-spec 1.1, "Pushing Manifests".
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 4 * 1024 * 1024;

/// More layers than overlayfs, Docker and containerd can mount; an image with more runs nowhere else either.
pub(crate) const MAX_LAYERS: usize = 128;

/// More entries than any index in use by two orders of magnitude.
const MAX_INDEX_ENTRIES: usize = 4096;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What a manifest request asks for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A manifest document in the two shapes it can have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Index(Vec<IndexEntry>),
    Manifest(Manifest),
}

/// One image's config and layers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// A digest with the size and type that the bytes behind it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
}

/// One image, or a nested index, in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) descriptor: Descriptor,
    pub(crate) platform: Option<Platform>,
    /// The value of `org.opencontainers.image.ref.name`.
    pub(crate) name: Option<String>,
    /// A build attestation, which is no image.
    pub(crate) is_attestation: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    // Only their presence matters: they mark schema 1, or a document that wants to be two things.
    fs_layers: Option<serde::de::IgnoredAny>,
    signatures: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
    annotations: Option<BTreeMap<String, String>>,
    artifact_type: Option<String>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
}

impl IndexEntry {
    /// Whether the entry leads to another index rather than to an image.
    pub(crate) fn is_index(&self) -> bool {
        matches!(self.descriptor.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }
}

/// Parses a manifest or an index.
///
/// `content_type` is what the registry's header or the parent's descriptor says; it must agree with the document's own
/// `mediaType` when both are there, and one of them must be. (A document that two readers take for two different things
/// is how CVE-2021-41190 hid layers from a scanner.)
pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, FetchError> {
    let announced = content_type.map(essence).filter(|value| !is_generic(value));
    if announced.as_deref().is_some_and(is_schema1) {
        return Err(schema1());
    }
    let raw: RawDocument = json::parse(bytes, "manifest")?;
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() || raw.signatures.is_some() {
        return Err(schema1());
    }
    if raw.schema_version != Some(2) {
        return Err(FetchError::protocol("manifest does not have schemaVersion 2"));
    }
    let media_type = match (announced, raw.media_type) {
        (Some(announced), Some(own)) if announced != own => {
            return Err(FetchError::protocol(
                "manifest's mediaType differs from the type it was announced as",
            ));
        }
        (_, Some(own)) => own,
        (Some(announced), None) => announced,
        (None, None) => {
            return Err(FetchError::protocol(
                "manifest has neither a mediaType nor a content type",
            ));
        }
    };
    match media_type.as_str() {
        OCI_INDEX | DOCKER_LIST => {
            if raw.config.is_some() || raw.layers.is_some() {
                return Err(two_shapes());
            }
            let entries = raw
                .manifests
                .ok_or_else(|| FetchError::protocol("image index has no manifests"))?;
            index_entries(entries).map(Document::Index)
        }
        OCI_MANIFEST | DOCKER_MANIFEST => {
            if raw.manifests.is_some() {
                return Err(two_shapes());
            }
            let config = raw
                .config
                .ok_or_else(|| FetchError::protocol("image manifest has no config"))?;
            let layers = raw
                .layers
                .ok_or_else(|| FetchError::protocol("image manifest has no layers"))?;
            manifest(&config, &layers, raw.artifact_type.is_some()).map(Document::Manifest)
        }
        media_type if is_schema1(media_type) => Err(schema1()),
        _ => Err(FetchError::unsupported(
            "document is neither an image manifest nor an image index",
        )),
    }
}

/// Checks that a server calls a document what the index that led to it calls it.
pub(crate) fn check_announced(content_type: &str, media_type: &str) -> Result<(), FetchError> {
    let announced = essence(content_type);
    if is_generic(&announced) || announced == media_type {
        return Ok(());
    }
    Err(FetchError::protocol(
        "manifest's content type differs from the type that the index gives it",
    ))
}

/// Parses the `index.json` of an OCI layout, whose type is known from its place.
pub(crate) fn parse_layout_index(bytes: &[u8]) -> Result<Vec<IndexEntry>, FetchError> {
    match parse(bytes, Some(OCI_INDEX))? {
        Document::Index(entries) => Ok(entries),
        Document::Manifest(_) => Err(FetchError::protocol("index.json is not an image index")),
    }
}

fn two_shapes() -> FetchError {
    FetchError::protocol("manifest has the fields of both an image and an index")
}

fn schema1() -> FetchError {
    FetchError::unsupported(
        "image manifest has schema version 1, which is not supported; push the image again with a current client",
    )
}

fn is_schema1(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.docker.distribution.manifest.v1+")
}

/// Types that servers without knowledge of registries send.
fn is_generic(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/json" | "application/octet-stream" | "text/plain" | ""
    )
}

/// The media type without parameters, in lower case.
fn essence(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

fn descriptor(raw: &RawDescriptor, what: &str) -> Result<Descriptor, FetchError> {
    let media_type = raw
        .media_type
        .clone()
        .filter(|value| !value.is_empty() && value.len() <= 255)
        .ok_or_else(|| FetchError::protocol(format!("{what} descriptor has no media type")))?;
    // A size over i64::MAX would be negative in every Go client.
    if i64::try_from(raw.size).is_err() {
        return Err(FetchError::protocol(format!(
            "{what} descriptor has an impossible size"
        )));
    }
    let digest = raw.digest.parse().map_err(|error: FetchError| {
        FetchError::with_source(
            error.kind().clone(),
            format!("{what} descriptor has a malformed digest"),
            error,
        )
    })?;
    Ok(Descriptor {
        media_type,
        digest,
        size_bytes: raw.size,
    })
}

fn index_entries(entries: Vec<RawDescriptor>) -> Result<Vec<IndexEntry>, FetchError> {
    if entries.len() > MAX_INDEX_ENTRIES {
        return Err(FetchError::limit(format!(
            "image index has more than {MAX_INDEX_ENTRIES} entries"
        )));
    }
    entries
        .into_iter()
        .map(|raw| {
            let descriptor = descriptor(&raw, "index entry")?;
            let annotation = |name: &str| raw.annotations.as_ref().and_then(|map| map.get(name)).cloned();
            let is_unknown = raw
                .platform
                .as_ref()
                .is_some_and(|platform| platform.os == "unknown" && platform.architecture == "unknown");
            Ok(IndexEntry {
                is_attestation: is_unknown
                    || annotation("vnd.docker.reference.type").is_some()
                    || raw.artifact_type.is_some(),
                name: annotation("org.opencontainers.image.ref.name"),
                platform: raw.platform.map(|platform| {
                    Platform::normalised(&platform.os, &platform.architecture, platform.variant.as_deref())
                }),
                descriptor,
            })
        })
        .collect()
}

fn manifest(
    config: &RawDescriptor,
    layers: &[RawDescriptor],
    is_artifact: bool,
) -> Result<Manifest, FetchError> {
    let config = descriptor(config, "config")?;
    let is_image = matches!(
        config.media_type.as_str(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    );
    if !is_image || is_artifact {
        return Err(FetchError::unsupported(
            "manifest is of another kind of artifact, not of a container image",
        ));
    }
    if config.size_bytes > MAX_DOCUMENT_BYTES {
        return Err(FetchError::limit(format!(
            "image config is larger than {MAX_DOCUMENT_BYTES} bytes"
        )));
    }
    if layers.len() > MAX_LAYERS {
        return Err(FetchError::limit(format!(
            "image has {} layers, more than {MAX_LAYERS}",
            layers.len()
        )));
    }
    let mut sizes = BTreeMap::new();
    let layers = layers
        .iter()
        .map(|raw| {
            let layer = descriptor(raw, "layer")?;
            check_layer_type(&layer.media_type)?;
            let known = *sizes.entry(layer.digest.clone()).or_insert(layer.size_bytes);
            if known != layer.size_bytes {
                return Err(FetchError::protocol("manifest gives one layer two sizes"));
            }
            Ok(layer)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Manifest { config, layers })
}

/// The types of layers that hold a tar stream. `foreign` and `nondistributable` layers are taken from the registry like
/// any other; their `urls` are never followed.
///
/// Source: OCI image-spec 1.1, layer.md and media-types.md; Docker's image manifest v2 schema 2.
fn check_layer_type(media_type: &str) -> Result<(), FetchError> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(()),
        encrypted if encrypted.ends_with("+encrypted") => Err(FetchError::unsupported(
            "image has encrypted layers, which are not supported",
        )),
        _ => Err(FetchError::unsupported(
            "image has a layer of an unknown media type",
        )),
    }
}

#[cfg(test)]
mod tests;
