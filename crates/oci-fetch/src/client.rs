//! The client: from a source to an image, from an image to its layers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::auth::{Authenticator, Identity};
use crate::blob::{Blob, Deadline, Download, Job, mismatch};
use crate::cache::{Cache, CacheStatistics, Found};
use crate::config::ClientConfig;
use crate::credentials::PullContext;
use crate::digest::{Algorithm, Digest};
use crate::error::{FetchError, FetchErrorKind};
use crate::image::{
    Image, ImageAccess, LayerDescriptor, Origin, pair_layers, parse_config, total_size_bytes,
};
use crate::local::{self, LocalBlob};
use crate::manifest::{self, Document, Manifest};
use crate::net::Transport;
use crate::net::gate::Gate;
use crate::net::route::Route;
use crate::platform::Platform;
use crate::policy::Policy;
use crate::reference::Reference;
use crate::registry::{Session, verify};
use crate::select;
use crate::source::ImageSource;

/// Pulls images. Clones share connections, tokens, running downloads and the cache.
///
/// One client serves any number of parties at one time; what is theirs is kept apart by
/// [`PullContext::isolation_key`] and credential. Its methods must be called within a tokio runtime with time and I/O.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    /// Each must allow the registry.
    policies: Arc<[Policy]>,
    max_image_size_bytes: Option<u64>,
}

struct Shared {
    transport: Arc<Transport>,
    authenticator: Arc<Authenticator>,
    cache: Arc<Cache>,
    jobs: Mutex<HashMap<JobKey, Weak<Job>>>,
    running_jobs: Arc<Gate>,
    /// Mirrors that could not be reached, and until when they are left out.
    mirrors_down: Mutex<HashMap<String, Instant>>,
}

/// Downloads are shared within a registry only: that one registry has a blob says nothing about another's users.
#[derive(Clone, PartialEq, Eq, Hash)]
struct JobKey {
    registry: String,
    digest: Digest,
    size_bytes: u64,
}

impl Client {
    /// Opens the cache and sets up the connections' TLS. Blocking for as long as it takes to list the cache.
    ///
    /// # Errors
    /// `Io` when the cache directory cannot be used, `InvalidInput` for TLS material that is not PEM.
    pub fn new(config: ClientConfig) -> Result<Self, FetchError> {
        let cache = Arc::new(Cache::open(&config)?);
        let policies = Arc::from([config.policy.clone()]);
        let max_image_size_bytes = config.max_image_size_bytes;
        let running_jobs = Arc::new(Gate::fixed(config.connections_total));
        let transport = Arc::new(Transport::new(Arc::new(config))?);
        Ok(Self {
            shared: Arc::new(Shared {
                transport,
                authenticator: Arc::new(Authenticator::new()),
                cache,
                jobs: Mutex::default(),
                running_jobs,
                mirrors_down: Mutex::default(),
            }),
            policies,
            max_image_size_bytes,
        })
    }

    /// The same client for a caller who may do less: both the client's policy and this one must allow a registry, and the
    /// smaller of the two size limits holds (`None` keeps the client's).
    #[must_use]
    pub fn restricted(&self, policy: Policy, max_image_size_bytes: Option<u64>) -> Self {
        let policies = self.policies.iter().cloned().chain([policy]).collect();
        let max_image_size_bytes = match (self.max_image_size_bytes, max_image_size_bytes) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Self {
            shared: Arc::clone(&self.shared),
            policies,
            max_image_size_bytes,
        }
    }

