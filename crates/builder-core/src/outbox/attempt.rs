//! One attempt: calls, and what of them is stored.

use std::{sync::atomic::Ordering, time::Duration};

use assetclient::{
    AssetError, AssetErrorKind, AssetId, AssetState, Delivery, FinishedImage, KnownAsset, Owner,
    RegisterAsset, StorageBackend,
};
use tenant::TenantId;

use super::{Outbox, REFUSED_PAUSE, less_a_random_part, pause};
use crate::{
    artifact::ArtifactKey,
    build::BuildId,
    event::{Component, Level},
    store::{Claimed, Deletion, Duty, NewLine, Postponed, Registration, StoreError},
};

/// An asset that was not there may yet come, by a call that nobody waited for to its end. After this it does not.
const LATEST_ARRIVAL: Duration = Duration::from_secs(5 * 60);

/// Why an image is not known yet.
enum Delay {
    /// A call failed. Whether an earlier one may have been carried out is the second part.
    Failed(AssetErrorKind, bool),
    /// The asset is there and not usable at the moment.
    NotReady,
    /// There is an asset of that id, and it is not of this build.
    Taken,
}

/// What the asset of an id is to a build.
enum Found {
    Nothing,
    Ours(AssetId),
    NotReady,
    Anothers,
}

/// For whom a call is made.
pub(crate) fn owner(tenant: &TenantId, customer_id: &str) -> Owner {
    Owner {
        tenant_id: tenant.to_string(),
        customer_id: customer_id.to_owned(),
    }
}

pub(super) async fn run(outbox: &Outbox, claimed: &Claimed) -> Result<(), StoreError> {
    match &claimed.duty {
        Duty::Register(registration) => register(outbox, claimed, registration).await,
        Duty::Delete(deletion) => delete(outbox, claimed, deletion).await,
    }
}

async fn register(outbox: &Outbox, claimed: &Claimed, registration: &Registration) -> Result<(), StoreError> {
    let build = claimed.build;
    let delay = match make_known(outbox, claimed, registration).await {
        Ok(asset_id) => {
            tracing::info!(build.id = %build, asset.id = %asset_id, attempts = claimed.attempts, "Image registered");
            let line = NewLine::new(
                Level::Info,
                Component::Publisher,
                format!("Registered the image with assetmanagerd as {asset_id}"),
            );
            let now = outbox.clock.now();
            outbox
                .store
                .registered(claimed, asset_id.to_string(), line, now)
                .await?;
            outbox.is_up().await;
            return Ok(());
        }
        Err(delay) => delay,
    };
    let later = match delay {
        Delay::Taken if registration.asset_id != build.to_string() => {
            let id = &registration.asset_id;
            tracing::warn!(build.id = %build, asset.id = id, "The suggested id is another asset's");
            Postponed {
                next_attempt_at: outbox.clock.now(),
                uncertain: false,
                last_error: "the suggested id is another asset's".to_owned(),
                line: Some(NewLine::new(
                    Level::Warn,
                    Component::Publisher,
                    format!("An asset {id} exists already: the image will be registered as {build}"),
                )),
                registration: Some(Registration {
                    asset_id: build.to_string(),
                    ..registration.clone()
                }),
            }
        }
        Delay::Taken => postponed(
            outbox,
            claimed,
            "an asset of that id exists and is another's",
            false,
            false,
        ),
        Delay::NotReady => postponed(outbox, claimed, "the asset is not ready yet", true, true),
        Delay::Failed(kind, uncertain) => {
            notice(outbox, claimed, &kind);
            postponed(outbox, claimed, &reason(&kind), comes_soon(&kind), uncertain)
        }
    };
    outbox.store.postpone_duty(claimed, later).await?;
    outbox.wake.notify_one();
    Ok(())
}

