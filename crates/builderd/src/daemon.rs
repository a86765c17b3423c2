//! The parts of the daemon put together: builds, edge, listener.

use std::{ffi::OsString, io, net::SocketAddr, sync::Arc, time::Duration};

use builder_core::{
    StartError, StartErrorKind,
    artifact::ArtifactConfig,
    observe::Observer,
    service::{Builder, BuilderConfig, Check},
};
use oci_fetch::{ClientConfig, FetchError, Loopback};
use tenant::{AllowedHosts, HostPattern, InvalidHostPattern, NodeCapacity, NodeCaps, TierTable};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use crate::{
    audit::AuditLog,
    auth::{Authentication, Identities, Tokens},
    config::{AuthenticationConfig, Config},
    edge::{self, Checks, ConnectionLimits, EdgeConfig, EdgeError, Probe, Vitals},
    guest, isolation,
    proto::builder_service_server::BuilderServiceServer,
    service::Service,
    telemetry::{Instruments, Metrics, MetricsError, RunningMetrics},
    tls::{FileRole, Tls, TlsError},
};

/// Builds that wait before new ones are refused.
const MAX_QUEUED_BUILDS: u32 = 20_000;

/// Builds of one tenant that wait before new ones of it are refused: no tenant fills the queue alone.
const MAX_QUEUED_BUILDS_OF_TENANT: u32 = 2_000;

/// Layers of one build that are worked on at the same time.
const LAYERS_IN_PARALLEL: usize = 4;

/// How long a shutdown waits for the audit log's disk.
const AUDIT_PATIENCE: Duration = Duration::from_secs(2);

/// Whose images `DOCKER_REGISTRY_MIRROR` is asked for.
pub(crate) const MIRRORED_REGISTRY: &str = "docker.io";

/// A daemon that serves.
#[derive(Debug)]
pub struct Daemon {
    address: SocketAddr,
    audit: Option<AuditLog>,
    builder: Builder,
    reporter: HealthReporter,
    drain: CancellationToken,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    metrics: Option<RunningMetrics>,
}

