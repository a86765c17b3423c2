//! The settings of `builderd serve` as values that the parts of the daemon take.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use assetclient::{Delivery, ServiceName};
use builder_core::{artifact::ArtifactConfig, request::Backend};
use oci_fetch::Proxies;
use tenant::{TenantDefaults, Tier};

use super::{
    idle::{self, IdleSetting},
    security::{self, AuthenticationConfig},
    storage,
    values::{ConfigError, Values},
};
use crate::{
    audit::AuditConfig,
    isolation::Insistence,
    prices::PriceTable,
    telemetry::TelemetryConfig,
    tls::{ServerId, TlsSettings},
};

/// Everything that `builderd serve` needs to know.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Whether the defaults are those of `--dev`.
    pub development: bool,
    /// Where the service port is.
    pub address: SocketAddr,
    /// How long running builds may finish at shutdown.
    pub shutdown_timeout: Duration,
    /// Requests to `/health` a second.
    pub health_requests_per_second: u32,
    /// Open connections.
    pub max_connections: usize,
    /// Open connections of one peer.
    pub max_connections_per_peer: usize,
    /// Whether the reflection services answer.
    pub reflection: bool,
    /// How callers show who they are.
    pub authentication: AuthenticationConfig,
    /// How the service port is encrypted, and what calls of the service's own show.
    pub tls: TlsSettings,
    /// Builds that run at the same time.
    pub max_concurrent_builds: u32,
    /// The longest that any build may take.
    pub build_timeout: Duration,
    /// Holds the database.
    pub database_directory: PathBuf,
    /// Where finished images are kept.
    pub artifacts: ArtifactConfig,
    /// Finished images, when they are kept on this machine.
    pub output_directory: PathBuf,
    /// Small temporary files.
    pub scratch_directory: PathBuf,
    /// Caches and unfinished work.
    pub workspace_directory: PathBuf,
    /// Which writer makes the images.
    pub backend: Backend,
    /// Bytes that all finished images may take.
    pub storage_max_bytes: u64,
    /// How often is removed what is due.
    pub cleanup_interval: Duration,
    /// How hard the start insists on workers in boxes.
    pub isolation: Insistence,
    /// Whether layers are kept between builds.
    pub cache_enabled: bool,
    /// Bytes of cached layers, blobs and packs together.
    pub cache_max_bytes: u64,
    /// Whether requests may bring registry credentials.
    pub registry_credentials: bool,
    /// Bytes of an image's compressed layers.
    pub max_image_bytes: u64,
    /// Asked for the images of `docker.io` before `docker.io` is: `https://host[:port]`, `http://host[:port]`, or
    /// `host[:port]` for https.
    pub registry_mirror: Option<String>,
    /// Whether `docker.io` is asked when the mirror lacks an image or fails.
    pub mirror_fallback: bool,
    /// Authorities and client certificates by registry, laid out as Docker's `certs.d`.
    pub certificates_directory: Option<PathBuf>,
    /// The longest that the pull of one image may take.
    pub pull_timeout: Duration,
    /// The proxies that registries are reached through.
    pub registry_proxies: Proxies,
    /// Registries that may be pulled from, as patterns; empty for those of the tenant's tier.
    pub allowed_registries: Vec<String>,
    /// Registries that are spoken to over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// The tier of tenants that are not known.
    pub default_tier: Tier,
    /// What that tier may use.
    pub tenant_defaults: TenantDefaults,
    /// How often quotas are looked over.
    pub quota_check_interval: Duration,
    /// Where finished images are registered; `None` for nowhere.
    pub asset_manager: Option<assetclient::Config>,
    /// Who may answer as assetmanagerd, where identities are SPIFFE's.
    pub asset_manager_id: ServerId,
    /// Where the audit log is; `None` for none.
    pub audit: Option<AuditConfig>,
    /// What is logged, and how.
    pub log: LogConfig,
    /// What is told to a collector and to Prometheus; `None` for nothing.
    pub telemetry: Option<TelemetryConfig>,
    /// What was said and has no effect.
    pub idle: Vec<IdleSetting>,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or a filter as of `tracing_subscriber::EnvFilter`.
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

