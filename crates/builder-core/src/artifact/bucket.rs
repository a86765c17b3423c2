//! A bucket of S3 or of Google Cloud Storage.
//!
//! ```text
//! <workspace>/artifacts/<tenant>/<build_id>.ext4     written here by the pipeline, removed once it is in the bucket
//! <workspace>/uploads/<build_id>                     tenant and upload that is under way, for who takes up after a crash
//! s3://<bucket>/<tenant>/<build_id>.ext4             and the sidecars beside it
//! ```
//!
//! The sidecars are put first, then the parts of the image, which is there as a whole when the parts are put together,
//! and not before: who reads an image finds what belongs to it. Removing goes the other way round.
//!
//! A service keeps, and charges for, the parts of an upload that nobody ends, and the crate knows no way to list them. So
//! the name of an upload is on disk before its first part is sent, and whoever removes the build's artifact ends the upload
//! by that name: after a failure, a cancellation, and at the next start after a crash. Only an upload begun in the very
//! moment of a crash is left to the bucket's own rule.

mod config;
mod upload;

use std::{
    collections::HashMap,
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    StreamExt, TryStreamExt,
    future::{BoxFuture, FutureExt},
};
use object_store::{
    MultipartId, ObjectStore, ObjectStoreExt, PutPayload, multipart::MultipartStore, path::Path as ObjectPath,
};
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

pub use self::config::{ArtifactConfig, GcsConfig, S3Config, S3Keys};
use super::{
    ArtifactError, ArtifactFault, ArtifactKey, ArtifactStore, LocalStore, Published, StagedImage,
    StoredArtifact, build_of,
};
use crate::request::Secret;

/// How long removing may take before it is left to the next sweep.
const REMOVAL_LIMIT: Duration = Duration::from_secs(20);

/// How long a build that was stopped waits for its upload to be withdrawn, or for the last request to come through, before
/// it ends and leaves that to the background: to cancel is a matter of a second, whatever the bucket does.
const WITHDRAWAL_LIMIT: Duration = Duration::from_millis(300);

/// How long the start waits for the bucket's answers.
const START_LIMIT: Duration = Duration::from_secs(30);

/// For how long an answer about the bucket's health counts: health is asked for often, and requests cost money.
const HEALTH_COUNTS_FOR: Duration = Duration::from_secs(10);

/// What begins the names of objects that the start puts and removes; no tenant is called so.
const PROBE_PREFIX: &str = ".builderd-probe";

/// What stands in an error about keys that do not fit: the status, as `object_store` writes it out.
const REFUSALS: [&str; 2] = ["401 Unauthorized", "403 Forbidden"];
/// The characters of an error that are kept: services answer with pages.
const MAX_ERROR_CHARACTERS: usize = 600;

/// What a bucket said of its health, and when.
type Answer = (Instant, Result<(), ArtifactFault>);

/// Artifacts in a bucket. A clone is the same one.
#[derive(Clone)]
pub struct BucketStore {
    objects: Arc<dyn ObjectStore>,
    uploads: Arc<dyn MultipartStore>,
    scheme: &'static str,
    bucket: String,
    secrets: Vec<Secret>,
    staging: LocalStore,
    /// Where the names of uploads that are under way lie.
    notes: PathBuf,
    /// The last answer about the bucket's health.
    health: Arc<Mutex<Option<Answer>>>,
}

impl fmt::Debug for BucketStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BucketStore")
            .field("bucket", &format_args!("{}://{}", self.scheme, self.bucket))
            .finish_non_exhaustive()
    }
}

impl BucketStore {
    /// Artifacts in S3, staged below `workspace`.
    ///
    /// # Errors
    /// When the configuration contradicts itself or the directories cannot be made. The bucket is not looked at.
    pub fn s3(config: &S3Config, workspace: &Path) -> Result<Self, ArtifactError> {
        Self::new(config.client(), workspace)
    }

    /// Artifacts in Google Cloud Storage, staged below `workspace`.
    ///
    /// # Errors
    /// As [`s3`](Self::s3), and when the credentials cannot be read.
    pub fn gcs(config: &GcsConfig, workspace: &Path) -> Result<Self, ArtifactError> {
        Self::new(config.client(), workspace)
    }