/// Why the daemon does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// A setting names something that cannot be had.
    #[error("{setting} cannot be used")]
    Setting {
        /// The name of the setting, as `DATABASE_DATA_DIR`.
        setting: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The builds cannot start.
    #[error(transparent)]
    Builder(StartError),
    /// The port cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// ADDRESS and PORT.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The edge cannot start.
    #[error(transparent)]
    Edge(#[from] EdgeError),
}

impl Daemon {
    /// Starts to build and to serve. `worker_command` is a program and arguments that run
    /// [`builder_core::worker::main`].
    ///
    /// # Errors
    /// See [`DaemonError`]. Nothing is left running.
    pub async fn start(config: &Config, worker_command: Vec<OsString>) -> Result<Self, DaemonError> {
        // What is wrong with the settings shows before a port opens, and so do missing certificates.
        let audit = config.audit.as_ref().map(AuditLog::open).transpose();
        let audit = audit.map_err(|source| DaemonError::Setting {
            setting: "AUDIT_LOG_PATH",
            source: Box::new(source),
        })?;
        let (fetch, tenants) = (fetch_config(config)?, tiers(config)?);
        let tls = Tls::start(&config.tls).await.map_err(tls_error)?;
        let server_tls = tls.server().map_err(tls_error)?;
        let authentication = authentication(config, &tls)?;
        let asset_manager = asset_manager(config, &tls)?;
        // The port before the rest: a second daemon on the same state must not get as far as the database.
        let listener = TcpListener::bind(config.address).await;
        let failed = |source| DaemonError::Listen {
            address: config.address,
            source,
        };
        let listener = listener.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;

        let metrics = match &config.telemetry {
            None => None,
            Some(telemetry) => Some(
                Metrics::open(telemetry, config.storage_max_bytes, audit.clone())
                    .await
                    .map_err(metrics_error)?,
            ),
        };
        let observer: Arc<dyn Observer> = match &metrics {
            None => Arc::new(Instruments::silent()),
            Some(metrics) => metrics.instruments(),
        };
        let prepared = builder_config(config, worker_command, fetch, tenants, asset_manager)?;
        let builder = Builder::start_observed(prepared, observer)
            .await
            .map_err(|error| start_error(error, &config.artifacts))?;
        let drain = CancellationToken::new();
        let service = Service::new(builder.clone(), config.registry_credentials, drain.clone());
        let probed = builder.clone();
        let probe: Probe = Arc::new(move || {
            let builder = probed.clone();
            Box::pin(async move { vitals(&builder).await })
        });
        let edge = EdgeConfig {
            health_requests_per_second: config.health_requests_per_second,
            authentication: authentication.clone(),
            audit: audit.clone(),
            reflection: config.reflection,
            probe: Arc::clone(&probe),
        };
        let (router, reporter) = edge::router(service, edge).await?;
        let stop = CancellationToken::new();
        let limits = ConnectionLimits {
            connections: config.max_connections,
            connections_per_peer: config.max_connections_per_peer,
            ..ConnectionLimits::default()
        };
        let serving = edge::serve(listener, server_tls, router, limits, stop.clone());
        {
            let stop = stop.clone();
            tokio::spawn(async move { tls.watch(stop).await });
        }
        if let Authentication::Bearer(tokens) = authentication {
            let stop = stop.clone();
            tokio::spawn(async move { tokens.watch(stop).await });
        }
        if let Some(log) = &audit {
            tokio::spawn(log.clone().export(builder.clone(), stop.clone()));
        }
        // Probes of load balancers have no certificate, where the service port asks for one.
        let metrics = metrics.map(|metrics| {
            let health = edge::health_routes(probe, config.health_requests_per_second);
            metrics.serve(builder.clone(), health)
        });
        Ok(Self {
            address,
            audit,
            metrics,
            builder,
            reporter,
            drain,
            stop,
            serving: tokio::spawn(serving),
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where Prometheus finds the metrics, when they are served.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(RunningMetrics::address)
    }

    /// Drains, then stops: health checks say so at once, followed logs end, running builds may finish for `grace`.
    /// Requests are answered until the last build has ended.
    pub async fn shutdown(self, grace: Duration) {
        self.reporter
            .set_not_serving::<BuilderServiceServer<Service>>()
            .await;
        self.drain.cancel();
        self.builder.shutdown(grace).await;
        self.stop.cancel();
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "Serving ended by a fault of its own");
        }
        if let Some(audit) = self.audit {
            audit.flush(AUDIT_PATIENCE).await;
        }
        if let Some(metrics) = self.metrics {
            metrics.stop().await;
        }
    }
}

/// Checks what a start would refuse, as far as that shows without opening, making or connecting to anything.
///
/// # Errors
/// [`DaemonError::Setting`].
pub fn check(config: &Config) -> Result<(), DaemonError> {
    fetch_config(config)?;
    tiers(config).map(drop)
}

/// How callers show who they are, put together from files and certificates.
fn authentication(config: &Config, tls: &Tls) -> Result<Authentication, DaemonError> {
    let wrong = |setting: &'static str, source: Box<dyn std::error::Error + Send + Sync>| {
        DaemonError::Setting { setting, source }
    };
    match &config.authentication {
        AuthenticationConfig::None => Ok(Authentication::None),
        AuthenticationConfig::Bearer(file) => {
            let tokens = Tokens::load(file).map_err(|error| wrong("AUTH_TOKENS_FILE", Box::new(error)))?;
            Ok(Authentication::Bearer(Arc::new(tokens)))
        }
        AuthenticationConfig::Mtls {
            services,
            trust_domain,
        } => {
            let own = tls.trust_domain();
            let trust_domain = match (trust_domain, own) {
                (None, None) => {
                    return Err(wrong(
                        "AUTH_TRUST_DOMAIN",
                        "AUTH_MODE=mtls needs it, as example.org: the service's own certificate has no SPIFFE ID"
                            .into(),
                    ));
                }
                // The agent's authorities vouch for its own trust domain alone.
                (Some(asked), Some(own)) if *asked != own && matches!(tls, Tls::Spiffe(_)) => {
                    let problem = format!("the agent is of the trust domain {own}, expected that or nothing");
                    return Err(wrong("AUTH_TRUST_DOMAIN", problem.into()));
                }
                (Some(asked), _) => asked.clone(),
                (None, Some(own)) => own,
            };
            let identities = Identities::new(trust_domain, services.iter().cloned())
                .map_err(|error| wrong("AUTH_SERVICE_IDS", Box::new(error)))?;
            Ok(Authentication::Certificate(Arc::new(identities)))
        }
    }
}

