//! What can go wrong, in words that a tenant may read.
//!
//! The text of every error here is for the tenant: it names what failed, what was expected and what was found, and
//! holds no path of the host and no secret. What only an operator should see is in [`std::error::Error::source`].

use std::{
    error::Error,
    fmt, io,
    time::{Duration, SystemTime},
};

/// A cause for the operator's log.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Why a build ended without an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildErrorKind {
    /// The request asks for something that does not fit the image or the service.
    InvalidArgument {
        /// The field of the request, as `docker_image.platform`.
        field: &'static str,
    },
    /// The registry or the layout has no such image, tag or platform.
    ImageNotFound,
    /// The registry wants credentials, or other ones.
    Unauthorized,
    /// No answer from the registry.
    RegistryUnreachable,
    /// The registry asks to come back later.
    RateLimited,
    /// Content does not have the digest or the size that the manifest promised.
    DigestMismatch,
    /// The image is of a kind that is not built (schema 1, no such architecture, a foreign layer).
    UnsupportedImage,
    /// A layer is no well-formed archive.
    CorruptLayer,
    /// A limit of the tenant or of the service was reached.
    LimitExceeded,
    /// The place for the image cannot be written to.
    OutputNotWritable,
    /// The service cannot put the image where it keeps images.
    StorageUnavailable,
    /// No space is left for the image or for the layers.
    DiskFull,
    /// The image writer asked for needs a tool or a right that this host does not give.
    BackendUnavailable,
    /// The build took longer than it may.
    TimedOut,
    /// The build was cancelled.
    Cancelled,
    /// The fault is the service's own.
    Internal,
}

impl BuildErrorKind {
    /// One of each kind, with any field: for tables that must miss none.
    pub const ALL: [Self; 16] = [
        Self::InvalidArgument {
            field: "docker_image.image_uri",
        },
        Self::ImageNotFound,
        Self::Unauthorized,
        Self::RegistryUnreachable,
        Self::RateLimited,
        Self::DigestMismatch,
        Self::UnsupportedImage,
        Self::CorruptLayer,
        Self::LimitExceeded,
        Self::OutputNotWritable,
        Self::StorageUnavailable,
        Self::DiskFull,
        Self::BackendUnavailable,
        Self::TimedOut,
        Self::Cancelled,
        Self::Internal,
    ];

    /// The kind in one word, as `image_not_found`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "invalid_argument",
            Self::ImageNotFound => "image_not_found",
            Self::Unauthorized => "unauthorized",
            Self::RegistryUnreachable => "registry_unreachable",
            Self::RateLimited => "rate_limited",
            Self::DigestMismatch => "digest_mismatch",
            Self::UnsupportedImage => "unsupported_image",
            Self::CorruptLayer => "corrupt_layer",
            Self::LimitExceeded => "limit_exceeded",
            Self::OutputNotWritable => "output_not_writable",
            Self::StorageUnavailable => "storage_unavailable",
            Self::DiskFull => "disk_full",
            Self::BackendUnavailable => "backend_unavailable",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

/// Why a build ended without an image, with a message for its tenant.
#[derive(Debug)]
pub struct BuildError {
    kind: BuildErrorKind,
    message: String,
    cause: Option<Cause>,
}

impl BuildError {
    /// An error of that kind; `message` is one lower-case fragment without a final period.
    #[must_use]
    pub fn new(kind: BuildErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            cause: None,
        }
    }

    /// Keeps what lies behind it for the operator's log.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<Cause>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// What kind of error it is.
    #[must_use]
    pub const fn kind(&self) -> &BuildErrorKind {
        &self.kind
    }

    /// A fault of the service itself: the tenant learns what was being done, the operator also why it failed.
    pub(crate) fn internal(action: &str, cause: impl Into<Cause>) -> Self {
        Self::new(
            BuildErrorKind::Internal,
            format!("internal error: failed to {action}"),
        )
        .with_cause(cause)
    }

    /// Sorts an I/O error met while `action` (as `write the layer's pack`): a full disk is the tenant's to know.
    pub(crate) fn from_io(action: &str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::new(
                BuildErrorKind::DiskFull,
                format!("no space left on the service's disk: failed to {action}"),
            )
            .with_cause(error),
            _ => Self::internal(action, error),
        }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.cause {
            Some(cause) => Some(cause.as_ref()),
            None => None,
        }
    }
}

