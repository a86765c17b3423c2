//! Where the images of this service are kept.

use std::sync::Arc;

use super::BuilderConfig;
use crate::{
    artifact::{ArtifactConfig, ArtifactError, ArtifactFault, ArtifactStore, BucketStore, LocalStore},
    error::{StartError, StartErrorKind},
};

/// Who keeps the images; a bucket has proven that it can be written to, listed and cleared.
pub(super) async fn open(config: &BuilderConfig) -> Result<Arc<dyn ArtifactStore>, StartError> {
    let workspace = &config.workspace_directory;
    let (bucket, opened) = match &config.artifacts {
        ArtifactConfig::Local => return Ok(Arc::new(LocalStore::new(config.output_directory.clone()))),
        ArtifactConfig::S3(s3) => (&s3.bucket, BucketStore::s3(s3, workspace)),
        ArtifactConfig::Gcs(gcs) => (&gcs.bucket, BucketStore::gcs(gcs, workspace)),
    };
    let failed = |error: ArtifactError| {
        let (kind, reason) = match error.fault {
            ArtifactFault::Configuration => (StartErrorKind::BucketCredentials, error.fault.to_string()),
            ArtifactFault::NoSuchBucket => (StartErrorKind::Bucket, error.fault.to_string()),
            ArtifactFault::Refused => (StartErrorKind::BucketCredentials, error.fault.to_string()),
            _ => (StartErrorKind::BucketEndpoint, error.to_string()),
        };
        let message = format!("cannot keep images in the bucket {bucket}: {reason}");
        StartError::new(kind, message).with_source(error)
    };
    let store = opened.map_err(failed)?;
    store.probe().await.map_err(failed)?;
    Ok(Arc::new(store))
}