/// Where images are registered, with what the calls show and trust.
fn asset_manager(config: &Config, tls: &Tls) -> Result<Option<assetclient::Config>, DaemonError> {
    let Some(mut asset_manager) = config.asset_manager.clone() else {
        return Ok(None);
    };
    if asset_manager.is_encrypted() {
        let client = tls.client(config.asset_manager_id.clone()).map_err(tls_error)?;
        asset_manager.tls = Some(assetclient::Tls::new(move || client.current()));
    }
    Ok(Some(asset_manager))
}

/// Names the setting that is behind missing certificates.
fn tls_error(error: TlsError) -> DaemonError {
    let setting = match &error {
        TlsError::File(error) => match error.role {
            FileRole::Certificate => "TLS_CERT_FILE",
            FileRole::Key => "TLS_KEY_FILE",
            FileRole::Authorities => "TLS_CA_FILE",
        },
        TlsError::Spiffe(_) => "SPIFFE_SOCKET",
        TlsError::SystemAuthorities(_) => "ASSETMANAGER_ENDPOINT",
        _ => "TLS_MODE",
    };
    DaemonError::Setting {
        setting,
        source: Box::new(error),
    }
}

fn builder_config(
    config: &Config,
    worker_command: Vec<OsString>,
    fetch: ClientConfig,
    tenants: TierTable,
    asset_manager: Option<assetclient::Config>,
) -> Result<BuilderConfig, DaemonError> {
    let prepared = isolation::launcher(config.isolation, config.backend, &config.workspace_directory)
        .map_err(|source| DaemonError::Setting {
            setting: "TENANT_ISOLATION_ENABLED",
            source: Box::new(source),
        })?;
    for warning in &prepared.warnings {
        tracing::warn!("{warning}");
    }
    Ok(BuilderConfig {
        fetch,
        database_directory: config.database_directory.clone(),
        artifacts: config.artifacts.clone(),
        output_directory: config.output_directory.clone(),
        workspace_directory: config.workspace_directory.clone(),
        scratch_directory: config.scratch_directory.clone(),
        node: capacity(config),
        reserve_disk: true,
        quota_check_interval: config.quota_check_interval,
        build_timeout: config.build_timeout,
        worker_command,
        launcher: prepared.launcher,
        guest_init: guest::init(),
        guest_architecture: guest::ARCHITECTURE.to_owned(),
        backend: config.backend,
        cache_enabled: config.cache_enabled,
        cache_max_bytes: config.cache_max_bytes,
        max_compressed_bytes: Some(config.max_image_bytes),
        layers_in_parallel: LAYERS_IN_PARALLEL,
        tenants,
        asset_manager,
        storage_max_bytes: Some(config.storage_max_bytes),
        audit: config.audit.is_some(),
        cleanup_interval: config.cleanup_interval,
    })
}

fn metrics_error(error: MetricsError) -> DaemonError {
    let setting = match &error {
        MetricsError::Listen { .. } => "OTEL_PROMETHEUS_PORT",
        _ => "OTEL_ENDPOINT",
    };
    DaemonError::Setting {
        setting,
        source: Box::new(error),
    }
}

