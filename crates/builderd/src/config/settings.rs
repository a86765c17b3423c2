//! The table of all settings.

use super::setting::{Form, Setting, works};

const NOT_PORTABLE: &str = "the database is SQLite in this version";

const COUNT: Form = Form::Integer {
    min: 1,
    max: u32::MAX as u64,
};
const BYTES: Form = Form::Integer {
    min: 1,
    max: i64::MAX as u64,
};
/// Gibibytes that are still a number of bytes.
const GIBIBYTES: Form = Form::Integer { min: 1, max: 1 << 33 };
const PORT: Form = Form::Integer { min: 0, max: 65_535 };
const DURATION: Form = Form::Duration { zero: false };
const TIERS: &[&str] = &["free", "pro", "enterprise", "dedicated"];

/// All settings, in the order in which `--help` shows them.
pub const SETTINGS: &[Setting] = &[
    // The service port.
    works("PORT", "8082", PORT, "Service port; 0 for any free one"),
    works("ADDRESS", "0.0.0.0", Form::Address, "Address to listen on").in_development("127.0.0.1"),
    works(
        "SHUTDOWN_TIMEOUT",
        "15s",
        Form::Duration { zero: true },
        "How long running builds may finish at shutdown",
    ),
    works("RATE_LIMIT", "100", COUNT, "Requests of one peer to /health a second"),
    works(
        "MAX_CONNECTIONS",
        "1024",
        Form::Integer {
            min: 1,
            max: 1_000_000,
        },
        "Open connections; more wait for their turn",
    ),
    works(
        "MAX_CONNECTIONS_PER_PEER",
        "256",
        COUNT,
        "Open connections of one peer; more are closed",
    ),
    works(
        "REFLECTION_ENABLED",
        "true",
        Form::Bool,
        "Tell gRPC tools about the methods",
    ),
    // Builds.
    works(
        "MAX_CONCURRENT_BUILDS",
        "5",
        Form::Integer { min: 1, max: 1024 },
        "Builds that run at the same time",
    ),
    works(
        "BUILD_TIMEOUT",
        "15m",
        DURATION,
        "The longest that any build may take",
    ),
    works(
        "SCRATCH_DIR",
        "/tmp/builderd",
        Form::Path,
        "Small temporary files",
    ),
    works(
        "ROOTFS_OUTPUT_DIR",
        "/opt/builderd/rootfs",
        Form::Path,
        "Finished images",
    ),
    works(
        "WORKSPACE_DIR",
        "/opt/builderd/workspace",
        Form::Path,
        "Caches and unfinished work",
    ),
    works(
        "ROOTFS_BACKEND",
        "native",
        Form::Word(&["native", "mke2fs"]),
        "Which writer makes the images; mke2fs needs root",
    ),
    // Storage.
    works(
        "STORAGE_BACKEND",
        "local",
        Form::Word(&["local", "s3", "gcs"]),
        "Where images are kept",
    ),
    works(
        "STORAGE_RETENTION_DAYS",
        "30",
        COUNT,
        "Days that builds of the default tier are kept",
    ),
    works(
        "STORAGE_MAX_SIZE_GB",
        "100",
        GIBIBYTES,
        "Gibibytes that all images may take",
    ),
    works(
        "STORAGE_CACHE_ENABLED",
        "true",
        Form::Bool,
        "Keep layers between builds",
    ),
    works(
        "STORAGE_CACHE_MAX_SIZE_GB",
        "50",
        GIBIBYTES,
        "Gibibytes of cached layers",
    ),
    works(
        "STORAGE_S3_BUCKET",
        "",
        Form::Text,
        "Bucket for STORAGE_BACKEND=s3",
    ),
    works(
        "STORAGE_S3_REGION",
        "",
        Form::Text,
        "Its region; needed without STORAGE_S3_ENDPOINT",
    ),
    works(
        "STORAGE_S3_ENDPOINT",
        "",
        Form::Url,
        "Its service, when it is not Amazon's own",
    ),
    works(
        "STORAGE_S3_ACCESS_KEY",
        "",
        Form::Text,
        "Access key; without, the machine's role is used",
    )
    .secret(),
    works(
        "STORAGE_S3_SECRET_KEY",
        "",
        Form::Text,
        "Secret key of the access key",
    )
    .secret(),
    works(
        "STORAGE_GCS_BUCKET",
        "",
        Form::Text,
        "Bucket for STORAGE_BACKEND=gcs",
    ),
    works(
        "STORAGE_GCS_PROJECT",
        "",
        Form::Text,
        "Project that requests are charged to; without, the bucket's own",
    ),
    works(
        "STORAGE_GCS_CREDENTIALS_PATH",
        "",
        Form::Path,
        "A service account's key; without, the machine's account is used",
    ),
    works(
        "CLEANUP_INTERVAL",
        "1h",
        DURATION,
        "How often what is due is removed",
    ),
    // Registries.
    works(
        "DOCKER_REGISTRY_AUTH",
        "true",
        Form::Bool,
        "Accept registry credentials in requests",
    ),
    works(
        "DOCKER_MAX_IMAGE_SIZE_GB",
        "5",
        GIBIBYTES,
        "Gibibytes of an image's compressed layers",
    ),
    works(
        "DOCKER_PULL_TIMEOUT",
        "10m",
        DURATION,
        "The longest that the pull of one image may take",
    ),
    works(
        "DOCKER_REGISTRY_MIRROR",
        "",
        Form::Text,
        "Registry to ask before docker.io, as https://host:port",
    ),
    works(
        "DOCKER_MIRROR_FALLBACK",
        "true",
        Form::Bool,
        "Ask docker.io itself when the mirror lacks an image or fails",
    ),
    works(
        "DOCKER_CERTS_DIR",
        "",
        Form::Path,
        "Authorities and client certificates by registry: DIR/HOST[:PORT]/ with *.crt, *.cert and *.key",
    ),
    works(
        "DOCKER_HTTP_PROXY",
        "",
        Form::Text,
        "Proxy for registries over plain HTTP, as http://host:port; it must refuse private destinations itself",
    )
    .secret(),
    works(
        "DOCKER_HTTPS_PROXY",
        "",
        Form::Text,
        "Proxy for registries over TLS, as http://host:port; it must refuse private destinations itself",
    )
    .secret(),
    works(
        "DOCKER_NO_PROXY",
        "",
        Form::Text,
        "Domains, addresses and networks that are reached without a proxy",
    ),
    works(
        "DOCKER_ALLOWED_REGISTRIES",
        "",
        Form::List,
        "Registries that may be pulled from; empty for those of the tenant's tier",
    ),
    works(
        "DOCKER_INSECURE_REGISTRIES",
        "",
        Form::List,
        "Registries that are spoken to over plain HTTP",
    ),
    // Tenants.
    works(
        "TENANT_ISOLATION_ENABLED",
        "true",
        Form::Bool,
        "Run workers in boxes, or refuse to start; with --dev as far as the host allows",
    ),
    works(
        "TENANT_DEFAULT_TIER",
        "free",
        Form::Word(TIERS),
        "Tier of tenants that are not known",
    )
    .in_development("pro"),
    works(
        "TENANT_QUOTA_CHECK_INTERVAL",
        "5m",
        DURATION,
        "How often quotas are looked over, and stored images are put into the ledger",
    ),
    works(
        "TENANT_DEFAULT_MAX_MEMORY_BYTES",
        "2147483648",
        BYTES,
        "Bytes of memory of a build, default tier",
    ),
    works(
        "TENANT_DEFAULT_MAX_CPU_CORES",
        "2",
        COUNT,
        "Cores of a build, default tier",
    ),
    works(
        "TENANT_DEFAULT_MAX_DISK_BYTES",
        "10737418240",
        BYTES,
        "Bytes of disk of a build, default tier",
    ),
    works(
        "TENANT_DEFAULT_TIMEOUT_SECONDS",
        "900",
        COUNT,
        "Seconds of a build, default tier",
    ),
    works(
        "TENANT_DEFAULT_MAX_CONCURRENT_BUILDS",
        "3",
        COUNT,
        "Builds at once of one tenant, default tier",
    ),
    works(
        "TENANT_DEFAULT_MAX_DAILY_BUILDS",
        "100",
        COUNT,
        "Builds a UTC day of one tenant, default tier",
    ),
    works(
        "TENANT_DEFAULT_MAX_STORAGE_BYTES",
        "53687091200",
        BYTES,
        "Bytes of images of one tenant, default tier",
    ),
    works(
        "TENANT_DEFAULT_MAX_BUILD_TIME_MINUTES",
        "30",
        COUNT,
        "Minutes of a build, default tier",
    ),
    works(
        "PRICES_FILE",
        "",
        Form::Path,
        "What things cost, for `builderd usage`; checked at the start",
    ),
    // State.
    works(
        "DATABASE_DATA_DIR",
        "/opt/builderd/data",
        Form::Path,
        "The database",
    ),
    works(
        "DATABASE_TYPE",
        "sqlite",
        Form::Word(&["sqlite", "postgres"]),
        "Which database",
    )
    .partial(),
    works("DATABASE_HOST", "", Form::Text, "Host of DATABASE_TYPE=postgres").not_yet(NOT_PORTABLE),
    works("DATABASE_PORT", "", PORT, "Its port").not_yet(NOT_PORTABLE),
    works("DATABASE_NAME", "", Form::Text, "Its database").not_yet(NOT_PORTABLE),
    works("DATABASE_USERNAME", "", Form::Text, "Its user").not_yet(NOT_PORTABLE),
    works("DATABASE_PASSWORD", "", Form::Text, "Its password")
        .not_yet(NOT_PORTABLE)
        .secret(),
    works("DATABASE_SSL_MODE", "", Form::Text, "How it is encrypted").not_yet(NOT_PORTABLE),
    // assetmanagerd.
    works(
        "ASSETMANAGER_ENABLED",
        "true",
        Form::Bool,
        "Register images with assetmanagerd",
    )
    .in_development("false"),
    works(
        "ASSETMANAGER_ENDPOINT",
        "https://localhost:8083",
        Form::Url,
        "Where assetmanagerd is",
    ),
    works(
        "ASSETMANAGER_SPIFFE_ID",
        "",
        Form::Text,
        "Its SPIFFE ID for TLS_MODE=spiffe; without, any of the trust domain that is no tenant's",
    ),
    works(
        "ASSETMANAGER_SERVICE",
        "asset.v1",
        Form::Word(&["asset.v1", "deploy.assetmanagerd.v1"]),
        "The package under which assetmanagerd serves",
    ),
    works(
        "ASSETMANAGER_METHOD",
        "register",
        Form::Word(&["register", "upload"]),
        "Tell assetmanagerd where images are, or send them to it; upload needs STORAGE_BACKEND=local",
    )
    .partial(),
    // Who may call.
    works(
        "AUTH_MODE",
        "none",
        Form::Word(&["none", "bearer", "mtls"]),
        "How callers show who they are; mtls needs TLS_MODE=spiffe, or file with TLS_CA_FILE",
    ),
    works("AUTH_TOKENS_FILE", "", Form::Path, "Tokens for AUTH_MODE=bearer"),
    works(
        "AUTH_SERVICE_IDS",
        "",
        Form::List,
        "SPIFFE IDs that act for any tenant, for AUTH_MODE=mtls",
    ),
    works(
        "AUTH_TRUST_DOMAIN",
        "",
        Form::Text,
        "Trust domain of callers for AUTH_MODE=mtls; without, that of the service's own certificate",
    ),
    works(
        "TLS_MODE",
        "spiffe",
        Form::Word(&["disabled", "file", "spiffe"]),
        "How the service port and calls of assetmanagerd are encrypted",
    )
    .in_development("disabled"),
    works(
        "TLS_CERT_FILE",
        "",
        Form::Path,
        "Certificate and chain for TLS_MODE=file, PEM; read again when it changes",
    ),
    works("TLS_KEY_FILE", "", Form::Path, "Its key, PEM"),
    works(
        "TLS_CA_FILE",
        "",
        Form::Path,
        "Authorities of clients, who then have to show a certificate, and of assetmanagerd; PEM",
    ),
    works(
        "SPIFFE_SOCKET",
        "/run/spire/sockets/agent.sock",
        Form::Path,
        "Socket of the Workload API for TLS_MODE=spiffe",
    ),
    // What it tells.
    works(
        "LOG_LEVEL",
        "info",
        Form::Text,
        "error, warn, info, debug or trace; or a filter, as info,builder_core=debug",
    ),
    works(
        "LOG_FORMAT",
        "json",
        Form::Word(&["json", "pretty"]),
        "How log lines look",
    )
    .in_development("pretty"),
    works("AUDIT_ENABLED", "false", Form::Bool, "Write an audit log"),
    works(
        "AUDIT_LOG_PATH",
        "/var/log/builderd-audit.log",
        Form::Path,
        "Where it is written; the files before it are this path with .1, .2 and so on",
    ),
    works(
        "AUDIT_MAX_SIZE_MB",
        "100",
        Form::Integer { min: 1, max: 1 << 20 },
        "Mebibytes after which the audit log begins a new file",
    ),
    works(
        "AUDIT_MAX_FILES",
        "10",
        Form::Integer { min: 1, max: 1000 },
        "Files of the audit log that are kept, the newest among them",
    ),
    works("OTEL_ENABLED", "false", Form::Bool, "Export traces and metrics"),
    works(
        "OTEL_SERVICE_NAME",
        "builderd",
        Form::Text,
        "Name of the service in telemetry",
    ),
    works(
        "OTEL_SERVICE_VERSION",
        "",
        Form::Text,
        "Version of the service in telemetry; without, its own",
    ),
    works("OTEL_ENDPOINT", "localhost:4318", Form::Text, "Collector that takes OTLP over HTTP, as HOST:PORT or https://HOST:PORT"),
    works(
        "OTEL_SAMPLING_RATE",
        "1.0",
        Form::Ratio,
        "Share of the traces that begin here that is kept; whoever calls with a trace has decided for it",
    ),
    works(
        "OTEL_PROMETHEUS_ENABLED",
        "true",
        Form::Bool,
        "Serve metrics to Prometheus (with OTEL_ENABLED)",
    ),
    works("OTEL_PROMETHEUS_PORT", "9466", PORT, "Port of GET /metrics; 0 for any free one"),
    works(
        "OTEL_PROMETHEUS_INTERFACE",
        "127.0.0.1",
        Form::Address,
        "Address of GET /metrics",
    ),
    works(
        "OTEL_HIGH_CARDINALITY_ENABLED",
        "false",
        Form::Bool,
        "Tell tenants apart in metrics: up to 2000 of them per metric",
    ),
    // The remote client's.
    works(
        "SERVER_ADDRESS",
        "https://localhost:8082",
        Form::Text,
        "Where the service is, as https://host:port or http://host:port",
    )
    .client(),
    works(
        "SERVER_SPIFFE_ID",
        "",
        Form::Text,
        "Its SPIFFE ID for TLS_MODE=spiffe; without, any of the trust domain that is no tenant's",
    )
    .client(),
    works("TENANT_ID", "", Form::Text, "Whose builds").client(),
    works("USER_ID", "", Form::Text, "Who asks, for the service's log").client(),
    works("TOKEN", "", Form::Text, "Token for AUTH_MODE=bearer").client().secret(),
    works("TOKEN_FILE", "", Form::Path, "File with it").client(),
];
