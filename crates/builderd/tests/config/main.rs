//! Every variable: set to something that works it takes effect, set to anything else the start is refused with the
//! variable, the value and what is expected.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod command;
mod idle;
mod refused;
mod security;

use std::{collections::BTreeMap, ffi::OsString, net::SocketAddr, path::Path, time::Duration};

use builderd::config::{
    AuthenticationConfig, Config, ConfigError, Effect, LogFormat, SETTINGS, Source, VARIABLE_PREFIX, Values,
};

/// What a production start needs besides, so that a single variable can be looked at.
const PRODUCTION: [(&str, &str); 3] = [
    ("TLS_MODE", "disabled"),
    ("TENANT_ISOLATION_ENABLED", "false"),
    ("ASSETMANAGER_ENABLED", "false"),
];

fn collect(variables: &[(&str, &str)], state_directory: Option<&str>) -> Result<Values, Vec<ConfigError>> {
    let environment = variables.iter().map(|(name, value)| {
        (
            OsString::from(format!("{VARIABLE_PREFIX}{name}")),
            OsString::from(value),
        )
    });
    Values::collect(environment, |_| None, state_directory.map(Path::new))
}

fn production(variables: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
    let all: BTreeMap<_, _> = PRODUCTION.iter().chain(variables).copied().collect();
    let all: Vec<_> = all.into_iter().collect();
    collect(&all, None).and_then(|values| Config::from_values(&values, false))
}

fn development(variables: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
    collect(variables, Some("/state")).and_then(|values| Config::from_values(&values, true))
}

/// The only error there is, as text.
fn refusal<T: std::fmt::Debug>(result: Result<T, Vec<ConfigError>>) -> String {
    let errors = result.expect_err("expected to be refused");
    let [error] = errors.as_slice() else {
        panic!("expected one error, got {errors:?}");
    };
    error.to_string()
}

#[test]
fn production_keeps_the_documented_defaults() {
    let config = production(&[]).unwrap();
    assert_eq!(config.address, SocketAddr::from(([0, 0, 0, 0], 8082)));
    assert_eq!(config.shutdown_timeout, Duration::from_secs(15));
    assert_eq!(config.health_requests_per_second, 100);
    assert_eq!(config.max_concurrent_builds, 5);
    assert_eq!(config.build_timeout, Duration::from_secs(900));
    assert_eq!(config.scratch_directory, Path::new("/tmp/builderd"));
    assert_eq!(config.output_directory, Path::new("/opt/builderd/rootfs"));
    assert_eq!(config.workspace_directory, Path::new("/opt/builderd/workspace"));
    assert_eq!(config.database_directory, Path::new("/opt/builderd/data"));
    assert!(config.cache_enabled);
    assert_eq!(config.cache_max_bytes, 50 << 30);
    assert_eq!(config.max_image_bytes, 5 << 30);
    assert!(config.registry_credentials);
    assert_eq!(config.registry_mirror, None);
    assert!(config.mirror_fallback);
    assert_eq!(config.certificates_directory, None);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.log.filter, "info");
}

#[test]
fn development_keeps_everything_in_one_directory_and_to_this_machine() {
    let config = development(&[]).unwrap();
    assert_eq!(config.address, SocketAddr::from(([127, 0, 0, 1], 8082)));
    assert_eq!(config.database_directory, Path::new("/state/data"));
    assert_eq!(config.output_directory, Path::new("/state/rootfs"));
    assert_eq!(config.workspace_directory, Path::new("/state/workspace"));
    assert_eq!(config.scratch_directory, Path::new("/state/scratch"));
    assert_eq!(config.log.format, LogFormat::Pretty);
    assert!(config.development);
}

