//! The one error type of the crate: what went wrong, by kind, in words that a tenant may read.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// Why an image or a blob could not be had.
///
/// Cheap to clone, because one failed download answers everybody who waits for it. The message is a lower-case fragment
/// that names the image, the blob or the host concerned; it never holds a secret, a signed URL, or text that a server
/// sent. The cause, where there is one, is in [`source`](Error::source).
#[derive(Clone)]
pub struct FetchError {
    inner: Arc<Inner>,
}

/// The class of a [`FetchError`]; decides the RPC code and whether trying again can help.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchErrorKind {
    /// The registry, directory or archive has no such image, tag, platform or blob.
    NotFound,
    /// The registry wants credentials, or does not accept the ones given.
    Unauthorized,
    /// The registry knows the credentials and refuses the access.
    Denied,
    /// The registry asks to come back later.
    RateLimited {
        /// When the registry will answer again, where it said so.
        until: Option<SystemTime>,
    },
    /// A size or count of the image is over a limit of this client.
    Limit,
    /// The bytes are not the ones that the digest or the size promise.
    DigestMismatch,
    /// The operator's policy forbids the registry, the address or the redirect.
    Policy,
    /// The network or the registry failed, and did so again on each retry.
    Transient,
    /// The other side's answer, document or archive breaks its specification.
    Protocol,
    /// The image took longer than [`ClientConfig::with_pull_timeout`](crate::ClientConfig::with_pull_timeout) allows.
    TimedOut,
    /// A well-formed request for something that this crate does not do.
    Unsupported,
    /// What the caller gave cannot be parsed or does not make sense.
    InvalidInput,
    /// The local disk failed: cache directory, archive file, no space left.
    Io,
}

impl FetchErrorKind {
    /// One of each kind, those that carry something without it: for tables that must miss none.
    pub const ALL: [Self; 13] = [
        Self::NotFound,
        Self::Unauthorized,
        Self::Denied,
        Self::RateLimited { until: None },
        Self::Limit,
        Self::DigestMismatch,
        Self::Policy,
        Self::Transient,
        Self::Protocol,
        Self::TimedOut,
        Self::Unsupported,
        Self::InvalidInput,
        Self::Io,
    ];
}

/// More causes than any error has; bounds the search for one that says something new.
const MAX_CAUSES: usize = 32;

struct Inner {
    kind: FetchErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl FetchError {
    pub(crate) fn new(kind: FetchErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                kind,
                message: message.into(),
                source: None,
            }),
        }
    }

    pub(crate) fn with_source(
        kind: FetchErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                kind,
                message: message.into(),
                source: Some(source.into()),
            }),
        }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(FetchErrorKind::NotFound, message)
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::new(FetchErrorKind::Protocol, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(FetchErrorKind::InvalidInput, message)
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::new(FetchErrorKind::Limit, message)
    }

    pub(crate) fn policy(message: impl Into<String>) -> Self {
        Self::new(FetchErrorKind::Policy, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(FetchErrorKind::Unsupported, message)
    }

    pub(crate) fn transient(message: impl Into<String>) -> Self {
        Self::new(FetchErrorKind::Transient, message)
    }

    pub(crate) fn io(message: impl Into<String>, source: std::io::Error) -> Self {
        Self::with_source(FetchErrorKind::Io, message, source)
    }

    /// The class of the error.
    #[must_use]
    pub fn kind(&self) -> &FetchErrorKind {
        &self.inner.kind
    }

    /// Whether the same call may well succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.inner.kind,
            FetchErrorKind::Transient | FetchErrorKind::RateLimited { .. }
        )
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.inner.message)
    }
}

impl fmt::Debug for FetchError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FetchError")
            .field("kind", &self.inner.kind)
            .field("message", &self.inner.message)
            .field("source", &self.inner.source)
            .finish()
    }
}

impl Error for FetchError {
    /// The cause; one that only repeats the message is left out, so that a chain in one line says each thing once.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let first = self
            .inner
            .source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static));
        std::iter::successors(first, |&error| error.source())
            .take(MAX_CAUSES)
            .find(|cause| cause.to_string() != self.inner.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_every_kind_once() {
        // A kind that is not here does not compile; one that is not in the list has no place.
        let place = |kind: &FetchErrorKind| match kind {
            FetchErrorKind::NotFound => 0,
            FetchErrorKind::Unauthorized => 1,
            FetchErrorKind::Denied => 2,
            FetchErrorKind::RateLimited { .. } => 3,
            FetchErrorKind::Limit => 4,
            FetchErrorKind::DigestMismatch => 5,
            FetchErrorKind::Policy => 6,
            FetchErrorKind::Transient => 7,
            FetchErrorKind::Protocol => 8,
            FetchErrorKind::TimedOut => 9,
            FetchErrorKind::Unsupported => 10,
            FetchErrorKind::InvalidInput => 11,
            FetchErrorKind::Io => 12,
        };
        let places: Vec<usize> = FetchErrorKind::ALL.iter().map(place).collect();
        assert_eq!(places, (0..FetchErrorKind::ALL.len()).collect::<Vec<_>>());
    }

    #[test]
    fn a_chain_says_each_text_once_and_keeps_the_causes_type() {
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let inner = FetchError::io("failed to open x", denied);
        let outer = FetchError::with_source(FetchErrorKind::Io, "failed to open x", inner);
        let causes: Vec<&(dyn Error + 'static)> =
            std::iter::successors(Some(&outer as &(dyn Error + 'static)), |&error| error.source()).collect();
        let texts: Vec<String> = causes.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["failed to open x", "permission denied"]);
        let cause = causes[1].downcast_ref::<std::io::Error>().unwrap();
        assert_eq!(cause.kind(), std::io::ErrorKind::PermissionDenied);
    }
}
