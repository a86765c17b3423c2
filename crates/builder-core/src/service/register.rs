//! Telling assetmanagerd of a finished image.
//!
//! One attempt, between the publishing of the image and the end of the build. When it fails, the image is there all the
//! same and the build completes: the log says that it is not registered, and why. An outbox that tries again, also
//! over a restart, comes later.

use assetclient::{AssetClient, AssetErrorKind, FinishedImage, RegisterAsset};

use crate::{
    artifact::{ArtifactKey, ArtifactStore},
    event::{Component, Level},
    pipeline::Outcome,
    request::BuildRequest,
    store::NewLine,
};

/// What came of it: the asset's id if there is one, and a line for the log.
pub(super) struct Registration {
    pub(super) asset_id: Option<String>,
    pub(super) line: NewLine,
}

pub(super) async fn register(
    client: &AssetClient,
    artifacts: &dyn ArtifactStore,
    key: &ArtifactKey,
    request: &BuildRequest,
    outcome: &Outcome,
) -> Registration {
    let tenant = &request.tenant;
    let asset = RegisterAsset::of_image(FinishedImage {
        tenant_id: tenant.tenant_id.to_string(),
        customer_id: tenant.customer_id.clone(),
        build_id: key.build.to_string(),
        name: request.build_name.clone(),
        source_image: request.source.image_uri.clone(),
        backend: artifacts.backend(),
        location: artifacts.relative_location(key),
        size_bytes: outcome.size_bytes,
        checksum: outcome.checksum.clone(),
        suggested_id: request.suggested_asset_id.clone(),
    });
    match client.register(&asset).await {
        Ok(asset_id) => Registration {
            line: NewLine::new(
                Level::Info,
                Component::Publisher,
                format!("Registered the image with assetmanagerd as {asset_id}"),
            ),
            asset_id: Some(asset_id.to_string()),
        },
        Err(error) => {
            tracing::warn!(build.id = %key.build, error = &error as &dyn std::error::Error, "Failed to register an image");
            let reason = reason(error.kind());
            let message = format!("The image is not registered with assetmanagerd: {reason}");
            Registration {
                asset_id: None,
                line: NewLine::new(Level::Warn, Component::Publisher, message),
            }
        }
    }
}

/// The reason in words for the tenant: what the server said is for the operator.
fn reason(kind: &AssetErrorKind) -> String {
    match kind {
        AssetErrorKind::InvalidInput { field } => format!("it cannot be told this {field}"),
        AssetErrorKind::Unavailable { .. } => "it is not available".to_owned(),
        AssetErrorKind::Timeout { .. } => "it does not answer in time".to_owned(),
        AssetErrorKind::AlreadyExists { .. } => "an asset of the suggested id exists already".to_owned(),
        AssetErrorKind::Refused { code, .. } => format!("it refused with {code}"),
        AssetErrorKind::Failed { code, .. } => format!("it failed with {code}"),
        _ => "its answer makes no sense".to_owned(),
    }
}
