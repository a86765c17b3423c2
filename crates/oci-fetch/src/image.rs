//! A resolved image: its config, its layers, and the right to read them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::FetchError;
use crate::json;
use crate::manifest::{Descriptor, Manifest};
use crate::platform::Platform;

/// An image whose manifest and config were fetched and checked; what [`Client::resolve`](crate::Client::resolve) gives.
///
/// It carries, besides what it shows, the proof that the caller's own credentials could read the manifest. That proof
/// cannot be made outside this crate, and [`Client::open_layer`](crate::Client::open_layer) goes by it and by the layers as
/// they were resolved, not by the public fields, so changing these opens nothing.
#[derive(Clone)]
#[non_exhaustive]
pub struct Image {
    /// The image as asked for, in full form.
    pub reference: String,
    /// The digest of the image manifest (not of the index that led to it).
    pub manifest_digest: Digest,
    /// The platform that the image was built for, as its config says.
    pub platform: Platform,
    /// What the image says about running it.
    pub config: ImageConfig,
    /// The layers, base first; at most 128.
    pub layers: Vec<LayerDescriptor>,
    /// The config document, byte for byte; its digest is [`config_digest`](Self::config_digest).
    pub config_bytes: Arc<[u8]>,
    /// The digest of the config document.
    pub config_digest: Digest,
    /// The manifest document, byte for byte; empty for a `docker save` archive, which has none.
    pub manifest_bytes: Arc<[u8]>,
    pub(crate) access: Arc<ImageAccess>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerDescriptor {
    /// The digest of the blob, compressed as it is.
    pub digest: Digest,
    /// The size of the blob in bytes.
    pub size_bytes: u64,
    /// The media type; one that holds a tar stream, plain or compressed with gzip or zstd. A hint: layers exist that are
    /// compressed in another way than their type says.
    pub media_type: String,
    /// The digest of the uncompressed tar, by the image's own config: a claim, to be checked against the bytes.
    pub diff_id: Digest,
}

/// The runtime part of an image's config. Empty means not set.
///
/// Source: OCI image-spec 1.1, config.md; `Healthcheck` is Docker's.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ImageConfig {
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: String,
    /// `NAME=value` entries.
    pub env: Vec<String>,
    /// The fixed front of the command line.
    pub entrypoint: Vec<String>,
    /// The arguments behind the entry point, or the command when there is none.
    pub cmd: Vec<String>,
    /// The directory that the command starts in.
    pub working_dir: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `port/protocol` or `port`, sorted.
    pub exposed_ports: Vec<String>,
    /// Paths that are meant for volumes, sorted.
    pub volumes: Vec<String>,
    /// The signal that asks the command to stop, for example `SIGQUIT`.
    pub stop_signal: Option<String>,
    /// Docker's health check, as it is.
    pub healthcheck: Option<serde_json::Value>,
    /// When the image was made, RFC 3339, as the image says.
    pub created: Option<String>,
    /// Who made the image.
    pub author: Option<String>,
}

/// Where the layers of a resolved image are, and by which right they are read.
pub(crate) struct ImageAccess {
    pub(crate) layers: Vec<LayerDescriptor>,
    pub(crate) origin: Origin,
}

pub(crate) enum Origin {
    /// The mirror that had the image, those behind it, and the registry itself, in the order of asking.
    Registry {
        sessions: Vec<Arc<crate::registry::Session>>,
        /// Until when the layers have to be here.
        deadline: crate::blob::Deadline,
    },
    /// One file, offset and length per layer.
    Local(Vec<crate::local::LocalBlob>),
}

impl Image {
    /// The sum of the sizes of all layer blobs, a repeated one counted once.
    #[must_use]
    pub fn total_size_bytes(&self) -> u64 {
        total_size_bytes(&self.layers)
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Image")
            .field("reference", &self.reference)
            .field("manifest_digest", &self.manifest_digest)
            .field("platform", &self.platform)
            .field("layers", &self.layers)
            .finish_non_exhaustive()
    }
}

pub(crate) fn total_size_bytes(layers: &[LayerDescriptor]) -> u64 {
    let unique: BTreeMap<_, _> = layers
        .iter()
        .map(|layer| (&layer.digest, layer.size_bytes))
        .collect();
    unique.values().fold(0, |sum, size| sum.saturating_add(*size))
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    author: Option<String>,
    config: Option<RawConfig>,
    rootfs: Option<RawRootFilesystem>,
}

#[derive(Deserialize)]
struct RawRootFilesystem {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    stop_signal: Option<String>,
    healthcheck: Option<serde_json::Value>,
}

/// Images of Docker's first years have a plain string where a list belongs; Docker still takes it for a list of one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

impl Words {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(word) => vec![word],
            Self::Many(words) => words,
        }
    }
}

