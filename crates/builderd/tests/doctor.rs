//! `builderd doctor` reaches registries in the way in which the daemon does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]
#[path = "support/tunnel.rs"]
mod tunnel;

use std::{path::Path, process::Command, sync::Arc};

use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use test_support::{
    pki::{Authority, Subject, replace},
    registry::Registry,
};

/// A name, the variables that are set, and what is said then.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], String);

/// What it says with these variables.
fn run(state: &Path, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_builderd"));
    command.arg("doctor").env_clear();
    for (name, place) in [
        ("DATABASE_DATA_DIR", "data"),
        ("ROOTFS_OUTPUT_DIR", "rootfs"),
        ("SCRATCH_DIR", "scratch"),
        ("WORKSPACE_DIR", "workspace"),
    ] {
        command.env(format!("UNKEY_BUILDERD_{name}"), state.join(place));
    }
    for (name, value) in variables {
        command.env(format!("UNKEY_BUILDERD_{name}"), value);
    }
    let output = command.output().unwrap();
    assert!(
        !state.join("workspace").exists(),
        "it looks, and leaves nothing behind"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// An address of the registry that speaks TLS with a certificate of this authority.
async fn over_tls(registry: &Registry, authority: &Authority) -> String {
    let shown = authority.issue(&Subject::host(&["localhost"]));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![shown.certificate_der.clone().into()],
            PrivateKeyDer::from_pem_slice(shown.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    let address = tunnel::terminate(registry.host().parse().unwrap(), config).await;
    format!("localhost:{}", address.port())
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_are_asked_as_the_daemon_would_ask_them() {
    let registry = Registry::start().unwrap();
    let plain = registry.host();
    let authority = Authority::new("ours");
    let encrypted = over_tls(&registry, &authority).await;
    let directory = tempfile::tempdir().unwrap();
    let certificates = directory.path().join("certs");
    std::fs::create_dir_all(certificates.join(&encrypted)).unwrap();
    replace(&certificates.join(&encrypted).join("ca.crt"), &authority.pem());
    let certificates = certificates.to_str().unwrap();
    let mirror = format!("http://{plain}");
    let cases: &[Case<'_>] = &[
        (
            "plain HTTP that is allowed",
            &[
                ("DOCKER_ALLOWED_REGISTRIES", &plain),
                ("DOCKER_INSECURE_REGISTRIES", &plain),
            ],
            format!("ok    registry http://{plain}: answers"),
        ),
        (
            "plain HTTP that is not",
            &[("DOCKER_ALLOWED_REGISTRIES", &plain)],
            format!("weak  registry https://{plain}: failed to connect"),
        ),
        (
            "an authority of its own",
            &[
                ("DOCKER_ALLOWED_REGISTRIES", &encrypted),
                ("DOCKER_CERTS_DIR", certificates),
            ],
            format!("ok    registry https://{encrypted}: answers"),
        ),
        (
            "an authority that nobody knows",
            &[("DOCKER_ALLOWED_REGISTRIES", &encrypted)],
            format!("weak  registry https://{encrypted}: failed to connect"),
        ),
        (
            "a mirror in place of Docker Hub",
            &[
                ("DOCKER_REGISTRY_MIRROR", &mirror),
                ("DOCKER_MIRROR_FALLBACK", "false"),
            ],
            format!("ok    mirror {mirror} of docker.io: answers"),
        ),
        (
            "a proxy that is not there",
            &[("DOCKER_HTTPS_PROXY", "http://user:hunter2@127.0.0.1:1")],
            "weak  registry https://registry-1.docker.io: failed to connect to registry docker.io through the proxy"
                .to_owned(),
        ),
        (
            "settings that no start takes",
            &[("AUTH_MODE", "bearer")],
            "BAD   settings: UNKEY_BUILDERD_AUTH_TOKENS_FILE".to_owned(),
        ),
        (
            "a setting without effect",
            &[
                ("DOCKER_ALLOWED_REGISTRIES", &plain),
                ("DOCKER_INSECURE_REGISTRIES", &plain),
                ("ASSETMANAGER_ENABLED", "false"),
                ("ASSETMANAGER_METHOD", "upload"),
            ],
            "weak  settings: UNKEY_BUILDERD_ASSETMANAGER_METHOD has no effect".to_owned(),
        ),
    ];
    for (name, variables, expected) in cases {
        let report = run(directory.path(), variables);
        assert!(report.contains(expected), "{name}: expected {expected}\n{report}");
        assert!(!report.contains("hunter2"), "{name}: {report}");
        let is_hub = name.contains("proxy");
        assert_eq!(
            report.contains("registry-1.docker.io"),
            is_hub,
            "{name}: {report}"
        );
    }
    let seen = registry.count_requests("/v2/");
    assert_eq!(seen, 4, "one request of each look that reached it");
}
