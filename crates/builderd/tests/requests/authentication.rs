//! Who may ask for what.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tonic::{Code, Status};

use crate::{
    Service, create,
    support::{
        client,
        protocols::{Protocol, call, encoded},
    },
};

/// Every method, with a body that is in order; `build` is somebody's build.
pub(crate) fn requests(tenant: &str, build: &str) -> Vec<(&'static str, Value)> {
    let of_build = || json!({"tenant_id": tenant, "build_id": build});
    let of_tenant = || json!({"tenant_id": tenant});
    vec![
        ("CreateBuild", create("/config/tenant/tenant_id", json!(tenant))),
        ("GetBuild", of_build()),
        ("ListBuilds", of_tenant()),
        ("CancelBuild", of_build()),
        ("DeleteBuild", of_build()),
        ("StreamBuildLogs", of_build()),
        ("GetTenantQuotas", of_tenant()),
        ("GetBuildStats", of_tenant()),
    ]
}

pub(crate) fn names_a_build(method: &str) -> bool {
    matches!(
        method,
        "GetBuild" | "CancelBuild" | "DeleteBuild" | "StreamBuildLogs"
    )
}

pub(crate) fn code(result: &Result<(), Status>) -> Code {
    result.as_ref().map_or_else(Status::code, |()| Code::Ok)
}

async fn build_of(service: &Service, tenant: &str, headers: &[(&str, &str)]) -> String {
    let request = create("/config/tenant/tenant_id", json!(tenant));
    let (status, created) = service.connect("CreateBuild", headers, &request).await;
    assert_eq!(status, 200, "{created}");
    created["buildId"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_strangers_build_is_refused_by_every_method_over_every_protocol() {
    let service = Service::start(&[]).await;
    let build = build_of(&service, "acme", &[]).await;
    for (method, body) in requests("other", &build) {
        if !names_a_build(method) {
            continue;
        }
        for protocol in Protocol::ALL {
            let message = encoded(protocol, method, &body);
            let answer = call(service.daemon.address(), protocol, method, &[], message).await;
            assert_eq!(
                code(&answer),
                Code::PermissionDenied,
                "{protocol:?} {method}: {answer:?}"
            );
        }
    }
}

#[tokio::test]
async fn with_bearer_a_caller_is_whom_the_token_says() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens");
    let digest = |token: &str| hex::encode(Sha256::digest(token));
    let lines = [("of-acme", "acme"), ("of-other", "other"), ("of-gateway", "*")]
        .map(|(token, subject)| format!("{} {subject}\n", digest(token)));
    std::fs::write(&file, lines.concat()).unwrap();
    let variables = [
        ("AUTH_MODE", "bearer"),
        ("AUTH_TOKENS_FILE", file.to_str().unwrap()),
    ];
    let service = Service::start(&variables).await;
    let address = service.daemon.address();
    let authorization = |token: &str| format!("Bearer {token}");
    let (acme, other, gateway) = (
        authorization("of-acme"),
        authorization("of-other"),
        authorization("of-gateway"),
    );
    let build = build_of(&service, "acme", &[("authorization", &acme)]).await;

    for protocol in Protocol::ALL {
        // Who may, does: this one is deleted on the way.
        let spare = build_of(&service, "acme", &[("authorization", &acme)]).await;
        for (method, body) in requests("acme", &spare) {
            let ask = async |headers: &[(&str, &str)]| {
                code(
                    &call(
                        address,
                        protocol,
                        method,
                        headers,
                        encoded(protocol, method, &body),
                    )
                    .await,
                )
            };
            for headers in [
                vec![],
                vec![("authorization", "Bearer nonsense")],
                vec![("authorization", "Bearer ")],
                vec![("authorization", "Basic b2YtYWNtZQ==")],
                vec![("authorization", "of-acme")],
                vec![
                    ("authorization", acme.as_str()),
                    ("authorization", other.as_str()),
                ],
                // The digest is in the file, and is no token.
                vec![("authorization", &format!("Bearer {}", digest("of-acme")))],
            ] {
                let seen = ask(&headers).await;
                assert_eq!(seen, Code::Unauthenticated, "{protocol:?} {method} {headers:?}");
            }
            let seen = ask(&[("authorization", &other)]).await;
            assert_eq!(
                seen,
                Code::PermissionDenied,
                "{protocol:?} {method}: another tenant's word"
            );
            for good in [&acme, &gateway] {
                let seen = ask(&[("authorization", good)]).await;
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
            if !names_a_build(method) {
                continue;
            }
            let message = encoded(protocol, method, &body);
            let answer = call(address, protocol, method, &[("authorization", &other)], message).await;
            assert_eq!(
                code(&answer),
                Code::PermissionDenied,
                "{protocol:?} {method}: {answer:?}"
            );
        }
        let anonymous = call(
            address,
            protocol,
            "GetBuild",
            &[("authorization", &acme)],
            encoded(protocol, "GetBuild", &json!({"build_id": build})),
        )
        .await;
        assert_eq!(
            code(&anonymous),
            Code::InvalidArgument,
            "{protocol:?}: a body without a tenant"
        );
    }
    // A prober needs no token, and nothing of a token is in any answer.
    let health = client()
        .get(format!("{}/health", service.url()))
        .send()
        .await
        .unwrap();
    assert_eq!(health.status(), 200);
    let refused = call(
        address,
        Protocol::Grpc,
        "GetBuild",
        &[("authorization", "Bearer sesame")],
        Vec::new(),
    )
    .await;
    assert!(!format!("{refused:?}").contains("sesame"));
}