#[test]
fn explicit_variables_win_over_development() {
    let config = development(&[
        ("ADDRESS", "0.0.0.0"),
        ("WORKSPACE_DIR", "/elsewhere"),
        ("LOG_FORMAT", "json"),
    ])
    .unwrap();
    assert!(config.address.ip().is_unspecified());
    assert_eq!(config.workspace_directory, Path::new("/elsewhere"));
    assert_eq!(config.log.format, LogFormat::Json);
    let config = development(&[("TLS_MODE", "spiffe")]).unwrap();
    assert_ne!(config.tls, builderd::tls::TlsSettings::Disabled);
}

#[test]
fn flags_go_before_variables() {
    let environment = [
        ("UNKEY_BUILDERD_PORT", "1000"),
        ("UNKEY_BUILDERD_RATE_LIMIT", "7"),
    ];
    let environment = environment.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let flag = |setting: &builderd::config::Setting| (setting.name == "PORT").then(|| "2000".to_owned());
    let values = Values::collect(environment, flag, Some(Path::new("/state"))).unwrap();
    let config = Config::from_values(&values, true).unwrap();
    assert_eq!(config.address.port(), 2000);
    assert_eq!(config.health_requests_per_second, 7);
    assert_eq!(values.source("PORT"), Source::Flag);
    assert_eq!(values.source("RATE_LIMIT"), Source::Variable);
    assert_eq!(values.source("ADDRESS"), Source::Development);
    assert_eq!(values.source("BUILD_TIMEOUT"), Source::Default);
}

fn s3_variables() -> [(&'static str, &'static str); 6] {
    [
        ("STORAGE_BACKEND", "s3"),
        ("STORAGE_S3_BUCKET", "images"),
        ("STORAGE_S3_REGION", "eu-central-1"),
        ("STORAGE_S3_ENDPOINT", "https://objects.example"),
        ("STORAGE_S3_ACCESS_KEY", "AKIDEXAMPLE"),
        ("STORAGE_S3_SECRET_KEY", "hunter2"),
    ]
}

fn gcs_variables() -> [(&'static str, &'static str); 4] {
    [
        ("STORAGE_BACKEND", "gcs"),
        ("STORAGE_GCS_BUCKET", "pictures"),
        ("STORAGE_GCS_PROJECT", "my-project-1"),
        ("STORAGE_GCS_CREDENTIALS_PATH", "/etc/builderd/gcs.json"),
    ]
}

