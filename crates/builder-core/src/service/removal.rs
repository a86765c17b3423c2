//! Taking a build away: by request, because its time is over, or only its image because room is needed.
//!
//! ```text
//! ended? ─ nobody uses the asset? ─ asset forgotten ─ tombstone, log gone (one transaction) ─ files gone
//! ```
//!
//! In this order a crash leaves at most files of a build that is gone, which the sweep finds; never a build that says
//! that its image is there when it is not known to be. An image is never taken from under a running virtual machine, not
//! even by force: an asset that somebody uses, or of which that is not known, keeps its build. What asking cannot settle,
//! a registration whose answer never came, is left to the outbox, which looks for such an asset once more later.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, Weak},
    time::SystemTime,
};

use assetclient::AssetErrorKind;
use tenant::TenantId;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{Inner, PATIENCE, accept, database_failed};
use crate::{
    artifact::ArtifactKey,
    audit::{Actor, AuditEvent},
    build::{Build, BuildId},
    error::ServiceError,
    event::{Component, Level},
    outbox::owner,
    store::{NewLine, StoreError},
};

/// One removal at a time for each build.
#[derive(Debug, Default)]
pub(super) struct RemovalLocks(std::sync::Mutex<HashMap<BuildId, Weak<Mutex<()>>>>);

