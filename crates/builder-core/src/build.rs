//! A build as the service knows it.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    str::FromStr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{optimize::Savings, request::BuildRequest};

/// The name of a build: `build-` and a UUID of version 7 in hexadecimal, so that names sort by time of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BuildId(Uuid);

/// Not the name of a build.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a build id: expected build- and 32 hexadecimal digits")]
pub struct InvalidBuildId {
    /// What was given, shortened to 80 characters.
    pub value: String,
}

impl BuildId {
    /// A new name, later than all names made before on this machine.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// When the name was made, to the millisecond; `None` for one that no [`generate`](Self::generate) made.
    #[must_use]
    pub fn created_at(&self) -> Option<SystemTime> {
        if self.0.get_version_num() != 7 {
            return None;
        }
        let (seconds, nanoseconds) = self.0.get_timestamp()?.to_unix();
        SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds))
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "build-{}", self.0.simple())
    }
}

impl FromStr for BuildId {
    type Err = InvalidBuildId;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidBuildId {
            value: value.chars().take(80).collect(),
        };
        let digits = value.strip_prefix("build-").ok_or_else(invalid)?;
        let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != 32 || !digits.bytes().all(lower_hex) {
            return Err(invalid());
        }
        Uuid::try_parse(digits).map(Self).map_err(|_| invalid())
    }
}

impl TryFrom<String> for BuildId {
    type Error = InvalidBuildId;

    fn try_from(value: String) -> Result<Self, Self::Error> {
        value.parse()
    }
}

impl From<BuildId> for String {
    fn from(id: BuildId) -> Self {
        id.to_string()
    }
}

/// Where a build stands. States never move backwards, except to `Pending` when a build is requeued after a crash or
/// because the service shuts down.
///
/// ```text
/// Pending -> Pulling -> Extracting -> Building -> Optimizing -> Completed
///     \          \           \            \            \
///      `----------`-----------`------------`------------`----> Failed | Cancelled
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildState {
    /// Waits for its turn.
    Pending,
    /// Until the last layer's bytes are here.
    Pulling,
    /// Until the last layer is indexed.
    Extracting,
    /// Fold, shape, plan, emit.
    Building,
    /// Finishing touches: checksum, publishing.
    Optimizing,
    /// The image is published.
    Completed,
    /// Ended without an image; [`Build::error_message`] says why.
    Failed,
    /// Ended by request.
    Cancelled,
}

impl BuildState {
    /// The name in lower case, as `pulling`: in the database and in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Pulling => "pulling",
            Self::Extracting => "extracting",
            Self::Building => "building",
            Self::Optimizing => "optimizing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// What the image's configuration says, after the request's overrides.
///
/// Written as JSON in snake_case beside the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageMetadata {
    /// The image reference as asked for.
    pub original_image: String,
    /// Digest of the manifest that was built, `sha256:…`.
    pub image_digest: String,
    /// Digests of the layers, bottom first.
    pub layers: Vec<String>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// Arguments after the entrypoint.
    pub command: Vec<String>,
    /// What is started.
    pub entrypoint: Vec<String>,
    /// Working directory, empty when the image has none.
    pub working_dir: String,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Ports, as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// User, as the image names it.
    pub user: String,
    /// Volumes.
    pub volumes: Vec<String>,
    /// STOPSIGNAL, empty when the image has none.
    pub stop_signal: String,
    /// Health check as JSON, empty when the image has none.
    pub healthcheck_json: String,
    /// `rw` or `ro`.
    pub profile: String,
    /// Kernel arguments with which the image boots on any kernel: without dm-verity, which not every kernel has.
    pub kernel_args: String,
    /// What the image runs on, `os/architecture[/variant]`.
    pub platform: String,
    /// Root hash of dm-verity in hexadecimal, empty when the image has no hash tree. Known once the image is written.
    pub verity_root_hash: String,
    /// Salt of dm-verity in hexadecimal, empty when the image has no hash tree.
    pub verity_salt: String,
    /// Where the superblock of the hash tree begins, in bytes: the size of the file system. 0 when there is none.
    pub verity_hash_offset: u64,
    /// The same kernel arguments for a kernel that has device mapper and dm-verity built in: it checks each block that
    /// it reads. Empty when the image has no hash tree, or when the line would be longer than a kernel takes.
    pub verity_kernel_args: String,
}

