//! What a tenant asks for, already checked.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use tenant::{TenantId, Tier};

pub use crate::options::{Backend, LayerMode, Profile};

/// Who asks. Only `tenant_id` decides anything; the rest is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantContext {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The customer behind the tenant, free text.
    pub customer_id: String,
    /// The organization behind the customer, free text.
    pub organization_id: String,
    /// The tier that the request claims: recorded, never used.
    pub claimed_tier: Option<Tier>,
    /// Free text.
    pub permissions: Vec<String>,
    /// Free text.
    pub metadata: BTreeMap<String, String>,
}

/// A secret that neither `Debug` nor serde shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The secret itself, to be handed to the one who needs it and to nobody else.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether nothing was given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// Credentials of one request: in memory only, never stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryCredentials {
    /// User name for Basic.
    pub username: String,
    /// Password for Basic.
    pub password: Secret,
    /// Identity token or bearer token.
    pub token: Secret,
    /// Which registry they are for; empty for the image's own.
    pub registry: String,
}

/// An image in a registry, or in a local layout or archive (command line only).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerImageSource {
    /// The image reference as given.
    pub image_uri: String,
    /// `os/arch[/variant]`; `None` for the host's.
    pub platform: Option<String>,
    /// Recorded, as the original did.
    pub pull_tags: Vec<String>,
    /// For this build only.
    #[serde(skip)]
    pub credentials: Option<RegistryCredentials>,
}

/// What becomes process 1 of the microVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitStrategy {
    /// Our init prepares the guest, then supervises the image's command.
    #[default]
    Tini,
    /// Our init prepares the guest, then becomes the image's command: it is process 1 itself.
    Direct,
    /// The image's own init, which the kernel starts; nothing of ours runs.
    Custom,
    /// Nothing is added: exactly what the layers say (`--raw` of the command line).
    Raw,
}

/// Overrides of the image's configuration, with Docker's meaning: `None` or empty leaves the image's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeOverrides {
    /// Replaces CMD.
    pub command: Vec<String>,
    /// Replaces ENTRYPOINT and clears the image's CMD.
    pub entrypoint: Vec<String>,
    /// Replaces WORKDIR.
    pub working_dir: Option<String>,
    /// Added to ENV, name by name.
    pub environment: BTreeMap<String, String>,
    /// Added to EXPOSE.
    pub exposed_ports: Vec<String>,
}

/// What to leave out of an image, and what to make smaller. By default nothing is: an image is what its layers say.
///
/// Patterns are those of [`rootfs::edit::Excludes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Optimization {
    /// Remove what only debuggers read from programs and libraries.
    pub strip_debug_symbols: bool,
    /// Remove manual pages and other documentation.
    pub remove_docs: bool,
    /// Remove what package managers can fetch again.
    pub remove_cache: bool,
    /// What else to leave out.
    pub exclude_patterns: Vec<String>,
    /// What none of this touches.
    pub preserve_paths: Vec<String>,
}

/// What the extraction of a Docker image is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExtractOptions {
    /// That each layer's data lie together in the image, as they always do.
    pub preserve_layers: bool,
    /// What to leave out, beside [`Optimization::exclude_patterns`].
    pub exclude_patterns: Vec<String>,
}

/// What the image should be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsTarget {
    /// Process 1.
    pub init: InitStrategy,
    /// Overrides of the image's configuration.
    pub runtime: RuntimeOverrides,
    /// Profile.
    pub profile: Profile,
    /// Free bytes in the guest.
    pub free_space_bytes: u64,
    /// Free inodes in the guest.
    pub free_inodes: u64,
    /// Layer semantics.
    pub layer_mode: LayerMode,
    /// What to leave out.
    #[serde(default)]
    pub optimization: Optimization,
    /// What no optimization touches, beside [`Optimization::preserve_paths`].
    #[serde(default)]
    pub preserve_paths: Vec<String>,
    /// Whether a dm-verity hash tree follows the file system of a [`Profile::ReadOnly`] image. One that is written to has
    /// none.
    #[serde(default = "yes")]
    pub verity: bool,
}

/// What builds asked for before there was a choice to be stored.
const fn yes() -> bool {
    true
}

impl RootfsTarget {
    /// Whether the image gets a hash tree.
    #[must_use]
    pub fn has_verity(&self) -> bool {
        self.verity && self.profile == Profile::ReadOnly
    }
}

/// What a request may lower; `None` is not given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestedLimits {
    /// Bytes of memory.
    pub max_memory_bytes: Option<u64>,
    /// Cores.
    pub max_cpu_cores: Option<u32>,
    /// Bytes of disk: uncompressed layers plus the image.
    pub max_disk_bytes: Option<u64>,
    /// Seconds until the build is ended.
    pub timeout_seconds: Option<u32>,
    /// This build waits while so many of its tenant's run.
    pub max_concurrent_builds: Option<u32>,
    /// This build is refused when so many of its tenant's were started or wait on this UTC day.
    pub max_daily_builds: Option<u32>,
    /// This build is refused when its tenant's images take so many bytes.
    pub max_storage_bytes: Option<u64>,
    /// How hard the box of the workers is, 1 to 3; it only ever raises what the service has.
    pub sandbox_level: Option<u8>,
    /// Registries that may be pulled from.
    pub allowed_registries: Vec<String>,
}

/// One build request, checked as far as it can be without doing it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRequest {
    /// Who asks.
    pub tenant: TenantContext,
    /// From what.
    pub source: DockerImageSource,
    /// To what.
    pub target: RootfsTarget,
    /// Whether a flat file system was asked for: recorded, since every image is one.
    #[serde(default)]
    pub flatten_filesystem: bool,
    /// How the layers are extracted.
    #[serde(default)]
    pub extract: ExtractOptions,
    /// Limits of this build.
    pub limits: RequestedLimits,
    /// A name for people.
    pub build_name: String,
    /// Labels for people.
    pub labels: BTreeMap<String, String>,
    /// The asset id to register under, empty for none.
    pub suggested_asset_id: String,
}