#[test]
fn working_variables_take_effect() {
    type Seen = fn(&Config) -> String;
    let cases: &[(&str, &str, Seen, &str)] = &[
        ("PORT", "9000", |config| config.address.port().to_string(), "9000"),
        ("ADDRESS", "::1", |config| config.address.ip().to_string(), "::1"),
        (
            "ADDRESS",
            "localhost",
            |config| config.address.ip().to_string(),
            "127.0.0.1",
        ),
        (
            "SHUTDOWN_TIMEOUT",
            "1m30s",
            |config| config.shutdown_timeout.as_secs().to_string(),
            "90",
        ),
        (
            "SHUTDOWN_TIMEOUT",
            "0",
            |config| config.shutdown_timeout.as_secs().to_string(),
            "0",
        ),
        (
            "MAX_CONNECTIONS",
            "9",
            |config| config.max_connections.to_string(),
            "9",
        ),
        (
            "MAX_CONNECTIONS_PER_PEER",
            "7",
            |config| config.max_connections_per_peer.to_string(),
            "7",
        ),
        (
            "REFLECTION_ENABLED",
            "false",
            |config| config.reflection.to_string(),
            "false",
        ),
        (
            "RATE_LIMIT",
            "3",
            |config| config.health_requests_per_second.to_string(),
            "3",
        ),
        (
            "MAX_CONCURRENT_BUILDS",
            "9",
            |config| config.max_concurrent_builds.to_string(),
            "9",
        ),
        (
            "BUILD_TIMEOUT",
            "1h30m",
            |config| config.build_timeout.as_secs().to_string(),
            "5400",
        ),
        (
            "SCRATCH_DIR",
            "/a",
            |config| config.scratch_directory.display().to_string(),
            "/a",
        ),
        (
            "ROOTFS_OUTPUT_DIR",
            "/b",
            |config| config.output_directory.display().to_string(),
            "/b",
        ),
        (
            "WORKSPACE_DIR",
            "/c",
            |config| config.workspace_directory.display().to_string(),
            "/c",
        ),
        (
            "DATABASE_DATA_DIR",
            "/d",
            |config| config.database_directory.display().to_string(),
            "/d",
        ),
        (
            "ROOTFS_BACKEND",
            "mke2fs",
            |config| format!("{:?}", config.backend),
            "Mke2fs",
        ),
        (
            "TENANT_ISOLATION_ENABLED",
            "true",
            |config| format!("{:?}", config.isolation),
            "Strict",
        ),
        (
            "STORAGE_CACHE_ENABLED",
            "false",
            |config| config.cache_enabled.to_string(),
            "false",
        ),
        (
            "STORAGE_CACHE_ENABLED",
            "0",
            |config| config.cache_enabled.to_string(),
            "false",
        ),
        (
            "STORAGE_CACHE_MAX_SIZE_GB",
            "2",
            |config| config.cache_max_bytes.to_string(),
            "2147483648",
        ),
        (
            "STORAGE_MAX_SIZE_GB",
            "3",
            |config| config.storage_max_bytes.to_string(),
            "3221225472",
        ),
        (
            "STORAGE_RETENTION_DAYS",
            "7",
            |config| config.tenant_defaults.retention.as_secs().to_string(),
            "604800",
        ),
        (
            "CLEANUP_INTERVAL",
            "5m",
            |config| config.cleanup_interval.as_secs().to_string(),
            "300",
        ),
        (
            "TENANT_QUOTA_CHECK_INTERVAL",
            "7s",
            |config| config.quota_check_interval.as_secs().to_string(),
            "7",
        ),
        (
            "TENANT_DEFAULT_MAX_CPU_CORES",
            "7",
            |config| config.tenant_defaults.cpu_cores.to_string(),
            "7",
        ),
        (
            "TENANT_DEFAULT_MAX_CONCURRENT_BUILDS",
            "8",
            |config| config.tenant_defaults.concurrent_builds.to_string(),
            "8",
        ),
        (
            "TENANT_DEFAULT_MAX_DAILY_BUILDS",
            "9",
            |config| config.tenant_defaults.daily_builds.to_string(),
            "9",
        ),
        (
            "TENANT_DEFAULT_MAX_STORAGE_BYTES",
            "10",
            |config| config.tenant_defaults.storage_bytes.to_string(),
            "10",
        ),
        (
            "DOCKER_REGISTRY_AUTH",
            "false",
            |config| config.registry_credentials.to_string(),
            "false",
        ),
        (
            "DOCKER_MAX_IMAGE_SIZE_GB",
            "1",
            |config| config.max_image_bytes.to_string(),
            "1073741824",
        ),
        (
            "DOCKER_REGISTRY_MIRROR",
            "http://mirror:5000",
            |config| config.registry_mirror.clone().unwrap_or_default(),
            "http://mirror:5000",
        ),
        (
            "DOCKER_CERTS_DIR",
            "/etc/docker/certs.d",
            |config| format!("{:?}", config.certificates_directory),
            "Some(\"/etc/docker/certs.d\")",
        ),
        (
            "DOCKER_ALLOWED_REGISTRIES",
            "a.io, b.io,",
            |config| config.allowed_registries.join("+"),
            "a.io+b.io",
        ),
        (
            "DOCKER_INSECURE_REGISTRIES",
            "c:5000",
            |config| config.insecure_registries.join("+"),
            "c:5000",
        ),
        ("LOG_LEVEL", "debug", |config| config.log.filter.clone(), "debug"),
        (
            "LOG_FORMAT",
            "pretty",
            |config| format!("{:?}", config.log.format),
            "Pretty",
        ),
        (
            "TENANT_DEFAULT_TIER",
            "enterprise",
            |config| config.default_tier.to_string(),
            "enterprise",
        ),
        (
            "TENANT_DEFAULT_MAX_MEMORY_BYTES",
            "5",
            |config| config.tenant_defaults.memory_bytes.to_string(),
            "5",
        ),
        (
            "TENANT_DEFAULT_MAX_DISK_BYTES",
            "6",
            |config| config.tenant_defaults.disk_bytes.to_string(),
            "6",
        ),
        (
            "TENANT_DEFAULT_TIMEOUT_SECONDS",
            "7",
            |config| config.tenant_defaults.timeout.as_secs().to_string(),
            "7",
        ),
        (
            "TENANT_DEFAULT_MAX_BUILD_TIME_MINUTES",
            "8",
            |config| config.tenant_defaults.build_time.as_secs().to_string(),
            "480",
        ),
        (
            "DOCKER_PULL_TIMEOUT",
            "90s",
            |config| config.pull_timeout.as_secs().to_string(),
            "90",
        ),
        (
            "DOCKER_HTTP_PROXY",
            "http://proxy:3128",
            |config| config.registry_proxies.is_none().to_string(),
            "false",
        ),
        (
            "DOCKER_HTTPS_PROXY",
            "http://user:secret@proxy:3128",
            |config| config.registry_proxies.is_none().to_string(),
            "false",
        ),
        (
            "DOCKER_NO_PROXY",
            "example.com,10.0.0.0/8",
            |config| {
                format!("{:?}", config.registry_proxies)
                    .contains("example.com")
                    .to_string()
            },
            "true",
        ),
    ];
    for (name, value, seen, expected) in cases {
        let config =
            production(&[(name, value)]).unwrap_or_else(|errors| panic!("{name}={value}: {errors:?}"));
        assert_eq!(seen(&config), *expected, "{name}={value}");
    }

    let variables = [
        ("ASSETMANAGER_ENABLED", "true"),
        ("ASSETMANAGER_ENDPOINT", "http://127.0.0.1:8083"),
        ("ASSETMANAGER_SERVICE", "deploy.assetmanagerd.v1"),
    ];
    let asset_manager = production(&variables).unwrap().asset_manager.unwrap();
    assert_eq!(asset_manager.endpoint, "http://127.0.0.1:8083");
    assert_eq!(
        asset_manager.service.to_string(),
        "deploy.assetmanagerd.v1.AssetManagerService"
    );

    let telemetry = [
        ("OTEL_ENABLED", "true"),
        ("OTEL_SERVICE_NAME", "images"),
        ("OTEL_SERVICE_VERSION", "9.9"),
        ("OTEL_ENDPOINT", "https://collector:4318"),
        ("OTEL_SAMPLING_RATE", "0.25"),
        ("OTEL_PROMETHEUS_ENABLED", "true"),
        ("OTEL_PROMETHEUS_PORT", "9000"),
        ("OTEL_PROMETHEUS_INTERFACE", "::1"),
        ("OTEL_HIGH_CARDINALITY_ENABLED", "true"),
    ];
    let told = production(&telemetry).unwrap().telemetry.unwrap();
    assert_eq!(
        (told.service_name.as_str(), told.service_version.as_str()),
        ("images", "9.9")
    );
    assert_eq!(
        (told.endpoint.to_string(), told.sampling_rate, told.by_tenant),
        ("https://collector:4318".to_owned(), 0.25, true)
    );
    assert_eq!(told.prometheus.unwrap().to_string(), "[::1]:9000");
    let told = production(&telemetry[..1]).unwrap().telemetry.unwrap();
    assert_eq!(
        (told.service_version.as_str(), told.sampling_rate, told.by_tenant),
        (env!("CARGO_PKG_VERSION"), 1.0, false)
    );
    assert_eq!(told.prometheus.unwrap().to_string(), "127.0.0.1:9466");
    let unscraped = [telemetry[0], ("OTEL_PROMETHEUS_ENABLED", "false")];
    assert!(
        production(&unscraped)
            .unwrap()
            .telemetry
            .unwrap()
            .prometheus
            .is_none()
    );
    assert!(production(&telemetry[1..]).unwrap().telemetry.is_none());
    let refused = refusal(production(&[
        telemetry[0],
        ("OTEL_ENDPOINT", "grpc://collector:4317"),
    ]));
    assert!(
        refused.starts_with("UNKEY_BUILDERD_OTEL_ENDPOINT=") && refused.contains("HOST:PORT"),
        "{refused}"
    );

    let tokens = [
        ("AUTH_MODE", "bearer"),
        ("AUTH_TOKENS_FILE", "/etc/builderd/tokens"),
    ];
    assert_eq!(
        production(&tokens).unwrap().authentication,
        AuthenticationConfig::Bearer("/etc/builderd/tokens".into())
    );
    // One without the other protects nobody.
    for variable in tokens {
        let refused = refusal(production(&[variable]));
        assert!(
            refused.starts_with("UNKEY_BUILDERD_AUTH_TOKENS_FILE="),
            "{refused}"
        );
    }

    let mirror_only = [
        ("DOCKER_MIRROR_FALLBACK", "false"),
        ("DOCKER_REGISTRY_MIRROR", "https://mirror:5000"),
    ];
    assert!(!production(&mirror_only).unwrap().mirror_fallback);
    // Without a mirror there would be nothing to pull from.
    let refused = refusal(production(&mirror_only[..1]));
    assert!(
        refused.starts_with("UNKEY_BUILDERD_DOCKER_MIRROR_FALLBACK="),
        "{refused}"
    );

    let (s3, gcs) = (s3_variables(), gcs_variables());
    for (variables, shown) in [(&s3[..], &s3[1..4]), (&gcs[..], &gcs[1..])] {
        let artifacts = format!("{:?}", production(variables).unwrap().artifacts);
        assert!(!artifacts.contains("hunter2"), "{artifacts}");
        for (name, value) in shown {
            assert!(artifacts.contains(value), "{name}: {artifacts}");
        }
    }
    // Half a pair of keys opens nothing.
    for (given, missing) in [
        (&s3[..5], "STORAGE_S3_SECRET_KEY"),
        (&[s3[0], s3[1], s3[2], s3[5]], "STORAGE_S3_ACCESS_KEY"),
    ] {
        let refused = refusal(production(given));
        assert!(
            refused.starts_with(&format!("UNKEY_BUILDERD_{missing}: ")),
            "{refused}"
        );
    }

    let audit = [
        ("AUDIT_ENABLED", "true"),
        ("AUDIT_LOG_PATH", "/a/audit.log"),
        ("AUDIT_MAX_SIZE_MB", "7"),
        ("AUDIT_MAX_FILES", "3"),
    ];
    let config = production(&audit).unwrap().audit.unwrap();
    assert_eq!(config.path.to_str(), Some("/a/audit.log"));
    assert_eq!((config.max_bytes, config.max_files), (7 << 20, 3));
    assert_eq!(production(&audit[1..]).unwrap().audit, None);

    // Read by `builderd usage`; the service refuses to start with one that it could not read.
    let directory = tempfile::tempdir().unwrap();
    let table = directory.path().join("prices.json");
    let prices = [("PRICES_FILE", table.to_str().unwrap())];
    for (text, is_good) in [(r#"{"currency":"EUR"}"#, true), (r#"{"price":1}"#, false)] {
        std::fs::write(&table, text).unwrap();
        assert_eq!(production(&prices).is_ok(), is_good, "{text}");
    }

    // A variable that works and is missing is not proven to work.
    for setting in SETTINGS
        .iter()
        .filter(|setting| matches!(setting.effect, Effect::Works))
    {
        let seen = cases
            .iter()
            .map(|case| case.0)
            .chain(variables.map(|variable| variable.0))
            .chain(telemetry.map(|variable| variable.0))
            .chain(tokens.map(|variable| variable.0))
            .chain(mirror_only.map(|variable| variable.0))
            .chain(s3.map(|variable| variable.0))
            .chain(gcs.map(|variable| variable.0))
            .chain(audit.map(|variable| variable.0))
            .chain(prices.map(|variable| variable.0))
            .chain(security::PROVEN);
        assert!(
            seen.into_iter().any(|name| name == setting.name),
            "{} is not in the table",
            setting.name
        );
    }
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let every: Vec<_> = SETTINGS.iter().map(|setting| (setting.name, "")).collect();
    let values = collect(&every, Some("/state")).unwrap();
    assert!(
        SETTINGS
            .iter()
            .all(|setting| values.source(setting.name) != Source::Variable)
    );
    collect(&[("NO_SUCH_SETTING", "")], None).unwrap();
}

#[test]
fn every_setting_of_the_documented_list_is_known() {
    let documented = "PORT ADDRESS SHUTDOWN_TIMEOUT RATE_LIMIT MAX_CONCURRENT_BUILDS BUILD_TIMEOUT SCRATCH_DIR \
        ROOTFS_OUTPUT_DIR WORKSPACE_DIR STORAGE_BACKEND STORAGE_RETENTION_DAYS STORAGE_MAX_SIZE_GB STORAGE_CACHE_ENABLED \
        STORAGE_CACHE_MAX_SIZE_GB DOCKER_REGISTRY_AUTH DOCKER_MAX_IMAGE_SIZE_GB DOCKER_PULL_TIMEOUT \
        DOCKER_REGISTRY_MIRROR TENANT_ISOLATION_ENABLED TENANT_DEFAULT_TIER TENANT_QUOTA_CHECK_INTERVAL \
        TENANT_DEFAULT_MAX_MEMORY_BYTES TENANT_DEFAULT_MAX_CPU_CORES TENANT_DEFAULT_MAX_DISK_BYTES \
        TENANT_DEFAULT_TIMEOUT_SECONDS TENANT_DEFAULT_MAX_CONCURRENT_BUILDS TENANT_DEFAULT_MAX_DAILY_BUILDS \
        ASSETMANAGER_ENABLED ASSETMANAGER_ENDPOINT OTEL_ENABLED OTEL_SERVICE_NAME OTEL_ENDPOINT OTEL_SAMPLING_RATE \
        OTEL_PROMETHEUS_ENABLED OTEL_PROMETHEUS_PORT TLS_MODE SPIFFE_SOCKET CLEANUP_INTERVAL \
        DOCKER_ALLOWED_REGISTRIES DOCKER_INSECURE_REGISTRIES TENANT_DEFAULT_MAX_STORAGE_BYTES \
        TENANT_DEFAULT_MAX_BUILD_TIME_MINUTES DATABASE_DATA_DIR DATABASE_TYPE DATABASE_HOST DATABASE_PORT DATABASE_NAME \
        DATABASE_USERNAME DATABASE_PASSWORD DATABASE_SSL_MODE STORAGE_S3_BUCKET STORAGE_S3_REGION STORAGE_S3_ENDPOINT \
        STORAGE_S3_ACCESS_KEY STORAGE_S3_SECRET_KEY STORAGE_GCS_BUCKET STORAGE_GCS_PROJECT \
        STORAGE_GCS_CREDENTIALS_PATH OTEL_SERVICE_VERSION OTEL_PROMETHEUS_INTERFACE OTEL_HIGH_CARDINALITY_ENABLED \
        LOG_LEVEL LOG_FORMAT AUDIT_ENABLED AUDIT_LOG_PATH TLS_CERT_FILE TLS_KEY_FILE TLS_CA_FILE SERVER_ADDRESS \
        TENANT_ID USER_ID AUTH_MODE AUTH_TOKENS_FILE AUTH_SERVICE_IDS AUTH_TRUST_DOMAIN ASSETMANAGER_SPIFFE_ID";
    for name in documented.split_whitespace() {
        assert!(SETTINGS.iter().any(|setting| setting.name == name), "{name}");
    }
}