/// A parsed config document.
#[derive(Debug)]
pub(crate) struct ConfigDocument {
    pub(crate) platform: Platform,
    pub(crate) config: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

/// Parses an image's config document.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ConfigDocument, FetchError> {
    let raw: RawImage = json::parse(bytes, "image config")?;
    let (Some(os), Some(architecture)) = (non_empty(raw.os), non_empty(raw.architecture)) else {
        return Err(FetchError::protocol(
            "image config does not name its os and architecture",
        ));
    };
    let rootfs = raw
        .rootfs
        .ok_or_else(|| FetchError::protocol("image config has no rootfs"))?;
    if rootfs.kind.as_deref().is_some_and(|kind| kind != "layers") {
        return Err(FetchError::unsupported(
            "image config's rootfs is not of type layers",
        ));
    }
    let diff_ids = rootfs
        .diff_ids
        .unwrap_or_default()
        .iter()
        .map(|text| text.parse())
        .collect::<Result<Vec<Digest>, _>>()
        .map_err(|error| {
            FetchError::with_source(
                error.kind().clone(),
                "image config has a malformed diff_id",
                error,
            )
        })?;
    let config = raw.config.unwrap_or_default();
    Ok(ConfigDocument {
        platform: Platform::normalised(&os, &architecture, raw.variant.as_deref()),
        diff_ids,
        config: ImageConfig {
            user: config.user.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            entrypoint: config.entrypoint.map(Words::into_vec).unwrap_or_default(),
            cmd: config.cmd.map(Words::into_vec).unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            labels: config
                .labels
                .unwrap_or_default()
                .into_iter()
                .map(|(name, value)| (name, value.unwrap_or_default()))
                .collect(),
            exposed_ports: config.exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: config.volumes.unwrap_or_default().into_keys().collect(),
            stop_signal: non_empty(config.stop_signal),
            healthcheck: config.healthcheck,
            created: non_empty(raw.created),
            author: non_empty(raw.author),
        },
    })
}

/// Pairs each layer of the manifest with its diff_id.
pub(crate) fn pair_layers(
    manifest: Manifest,
    diff_ids: Vec<Digest>,
) -> Result<Vec<LayerDescriptor>, FetchError> {
    if manifest.layers.len() != diff_ids.len() {
        return Err(FetchError::protocol(format!(
            "image manifest has {} layers, but its config has {} diff_ids",
            manifest.layers.len(),
            diff_ids.len()
        )));
    }
    Ok(manifest
        .layers
        .into_iter()
        .zip(diff_ids)
        .map(
            |(
                Descriptor {
                    media_type,
                    digest,
                    size_bytes,
                },
                diff_id,
            )| LayerDescriptor {
                digest,
                size_bytes,
                media_type,
                diff_id,
            },
        )
        .collect())
}

fn non_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FetchErrorKind;
    use proptest::prelude::*;

    const DIFF_ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_docker_config_with_nulls_parses() {
        let text = format!(
            r#"{{"architecture":"arm64","os":"linux","variant":"v8","created":"2024-01-01T00:00:00Z",
                "config":{{"Env":["A=b"],"Cmd":null,"Entrypoint":"old","Labels":null,"ExposedPorts":{{"80/tcp":{{}}}},
                "Volumes":{{"/b":{{}},"/a":{{}}}},"Healthcheck":{{"Test":["NONE"]}},"StopSignal":"SIGQUIT","OnBuild":null}},
                "rootfs":{{"type":"layers","diff_ids":["{DIFF_ID}"]}},"history":[{{"empty_layer":true}}]}}"#
        );
        let parsed = parse_config(text.as_bytes()).unwrap();
        assert_eq!(parsed.platform.to_string(), "linux/arm64");
        assert_eq!(parsed.config.entrypoint, ["old"]);
        assert_eq!(parsed.config.volumes, ["/a", "/b"]);
        assert_eq!(parsed.config.exposed_ports, ["80/tcp"]);
        assert_eq!(parsed.config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(parsed.diff_ids.len(), 1);
    }

    #[test]
    fn bad_configs_are_refused() {
        for (name, text, kind) in [
            (
                "no platform",
                r#"{"rootfs":{"type":"layers","diff_ids":[]}}"#,
                FetchErrorKind::Protocol,
            ),
            (
                "no rootfs",
                r#"{"os":"linux","architecture":"amd64"}"#,
                FetchErrorKind::Protocol,
            ),
            (
                "malformed diff_id",
                r#"{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":["sha256:/etc"]}}"#,
                FetchErrorKind::InvalidInput,
            ),
            ("not an object", "[]", FetchErrorKind::Protocol),
            (
                "duplicate label",
                r#"{"config":{"Labels":{"a":"1","a":"2"}}}"#,
                FetchErrorKind::Protocol,
            ),
        ] {
            assert_eq!(parse_config(text.as_bytes()).unwrap_err().kind(), &kind, "{name}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_config(&bytes);
        }
    }
}