    /// Finds the image for a platform and checks its manifest and config. No layer is fetched.
    ///
    /// A registry is asked each time, with the context's own credentials: that is the proof of access on which
    /// [`open_layer`](Self::open_layer) rests. Dropping the future closes the connection and leaves nothing behind.
    ///
    /// # Errors
    /// Any [`FetchErrorKind`]; `Policy` before anything is sent when the registry is not allowed, `NotFound` when the image
    /// or its platform does not exist, `Limit` when the layers' sizes exceed the client's limit.
    pub async fn resolve(
        &self,
        source: &ImageSource,
        platform: &Platform,
        context: &PullContext,
    ) -> Result<Image, FetchError> {
        let image = match source {
            ImageSource::Registry(reference) => {
                let deadline = Deadline::starting_now(self.shared.transport.config().pull_timeout);
                deadline
                    .bound(self.resolve_registry(reference, platform, context, deadline))
                    .await?
            }
            local => {
                let (local, platform) = (local.clone(), platform.clone());
                blocking(move || local::resolve(&local, &platform)).await??
            }
        };
        if let Some(limit) = self.max_image_size_bytes {
            let total = image.total_size_bytes();
            if total > limit {
                return Err(FetchError::limit(format!(
                    "image has {total} bytes of layers, more than {limit}"
                )));
            }
        }
        Ok(image)
    }

