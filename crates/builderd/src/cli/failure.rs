//! What the service refused, in words and as an exit code.

use std::io::{self, Write as _};

use prost::Message as _;
use serde_json::{Map, Value, json};
use tonic::{Code, Status};

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

/// A status as a failure: the code, what was said, the field, and what else the service told about it.
pub(super) fn from_status(status: &Status) -> Failure {
    // A status of this kind with a cause was made on this side: nothing came back. A client whose certificate is refused
    // learns it here, since in TLS 1.3 its own part of the handshake has succeeded.
    if status.code() == Code::Unknown
        && let Some(cause) = std::error::Error::source(status)
    {
        let message = format!(
            "the connection to the service broke: {}",
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