/// What the registry client may do.
///
/// # Errors
/// [`DaemonError::Setting`].
pub(crate) fn fetch_config(config: &Config) -> Result<ClientConfig, DaemonError> {
    let wrong = |setting: &'static str| {
        move |source: FetchError| DaemonError::Setting {
            setting,
            source: Box::new(source),
        }
    };
    let not_a_host = |setting: &'static str, expected: &'static str, value: &str| {
        // What stands before an `@` may be a password.
        let found = oci_fetch::redact_user_information(value).into_owned();
        move |_: FetchError| DaemonError::Setting {
            setting,
            source: format!("expected {expected}, got {found:?}").into(),
        }
    };
    let mut fetch = ClientConfig::new(config.workspace_directory.join("cache"))
        .with_max_image_size(config.max_image_bytes)
        .with_pull_timeout(config.pull_timeout)
        .with_proxies(config.registry_proxies.clone())
        .with_user_agent(concat!("builderd/", env!("CARGO_PKG_VERSION")));
    if config.development {
        fetch = fetch.with_loopback(Loopback::PlainHttp);
    }
    // Who is named exactly may be on a private network; a pattern may not.
    for registry in config
        .allowed_registries
        .iter()
        .filter(|pattern| !pattern.starts_with('*'))
    {
        fetch = fetch.with_private_registry(registry).map_err(not_a_host(
            "DOCKER_ALLOWED_REGISTRIES",
            "HOST[:PORT], *.DOMAIN or *",
            registry,
        ))?;
    }
    for registry in &config.insecure_registries {
        fetch = fetch.with_plain_http(registry).map_err(not_a_host(
            "DOCKER_INSECURE_REGISTRIES",
            "HOST[:PORT]",
            registry,
        ))?;
    }
    if let Some(mirror) = &config.registry_mirror {
        // The operator's word for an exact host: the client lets it be on a private network.
        fetch = fetch.with_mirror(MIRRORED_REGISTRY, mirror).map_err(not_a_host(
            "DOCKER_REGISTRY_MIRROR",
            "HOST[:PORT], with https:// or http:// before it or not",
            mirror,
        ))?;
        if !config.mirror_fallback {
            fetch = fetch
                .without_mirror_fallback(MIRRORED_REGISTRY)
                .map_err(wrong("DOCKER_MIRROR_FALLBACK"))?;
        }
    }
    if let Some(directory) = &config.certificates_directory {
        fetch = fetch
            .with_certificates_directory(directory)
            .map_err(wrong("DOCKER_CERTS_DIR"))?;
    }
    Ok(fetch)
}

/// What this machine has for all builds together. Disk is looked at when a build is about to start.
fn capacity(config: &Config) -> NodeCapacity {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    NodeCapacity {
        concurrent_builds: config.max_concurrent_builds,
        memory_bytes: memory_bytes(),
        disk_bytes: None,
        cpu_cores: u32::try_from(cores).ok(),
        queued_builds: MAX_QUEUED_BUILDS,
        queued_builds_of_tenant: MAX_QUEUED_BUILDS_OF_TENANT,
    }
}

/// Memory of this machine: what the kernel says that it has, or what the service's own control group may have of it.
/// Workers are counted to the service's group or to one below it, so that its limit is theirs too.
fn memory_bytes() -> Option<u64> {
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kibibytes.checked_mul(1024)
    });
    let group = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| {
            let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
            let limit = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).ok()?;
            limit.trim().parse().ok()
        });
    total.into_iter().chain(group).min()
}

