//! Why a call did not do what it should.

use std::time::Duration;

/// A call to assetmanagerd failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call} of assetmanagerd failed")]
pub struct AssetError {
    call: &'static str,
    #[source]
    kind: AssetErrorKind,
}

/// What went wrong.
///
/// `message` is text of the server, of 500 characters at most and without control characters: for operators, not
/// for tenants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AssetErrorKind {
    /// The asset cannot be described on the wire.
    #[error("invalid {field}")]
    InvalidInput {
        /// Its field.
        field: &'static str,
    },
    /// No connection could be made: the call was not carried out.
    #[error("assetmanagerd cannot be reached: {message}")]
    Unreachable {
        /// What is known.
        message: String,
    },
    /// Whoever answered cannot at the moment, or a connection broke; it may have been carried out.
    #[error("assetmanagerd is not available: {message}")]
    Unavailable {
        /// What is known.
        message: String,
    },
    /// No answer in time; it may have been carried out.
    #[error("no answer within {timeout:?}")]
    Timeout {
        /// The limit.
        timeout: Duration,
    },
    /// There is an asset of that id.
    #[error("the asset exists: {message}")]
    AlreadyExists {
        /// What the server said.
        message: String,
    },
    /// The asset cannot be deleted, because a virtual machine uses it.
    #[error("the asset is in use: {message}")]
    InUse {
        /// What the server said.
        message: String,
    },
    /// The server will not do it, however often it is asked.
    #[error("assetmanagerd refused with {code}: {message}")]
    Refused {
        /// The code's name in gRPC, as `PERMISSION_DENIED`.
        code: &'static str,
        /// What the server said.
        message: String,
    },
    /// The server failed in a way that may pass.
    #[error("assetmanagerd failed with {code}: {message}")]
    Failed {
        /// The code's name in gRPC, as `INTERNAL`.
        code: &'static str,
        /// What the server said.
        message: String,
    },
    /// What was to be uploaded could not be read, or was shorter than its size said.
    #[error("the content cannot be read: {kind}")]
    Content {
        /// What kind of failure of reading it was.
        kind: std::io::ErrorKind,
    },
    /// The answer makes no sense.
    #[error("unexpected answer: {reason}")]
    Protocol {
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl AssetError {
    pub(crate) fn new(call: &'static str, kind: AssetErrorKind) -> Self {
        Self { call, kind }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> &AssetErrorKind {
        &self.kind
    }

    /// What went wrong, for who keeps it.
    #[must_use]
    pub fn into_kind(self) -> AssetErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable()
    }
}

impl AssetErrorKind {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Unavailable { .. }
            | Self::Timeout { .. }
            | Self::Failed { .. }
            | Self::InUse { .. } => true,
            Self::InvalidInput { .. }
            | Self::AlreadyExists { .. }
            | Self::Refused { .. }
            | Self::Content { .. }
            | Self::Protocol { .. } => false,
        }
    }

    /// Whether the call may have been carried out although it failed: the answer was lost, or makes no sense.
    #[must_use]
    pub fn may_be_done(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::Timeout { .. }
            | Self::Failed { .. }
            | Self::Content { .. }
            | Self::Protocol { .. } => true,
            Self::Unreachable { .. }
            | Self::InvalidInput { .. }
            | Self::AlreadyExists { .. }
            | Self::InUse { .. }
            | Self::Refused { .. } => false,
        }
    }
}