/// Gives the id by which an image is known; makes it known when it is not.
async fn make_known(
    outbox: &Outbox,
    claimed: &Claimed,
    registration: &Registration,
) -> Result<AssetId, Delay> {
    if claimed.was_uncertain {
        match look(outbox, claimed, registration).await.map_err(still(true))? {
            Found::Nothing => {}
            Found::Ours(id) => return Ok(id),
            Found::NotReady => return Err(Delay::NotReady),
            Found::Anothers => return Err(Delay::Taken),
        }
    }
    match tell(outbox, claimed, registration).await {
        Ok(id) => Ok(id),
        Err(AssetErrorKind::AlreadyExists { .. }) => {
            match look(outbox, claimed, registration).await.map_err(still(true))? {
                Found::Ours(id) => Ok(id),
                Found::Anothers => Err(Delay::Taken),
                // It went away in this moment.
                Found::Nothing | Found::NotReady => Err(Delay::NotReady),
            }
        }
        Err(kind) => {
            let uncertain = kind.may_be_done();
            Err(Delay::Failed(kind, uncertain))
        }
    }
}

fn still(uncertain: bool) -> impl FnOnce(AssetErrorKind) -> Delay {
    move |kind| Delay::Failed(kind, uncertain)
}

/// Looks whether the image is known already.
async fn look(
    outbox: &Outbox,
    claimed: &Claimed,
    registration: &Registration,
) -> Result<Found, AssetErrorKind> {
    let owner = owner(&claimed.tenant, &registration.customer_id);
    let id = &registration.asset_id;
    let found = outbox
        .client
        .find(&owner, id)
        .await
        .map_err(AssetError::into_kind)?;
    let Some(asset) = found else {
        return Ok(Found::Nothing);
    };
    let same_bytes = asset.checksum.is_empty() || asset.checksum == registration.checksum;
    if !is_of(&asset, claimed.build) || !same_bytes {
        return Ok(Found::Anothers);
    }
    Ok(match asset.state {
        AssetState::Available => Found::Ours(asset.id),
        AssetState::Failed => {
            // An upload that was cut off; it is made anew.
            outbox
                .client
                .delete(&owner, id)
                .await
                .map_err(AssetError::into_kind)?;
            Found::Nothing
        }
        _ => Found::NotReady,
    })
}

fn is_of(asset: &KnownAsset, build: BuildId) -> bool {
    asset.build_id == build.to_string()
}

async fn tell(
    outbox: &Outbox,
    claimed: &Claimed,
    registration: &Registration,
) -> Result<AssetId, AssetErrorKind> {
    let asset = RegisterAsset::of_image(FinishedImage {
        tenant_id: claimed.tenant.to_string(),
        customer_id: registration.customer_id.clone(),
        build_id: claimed.build.to_string(),
        name: registration.name.clone(),
        source_image: registration.source_image.clone(),
        backend: StorageBackend::from_name(&registration.backend).unwrap_or_default(),
        location: registration.location.clone(),
        size_bytes: registration.size_bytes,
        checksum: registration.checksum.clone(),
        suggested_id: registration.asset_id.clone(),
    });
    match outbox.client.config().delivery {
        Delivery::Register => outbox
            .client
            .register(&asset)
            .await
            .map_err(AssetError::into_kind),
        Delivery::Upload => {
            let key = ArtifactKey {
                tenant: claimed.tenant.clone(),
                build: claimed.build,
            };
            let unreadable = |kind| AssetErrorKind::Content { kind };
            let path = outbox
                .artifacts
                .local_path(&key)
                .ok_or_else(|| unreadable(std::io::ErrorKind::Unsupported))?;
            let file = tokio::fs::File::open(path).await;
            let file = file.map_err(|error| unreadable(error.kind()))?;
            outbox
                .client
                .upload(&asset, file)
                .await
                .map_err(AssetError::into_kind)
        }
    }
}