/// What a build took. A figure that is not known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildMetrics {
    /// Milliseconds from the first request to the registry until the last layer's bytes were here.
    pub pull_duration_ms: Option<u64>,
    /// Milliseconds until the last layer was indexed, counted from the first byte of a layer.
    pub extract_duration_ms: Option<u64>,
    /// Milliseconds of fold, shape, plan and emit.
    pub build_duration_ms: Option<u64>,
    /// Milliseconds of finishing and publishing.
    pub optimize_duration_ms: Option<u64>,
    /// Milliseconds from start to end.
    pub total_duration_ms: Option<u64>,
    /// Bytes of all layers, uncompressed.
    pub original_size_bytes: Option<u64>,
    /// Size of the image, holes included.
    pub rootfs_size_bytes: Option<u64>,
    /// Largest resident set of any worker, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Bytes that the image takes on disk.
    pub disk_usage_bytes: Option<u64>,
    /// CPU milliseconds of all workers, and of this process for copying and hashing.
    pub cpu_time_ms: Option<u64>,
    /// Bytes that the workers, and this process for copying and hashing, read from disk.
    pub io_read_bytes: Option<u64>,
    /// Bytes that the same wrote to disk.
    pub io_write_bytes: Option<u64>,
    /// Compressed bytes that crossed the network.
    pub pulled_bytes: Option<u64>,
    /// What each rule of the optimization saved, those only that were asked for.
    pub optimization: Vec<Savings>,
    /// What the workers were shut in with; `None` for nothing. Known from the build's begin on.
    pub isolation: Option<BuildIsolation>,
}

/// What the workers of a build are shut in with, as it really is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildIsolation {
    /// Name of the box.
    pub sandbox_id: String,
    /// `private`: each worker has one of its own, without any interface; or `host`.
    pub network_namespace: String,
    /// `private`: each worker has an empty root of its own; or `host`.
    pub filesystem_namespace: String,
    /// What else holds, as `seccomp`, `landlock`, `no-capabilities`.
    pub security_contexts: Vec<String>,
    /// The build's control group, below the daemon's own; empty for none.
    pub cgroup_path: String,
    /// 1 to 3; 0 when not even the layers of level 1 are complete.
    pub sandbox_level: u8,
}

/// One build, as stored.
#[derive(Clone, Debug)]
pub struct Build {
    /// Its name.
    pub id: BuildId,
    /// What was asked for; credentials are never part of what is stored.
    pub request: BuildRequest,
    /// Where it stands.
    pub state: BuildState,
    /// When it was accepted.
    pub created_at: SystemTime,
    /// When its work began.
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub completed_at: Option<SystemTime>,
    /// Where the image is, or will be: a path, or the object's URL. What it was once [`image_removed_at`](Self::image_removed_at)
    /// is set.
    pub rootfs_path: PathBuf,
    /// Size of the image in bytes, once completed.
    pub rootfs_size_bytes: Option<u64>,
    /// SHA-256 of the image in hexadecimal, once completed.
    pub rootfs_checksum: Option<String>,
    /// What the image's configuration says, once known.
    pub image_metadata: Option<ImageMetadata>,
    /// What it took, as far as known.
    pub metrics: BuildMetrics,
    /// Why it failed.
    pub error_message: Option<String>,
    /// `0..=100`, never falling.
    pub progress_percent: u8,
    /// The step in words, as `index layer 3 of 9`.
    pub current_step: String,
    /// The id under which assetmanagerd knows the image, once registered.
    pub asset_id: Option<String>,
    /// When the image was removed to make room for others. The build and its log stay until they are due.
    pub image_removed_at: Option<SystemTime>,
    /// Builds that are served before this one, while it waits; 0 for the next one.
    pub queue_position: Option<u32>,
    /// When its work will probably begin, while it waits; `None` when that is not known.
    pub estimated_start: Option<SystemTime>,
}