/// Why a call of [`crate::service::Builder`] was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// A field of the request is wrong.
    #[error("{field}: {message}")]
    InvalidArgument {
        /// The field, with the path below the request, as `config.source.docker_image.image_uri`.
        field: String,
        /// What is wrong, expected and actual.
        message: String,
    },
    /// There is no such build.
    #[error("there is no such build")]
    NotFound,
    /// The build belongs to another tenant.
    #[error("the build belongs to another tenant")]
    PermissionDenied,
    /// The build is in a state that does not allow it.
    #[error("{0}")]
    FailedPrecondition(String),
    /// A quota or a queue is full.
    #[error("{0}")]
    ResourceExhausted(Exhausted),
    /// There is something else under that name.
    #[error("{0}")]
    AlreadyExists(String),
    /// The service is shutting down.
    #[error("{0}")]
    Unavailable(String),
    /// The database takes no changes; the caller may try again.
    #[error("the database takes no changes at the moment: try again later")]
    DatabaseUnavailable,
    /// Not built yet.
    #[error("{feature} is not implemented yet")]
    Unimplemented {
        /// What was asked for.
        feature: String,
    },
    /// The fault is the service's own; the cause is for the operator.
    #[error("internal error")]
    Internal(#[source] Cause),
}

/// What is used up, and when something frees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// The quota's name, as in violations and metrics.
    pub quota: &'static str,
    /// What is used.
    pub current: u64,
    /// What is allowed, in the same unit.
    pub limit: u64,
    /// All of it in words.
    pub message: String,
    /// When something frees at the latest; `None` when only somebody's doing frees something.
    pub frees_at: Option<SystemTime>,
    /// How long to wait before another attempt can have success; `None` when waiting alone does not help.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

/// Why the service could not start. For the operator: names paths.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct StartError {
    /// What kind of error it is.
    pub kind: StartErrorKind,
    /// What failed, with the path or the figure.
    pub message: String,
    /// What lies behind it.
    #[source]
    pub source: Option<Cause>,
}

/// Sorts of [`StartError`], so that the caller can name the setting that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartErrorKind {
    /// The database directory cannot be used, or the file is not ours.
    Database,
    /// The database is of a later version of builderd.
    DatabaseTooNew,
    /// Another process uses the database directory.
    DatabaseInUse,
    /// The output directory cannot be made or written to.
    OutputDirectory,
    /// The workspace directory cannot be made or written to.
    WorkspaceDirectory,
    /// The scratch directory cannot be made or written to.
    ScratchDirectory,
    /// A setting contradicts itself, as no worker command or no build at once.
    Configuration,
    /// The registry client could not be made.
    Registry,
    /// The asset client could not be made.
    AssetManager,
    /// There is no such bucket.
    Bucket,
    /// The credentials cannot be read, are refused, or do not allow to put, list and delete objects.
    BucketCredentials,
    /// The bucket gives no answer, or none that makes sense.
    BucketEndpoint,
}

impl StartError {
    pub(crate) fn new(kind: StartErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn with_source(mut self, source: impl Into<Cause>) -> Self {
        self.source = Some(source.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_every_kind_once() {
        // A kind that is not here does not compile; one that is not in the list has no place.
        let place = |kind: &BuildErrorKind| match kind {
            BuildErrorKind::InvalidArgument { .. } => 0,
            BuildErrorKind::ImageNotFound => 1,
            BuildErrorKind::Unauthorized => 2,
            BuildErrorKind::RegistryUnreachable => 3,
            BuildErrorKind::RateLimited => 4,
            BuildErrorKind::DigestMismatch => 5,
            BuildErrorKind::UnsupportedImage => 6,
            BuildErrorKind::CorruptLayer => 7,
            BuildErrorKind::LimitExceeded => 8,
            BuildErrorKind::OutputNotWritable => 9,
            BuildErrorKind::StorageUnavailable => 10,
            BuildErrorKind::DiskFull => 11,
            BuildErrorKind::BackendUnavailable => 12,
            BuildErrorKind::TimedOut => 13,
            BuildErrorKind::Cancelled => 14,
            BuildErrorKind::Internal => 15,
        };
        let places: Vec<usize> = BuildErrorKind::ALL.iter().map(place).collect();
        assert_eq!(places, (0..BuildErrorKind::ALL.len()).collect::<Vec<_>>());
    }
}