impl Config {
    /// Types the values, and refuses those that this version cannot honour.
    ///
    /// # Errors
    /// All that is wrong at once.
    pub fn from_values(values: &Values, development: bool) -> Result<Self, Vec<ConfigError>> {
        let mut errors = Vec::new();
        refuse_what_is_missing(values, &mut errors);

        let log = LogConfig {
            filter: values.text("LOG_LEVEL").to_owned(),
            format: match values.text("LOG_FORMAT") {
                "pretty" => LogFormat::Pretty,
                _ => LogFormat::Json,
            },
        };
        if log.filter.parse::<tracing_subscriber::EnvFilter>().is_err() {
            errors.push(values.refuse(
                "LOG_LEVEL",
                "expected error, warn, info, debug or trace, or a filter as info,builder_core=debug",
            ));
        }
        let asset_manager = asset_manager(values, &mut errors);
        let tls = security::tls(values, &mut errors);
        let authentication = security::authentication(values, &tls, &mut errors);
        let asset_manager_id = security::server_id(values, "ASSETMANAGER_SPIFFE_ID", &tls, &mut errors);
        let telemetry = telemetry(values, &mut errors);
        let artifacts = storage::artifacts(values, &mut errors);
        let registry_proxies = registry_proxies(values, &mut errors);
        if !values.flag("DOCKER_MIRROR_FALLBACK") && values.text("DOCKER_REGISTRY_MIRROR").is_empty() {
            errors.push(values.refuse(
                "DOCKER_MIRROR_FALLBACK",
                "without a mirror nothing of docker.io could be pulled: set UNKEY_BUILDERD_DOCKER_REGISTRY_MIRROR",
            ));
        }
        if let Some(path) = values.prices_file()
            && let Err(error) = PriceTable::load(&path)
        {
            errors.push(values.refuse("PRICES_FILE", crate::commands::chain(&error)));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            development,
            address: SocketAddr::new(values.address("ADDRESS"), values.integer("PORT")),
            shutdown_timeout: values.duration("SHUTDOWN_TIMEOUT"),
            health_requests_per_second: values.integer("RATE_LIMIT"),
            max_connections: values.integer("MAX_CONNECTIONS"),
            max_connections_per_peer: values.integer("MAX_CONNECTIONS_PER_PEER"),
            reflection: values.flag("REFLECTION_ENABLED"),
            authentication,
            tls,
            max_concurrent_builds: values.integer("MAX_CONCURRENT_BUILDS"),
            build_timeout: values.duration("BUILD_TIMEOUT"),
            database_directory: values.path("DATABASE_DATA_DIR"),
            artifacts,
            output_directory: values.path("ROOTFS_OUTPUT_DIR"),
            scratch_directory: values.path("SCRATCH_DIR"),
            workspace_directory: values.path("WORKSPACE_DIR"),
            backend: match values.text("ROOTFS_BACKEND") {
                "mke2fs" => Backend::Mke2fs,
                _ => Backend::Native,
            },
            storage_max_bytes: values.gibibytes("STORAGE_MAX_SIZE_GB"),
            cleanup_interval: values.duration("CLEANUP_INTERVAL"),
            isolation: match values.flag("TENANT_ISOLATION_ENABLED") {
                false => Insistence::Off,
                true if development => Insistence::Lenient,
                true => Insistence::Strict,
            },
            cache_enabled: values.flag("STORAGE_CACHE_ENABLED"),
            cache_max_bytes: values.gibibytes("STORAGE_CACHE_MAX_SIZE_GB"),
            registry_credentials: values.flag("DOCKER_REGISTRY_AUTH"),
            max_image_bytes: values.gibibytes("DOCKER_MAX_IMAGE_SIZE_GB"),
            registry_mirror: Some(values.text("DOCKER_REGISTRY_MIRROR").to_owned())
                .filter(|mirror| !mirror.is_empty()),
            mirror_fallback: values.flag("DOCKER_MIRROR_FALLBACK"),
            certificates_directory: Some(values.path("DOCKER_CERTS_DIR"))
                .filter(|directory| !directory.as_os_str().is_empty()),
            pull_timeout: values.duration("DOCKER_PULL_TIMEOUT"),
            registry_proxies,
            allowed_registries: values.list("DOCKER_ALLOWED_REGISTRIES"),
            insecure_registries: values.list("DOCKER_INSECURE_REGISTRIES"),
            default_tier: match values.text("TENANT_DEFAULT_TIER") {
                "pro" => Tier::Pro,
                "enterprise" => Tier::Enterprise,
                "dedicated" => Tier::Dedicated,
                _ => Tier::Free,
            },
            quota_check_interval: values.duration("TENANT_QUOTA_CHECK_INTERVAL"),
            tenant_defaults: TenantDefaults {
                memory_bytes: values.integer("TENANT_DEFAULT_MAX_MEMORY_BYTES"),
                cpu_cores: values.integer("TENANT_DEFAULT_MAX_CPU_CORES"),
                disk_bytes: values.integer("TENANT_DEFAULT_MAX_DISK_BYTES"),
                concurrent_builds: values.integer("TENANT_DEFAULT_MAX_CONCURRENT_BUILDS"),
                daily_builds: values.integer("TENANT_DEFAULT_MAX_DAILY_BUILDS"),
                storage_bytes: values.integer("TENANT_DEFAULT_MAX_STORAGE_BYTES"),
                timeout: Duration::from_secs(values.integer("TENANT_DEFAULT_TIMEOUT_SECONDS")),
                build_time: Duration::from_secs(
                    values.integer::<u64>("TENANT_DEFAULT_MAX_BUILD_TIME_MINUTES") * 60,
                ),
                retention: Duration::from_secs(
                    values.integer::<u64>("STORAGE_RETENTION_DAYS") * 24 * 60 * 60,
                ),
            },
            asset_manager,
            asset_manager_id,
            audit: values.flag("AUDIT_ENABLED").then(|| AuditConfig {
                path: values.path("AUDIT_LOG_PATH"),
                max_bytes: values.integer::<u64>("AUDIT_MAX_SIZE_MB") << 20,
                max_files: values.integer("AUDIT_MAX_FILES"),
            }),
            log,
            telemetry,
            idle: idle::idle(values, development),
        })
    }
}