/// What each tier may use on this machine.
fn tiers(config: &Config) -> Result<TierTable, DaemonError> {
    let mut table = TierTable::new(config.default_tier, &config.tenant_defaults);
    if !config.allowed_registries.is_empty() {
        let patterns = config.allowed_registries.iter().map(|name| name.parse());
        let patterns: Vec<HostPattern> =
            patterns
                .collect::<Result<_, InvalidHostPattern>>()
                .map_err(|source| DaemonError::Setting {
                    setting: "DOCKER_ALLOWED_REGISTRIES",
                    source: Box::new(source),
                })?;
        table = table.with_registries(&AllowedHosts::only(patterns));
    }
    let caps = NodeCaps {
        build_timeout: Some(config.build_timeout),
        concurrent_builds: Some(config.max_concurrent_builds),
        memory_bytes: memory_bytes(),
        cpu_cores: capacity(config).cpu_cores,
        image_bytes: Some(config.max_image_bytes),
        storage_bytes: Some(config.storage_max_bytes),
    };
    let (table, cuts) = table.capped(&caps);
    for cut in cuts {
        tracing::info!(
            tier = cut.tier.as_str(),
            quota = cut.cut.quota.as_str(),
            tier_figure = cut.cut.asked,
            machine_figure = cut.cut.allowed,
            "The machine's own setting cuts a figure of a tier"
        );
    }
    Ok(table)
}

/// Names the setting that is behind a failed start, where one is.
fn start_error(error: StartError, artifacts: &ArtifactConfig) -> DaemonError {
    let setting = match error.kind {
        StartErrorKind::Bucket | StartErrorKind::BucketCredentials | StartErrorKind::BucketEndpoint => {
            bucket_setting(error.kind, artifacts)
        }
        StartErrorKind::Database | StartErrorKind::DatabaseInUse | StartErrorKind::DatabaseTooNew => {
            "DATABASE_DATA_DIR"
        }
        StartErrorKind::OutputDirectory => "ROOTFS_OUTPUT_DIR",
        StartErrorKind::WorkspaceDirectory => "WORKSPACE_DIR",
        StartErrorKind::ScratchDirectory => "SCRATCH_DIR",
        _ => return DaemonError::Builder(error),
    };
    DaemonError::Setting {
        setting,
        source: Box::new(error),
    }
}

/// Which setting of a bucket it is that does not work.
fn bucket_setting(kind: StartErrorKind, artifacts: &ArtifactConfig) -> &'static str {
    match (kind, artifacts) {
        (StartErrorKind::Bucket, ArtifactConfig::S3(_)) => "STORAGE_S3_BUCKET",
        (StartErrorKind::BucketCredentials, ArtifactConfig::S3(_)) => "STORAGE_S3_SECRET_KEY",
        (_, ArtifactConfig::S3(config)) if config.endpoint.is_some() => "STORAGE_S3_ENDPOINT",
        (StartErrorKind::Bucket, ArtifactConfig::Gcs(_)) => "STORAGE_GCS_BUCKET",
        (StartErrorKind::BucketCredentials, ArtifactConfig::Gcs(_)) => "STORAGE_GCS_CREDENTIALS_PATH",
        _ => "STORAGE_BACKEND",
    }
}

async fn vitals(builder: &Builder) -> Vitals {
    let health = builder.health().await;
    let word = |name: &str, check: &Check| match check {
        Check::Healthy => "healthy",
        Check::Unhealthy(reason) => {
            tracing::warn!(check = name, reason, "A health check failed");
            "unhealthy"
        }
        Check::Alarm(reason) => {
            tracing::error!(check = name, reason, "A health check raises an alarm");
            "alarm"
        }
        Check::Disabled => "disabled",
    };
    let checks = Checks {
        storage: word("storage", &health.storage),
        database: word("database", &health.database),
        isolation: word("isolation", &health.isolation),
        registry: "not_checked",
        assetmanager: word("assetmanager", &health.assets),
    };
    let needed = [&health.storage, &health.database, &health.isolation];
    let status = if health.draining {
        "draining"
    } else if needed.iter().any(|check| matches!(check, Check::Unhealthy(_))) {
        "unhealthy"
    } else {
        "healthy"
    };
    Vitals { status, checks }
}
