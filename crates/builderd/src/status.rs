//! The one table from errors to status codes.
//!
//! Every status carries details in the shapes of `google.rpc`, which clients of all protocols can decode: the field of
//! an invalid argument as `BadRequest`, anything else as `ErrorInfo`. What lies behind an internal error goes to the
//! log together with an id, and only the id goes to the caller.

use std::{collections::HashMap, error::Error};

use builder_core::error::{BuildErrorKind, Exhausted, ServiceError};
use bytes::Bytes;
use prost::Message as _;
use tonic::{Code, Status};

use crate::convert::{self, FieldError};

/// Where the reasons of [`ErrorInfo`] are defined.
const ERROR_DOMAIN: &str = "builderd";

/// Seconds to wait, for clients that speak HTTP.
const RETRY_HEADER: &str = "retry-after";

/// `google.rpc.Status`: what `grpc-status-details-bin` holds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcStatus {
    /// The code, again.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// The message, again.
    #[prost(string, tag = "2")]
    pub message: String,
    /// Messages that say more.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<prost_types::Any>,
}

/// `google.rpc.BadRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BadRequest {
    /// The fields that are wrong.
    #[prost(message, repeated, tag = "1")]
    pub field_violations: Vec<FieldViolation>,
}

/// `google.rpc.BadRequest.FieldViolation`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FieldViolation {
    /// The path of the field.
    #[prost(string, tag = "1")]
    pub field: String,
    /// What was expected and what was found.
    #[prost(string, tag = "2")]
    pub description: String,
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ErrorInfo {
    /// What happened, in capitals.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// Who defines the reason.
    #[prost(string, tag = "2")]
    pub domain: String,
    /// Names and figures.
    #[prost(map = "string, string", tag = "3")]
    pub metadata: HashMap<String, String>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RetryInfo {
    /// How long to wait before trying again.
    #[prost(message, optional, tag = "1")]
    pub retry_delay: Option<prost_types::Duration>,
}

/// The status for a request that cannot be understood.
#[must_use]
pub fn from_field_error(error: FieldError) -> Status {
    let message = error.to_string();
    match error {
        FieldError::Invalid {
            field,
            message: description,
        } => invalid_argument(&message, field, description),
        FieldError::Unimplemented { field, .. } => with_info(
            Code::Unimplemented,
            &message,
            "NOT_IMPLEMENTED",
            [("field", field)],
        ),
    }
}

/// The status for a call that the builder refused.
#[must_use]
pub fn from_service_error(error: ServiceError) -> Status {
    let message = error.to_string();
    match error {
        ServiceError::InvalidArgument {
            field,
            message: description,
        } => invalid_argument(&message, field, description),
        ServiceError::NotFound => with_info(Code::NotFound, &message, "BUILD_NOT_FOUND", []),
        ServiceError::PermissionDenied => with_info(Code::PermissionDenied, &message, "OTHER_TENANT", []),
        ServiceError::FailedPrecondition(_) => {
            with_info(Code::FailedPrecondition, &message, "WRONG_STATE", [])
        }
        ServiceError::ResourceExhausted(told) => exhausted(&told),
        ServiceError::AlreadyExists(_) => with_info(Code::AlreadyExists, &message, "KEY_REUSED", []),
        ServiceError::Unavailable(_) => with_info(Code::Unavailable, &message, "DRAINING", []),
        ServiceError::DatabaseUnavailable => {
            with_info(Code::Unavailable, &message, "DATABASE_UNAVAILABLE", [])
        }
        ServiceError::Unimplemented { feature } => with_info(
            Code::Unimplemented,
            &message,
            "NOT_IMPLEMENTED",
            [("feature", feature)],
        ),
        ServiceError::Internal(cause) => internal(cause.as_ref()),
        // The list of kinds may grow; until this table knows one, it is treated as our own fault.
        other => internal(&other),
    }
}

/// The code for a build that ended without an image.
///
/// No call answers with it, because a build fails after CreateBuild was answered; it stands beside the kind in the metadata of
/// the log's last line. The registry's refusal is PERMISSION_DENIED: UNAUTHENTICATED would be about the caller of this service.
#[must_use]
pub const fn code_of_failure(kind: &BuildErrorKind) -> Code {
    match kind {
        BuildErrorKind::InvalidArgument { .. } => Code::InvalidArgument,
        BuildErrorKind::ImageNotFound => Code::NotFound,
        BuildErrorKind::Unauthorized => Code::PermissionDenied,
        BuildErrorKind::RegistryUnreachable
        | BuildErrorKind::OutputNotWritable
        | BuildErrorKind::StorageUnavailable => Code::Unavailable,
        BuildErrorKind::RateLimited | BuildErrorKind::LimitExceeded | BuildErrorKind::DiskFull => {
            Code::ResourceExhausted
        }
        BuildErrorKind::DigestMismatch => Code::DataLoss,
        BuildErrorKind::UnsupportedImage
        | BuildErrorKind::CorruptLayer
        | BuildErrorKind::BackendUnavailable => Code::FailedPrecondition,
        BuildErrorKind::TimedOut => Code::DeadlineExceeded,
        BuildErrorKind::Cancelled => Code::Cancelled,
        // Our own fault, and kinds that this table does not know.
        _ => Code::Internal,
    }
}

/// The name of the code for a kind that a log's line names; `None` for a word that is no kind.
pub(crate) fn code_name_of_failure(kind: &str) -> Option<&'static str> {
    // A build whose credentials are gone can be submitted again.
    if kind == "credentials_lost" {
        return Some(code_name(Code::Aborted));
    }
    BuildErrorKind::ALL
        .iter()
        .find(|known| known.as_str() == kind)
        .map(|known| code_name(code_of_failure(known)))
}

