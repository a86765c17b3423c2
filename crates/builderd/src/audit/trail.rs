//! One call, from its arrival to its event.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use builder_core::{
    audit::{Actor, AuditEvent, AuditResult},
    build::BuildId,
};
use tonic::Code;

use super::AuditLog;
use crate::status::code_name;

/// Methods that change something: every call is an event, however it ends.
const CHANGING: [&str; 3] = ["CreateBuild", "CancelBuild", "DeleteBuild"];

/// What a method learns about its call. It is among the request's extensions; without an audit log nobody reads it.
#[derive(Clone, Debug, Default)]
pub struct Trail(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    tenant: Option<String>,
    target: Option<String>,
}

impl Trail {
    /// The tenant that the request names.
    pub fn names_tenant(&self, tenant: &str) {
        self.found().tenant = Some(tenant.to_owned());
    }

    /// The build that it is about.
    pub fn names_build(&self, build: BuildId) {
        self.found().target = Some(build.to_string());
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that will be an event if it has to.
#[derive(Debug)]
pub(crate) struct Call {
    log: AuditLog,
    method: String,
    actor: Actor,
    trail: Trail,
}

impl Call {
    /// A call of `path`, as `/builder.v1.BuilderService/CreateBuild`.
    pub(crate) fn new(log: AuditLog, path: &str, actor: Actor, trail: Trail) -> Self {
        let method = path.rsplit('/').next().unwrap_or_default().to_owned();
        Self {
            log,
            method,
            actor,
            trail,
        }
    }

    /// How it ended. `message` is what the caller is told.
    pub(crate) fn ended(self, code: Code, message: &str) {
        let denied = matches!(
            code,
            Code::Unauthenticated | Code::PermissionDenied | Code::ResourceExhausted
        );
        if !denied && !CHANGING.contains(&self.method.as_str()) {
            return;
        }
        let mut event = AuditEvent::new(self.method, self.actor, SystemTime::now());
        {
            let mut found = self.trail.found();
            if let Some(tenant) = found.tenant.take() {
                event = event.of_tenant(tenant);
            }
            if let Some(target) = found.target.take() {
                event = event.on(target);
            }
        }
        if !message.is_empty() {
            event = event.because(message);
        }
        event.result = match code {
            Code::Ok => AuditResult::Ok,
            _ if denied => AuditResult::Refused,
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented => AuditResult::Refused,
            Code::Cancelled | Code::DeadlineExceeded => AuditResult::Unknown,
            _ => AuditResult::Failed,
        };
        event.code = (code != Code::Ok).then(|| code_name(code).to_owned());
        self.log.record(&event);
    }
}