    fn new(
        client: Result<config::Client, Box<dyn std::error::Error + Send + Sync>>,
        workspace: &Path,
    ) -> Result<Self, ArtifactError> {
        let client = client.map_err(|error| {
            ArtifactError::new("set up the bucket's client", error).with_fault(ArtifactFault::Configuration)
        })?;
        let (staging, notes) = (workspace.join("artifacts"), workspace.join("uploads"));
        for directory in [&staging, &notes] {
            fs::create_dir_all(directory)
                .map_err(|error| ArtifactError::new("make the directory for unfinished uploads", error))?;
        }
        Ok(Self {
            objects: client.objects,
            uploads: client.uploads,
            scheme: client.scheme,
            bucket: client.bucket,
            secrets: client.secrets,
            staging: LocalStore::new(staging),
            notes,
            health: Arc::default(),
        })
    }

    /// Puts an object, lists and removes it: all that the service will want from the bucket.
    ///
    /// # Errors
    /// What is wrong is [`ArtifactError::fault`].
    pub async fn probe(&self) -> Result<(), ArtifactError> {
        let object = ObjectPath::from(format!("{PROBE_PREFIX}-{}", uuid::Uuid::now_v7()));
        let work = async {
            // First, because some servers make the bucket for whoever puts an object into it.
            self.look().await?;
            self.objects
                .put(&object, PutPayload::from_static(b"builderd was here\n"))
                .await
                .map_err(|error| self.failed("put an object into the bucket", &error))?;
            self.objects
                .delete(&object)
                .await
                .map_err(|error| self.failed("remove an object from the bucket", &error))
        };
        within(START_LIMIT, "reach the bucket", work).await
    }

    async fn look(&self) -> Result<(), ArtifactError> {
        let prefix = ObjectPath::from(PROBE_PREFIX);
        let found = self.objects.list(Some(&prefix)).next().await;
        let failed = |error: object_store::Error| self.failed("list the bucket", &error);
        found.transpose().map(drop).map_err(failed)
    }

    fn object(key: &ArtifactKey, ending: &str) -> ObjectPath {
        ObjectPath::from(format!("{}/{}{ending}", key.tenant, key.build))
    }

