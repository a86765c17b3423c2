//! A response whose header has arrived: bounded bodies, and errors without the server's words.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use crate::error::{FetchError, FetchErrorKind};
use crate::net::content_range::{self, ContentRange};
use crate::net::retry::{rate_limited, retry_after};
use crate::net::slots::Slot;

/// As much of an error's body as is read.
const MAX_ERROR_BYTES: u64 = 8 * 1024;

/// Reading an error's body is not worth waiting for.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Answer {
    pub(crate) response: reqwest::Response,
    /// Whether the final URL has the origin of the first one; if not, the response is not the registry's.
    pub(crate) is_origin: bool,
    /// Held to the end of the body.
    pub(crate) slot: Slot,
}

/// An unsuccessful response, sorted.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) error: FetchError,
    pub(crate) retry_after: Option<Duration>,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(crate) fn content_type(&self) -> Option<String> {
        self.headers().get(CONTENT_TYPE)?.to_str().ok().map(str::to_owned)
    }

    pub(crate) fn content_length(&self) -> Option<u64> {
        self.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }

    pub(crate) fn content_range(&self) -> Option<ContentRange> {
        let mut values = self.headers().get_all(CONTENT_RANGE).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => content_range::parse(value.to_str().ok()?),
            _ => None,
        }
    }

    /// Every `WWW-Authenticate` header that is text.
    pub(crate) fn challenges(&self) -> Vec<String> {
        let values = self.headers().get_all(WWW_AUTHENTICATE).iter();
        values
            .filter_map(|value| value.to_str().ok())
            .map(str::to_owned)
            .take(8)
            .collect()
    }

    /// A body under a content coding has not the bytes that the digest is of.
    pub(crate) fn check_encoding(&self, registry: &str) -> Result<(), FetchError> {
        match self.headers().get(CONTENT_ENCODING) {
            Some(coding) if coding != "identity" => Err(FetchError::protocol(format!(
                "registry {registry} sends a content encoding that was not asked for"
            ))),
            _ => Ok(()),
        }
    }

    /// Reads the whole body, of at most `limit` bytes, within `deadline`.
    pub(crate) async fn read_document(
        mut self,
        registry: &str,
        what: &str,
        limit: u64,
        deadline: Duration,
    ) -> Result<Vec<u8>, FetchError> {
        let too_large = || FetchError::limit(format!("{what} is larger than {limit} bytes"));
        self.check_encoding(registry)?;
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let read = async {
            let mut body = Vec::new();
            while let Some(chunk) = self.chunk(registry).await? {
                if body.len() as u64 + chunk.len() as u64 > limit {
                    return Err(too_large());
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body)
        };
        tokio::time::timeout(deadline, read)
            .await
            .map_err(|_| FetchError::transient(format!("registry {registry} sends the {what} too slowly")))?
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self, registry: &str) -> Result<Option<Bytes>, FetchError> {
        self.response.chunk().await.map_err(|error| {
            FetchError::with_source(
                FetchErrorKind::Transient,
                format!("connection to registry {registry} broke"),
                error.without_url(),
            )
        })
    }

    /// Turns an unsuccessful response into an error. `what` is what was asked for.
    pub(crate) async fn refuse(mut self, registry: &str, what: &str) -> Refusal {
        let status = self.status();
        let retry_after = retry_after(self.headers(), SystemTime::now());
        let is_origin = self.is_origin;
        let code = self
            .error_code()
            .await
            .map(|code| format!(" ({code})"))
            .unwrap_or_default();
        let error = match status.as_u16() {
            404 | 410 => FetchError::not_found(format!("registry {registry} has no such {what}{code}")),
            // A signed URL that has expired: a fresh request to the registry makes a new one.
            401 | 403 if !is_origin => {
                FetchError::transient(format!("storage behind registry {registry} refuses the {what}"))
            }
            401 => FetchError::new(
                FetchErrorKind::Unauthorized,
                format!(
                    "registry {registry} wants other credentials for the {what}, or it does not exist{code}"
                ),
            ),
            403 | 451 => FetchError::new(
                FetchErrorKind::Denied,
                format!("registry {registry} denies access to the {what}{code}"),
            ),
            429 => rate_limited(registry, retry_after),
            408 | 425 | 500..=599 => FetchError::transient(format!(
                "registry {registry} failed with HTTP status {}{code}",
                status.as_u16()
            )),
            _ => FetchError::protocol(format!(
                "registry {registry} answered with HTTP status {}{code}",
                status.as_u16()
            )),
        };
        Refusal { error, retry_after }
    }

    /// The code of the first error in the body, if it is one that the specification lists.
    ///
    /// Nothing else of the body goes any further: whatever a redirect or a token service was pointed at would otherwise
    /// read out to the caller.
    async fn error_code(&mut self) -> Option<&'static str> {
        #[derive(Deserialize)]
        struct Envelope {
            errors: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            code: String,
        }
        if !self.is_origin {
            return None;
        }
        let read = async {
            let mut body = Vec::new();
            while let Ok(Some(chunk)) = self.response.chunk().await {
                body.extend_from_slice(&chunk);
                if body.len() as u64 >= MAX_ERROR_BYTES {
                    return None;
                }
            }
            Some(body)
        };
        let body = tokio::time::timeout(ERROR_BODY_TIMEOUT, read).await.ok()??;
        let envelope: Envelope = serde_json::from_slice(&body).ok()?;
        let code = envelope.errors.into_iter().next()?.code;
        ERROR_CODES.iter().copied().find(|known| *known == code)
    }
}

/// Source: OCI distribution-spec 1.1, "Error Codes".
const ERROR_CODES: &[&str] = &[
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
];
