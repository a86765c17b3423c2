//! Who may ask for what, when callers are known by their certificates.

use std::{net::SocketAddr, path::Path};

use serde_json::{Value, json};
use test_support::pki::{Authority, Issued, Subject, replace};
use tonic::Code;

use crate::{
    Service,
    authentication::{code, names_a_build, requests},
    create,
    support::{
        client,
        protocols::{Protocol, call, encoded},
        tunnel::{client_config, tunnel},
    },
};

/// A service that knows callers by certificates of this authority, below the trust domain `test.example`.
async fn start(directory: &Path, authority: &Authority) -> Service {
    let host = Subject::host(&["localhost"]).and_uri("spiffe://test.example/builderd");
    let (certificate, key) = authority.issue(&host).write(directory, "tls");
    let authorities = directory.join("ca.crt");
    replace(&authorities, &authority.pem());
    Service::start(&[
        ("TLS_MODE", "file"),
        ("TLS_CERT_FILE", certificate.to_str().unwrap()),
        ("TLS_KEY_FILE", key.to_str().unwrap()),
        ("TLS_CA_FILE", authorities.to_str().unwrap()),
        ("AUTH_MODE", "mtls"),
        ("AUTH_SERVICE_IDS", "spiffe://test.example/metald"),
    ])
    .await
}

/// The way to the service for who shows this certificate.
async fn way(service: &Service, authority: &Authority, shown: &Issued) -> SocketAddr {
    tunnel(service.daemon.address(), client_config(authority, Some(shown))).await
}

async fn build_of(way: SocketAddr, tenant: &str) -> String {
    let answer = client()
        .post(format!("http://{way}/builder.v1.BuilderService/CreateBuild"))
        .header("content-type", "application/json")
        .body(create("/config/tenant/tenant_id", json!(tenant)).to_string())
        .send()
        .await
        .unwrap();
    let created: Value = answer.json().await.unwrap();
    created["buildId"]
        .as_str()
        .unwrap_or_else(|| panic!("{created}"))
        .to_owned()
}

#[tokio::test]
async fn with_mtls_a_caller_is_whom_the_certificate_says() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::of_trust_domain("test.example");
    let service = start(directory.path(), &authority).await;
    let of = async |subject: Subject| way(&service, &authority, &authority.issue(&subject)).await;
    let acme = of(Subject::spiffe("spiffe://test.example/tenant/acme")).await;
    let other = of(Subject::spiffe("spiffe://test.example/tenant/other")).await;
    let metald = of(Subject::spiffe("spiffe://test.example/metald")).await;
    let strangers = [
        ("a service that is not listed", "spiffe://test.example/other"),
        ("a tenant elsewhere", "spiffe://foreign.example/tenant/acme"),
        ("a listed service elsewhere", "spiffe://foreign.example/metald"),
        ("no tenant", "spiffe://test.example/tenant/acme/x"),
    ];
    let mut refused = Vec::new();
    for (name, id) in strangers {
        refused.push((name, of(Subject::spiffe(id)).await, Code::PermissionDenied));
    }
    let nobody = [
        ("no ID", Subject::host(&["acme"])),
        (
            "two IDs",
            Subject::spiffe("spiffe://test.example/tenant/acme").and_uri("spiffe://test.example/metald"),
        ),
        (
            "another URI",
            Subject::default().and_uri("https://test.example/tenant/acme"),
        ),
    ];
    for (name, subject) in nobody {
        refused.push((name, of(subject).await, Code::Unauthenticated));
    }
    let build = build_of(acme, "acme").await;

    for protocol in Protocol::ALL {
        // Who may, does: this one is deleted on the way.
        let spare = build_of(acme, "acme").await;
        for (method, body) in requests("acme", &spare) {
            let message = encoded(protocol, method, &body);
            let ask = async |way: SocketAddr, headers: &[(&str, &str)]| {
                code(&call(way, protocol, method, headers, message.clone()).await)
            };
            for (name, way, expected) in &refused {
                assert_eq!(ask(*way, &[]).await, *expected, "{protocol:?} {method}: {name}");
            }
            let seen = ask(other, &[]).await;
            assert_eq!(
                seen,
                Code::PermissionDenied,
                "{protocol:?} {method}: another tenant"
            );
            // Neither a header nor a token makes somebody of nobody.
            let headers = [("x-tenant-id", "acme"), ("authorization", "Bearer acme")];
            let seen = ask(other, &headers).await;
            assert_eq!(
                seen,
                Code::PermissionDenied,
                "{protocol:?} {method}: another tenant's word"
            );
            for good in [acme, metald] {
                let seen = ask(good, &[]).await;
                assert!(
                    !matches!(
                        seen,
                        Code::Unauthenticated | Code::PermissionDenied | Code::Internal
                    ),
                    "{protocol:?} {method}: {seen:?}"
                );
            }
        }
        // Honest about the tenant, and still not the build's owner.
        for (method, body) in requests("other", &build) {
            if names_a_build(method) {
                let answer = call(other, protocol, method, &[], encoded(protocol, method, &body)).await;
                assert_eq!(
                    code(&answer),
                    Code::PermissionDenied,
                    "{protocol:?} {method}: {answer:?}"
                );
            }
        }
        let body = json!({"build_id": build});
        let answer = call(
            acme,
            protocol,
            "GetBuild",
            &[],
            encoded(protocol, "GetBuild", &body),
        )
        .await;
        assert_eq!(
            code(&answer),
            Code::InvalidArgument,
            "{protocol:?}: a body without a tenant"
        );
    }
    // Who is let in at all may ask how the service is.
    let health = client()
        .get(format!("http://{other}/health"))
        .send()
        .await
        .unwrap();
    assert_eq!(health.status(), 200);
}

#[tokio::test]
async fn what_callers_would_be_held_against_has_to_be_known_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let (certificate, key) = authority
        .issue(&Subject::host(&["localhost"]))
        .write(directory.path(), "tls");
    let authorities = directory.path().join("ca.crt");
    replace(&authorities, &authority.pem());
    let mtls = [
        ("TLS_MODE", "file"),
        ("TLS_CERT_FILE", certificate.to_str().unwrap()),
        ("TLS_KEY_FILE", key.to_str().unwrap()),
        ("TLS_CA_FILE", authorities.to_str().unwrap()),
        ("AUTH_MODE", "mtls"),
    ];
    let domain = ("AUTH_TRUST_DOMAIN", "test.example");
    let of = |id| ("AUTH_SERVICE_IDS", id);
    for (name, more, setting) in [
        ("no trust domain", vec![], Some("AUTH_TRUST_DOMAIN")),
        ("a trust domain", vec![domain], None),
        (
            "its service",
            vec![domain, of("spiffe://test.example/metald")],
            None,
        ),
        (
            "another's service",
            vec![domain, of("spiffe://foreign.example/metald")],
            Some("AUTH_SERVICE_IDS"),
        ),
    ] {
        let started = Service::try_start(&[&mtls[..], &more].concat()).await;
        let seen = started.err().map(|error| match error {
            builderd::daemon::DaemonError::Setting { setting, .. } => setting,
            other => panic!("{name}: {other}"),
        });
        assert_eq!(seen, setting, "{name}");
    }
}
