//! What the service refused, in words and as an exit code.

use std::{
    error::Error,
    io::{self, Write as _},
};

use assetclient::TlsEnd;
use prost::Message as _;
use serde_json::{Map, Value, json};
use tonic::{Code, Status, TimeoutExpired};

use super::output::printable;
use crate::{
    commands::chain,
    exit::{Exit, Failure},
    status::{BadRequest, ErrorInfo, RpcStatus, code_name},
};

const fn exit(code: Code) -> Exit {
    match code {
        Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => Exit::Usage,
        Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Exit::Data,
        Code::NotFound => Exit::NotFound,
        Code::Unavailable => Exit::Unavailable,
        Code::ResourceExhausted | Code::DeadlineExceeded | Code::Cancelled => Exit::Later,
        Code::PermissionDenied | Code::Unauthenticated => Exit::Permission,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => Exit::Internal,
    }
}

/// A status as a failure: the code, what was said, the field, and what else the service told about it; or how the
/// connection broke, `ending` being what the service said in TLS then.
pub(super) fn from_status(status: &Status, ending: Option<&TlsEnd>) -> Failure {
    if let Some(cause) = lost(status) {
        let end = ending.map_or_else(String::new, |end| format!("{end}: "));
        let message = format!(
            "the connection to the service broke: {end}{}",
            printable(&chain(cause))
        );
        return Failure::new(Exit::Unavailable, message);
    }
    let mut lines = vec![format!(
        "{}: {}",
        code_name(status.code()),
        printable(status.message())
    )];
    for detail in details(status) {
        match detail {
            // The message names the field, mostly.
            Detail::Field { field, description } if !status.message().contains(&field) => {
                lines.push(format!(
                    "  field {}: {}",
                    printable(&field),
                    printable(&description)
                ));
            }
            Detail::Field { .. } => {}
            Detail::Info { reason, metadata } => {
                let said = metadata
                    .into_iter()
                    .map(|(name, value)| format!(", {} {}", printable(&name), printable(&value)));
                let line = format!("  reason {}{}", printable(&reason), said.collect::<String>());
                lines.push(line);
            }
        }
    }
    Failure::new(exit(status.code()), lines.join("\n"))
}

/// Why the connection broke, or could not be made again, before the answer was here; `None` for what the service said,
/// and for a limit of time.
///
/// A status with a cause was made on this side: what is read off the wire has none. The cause may also be that the
/// service has ended this one call, which is its answer.
fn lost(status: &Status) -> Option<&(dyn Error + 'static)> {
    let cause = status.source()?;
    let mut next = Some(cause);
    // Chains are a handful of errors long.
    for _ in 0..8 {
        let Some(error) = next else { break };
        let call_ended = error
            .downcast_ref::<h2::Error>()
            .is_some_and(|error| error.is_reset() && error.is_remote());
        if call_ended || error.is::<TimeoutExpired>() {
            return None;
        }
        next = error.source();
    }
    Some(cause)
}

enum Detail {
    Field {
        field: String,
        description: String,
    },
    Info {
        reason: String,
        metadata: Vec<(String, String)>,
    },
}

fn details(status: &Status) -> Vec<Detail> {
    let details = RpcStatus::decode(status.details()).unwrap_or_default().details;
    let mut found = Vec::new();
    for detail in details {
        match detail.type_url.rsplit('/').next().unwrap_or_default() {
            "google.rpc.BadRequest" => {
                let request = BadRequest::decode(detail.value.as_slice()).unwrap_or_default();
                found.extend(
                    request
                        .field_violations
                        .into_iter()
                        .map(|violation| Detail::Field {
                            field: violation.field,
                            description: violation.description,
                        }),
                );
            }
            "google.rpc.ErrorInfo" => {
                let info = ErrorInfo::decode(detail.value.as_slice()).unwrap_or_default();
                let mut metadata: Vec<_> = info.metadata.into_iter().collect();
                metadata.sort();
                found.push(Detail::Info {
                    reason: info.reason,
                    metadata,
                });
            }
            _ => {}
        }
    }
    found
}

/// Says on standard error why a command failed.
pub(super) fn report(failure: &Failure, json: bool) {
    if failure.message.is_empty() {
        return;
    }
    // Where this cannot be said, the exit code has to do.
    if json {
        let mut error = Map::new();
        let (first, rest) = failure.message.split_once('\n').unwrap_or((&failure.message, ""));
        if let Some((code, message)) = first.split_once(": ").filter(|(code, _)| {
            !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        }) {
            error.insert("code".to_owned(), Value::from(code));
            error.insert("message".to_owned(), Value::from(message));
        } else {
            error.insert("message".to_owned(), Value::from(first));
        }
        if !rest.is_empty() {
            let details: Vec<_> = rest.lines().map(str::trim_start).collect();
            error.insert("details".to_owned(), json!(details));
        }
        error.insert("exit_code".to_owned(), Value::from(failure.exit.code()));
        drop(writeln!(io::stderr(), "{}", json!({ "error": error })));
        return;
    }
    for line in failure.message.lines() {
        drop(writeln!(io::stderr(), "builderd-cli: {line}"));
    }
}