    async fn upload(
        &self,
        key: &ArtifactKey,
        staged: &StagedImage,
        stop: &CancellationToken,
    ) -> Result<Published, ArtifactError> {
        let stopped = || ArtifactError::stopped("upload the image");
        // What a former attempt left.
        stop.run_until_cancelled(self.end_upload(key))
            .await
            .unwrap_or_else(|| Err(stopped()))?;
        let object = Self::object(key, ".ext4");
        let failed = |error: object_store::Error| self.failed("upload the image", &error);
        let sending = async {
            let mut stored_bytes = 0;
            for (file, ending) in [
                (&staged.metadata, ".metadata.json"),
                (&staged.machine, ".firecracker.json"),
            ] {
                let content = tokio::fs::read(file)
                    .await
                    .map_err(|error| ArtifactError::new("read what belongs to the image", error))?;
                stored_bytes += content.len() as u64;
                self.objects
                    .put(&Self::object(key, ending), PutPayload::from(content))
                    .await
                    .map_err(failed)?;
            }
            let id = self.uploads.create_multipart(&object).await.map_err(failed)?;
            self.note(key, &id).await?;
            let parts = upload::send_parts(&self.uploads, &object, &id, staged, failed).await?;
            Ok((stored_bytes, id, parts))
        };
        let (sidecars_bytes, id, parts) = stop
            .run_until_cancelled(sending)
            .await
            .unwrap_or_else(|| Err(stopped()))?;
        // From here on it is late to stop: a request that is on its way cannot be called back. One that is not answered
        // is given up; should it arrive all the same, what it makes goes with the build.
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(WITHDRAWAL_LIMIT).await;
        };
        tokio::select! {
            completed = self.uploads.complete_multipart(&object, &id, parts) => completed.map_err(failed)?,
            () = late => return Err(stopped()),
        };
        let image = tokio::fs::metadata(&staged.image)
            .await
            .map_err(|error| ArtifactError::new("read the image", error))?;
        Ok(Published {
            stored_bytes: sidecars_bytes + image.len(),
        })
    }

    /// Ends the upload of a build that its note tells of.
    async fn end_upload(&self, key: &ArtifactKey) -> Result<(), ArtifactError> {
        let note = self.note_path(key);
        let text = match tokio::fs::read_to_string(&note).await {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(ArtifactError::new("read the note of an upload", error)),
        };
        if let Some((_, id)) = text.split_once('\n') {
            let object = Self::object(key, ".ext4");
            let aborted = self.uploads.abort_multipart(&object, &id.to_owned()).await;
            absent_is_fine(aborted).map_err(|error| self.failed("end an upload", &error))?;
        }
        forget(&note).await
    }

    async fn note(&self, key: &ArtifactKey, id: &MultipartId) -> Result<(), ArtifactError> {
        let (notes, path) = (self.notes.clone(), self.note_path(key));
        let text = format!("{}\n{id}", key.tenant);
        let written = tokio::task::spawn_blocking(move || {
            let mut file = tempfile::Builder::new().prefix(".note-").tempfile_in(notes)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            io::Result::Ok(())
        });
        written
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|error| ArtifactError::new("note an upload", error))
    }

    fn note_path(&self, key: &ArtifactKey) -> PathBuf {
        self.notes.join(key.build.to_string())
    }

    /// Whose uploads are noted.
    fn noted(&self) -> io::Result<Vec<ArtifactKey>> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.notes)? {
            let entry = entry?;
            let Some(build) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            if let Some(tenant) = text.lines().next().and_then(|tenant| tenant.parse().ok()) {
                keys.push(ArtifactKey { tenant, build });
            }
        }
        Ok(keys)
    }

    async fn remove_objects(&self, key: &ArtifactKey) -> Result<(), ArtifactError> {
        self.end_upload(key).await?;
        for ending in [".ext4", ".metadata.json", ".firecracker.json"] {
            let removed = self.objects.delete(&Self::object(key, ending)).await;
            absent_is_fine(removed).map_err(|error| self.failed("remove the image", &error))?;
        }
        Ok(())
    }

    /// Removes what was uploaded, as far as it was. Of a build that was stopped it waits for that only for a moment.
    async fn withdraw(&self, key: &ArtifactKey, stop: &CancellationToken) {
        let (store, own_key) = (self.clone(), key.clone());
        let mut withdrawing = tokio::spawn(async move {
            if let Err(error) = store.remove(&own_key).await {
                tracing::warn!(build.id = %own_key.build, error = &error as &dyn std::error::Error, "Failed to withdraw an upload");
            }
        });
        if !stop.is_cancelled() {
            let _ = withdrawing.await;
        } else if tokio::time::timeout(WITHDRAWAL_LIMIT, &mut withdrawing)
            .await
            .is_err()
        {
            tracing::info!(build.id = %key.build, "The bucket is slow: an upload is withdrawn while its build has ended");
        }
    }

    /// Puts what the client says into an error without the keys, which services answer with.
    fn failed(&self, action: &'static str, error: &object_store::Error) -> ArtifactError {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            let said = error.to_string();
            // Most of them repeat what lies behind them.
            if !text.contains(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            source = error.source();
        }
        let fault = match error {
            object_store::Error::NotFound { .. } => ArtifactFault::NoSuchBucket,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                ArtifactFault::Refused
            }
            // What goes wrong with a list is told in the service's own words only.
            _ if text.contains("NoSuchBucket") => ArtifactFault::NoSuchBucket,
            _ if REFUSALS.iter().any(|word| text.contains(word)) => ArtifactFault::Refused,
            _ => ArtifactFault::Failed,
        };
        for secret in self.secrets.iter().filter(|secret| !secret.is_empty()) {
            text = text.replace(secret.reveal(), "…");
        }
        let text: String = text.chars().take(MAX_ERROR_CHARACTERS).collect();
        ArtifactError::new(action, text).with_fault(fault)
    }
}

impl ArtifactStore for BucketStore {
    fn backend(&self) -> assetclient::StorageBackend {
        match self.scheme {
            "s3" => assetclient::StorageBackend::S3,
            // assetmanagerd has no word for Cloud Storage, whose objects are had over HTTP.
            _ => assetclient::StorageBackend::Http,
        }
    }