/// Settings of which only some values can be had. Production's own defaults are among those that cannot, on purpose:
/// a service that is thought to be encrypted or contained and is not must not start.
fn refuse_what_is_missing(values: &Values, errors: &mut Vec<ConfigError>) {
    if values.text("DATABASE_TYPE") != "sqlite" {
        errors.push(values.refuse(
            "DATABASE_TYPE",
            "PostgreSQL is not implemented yet: set UNKEY_BUILDERD_DATABASE_TYPE=sqlite",
        ));
    }
    if values.flag("TENANT_ISOLATION_ENABLED") && values.text("ROOTFS_BACKEND") == "mke2fs" {
        errors.push(values.refuse(
            "ROOTFS_BACKEND",
            "mke2fs runs programs of the host, which workers in a box cannot: set UNKEY_BUILDERD_ROOTFS_BACKEND=native, \
             or UNKEY_BUILDERD_TENANT_ISOLATION_ENABLED=false to run without boxes",
        ));
    }
}

/// What is told to a collector and to Prometheus, when anything is.
fn telemetry(values: &Values, errors: &mut Vec<ConfigError>) -> Option<TelemetryConfig> {
    if !values.flag("OTEL_ENABLED") {
        return None;
    }
    let endpoint = values
        .text("OTEL_ENDPOINT")
        .parse()
        .map_err(|error| errors.push(values.refuse("OTEL_ENDPOINT", format!("{error}"))));
    let interface = values.address("OTEL_PROMETHEUS_INTERFACE");
    let port = values.integer("OTEL_PROMETHEUS_PORT");
    let version = Some(values.text("OTEL_SERVICE_VERSION")).filter(|version| !version.is_empty());
    Some(TelemetryConfig {
        service_name: values.text("OTEL_SERVICE_NAME").to_owned(),
        service_version: version.unwrap_or(env!("CARGO_PKG_VERSION")).to_owned(),
        endpoint: endpoint.ok()?,
        // Its form was checked when it was collected.
        sampling_rate: values.text("OTEL_SAMPLING_RATE").parse().unwrap_or(1.0),
        prometheus: values
            .flag("OTEL_PROMETHEUS_ENABLED")
            .then(|| SocketAddr::new(interface, port)),
        by_tenant: values.flag("OTEL_HIGH_CARDINALITY_ENABLED"),
    })
}

/// The proxies that the operator has set; those of the environment are not the daemon's.
fn registry_proxies(values: &Values, errors: &mut Vec<ConfigError>) -> Proxies {
    type With = fn(Proxies, &str) -> Result<Proxies, oci_fetch::FetchError>;
    let mut proxies = Proxies::none();
    for (name, with) in [
        ("DOCKER_HTTP_PROXY", Proxies::with_http as With),
        ("DOCKER_HTTPS_PROXY", Proxies::with_https),
        ("DOCKER_NO_PROXY", Proxies::with_exceptions),
    ] {
        let value = values.text(name);
        if value.is_empty() {
            continue;
        }
        match with(proxies.clone(), value) {
            Ok(changed) => proxies = changed,
            Err(error) => errors.push(values.refuse(name, error.to_string())),
        }
    }
    proxies
}

/// Where images are registered, when they are.
fn asset_manager(values: &Values, errors: &mut Vec<ConfigError>) -> Option<assetclient::Config> {
    if !values.flag("ASSETMANAGER_ENABLED") {
        return None;
    }
    let mut config = assetclient::Config::new(values.text("ASSETMANAGER_ENDPOINT"));
    config.service = match values.text("ASSETMANAGER_SERVICE") {
        "deploy.assetmanagerd.v1" => ServiceName::DeployAssetmanagerdV1,
        _ => ServiceName::AssetV1,
    };
    if values.text("ASSETMANAGER_METHOD") == "upload" {
        config.delivery = Delivery::Upload;
        if values.text("STORAGE_BACKEND") != "local" {
            errors.push(values.refuse(
                "ASSETMANAGER_METHOD",
                "images in a bucket are not sent to assetmanagerd: set UNKEY_BUILDERD_ASSETMANAGER_METHOD=register, or \
                 UNKEY_BUILDERD_STORAGE_BACKEND=local",
            ));
        }
    }
    if !config.is_encrypted() && !values.text("ASSETMANAGER_SPIFFE_ID").is_empty() {
        errors.push(values.refuse(
            "ASSETMANAGER_SPIFFE_ID",
            "nobody shows an identity over plaintext: set UNKEY_BUILDERD_ASSETMANAGER_ENDPOINT to an https:// address",
        ));
    }
    if let Err(error) = config.validate() {
        let problem = format!(
            "{error}; without assetmanagerd, set UNKEY_BUILDERD_ASSETMANAGER_ENABLED=false or start with --dev"
        );
        errors.push(values.refuse("ASSETMANAGER_ENDPOINT", problem));
    }
    Some(config)
}