async fn delete(outbox: &Outbox, claimed: &Claimed, deletion: &Deletion) -> Result<(), StoreError> {
    let owner = owner(&claimed.tenant, &deletion.customer_id);
    let mut gone = 0;
    for id in &deletion.asset_ids {
        let forgotten = async {
            match outbox
                .client
                .find(&owner, id)
                .await
                .map_err(AssetError::into_kind)?
            {
                None => Ok(None),
                Some(asset) if !is_of(&asset, claimed.build) => Ok(Some(())),
                Some(_) => outbox
                    .client
                    .delete(&owner, id)
                    .await
                    .map_err(AssetError::into_kind)
                    .map(|_| Some(())),
            }
        };
        match forgotten.await {
            Ok(Some(())) => gone += 1,
            Ok(None) => {}
            Err(kind) => {
                notice(outbox, claimed, &kind);
                let later = postponed(outbox, claimed, &reason(&kind), comes_soon(&kind), true);
                outbox
                    .store
                    .postpone_duty(claimed, Postponed { line: None, ..later })
                    .await?;
                outbox.wake.notify_one();
                return Ok(());
            }
        }
    }
    let latest = claimed.created_at + LATEST_ARRIVAL;
    if gone < deletion.asset_ids.len() && outbox.clock.now() < latest {
        let later = Postponed {
            next_attempt_at: latest,
            uncertain: true,
            last_error: "there is no such asset yet".to_owned(),
            registration: None,
            line: None,
        };
        outbox.store.postpone_duty(claimed, later).await?;
    } else {
        tracing::info!(build.id = %claimed.build, "No asset is left of a build that is gone");
        outbox.store.settle_duty(claimed.ordinal).await?;
    }
    outbox.is_up().await;
    outbox.wake.notify_one();
    Ok(())
}

/// The words of the other side are for this log alone.
fn notice(outbox: &Outbox, claimed: &Claimed, kind: &AssetErrorKind) {
    if kind.is_retryable() {
        outbox.is_down.store(true, Ordering::Relaxed);
    }
    let attempts = claimed.attempts;
    let error = kind as &dyn std::error::Error;
    // Each attempt of an hour would be many lines that say the same.
    if attempts.is_power_of_two() {
        tracing::warn!(build.id = %claimed.build, attempts, error, "assetmanagerd could not be told of an image");
    } else {
        tracing::debug!(build.id = %claimed.build, attempts, error, "assetmanagerd could not be told of an image");
    }
}

/// Whether another attempt makes sense before somebody has changed something.
fn comes_soon(kind: &AssetErrorKind) -> bool {
    kind.is_retryable() || matches!(kind, AssetErrorKind::Protocol { .. })
}

fn postponed(outbox: &Outbox, claimed: &Claimed, reason: &str, soon: bool, uncertain: bool) -> Postponed {
    let wait = match soon {
        true => pause(claimed.attempts),
        false => less_a_random_part(REFUSED_PAUSE),
    };
    let line = (claimed.attempts == 1).then(|| {
        NewLine::new(
            Level::Warn,
            Component::Publisher,
            format!(
                "The image is not registered with assetmanagerd yet: {reason}; it is tried again until it is"
            ),
        )
    });
    Postponed {
        next_attempt_at: outbox.clock.now() + wait,
        uncertain,
        last_error: reason.to_owned(),
        registration: None,
        line,
    }
}

/// The reason in words for the tenant: what the server said is for the operator's log.
fn reason(kind: &AssetErrorKind) -> String {
    match kind {
        AssetErrorKind::InvalidInput { field } => format!("it cannot be told this {field}"),
        AssetErrorKind::Unreachable { .. } => "it cannot be reached".to_owned(),
        AssetErrorKind::Unavailable { .. } => "it is not available".to_owned(),
        AssetErrorKind::Timeout { .. } => "it does not answer in time".to_owned(),
        AssetErrorKind::AlreadyExists { .. } => "an asset of that id exists already".to_owned(),
        AssetErrorKind::InUse { .. } => "a virtual machine uses the asset".to_owned(),
        AssetErrorKind::Refused { code, .. } => format!("it refused with {code}"),
        AssetErrorKind::Failed { code, .. } => format!("it failed with {code}"),
        AssetErrorKind::Content { kind } => format!("the image cannot be read: {kind}"),
        _ => "its answer makes no sense".to_owned(),
    }
}