impl RemovalLocks {
    pub(super) async fn lock(&self, id: BuildId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(&id).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::default();
                    locks.insert(id, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

/// Why an asset, and with it an image, has to stay.
#[derive(Debug, thiserror::Error)]
pub(super) enum StillNeeded {
    #[error("{0} virtual machines use the image")]
    InUse(u32),
    #[error("a virtual machine uses the image")]
    Used,
    #[error("it is not known whether a virtual machine uses the image: {0}")]
    Unknown(String),
}

pub(super) async fn delete(
    inner: Arc<Inner>,
    tenant: TenantId,
    id: BuildId,
    force: bool,
) -> Result<(), ServiceError> {
    let build = inner.find(&tenant, id).await?;
    if !build.state.is_terminal() {
        if !force {
            let message = format!(
                "the build has not ended, it is {}: cancel it, or delete it with force",
                build.state.as_str()
            );
            return Err(ServiceError::FailedPrecondition(message));
        }
        match accept::cancel(Arc::clone(&inner), tenant.clone(), id).await {
            // It may have ended by itself in the meantime.
            Ok(_) | Err(ServiceError::FailedPrecondition(_)) => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(live) = inner.live.get(id)
        && tokio::time::timeout(PATIENCE, live.ended()).await.is_err()
    {
        return Err(ServiceError::Unavailable("the build does not end".to_owned()));
    }
    let removal = tokio::time::timeout(PATIENCE, inner.removals.lock(id)).await;
    let _removal = removal
        .map_err(|_| ServiceError::Unavailable("another removal of the build is under way".to_owned()))?;
    let needed = |reason: StillNeeded| ServiceError::FailedPrecondition(reason.to_string());
    let mut buried = Err(StoreError::AssetChanged);
    // A build becomes known to assetmanagerd once, so the second time is the last.
    for _ in 0..3 {
        // Another request may have been faster.
        let build = inner.find(&tenant, id).await?;
        inner.release_asset(&build).await.map_err(needed)?;
        buried = inner.bury(&build, None).await;
        if !matches!(buried, Err(StoreError::AssetChanged)) {
            break;
        }
    }
    buried.map_err(|error| match error {
        StoreError::NoSuchBuild => ServiceError::NotFound,
        // It was requeued because of a shutdown.
        StoreError::NotEnded => {
            ServiceError::Unavailable("the build has not ended: try again later".to_owned())
        }
        error => database_failed(error),
    })?;
    inner.make_room.notify_one();
    Ok(())
}

impl Inner {
    pub(super) fn key(build: &Build) -> ArtifactKey {
        ArtifactKey {
            tenant: build.request.tenant.tenant_id.clone(),
            build: build.id,
        }
    }

    /// Makes assetmanagerd forget the image of a build, unless somebody uses it. An image that may be registered, because
    /// an answer was lost, is looked for; one that surely is not needs no assetmanagerd.
    pub(super) async fn release_asset(&self, build: &Build) -> Result<(), StillNeeded> {
        let asset_id = match &build.asset_id {
            Some(asset_id) => asset_id.clone(),
            None => match self.store.uncertain_registration(build.id).await {
                Ok(None) => return Ok(()),
                Ok(Some(registration)) => registration.asset_id,
                Err(error) => {
                    tracing::error!(build.id = %build.id, error = &error as &dyn std::error::Error, "Failed to read the outbox");
                    return Err(StillNeeded::Unknown("the database gives no answer".to_owned()));
                }
            },
        };
        let Some(assets) = &self.assets else {
            let reason = "it is registered as an asset, and this service is not connected to assetmanagerd";
            return Err(StillNeeded::Unknown(reason.to_owned()));
        };
        let tenant = &build.request.tenant;
        let owner = owner(&tenant.tenant_id, &tenant.customer_id);
        let unknown = |error: &assetclient::AssetError| {
            tracing::warn!(build.id = %build.id, error = error as &dyn std::error::Error, "No clear answer about an asset");
            StillNeeded::Unknown("assetmanagerd gives no clear answer".to_owned())
        };
        let is_certain = build.asset_id.is_some();
        match assets.find(&owner, &asset_id).await {
            // The id that was asked for, and that another has.
            Ok(Some(asset)) if !is_certain && asset.build_id != build.id.to_string() => return Ok(()),
            Ok(Some(asset)) if asset.reference_count > 0 => {
                return Err(StillNeeded::InUse(asset.reference_count));
            }
            Ok(Some(_)) => {}
            // It was deleted there, or by an attempt of ours that did not get further, or never came to be.
            Ok(None) => return Ok(()),
            Err(error) => return Err(unknown(&error)),
        }
        // Somebody may have acquired it in between; assetmanagerd decides.
        assets
            .delete(&owner, &asset_id)
            .await
            .map(drop)
            .map_err(|error| match error.kind() {
                AssetErrorKind::InUse { .. } => StillNeeded::Used,
                _ => unknown(&error),
            })
    }

    /// Leaves a tombstone of a build that has ended, and removes its files.
    pub(super) async fn bury(&self, build: &Build, event: Option<AuditEvent>) -> Result<(), StoreError> {
        self.store.bury(build.id, build.asset_id.clone(), event).await?;
        self.outbox_changed.notify_one();
        self.remove_files(&Self::key(build)).await;
        tracing::info!(build.id = %build.id, tenant.id = %build.request.tenant.tenant_id, "Build removed");
        Ok(())
    }

    /// Removes the image of a build and keeps the rest.
    pub(super) async fn evict_image(&self, build: &Build) -> Result<(), StoreError> {
        let event = self.own_act("storage.evict", build, "room was needed for others");
        let line = NewLine::new(
            Level::Warn,
            Component::Publisher,
            "The image was removed to make room for others: build it again when it is needed",
        );
        self.store
            .forget_image(build.id, build.asset_id.clone(), line, event)
            .await?;
        self.outbox_changed.notify_one();
        self.remove_files(&Self::key(build)).await;
        tracing::info!(build.id = %build.id, tenant.id = %build.request.tenant.tenant_id, "Image removed to make room");
        Ok(())
    }

    /// What the service does of its own accord, for the audit log when there is one.
    pub(super) fn own_act(&self, action: &str, build: &Build, reason: &str) -> Option<AuditEvent> {
        self.config.audit.then(|| {
            AuditEvent::new(action, Actor::builderd(), SystemTime::now())
                .of_tenant(build.request.tenant.tenant_id.as_str())
                .on(build.id.to_string())
                .because(reason)
        })
    }

    /// What cannot be removed now is found by the next sweep.
    pub(super) async fn remove_files(&self, key: &ArtifactKey) {
        if let Err(error) = self.artifacts.remove(key).await {
            tracing::error!(build.id = %key.build, error = &error as &dyn std::error::Error, "Failed to remove an image");
        }
    }
}