    async fn resolve_registry(
        &self,
        reference: &Reference,
        platform: &Platform,
        context: &PullContext,
        deadline: Deadline,
    ) -> Result<Image, FetchError> {
        let registry = reference.registry();
        if !self.policies.iter().all(|policy| policy.allows(registry)) {
            return Err(FetchError::policy(format!(
                "registry {registry} is not among the allowed ones"
            )));
        }
        let sessions = self.sessions(reference, context)?;
        let mut last = FetchError::transient(format!("no mirror of registry {registry} can be reached"));
        for (index, session) in sessions.iter().enumerate() {
            match self
                .resolve_by(session, reference, platform, &sessions[index..], deadline)
                .await
            {
                Ok(image) => return Ok(image),
                Err(error) if session.route.is_mirror() && is_worth_asking_others(&error) => {
                    tracing::info!(mirror = session.route.registry, %error, "Mirror does not have the image");
                    if *error.kind() == FetchErrorKind::Transient {
                        self.shared.leave_out_mirror(&session.route.registry);
                    }
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The ways to the image, in the order of asking: the mirrors of its registry, then the registry.
    fn sessions(
        &self,
        reference: &Reference,
        context: &PullContext,
    ) -> Result<Vec<Arc<Session>>, FetchError> {
        let registry = reference.registry();
        let config = self.shared.transport.config();
        let session = |route, identity| {
            Arc::new(Session {
                transport: Arc::clone(&self.shared.transport),
                authenticator: Arc::clone(&self.shared.authenticator),
                route,
                registry: registry.to_owned(),
                repository: reference.repository().to_owned(),
                identity,
            })
        };
        let mut sessions = Vec::new();
        let mirrors = config.mirrors.get(registry);
        for mirror in mirrors.iter().flat_map(|mirrors| &mirrors.hosts) {
            if !self.shared.is_mirror_left_out(&mirror.host) {
                // Anonymously: a mirror is not the party that the credentials are for.
                let identity = Identity::new(&context.isolation_key, None);
                sessions.push(session(Route::to_mirror(mirror, registry, config)?, identity));
            }
        }
        if mirrors.is_none_or(|mirrors| !mirrors.without_fallback) {
            let identity = Identity::new(&context.isolation_key, context.credentials.as_ref());
            sessions.push(session(Route::new(registry, config)?, identity));
        }
        Ok(sessions)
    }

    /// Resolves by one way; `sessions` begins with it and becomes the image's access.
    async fn resolve_by(
        &self,
        session: &Session,
        reference: &Reference,
        platform: &Platform,
        sessions: &[Arc<Session>],
        deadline: Deadline,
    ) -> Result<Image, FetchError> {
        let (manifest_digest, manifest_bytes, manifest) = find_manifest(session, reference, platform).await?;
        let (config_bytes, _) = session
            .described(&manifest.config, "blobs", "image config")
            .await?;
        let config = parse_config(&config_bytes)?;
        select::check_platform(&config.platform, platform)?;
        let config_digest = manifest.config.digest.clone();
        let layers = pair_layers(manifest, config.diff_ids)?;
        Ok(Image {
            reference: reference.to_string(),
            manifest_digest,
            platform: config.platform,
            config: config.config,
            config_bytes: config_bytes.into(),
            config_digest,
            manifest_bytes: manifest_bytes.into(),
            access: Arc::new(ImageAccess {
                layers: layers.clone(),
                origin: Origin::Registry {
                    sessions: sessions.to_vec(),
                    deadline,
                },
            }),
            layers,
        })
    }

    /// Opens a layer by its index: from the cache, from a local file, by joining a download that runs already, or by
    /// starting one. The download goes on for as long as the [`Blob`] or a reader of it is alive.
    ///
    /// A blob that others have put into the cache is given out only if it came from this registry, and either from the
    /// image's own repository or after the registry has shown, to this caller's credentials, that the repository holds it.
    ///
    /// # Errors
    /// `InvalidInput` for an index that the image does not have; `Limit` when the image is too large for this client;
    /// `Io` for the cache. Failures of the download itself come out of the blob.
    pub async fn open_layer(&self, image: &Image, layer: usize) -> Result<Blob, FetchError> {
        let descriptor = self.descriptor(image, layer)?;
        match &image.access.origin {
            Origin::Local(blobs) => {
                let file = blobs
                    .get(layer)
                    .ok_or_else(|| FetchError::invalid(format!("image has no layer {layer}")))?;
                let digest = descriptor.digest.clone();
                let on_mismatch = mismatch(&digest);
                Ok(Blob::unverified(digest, file, None, on_mismatch, |_| ()))
            }
            Origin::Registry { sessions, deadline } => {
                deadline
                    .bound(self.open_remote(sessions, descriptor, *deadline))
                    .await
            }
        }
    }

    /// Whether the bytes of a layer are on this machine, in the cache or in a local file. Opening it then begins no download,
    /// unless the cache has them from another registry only. Asks nobody.
    ///
    /// # Errors
    /// `InvalidInput` for an index that the image does not have; `Limit` when the image is too large for this client;
    /// `Io` when the runtime is shutting down.
    pub async fn is_at_hand(&self, image: &Image, layer: usize) -> Result<bool, FetchError> {
        let digest = self.descriptor(image, layer)?.digest.clone();
        if matches!(image.access.origin, Origin::Local(_)) {
            return Ok(true);
        }
        let cache = Arc::clone(&self.shared.cache);
        blocking(move || cache.contains(&digest)).await
    }

    /// The layer's descriptor, of an image that is not too large for this client.
    fn descriptor<'image>(
        &self,
        image: &'image Image,
        layer: usize,
    ) -> Result<&'image LayerDescriptor, FetchError> {
        let layers = &image.access.layers;
        let descriptor = layers
            .get(layer)
            .ok_or_else(|| FetchError::invalid(format!("image has no layer {layer}")))?;
        match self.max_image_size_bytes {
            Some(limit) if total_size_bytes(layers) > limit => Err(FetchError::limit(format!(
                "image has more than {limit} bytes of layers"
            ))),
            _ => Ok(descriptor),
        }
    }

    async fn open_remote(
        &self,
        sessions: &[Arc<Session>],
        layer: &LayerDescriptor,
        deadline: Deadline,
    ) -> Result<Blob, FetchError> {
        let shared = &self.shared;
        let session = sessions
            .first()
            .ok_or_else(|| FetchError::invalid("image has no registry"))?;
        let key = JobKey {
            registry: session.registry.clone(),
            digest: layer.digest.clone(),
            size_bytes: layer.size_bytes,
        };
        let source = session.source();
        let same_registry = format!("{} ", session.registry);
        let mut is_proven = false;
        loop {
            let lease = shared.cache.lease(&layer.digest);
            if let Some(job) = shared.running_job(&key) {
                let download = if job.is_joinable_from(&source) || (is_proven && job.is_proven()) {
                    Some(job.join(sessions, is_proven))
                } else if is_proven {
                    // Whoever runs that job may have no right to the bytes, and must not get them by this caller's.
                    Some(shared.start_job_beside(&key, sessions))
                } else {
                    None
                };
                if let Some(download) = download {
                    return Ok(Blob::downloading(
                        layer.digest.clone(),
                        layer.size_bytes,
                        download,
                        lease,
                        deadline,
                    ));
                }
            } else {
                let cache = Arc::clone(&shared.cache);
                let digest = layer.digest.clone();
                let found = blocking(move || cache.find(&digest))
                    .await?
                    .map_err(|error| FetchError::io("failed to read the blob cache", error))?;
                match found {
                    Some(found)
                        if found
                            .sources
                            .iter()
                            .any(|known| known.starts_with(&same_registry)) =>
                    {
                        if is_proven || found.sources.contains(&source) {
                            return self.open_cached(found, layer, source).await;
                        }
                    }
                    // Not here, or known from elsewhere only: this registry has to show that it has the bytes.
                    _ => {
                        if let Some(download) = shared.start_job(&key, sessions) {
                            shared.cache.count(false);
                            return Ok(Blob::downloading(
                                layer.digest.clone(),
                                layer.size_bytes,
                                download,
                                lease,
                                deadline,
                            ));
                        }
                        // Somebody else has just started it.
                        continue;
                    }
                }
            }
            // The bytes are at hand, but for another repository of this registry.
            prove_blob(sessions, layer).await?;
            is_proven = true;
        }
    }

    async fn open_cached(
        &self,
        found: Found,
        layer: &LayerDescriptor,
        source: String,
    ) -> Result<Blob, FetchError> {
        if found.size_bytes != layer.size_bytes {
            return Err(FetchError::new(
                FetchErrorKind::DigestMismatch,
                format!("layer {} does not have the size its manifest gives", layer.digest),
            ));
        }
        let cache = Arc::clone(&self.shared.cache);
        cache.count(true);
        if !found.sources.contains(&source) {
            let (cache, digest) = (Arc::clone(&cache), layer.digest.clone());
            let added = blocking(move || cache.add_source(&digest, &source)).await?;
            if let Err(error) = added {
                tracing::warn!(%error, digest = %layer.digest, "Failed to record where a cached blob is from");
            }
        }
        let digest = layer.digest.clone();
        let file = LocalBlob {
            file: Arc::new(found.file),
            offset: 0,
            size_bytes: found.size_bytes,
        };
        if found.is_verified {
            return Ok(Blob::trusted(digest, &file, found.lease));
        }
        let on_mismatch = FetchError::transient(format!(
            "cached copy of layer {digest} was damaged and has been removed"
        ));
        let reported = digest.clone();
        Ok(Blob::unverified(
            digest,
            &file,
            Some(found.lease),
            on_mismatch,
            move |is_right| {
                if is_right {
                    cache.mark_verified(&reported);
                } else {
                    cache.remove_damaged(&reported);
                }
            },
        ))
    }

    /// The cache's numbers.
    #[must_use]
    pub fn cache_statistics(&self) -> CacheStatistics {
        self.shared.cache.statistics()
    }

    /// Removes the least recently used blobs that nobody uses until the rest has at most this many bytes, whatever the
    /// configured limit. Gives the bytes freed.
    ///
    /// # Errors
    /// `Io` when the runtime is shutting down.
    pub async fn shrink_cache(&self, bytes: u64) -> Result<u64, FetchError> {
        let cache = Arc::clone(&self.shared.cache);
        blocking(move || cache.evict(Some(bytes))).await
    }
}

impl Shared {
    fn running_job(&self, key: &JobKey) -> Option<Arc<Job>> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.get(key).and_then(Weak::upgrade).filter(|job| job.is_alive())
    }

    /// `None` when there is one already.
    fn start_job(&self, key: &JobKey, sessions: &[Arc<Session>]) -> Option<Download> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs
            .get(key)
            .and_then(Weak::upgrade)
            .is_some_and(|job| job.is_alive())
        {
            return None;
        }
        jobs.retain(|_, job| job.strong_count() > 0);
        let download = self.job(key, sessions);
        jobs.insert(key.clone(), Arc::downgrade(download.job()));
        Some(download)
    }