    fn location(&self, key: &ArtifactKey) -> PathBuf {
        let relative = self.relative_location(key);
        PathBuf::from(format!("{}://{}/{relative}", self.scheme, self.bucket))
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn keeps_holes(&self) -> bool {
        false
    }

    fn staging_path(&self, key: &ArtifactKey) -> PathBuf {
        self.staging.staging_path(key)
    }

    fn prepare<'a>(&'a self, key: &'a ArtifactKey) -> BoxFuture<'a, Result<(), ArtifactError>> {
        self.staging.prepare(key)
    }

    fn publish<'a>(
        &'a self,
        key: &'a ArtifactKey,
        staged: &'a StagedImage,
        stop: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Published, ArtifactError>> {
        async move {
            let published = self.upload(key, staged, stop).await;
            match &published {
                Ok(_) => {
                    if let Err(error) = forget(&self.note_path(key)).await {
                        tracing::warn!(build.id = %key.build, error = &error as &dyn std::error::Error, "Failed to forget an upload");
                    }
                    // It is there: what cannot be removed here now is removed with the build.
                    if let Err(error) = self.staging.remove(key).await {
                        tracing::warn!(build.id = %key.build, error = &error as &dyn std::error::Error, "Failed to remove a staged image");
                    }
                }
                Err(_) => self.withdraw(key, stop).await,
            }
            published
        }
        .boxed()
    }

    fn remove<'a>(&'a self, key: &'a ArtifactKey) -> BoxFuture<'a, Result<(), ArtifactError>> {
        async move {
            // The disk first: it is the one that can fill up meanwhile.
            let here = self.staging.remove(key).await;
            within(REMOVAL_LIMIT, "remove the image", self.remove_objects(key)).await?;
            here
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<StoredArtifact>, ArtifactError>> {
        async move {
            let mut found: HashMap<ArtifactKey, u64> = HashMap::new();
            for staged in self.staging.list().await? {
                found.insert(staged.key, staged.stored_bytes);
            }
            let noted = self.noted();
            for key in noted.map_err(|error| ArtifactError::new("look for unfinished uploads", error))? {
                found.entry(key).or_default();
            }
            let mut objects = self.objects.list(None);
            while let Some(object) = objects
                .try_next()
                .await
                .map_err(|error| self.failed("list the bucket", &error))?
            {
                let path = Path::new(object.location.as_ref());
                let tenant = path.parent().and_then(Path::to_str);
                let Some(tenant) = tenant.and_then(|tenant| tenant.parse().ok()) else {
                    continue;
                };
                let Some(build) = build_of(path) else {
                    continue;
                };
                *found.entry(ArtifactKey { tenant, build }).or_default() += object.size;
            }
            let artifact = |(key, stored_bytes)| StoredArtifact { key, stored_bytes };
            Ok(found.into_iter().map(artifact).collect())
        }
        .boxed()
    }

    /// Buckets do not tell.
    fn last_read<'a>(&'a self, _: &'a ArtifactKey) -> BoxFuture<'a, Option<SystemTime>> {
        async { None }.boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), ArtifactError>> {
        async move {
            let mut health = self.health.lock().await;
            let answer = match &*health {
                Some((when, answer)) if when.elapsed() < HEALTH_COUNTS_FOR => *answer,
                _ => {
                    let answer = self.look().await;
                    if let Err(error) = &answer {
                        tracing::warn!(
                            error = error as &dyn std::error::Error,
                            "The bucket does not answer as it should"
                        );
                    }
                    let answer = answer.map_err(|error| error.fault);
                    *health = Some((Instant::now(), answer));
                    answer
                }
            };
            answer.map_err(|fault| ArtifactError::new("list the bucket", fault.to_string()).with_fault(fault))
        }
        .boxed()
    }
}

async fn forget(note: &Path) -> Result<(), ArtifactError> {
    match tokio::fs::remove_file(note).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ArtifactError::new("forget an upload", error))
        }
        _ => Ok(()),
    }
}

fn absent_is_fine(result: object_store::Result<()>) -> object_store::Result<()> {
    match result {
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        result => result,
    }
}

async fn within<T>(
    limit: Duration,
    action: &'static str,
    work: impl Future<Output = Result<T, ArtifactError>>,
) -> Result<T, ArtifactError> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} seconds", limit.as_secs());
        Err(ArtifactError::new(action, message).with_fault(ArtifactFault::Failed))
    })
}
