//! What is set and has no effect is named, and what has one is not.

use crate::{development, production};

type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
    &'static str,
);

const ON: (&str, &str) = ("OTEL_ENABLED", "true");
const BUCKET: [(&str, &str); 3] = [
    ("STORAGE_BACKEND", "gcs"),
    ("STORAGE_GCS_BUCKET", "images"),
    ("ROOTFS_OUTPUT_DIR", "/srv/images"),
];

#[test]
fn what_belongs_to_something_that_is_off_is_named() {
    let cases: &[Case] = &[
        ("nothing said", &[], &[], ""),
        (
            "telemetry that is off",
            &[
                ("OTEL_SERVICE_NAME", "images"),
                ("OTEL_SERVICE_VERSION", "9"),
                ("OTEL_ENDPOINT", "collector:4318"),
                ("OTEL_SAMPLING_RATE", "0.5"),
                ("OTEL_PROMETHEUS_ENABLED", "false"),
                ("OTEL_PROMETHEUS_PORT", "9999"),
                ("OTEL_PROMETHEUS_INTERFACE", "0.0.0.0"),
                ("OTEL_HIGH_CARDINALITY_ENABLED", "true"),
            ],
            &[
                "OTEL_SERVICE_NAME",
                "OTEL_SERVICE_VERSION",
                "OTEL_ENDPOINT",
                "OTEL_SAMPLING_RATE",
                "OTEL_PROMETHEUS_ENABLED",
                "OTEL_PROMETHEUS_PORT",
                "OTEL_PROMETHEUS_INTERFACE",
                "OTEL_HIGH_CARDINALITY_ENABLED",
            ],
            "OTEL_ENABLED is false",
        ),
        (
            "telemetry that is on",
            &[
                ON,
                ("OTEL_ENDPOINT", "collector:4318"),
                ("OTEL_PROMETHEUS_PORT", "9999"),
            ],
            &[],
            "",
        ),
        (
            "a port that is not opened",
            &[
                ON,
                ("OTEL_PROMETHEUS_ENABLED", "false"),
                ("OTEL_PROMETHEUS_PORT", "9999"),
                ("OTEL_PROMETHEUS_INTERFACE", "0.0.0.0"),
            ],
            &["OTEL_PROMETHEUS_PORT", "OTEL_PROMETHEUS_INTERFACE"],
            "OTEL_PROMETHEUS_ENABLED is false",
        ),
        (
            "an audit log that is off",
            &[
                ("AUDIT_LOG_PATH", "/a"),
                ("AUDIT_MAX_SIZE_MB", "1"),
                ("AUDIT_MAX_FILES", "2"),
            ],
            &["AUDIT_LOG_PATH", "AUDIT_MAX_SIZE_MB", "AUDIT_MAX_FILES"],
            "AUDIT_ENABLED is false",
        ),
        (
            "an audit log that is on",
            &[("AUDIT_ENABLED", "true"), ("AUDIT_LOG_PATH", "/a")],
            &[],
            "",
        ),
        (
            "no assetmanagerd",
            &[
                ("ASSETMANAGER_ENDPOINT", "http://127.0.0.1:1"),
                ("ASSETMANAGER_SERVICE", "deploy.assetmanagerd.v1"),
                ("ASSETMANAGER_METHOD", "upload"),
            ],
            &[
                "ASSETMANAGER_ENDPOINT",
                "ASSETMANAGER_SERVICE",
                "ASSETMANAGER_METHOD",
            ],
            "ASSETMANAGER_ENABLED is false",
        ),
        (
            "a cache that is off",
            &[
                ("STORAGE_CACHE_ENABLED", "false"),
                ("STORAGE_CACHE_MAX_SIZE_GB", "7"),
            ],
            &["STORAGE_CACHE_MAX_SIZE_GB"],
            "STORAGE_CACHE_ENABLED is false",
        ),
        (
            "a directory beside a bucket",
            &BUCKET,
            &["ROOTFS_OUTPUT_DIR"],
            "images are kept in the bucket",
        ),
        (
            "exceptions without a rule",
            &[("DOCKER_NO_PROXY", "10.0.0.0/8")],
            &["DOCKER_NO_PROXY"],
            "neither DOCKER_HTTP_PROXY nor DOCKER_HTTPS_PROXY",
        ),
        (
            "a proxy for nobody",
            &[("DOCKER_HTTP_PROXY", "http://proxy:3128")],
            &["DOCKER_HTTP_PROXY"],
            "no registry is spoken to over plain HTTP",
        ),
        (
            "a proxy for somebody",
            &[
                ("DOCKER_HTTP_PROXY", "http://proxy:3128"),
                ("DOCKER_INSECURE_REGISTRIES", "registry:5000"),
                ("DOCKER_NO_PROXY", "10.0.0.0/8"),
            ],
            &[],
            "",
        ),
        (
            "the defaults in other spellings",
            &[
                ("OTEL_SAMPLING_RATE", "1"),
                ("OTEL_PROMETHEUS_INTERFACE", "localhost"),
                ("SPIFFE_SOCKET", "/run/spire/sockets/agent.sock"),
            ],
            &[],
            "",
        ),
    ];
    for (name, variables, expected, reason) in cases {
        let idle = production(variables)
            .unwrap_or_else(|errors| panic!("{name}: {errors:?}"))
            .idle;
        let named: Vec<_> = idle
            .iter()
            .map(|idle| idle.variable.trim_start_matches("UNKEY_BUILDERD_"))
            .collect();
        assert_eq!(named, *expected, "{name}");
        for idle in &idle {
            assert!(idle.to_string().contains(reason), "{name}: {idle}");
        }
    }
    // A development start speaks plain HTTP to registries on loopback.
    let config = development(&[("DOCKER_HTTP_PROXY", "http://proxy:3128")]).unwrap();
    assert_eq!(config.idle, []);
}