    /// Takes the place of the one that runs, which goes on for those who have it. The party has shown its right.
    fn start_job_beside(&self, key: &JobKey, sessions: &[Arc<Session>]) -> Download {
        let download = self.job(key, sessions);
        if let Some(session) = sessions.first() {
            download.job().prove(session);
        }
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.insert(key.clone(), Arc::downgrade(download.job()));
        download
    }

    fn job(&self, key: &JobKey, sessions: &[Arc<Session>]) -> Download {
        Job::start(
            Arc::clone(&self.cache),
            Arc::clone(&self.running_jobs),
            sessions,
            key.digest.clone(),
            key.size_bytes,
        )
    }
}

/// How long a mirror that could not be reached is not asked again.
const MIRROR_PAUSE: Duration = Duration::from_secs(30);

impl Shared {
    fn leave_out_mirror(&self, host: &str) {
        let mut down = self.mirrors_down.lock().unwrap_or_else(PoisonError::into_inner);
        down.insert(host.to_owned(), Instant::now() + MIRROR_PAUSE);
    }

    fn is_mirror_left_out(&self, host: &str) -> bool {
        let down = self.mirrors_down.lock().unwrap_or_else(PoisonError::into_inner);
        down.get(host).is_some_and(|until| *until > Instant::now())
    }
}

