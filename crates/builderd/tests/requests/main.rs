//! Requests against the real service, every method over every protocol: malformed ones, strangers' ones, random ones.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod authentication;
mod cases;
mod certificates;
mod random;
#[path = "../support/mod.rs"]
mod support;

use std::{ffi::OsString, path::Path};

use builderd::{
    config::{Config, Values},
    daemon::{Daemon, DaemonError},
    proto::{self, builder_service_client::BuilderServiceClient},
};
use prost::Message as _;
use serde_json::{Value, json};
use support::{
    client,
    protocols::{Protocol, call, encoded},
};
use tempfile::TempDir;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

/// A daemon on a directory and a port of its own.
#[derive(Debug)]
struct Service {
    daemon: Daemon,
    _state: TempDir,
}

impl Service {
    async fn start(variables: &[(&str, &str)]) -> Self {
        Self::try_start(variables).await.unwrap()
    }

    async fn try_start(variables: &[(&str, &str)]) -> Result<Self, DaemonError> {
        let state = tempfile::tempdir().unwrap();
        let config = config(state.path(), variables);
        let worker = vec![
            OsString::from(env!("CARGO_BIN_EXE_builderd")),
            OsString::from("worker"),
        ];
        Ok(Self {
            daemon: Daemon::start(&config, worker).await?,
            _state: state,
        })
    }

    fn url(&self) -> String {
        format!("http://{}", self.daemon.address())
    }

    async fn connect(&self, method: &str, headers: &[(&str, &str)], body: &Value) -> (u16, Value) {
        let url = format!("{}/builder.v1.BuilderService/{method}", self.url());
        let request = client()
            .post(url)
            .header("content-type", "application/json")
            .body(body.to_string());
        let request = headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value));
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn grpc(&self) -> BuilderServiceClient<Channel> {
        BuilderServiceClient::new(
            Endpoint::from_shared(self.url())
                .unwrap()
                .connect()
                .await
                .unwrap(),
        )
    }
}

fn config(state: &Path, variables: &[(&str, &str)]) -> Config {
    let variables = [("PORT", "0"), ("ADDRESS", "127.0.0.1")].iter().chain(variables);
    let environment = variables.map(|(name, value)| {
        (
            OsString::from(format!("UNKEY_BUILDERD_{name}")),
            OsString::from(value),
        )
    });
    let values = Values::collect(environment, |_| None, Some(state)).unwrap();
    Config::from_values(&values, true).unwrap()
}

/// A request that is in order, with one member of it replaced: `path` is a JSON pointer.
fn create(path: &str, value: Value) -> Value {
    let mut request = json!({"config": {
        "tenant": {"tenant_id": "acme"},
        "source": {"docker_image": {"image_uri": "registry.invalid/app:1"}},
        "target": {"microvm_rootfs": {}},
        "strategy": {"docker_extract": {}},
    }});
    let (parent, name) = path.rsplit_once('/').unwrap();
    let mut at = &mut request;
    for step in parent.split('/').skip(1) {
        at = at
            .as_object_mut()
            .unwrap()
            .entry(step)
            .or_insert_with(|| json!({}));
    }
    at.as_object_mut().unwrap().insert(name.to_owned(), value);
    request
}

const NO_BUILD: &str = "build-00000000000070008000000000000000";

#[tokio::test]
async fn malformed_requests_are_refused_by_the_name_of_the_field_over_every_protocol() {
    // One of the cases asks for a box where there is none, whatever this machine could offer.
    let service = Service::start(&[("TENANT_ISOLATION_ENABLED", "false")]).await;
    for case in cases::cases() {
        let cases::Case {
            method,
            body,
            code,
            expected,
        } = case;
        for protocol in Protocol::ALL {
            let message = encoded(protocol, method, &body);
            let refused = call(service.daemon.address(), protocol, method, &[], message).await;
            let Err(status) = refused else {
                panic!("{protocol:?} {method} {body} was accepted");
            };
            assert_eq!(status.code(), code, "{protocol:?} {method} {body}: {status}");
            let message = status.message();
            assert!(
                message.contains(&expected),
                "{protocol:?} {method} {body}: {message}"
            );
            assert!(!message.contains("hunter2"), "{message}");
            let details = builderd::status::RpcStatus::decode(status.details()).unwrap();
            assert_eq!(
                details.details.len(),
                1,
                "{protocol:?} {method} {body}: no details"
            );
        }
    }
    // None of it became a build.
    let (_, builds) = service
        .connect("ListBuilds", &[], &json!({"tenant_id": "acme"}))
        .await;
    assert_eq!(builds, json!({}));
}

