//! How a build comes into the service, and how it is taken out again.

use std::sync::{Arc, atomic::Ordering};

use sha2::{Digest as _, Sha256};
use tenant::{IdempotencyKey, Limits, TenantId};

use super::{Inner, PATIENCE, database_failed, internal, live::EndReason, queue::Waiting, run, validate};
use crate::{
    build::{Build, BuildId, BuildState},
    error::{Exhausted, ServiceError},
    event::{Component, Level},
    request::BuildRequest,
    store::{self, Inserted, NewBuild, NewLine, StoreError},
};

/// What a request with a key asks for, without credentials, which serde skips.
fn key(request: &BuildRequest, key: &str) -> Result<IdempotencyKey, ServiceError> {
    let text = serde_json::to_vec(request).map_err(|error| ServiceError::Internal(Box::new(error)))?;
    IdempotencyKey::new(key, Sha256::digest(text).into()).map_err(|error| ServiceError::InvalidArgument {
        field: "Idempotency-Key".to_owned(),
        message: error.to_string(),
    })
}

pub(super) async fn accept(
    inner: Arc<Inner>,
    request: BuildRequest,
    idempotency_key: Option<String>,
) -> Result<Build, ServiceError> {
    let tenant = request.tenant.tenant_id.clone();
    let observer = Arc::clone(&inner.observer);
    let result = admit(inner, request, idempotency_key).await;
    if let Err(ServiceError::ResourceExhausted(_)) = &result {
        observer.refused(&tenant);
    }
    result
}

async fn admit(
    inner: Arc<Inner>,
    request: BuildRequest,
    idempotency_key: Option<String>,
) -> Result<Build, ServiceError> {
    let key = idempotency_key.map(|text| key(&request, &text)).transpose()?;
    if inner.lock_queue().is_draining() {
        let message = "the service is shutting down: try again later";
        return Err(ServiceError::Unavailable(message.to_owned()));
    }
    let checked = validate::request(&request, &inner.config.guest_architecture)?;
    if inner.unstored.load(Ordering::Relaxed) > 0 {
        return Err(ServiceError::DatabaseUnavailable);
    }
    let tenant = &request.tenant.tenant_id;
    let id = BuildId::generate();
    let mut lines = vec![NewLine::new(
        Level::Info,
        Component::Builder,
        format!("Accepted the build of {}", request.source.image_uri),
    )];
    lines.extend(inner.next_place(tenant).await.map(|place| {
        let start = match place.estimated_start {
            Some(start) => {
                let wait = start.duration_since(store::now()).unwrap_or_default();
                format!("; it starts in about {} seconds", wait.as_secs())
            }
            None => String::new(),
        };
        let message = format!(
            "The build waits: {} builds are served before it{start}",
            place.before
        );
        NewLine::new(Level::Info, Component::Builder, message)
    }));
    let new = NewBuild {
        id,
        request: request.clone(),
        requested: checked.requested().clone(),
        key,
        created_at: store::now(),
        rootfs_path: inner.image_location(tenant, id),
        lines,
    };
    // Before the row: whoever sees the row can follow it, and whose turn it is finds it.
    let live = inner.live.insert(id);
    inner.lock_queue().insert(Waiting { id, request, live });
    // Only for a build that is new: a key that is repeated gets the build that it made.
    let refused = no_room(&inner);
    let launcher = Arc::clone(&inner.pipeline.launcher);
    let check = move |limits: &Limits| match refused {
        Some(refusal) => Err(refusal),
        None => checked.admit(limits, &*launcher),
    };
    let tenants = inner.config.tenants.clone();
    let inserted = inner.store.insert(new, tenants, inner.capacity(), check).await;
    if !matches!(inserted, Ok(Inserted::New(_))) {
        inner.lock_queue().remove(id);
        inner.live.remove(id);
    }
    match inserted {
        Ok(Inserted::New(mut build)) => {
            inner.observer.accepted(&id);
            inner.wake.notify_one();
            inner.refresh(&mut build).await;
            Ok(*build)
        }
        Ok(Inserted::Repeated(first)) => {
            let found = inner.store.get(first).await.map_err(internal)?;
            let Some(found) = found else {
                let message = "Idempotency-Key: the build that this key made was deleted";
                return Err(ServiceError::FailedPrecondition(message.to_owned()));
            };
            let mut build = found.build;
            inner.refresh(&mut build).await;
            Ok(build)
        }
        Err(StoreError::Refused(refusal)) => Err(*refusal),
        Err(error) => Err(database_failed(error)),
    }
}

/// The refusal while the images of all tenants take more than they may.
fn no_room(inner: &Inner) -> Option<ServiceError> {
    if !inner.storage_full.load(Ordering::Relaxed) {
        return None;
    }
    let limit = inner.config.storage_max_bytes.unwrap_or(0);
    Some(ServiceError::ResourceExhausted(Exhausted {
        quota: "storage",
        current: limit,
        limit,
        message: format!(
            "storage: the images of all tenants take the {limit} bytes that this service keeps, and none can be \
             removed; builds that are deleted free theirs"
        ),
        frees_at: None,
        retry_after: Some(inner.config.cleanup_interval),
    }))
}

pub(super) async fn cancel(inner: Arc<Inner>, tenant: TenantId, id: BuildId) -> Result<Build, ServiceError> {
    inner.find(&tenant, id).await?;
    let removed = inner.lock_queue().remove(id);
    if let Some(waiting) = removed {
        run::end_waiting(&inner, waiting.id, &waiting.live, EndReason::ByRequest).await;
    } else if let Some(live) = inner.live.get(id) {
        live.end(EndReason::ByRequest);
        if tokio::time::timeout(PATIENCE, live.ended()).await.is_err() {
            return Err(ServiceError::Unavailable("the build does not end".to_owned()));
        }
    }
    let build = inner.find(&tenant, id).await?;
    if build.state == BuildState::Cancelled {
        Ok(build)
    } else {
        let message = format!("the build has ended as {}", build.state.as_str());
        Err(ServiceError::FailedPrecondition(message))
    }
}