/// Whether what a mirror could not do may still be done by another or by the registry: everything that does not lie in the
/// image itself.
fn is_worth_asking_others(error: &FetchError) -> bool {
    !matches!(
        error.kind(),
        FetchErrorKind::Limit | FetchErrorKind::Unsupported | FetchErrorKind::InvalidInput
    )
}

/// Asks each way in turn whether it shows the blob in the image's repository.
async fn prove_blob(sessions: &[Arc<Session>], layer: &LayerDescriptor) -> Result<(), FetchError> {
    let mut last = FetchError::invalid("image has no registry");
    for session in sessions {
        match session.prove_blob(&layer.digest, layer.size_bytes).await {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// From a reference to the manifest of the image for the platform: its digest, its bytes, and what they say.
async fn find_manifest(
    session: &Session,
    reference: &Reference,
    platform: &Platform,
) -> Result<(Digest, Vec<u8>, Manifest), FetchError> {
    let (mut bytes, mut content_type) = session.manifest(&reference.manifest_selector()).await?;
    let mut digest = match reference.digest() {
        Some(digest) => {
            verify(&bytes, digest, "manifest")?;
            digest.clone()
        }
        None => Digest::of(Algorithm::Sha256, &bytes),
    };
    for depth in 0.. {
        match manifest::parse(&bytes, content_type.as_deref())? {
            Document::Manifest(manifest) => return Ok((digest, bytes, manifest)),
            Document::Index(entries) => {
                let entry = select::best(entries.iter(), platform)?;
                if entry.is_index() && depth >= select::MAX_NESTED_INDEXES {
                    break;
                }
                digest = entry.descriptor.digest.clone();
                let (body, announced) = session
                    .described(&entry.descriptor, "manifests", "manifest")
                    .await?;
                // The index has said what it is; the server must not say otherwise.
                let announced_as = announced.unwrap_or_default();
                manifest::check_announced(&announced_as, &entry.descriptor.media_type)?;
                bytes = body;
                content_type = Some(entry.descriptor.media_type.clone());
            }
        }
        if depth > select::MAX_NESTED_INDEXES {
            break;
        }
    }
    Err(select::nested_too_deep())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| FetchError::with_source(FetchErrorKind::Io, "background work failed", error))
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Client")
            .field("config", self.shared.transport.config())
            .finish_non_exhaustive()
    }
}