/// A status with an [`ErrorInfo`].
#[must_use]
pub fn with_info<const N: usize>(
    code: Code,
    message: &str,
    reason: &str,
    metadata: [(&str, String); N],
) -> Status {
    let info = ErrorInfo {
        reason: reason.to_owned(),
        domain: ERROR_DOMAIN.to_owned(),
        metadata: metadata.map(|(name, value)| (name.to_owned(), value)).into(),
    };
    with_detail(code, message, "google.rpc.ErrorInfo", &info)
}

/// A quota that is used up: which, how much, and when another attempt makes sense, as `google.rpc.RetryInfo` and as the
/// header `Retry-After`, in whole seconds.
fn exhausted(told: &Exhausted) -> Status {
    let mut metadata: HashMap<String, String> = [
        ("quota", told.quota.to_owned()),
        ("current", told.current.to_string()),
        ("limit", told.limit.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let frees_at = told.frees_at.map(|moment| convert::timestamp(moment).to_string());
    metadata.extend(frees_at.map(|moment| ("frees_at".to_owned(), moment)));
    let info = ErrorInfo {
        reason: "QUOTA_EXHAUSTED".to_owned(),
        domain: ERROR_DOMAIN.to_owned(),
        metadata,
    };
    let mut details = vec![detail("google.rpc.ErrorInfo", &info)];
    let seconds = told.retry_after.map(|wait| wait.as_secs().max(1));
    if let Some(seconds) = seconds {
        let retry = RetryInfo {
            retry_delay: Some(prost_types::Duration {
                seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
                nanos: 0,
            }),
        };
        details.push(detail("google.rpc.RetryInfo", &retry));
    }
    let mut status = with_details(Code::ResourceExhausted, &told.message, details);
    if let Some(seconds) = seconds {
        status.metadata_mut().insert(RETRY_HEADER, seconds.into());
    }
    status
}

/// Logs what lies behind an internal error and answers with the id under which it was logged.
#[must_use]
pub fn internal(cause: &(dyn Error + 'static)) -> Status {
    let id = builder_core::build::BuildId::generate()
        .to_string()
        .replacen("build-", "error-", 1);
    let mut chain = cause.to_string();
    let mut source = cause.source();
    while let Some(error) = source {
        chain.push_str(": ");
        chain.push_str(&error.to_string());
        source = error.source();
    }
    tracing::error!(error.id = %id, error = %chain, "Request failed by our own fault");
    let message = format!("internal error, logged as {id}");
    with_info(Code::Internal, &message, "INTERNAL", [("error_id", id)])
}

fn invalid_argument(message: &str, field: String, description: String) -> Status {
    let violations = BadRequest {
        field_violations: vec![FieldViolation { field, description }],
    };
    with_detail(
        Code::InvalidArgument,
        message,
        "google.rpc.BadRequest",
        &violations,
    )
}

fn with_detail(code: Code, message: &str, type_name: &str, value: &impl prost::Message) -> Status {
    with_details(code, message, vec![detail(type_name, value)])
}

fn detail(type_name: &str, value: &impl prost::Message) -> prost_types::Any {
    prost_types::Any {
        type_url: format!("type.googleapis.com/{type_name}"),
        value: value.encode_to_vec(),
    }
}

fn with_details(code: Code, message: &str, details: Vec<prost_types::Any>) -> Status {
    let status = RpcStatus {
        code: code.into(),
        message: message.to_owned(),
        details,
    };
    Status::with_details(code, message, Bytes::from(status.encode_to_vec()))
}

/// The name of a code, as the specification of gRPC spells it.
pub(crate) const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use oci_fetch::FetchErrorKind;

    use super::*;

    #[test]
    fn each_kind_of_the_registry_client_has_a_code() {
        let codes = [
            (FetchErrorKind::NotFound, Code::NotFound),
            (FetchErrorKind::Unauthorized, Code::PermissionDenied),
            (FetchErrorKind::Denied, Code::PermissionDenied),
            (
                FetchErrorKind::RateLimited { until: None },
                Code::ResourceExhausted,
            ),
            (FetchErrorKind::Limit, Code::ResourceExhausted),
            (FetchErrorKind::DigestMismatch, Code::DataLoss),
            (FetchErrorKind::Policy, Code::InvalidArgument),
            (FetchErrorKind::Transient, Code::Unavailable),
            (FetchErrorKind::Protocol, Code::FailedPrecondition),
            (FetchErrorKind::TimedOut, Code::DeadlineExceeded),
            (FetchErrorKind::Unsupported, Code::FailedPrecondition),
            (FetchErrorKind::InvalidInput, Code::InvalidArgument),
            (FetchErrorKind::Io, Code::Internal),
        ];
        // Every kind there is, in the list's order: a new one fails here until it has a row.
        assert_eq!(codes.clone().map(|(kind, _)| kind), FetchErrorKind::ALL);
        for (kind, code) in codes {
            assert_eq!(code_of_failure(&BuildErrorKind::from(&kind)), code, "{kind:?}");
        }
    }

    #[test]
    fn only_our_own_fault_is_internal_and_each_word_of_a_log_has_its_code() {
        for kind in BuildErrorKind::ALL {
            let code = code_of_failure(&kind);
            assert_eq!(
                code == Code::Internal,
                kind == BuildErrorKind::Internal,
                "{kind:?}"
            );
            assert_eq!(
                code_name_of_failure(kind.as_str()),
                Some(code_name(code)),
                "{kind:?}"
            );
        }
        assert_eq!(code_name_of_failure("credentials_lost"), Some("ABORTED"));
        assert_eq!(code_name_of_failure("of a later version"), None);
    }
}
