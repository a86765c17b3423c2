//! How a build comes into the service, and how it is taken out again.

use std::sync::{Arc, atomic::Ordering};

use tenant::{TenantId, TenantRecord};

use super::{Inner, PATIENCE, database_failed, live::EndReason, queue::Waiting, run, validate};
use crate::{
    build::{Build, BuildId, BuildState},
    error::ServiceError,
    event::{Component, Level},
    request::BuildRequest,
    store::{self, NewBuild, NewLine, StoreError},
};

pub(super) async fn accept(inner: Arc<Inner>, request: BuildRequest) -> Result<Build, ServiceError> {
    let tenant = request.tenant.tenant_id.clone();
    let observer = Arc::clone(&inner.observer);
    let result = admit(inner, request).await;
    if let Err(ServiceError::ResourceExhausted(_)) = &result {
        observer.refused(&tenant);
    }
    result
}

async fn admit(inner: Arc<Inner>, request: BuildRequest) -> Result<Build, ServiceError> {
    let checked = validate::request(&request, &inner.config.guest_architecture)?;
    if inner.unstored.load(Ordering::Relaxed) > 0 {
        return Err(ServiceError::DatabaseUnavailable);
    }
    if inner.storage_full.load(Ordering::Relaxed) {
        let limit = inner.config.storage_max_bytes.unwrap_or(0);
        return Err(ServiceError::ResourceExhausted(format!(
            "storage: the images of all tenants take the {limit} bytes that this service keeps, and none can be \
             removed; builds that are deleted free theirs"
        )));
    }
    if let Some(level) = request.limits.sandbox_level {
        inner
            .pipeline
            .launcher
            .offers(level)
            .map_err(validate::refused_level)?;
    }
    inner.lock_queue().reserve(inner.config.max_queued_builds)?;

    let id = BuildId::generate();
    // Before the row: whoever sees the row can follow it.
    let live = inner.live.insert(id);
    let line = NewLine::new(
        Level::Info,
        Component::Builder,
        format!("Accepted the build of {}", request.source.image_uri),
    );
    let new = NewBuild {
        id,
        request: request.clone(),
        created_at: store::now(),
        rootfs_path: inner.image_location(&request.tenant.tenant_id, id),
        lines: vec![line],
    };
    let tiers = inner.config.tenants.clone();
    let admit = move |record: &TenantRecord| checked.admit(tiers.limits(record.tier));
    let default_tier = inner.config.tenants.default_tier();
    let mut build = match inner.store.insert(new, default_tier, admit).await {
        Ok(build) => build,
        Err(error) => {
            inner.lock_queue().give_back();
            inner.live.remove(id);
            return Err(match error {
                StoreError::Refused(refusal) => *refusal,
                error => database_failed(error),
            });
        }
    };
    inner.observer.accepted(&id);
    {
        let mut queue = inner.lock_queue();
        queue.give_back();
        queue.push(Waiting { id, request, live });
        build.queue_position = queue.position(id);
    }
    Inner::dispatch(&inner);
    Ok(build)
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