#[tokio::test]
async fn an_invalid_field_is_named_in_the_details() {
    let service = Service::start(&[]).await;
    for protocol in Protocol::ALL {
        let body = encoded(
            protocol,
            "CreateBuild",
            &create("/config/build_name", json!("a\nb")),
        );
        let status = call(service.daemon.address(), protocol, "CreateBuild", &[], body)
            .await
            .unwrap_err();
        let details = builderd::status::RpcStatus::decode(status.details()).unwrap();
        let request = builderd::status::BadRequest::decode(details.details[0].value.as_slice()).unwrap();
        assert_eq!(
            request.field_violations[0].field, "config.build_name",
            "{protocol:?}"
        );
    }
}

#[tokio::test]
async fn the_tenant_header_must_repeat_the_body() {
    let service = Service::start(&[]).await;
    let body = json!({"tenant_id": "acme"});
    for (headers, status) in [
        (vec![], 200),
        (vec![("x-tenant-id", "acme")], 200),
        (vec![("x-tenant-id", "other")], 403),
        (vec![("x-tenant-id", "")], 403),
        (vec![("x-tenant-id", "acme"), ("x-tenant-id", "other")], 403),
    ] {
        let (seen, answer) = service.connect("ListBuilds", &headers, &body).await;
        assert_eq!(seen, status, "{headers:?}: {answer}");
    }
    let mut request = Request::new(proto::ListBuildsRequest {
        tenant_id: "acme".to_owned(),
        ..Default::default()
    });
    request
        .metadata_mut()
        .insert("x-tenant-id", "other".parse().unwrap());
    let refused = service.grpc().await.list_builds(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn what_is_switched_off_or_not_there_is_not_read_over() {
    let service = Service::start(&[("DOCKER_REGISTRY_AUTH", "false")]).await;
    let request = create(
        "/config/source/docker_image/auth",
        json!({"username": "u", "password": "hunter2"}),
    );
    let (_, answer) = service.connect("CreateBuild", &[], &request).await;
    assert_eq!(answer["code"], "failed_precondition");
    assert!(!answer.to_string().contains("hunter2"), "{answer}");
}

#[tokio::test]
async fn a_key_gives_the_same_build_and_a_used_up_quota_tells_when_to_come_back() {
    let service = Service::start(&[("TENANT_DEFAULT_MAX_DAILY_BUILDS", "1")]).await;
    let named = |name: &str| create("/config/build_name", json!(name));
    let keyed = async |key: &'static str, name: &str| {
        let headers = [("idempotency-key", key)];
        service.connect("CreateBuild", &headers, &named(name)).await.1
    };
    let first = keyed("k", "n").await;
    assert!(first["buildId"].is_string(), "{first}");
    assert_eq!(keyed("k", "n").await["buildId"], first["buildId"]);
    assert_eq!(keyed("k", "other").await["code"], "already_exists");
    let bad = keyed("a b", "n").await;
    assert_eq!(bad["code"], "invalid_argument");
    assert!(
        bad["message"].as_str().unwrap().starts_with("Idempotency-Key: "),
        "{bad}"
    );
    let refused = keyed("k2", "n").await;
    assert_eq!(refused["code"], "resource_exhausted", "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(message.starts_with("daily_builds: 1 of 1 builds"), "{message}");
    let details = refused["details"].as_array().unwrap();
    let types: Vec<_> = details
        .iter()
        .map(|detail| detail["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["google.rpc.ErrorInfo", "google.rpc.RetryInfo"]);
}

#[tokio::test]
async fn a_second_daemon_on_the_same_port_or_state_does_not_start() {
    let service = Service::start(&[]).await;
    let state = tempfile::tempdir().unwrap();
    let port = service.daemon.address().port().to_string();
    let config = config(state.path(), &[("PORT", &port)]);
    let refused = Daemon::start(&config, vec!["true".into()]).await.unwrap_err();
    assert!(refused.to_string().contains(&port), "{refused}");
    assert!(
        !state.path().join("data").exists(),
        "state was made before the port was had"
    );
}

#[tokio::test]
async fn what_was_asked_for_comes_back() {
    let service = Service::start(&[]).await;
    let request = create("/config/strategy/docker_extract/flatten_filesystem", json!(true));
    let (status, created) = service.connect("CreateBuild", &[], &request).await;
    assert_eq!(status, 200, "{created}");
    let body = json!({"tenant_id": "acme", "build_id": created["buildId"]});
    let (_, answer) = service.connect("GetBuild", &[], &body).await;
    assert_eq!(
        answer["build"]["config"]["strategy"]["dockerExtract"]["flattenFilesystem"], true,
        "{answer}"
    );
}
