//! Requests that cannot be meant as they are: every method, over gRPC and over Connect in JSON, against the real service.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{ffi::OsString, path::Path};

use builderd::{
    config::{Config, Values},
    daemon::Daemon,
    proto::{self, builder_service_client::BuilderServiceClient},
};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};
use support::client;
use tempfile::TempDir;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

/// A daemon on a directory and a port of its own.
struct Service {
    daemon: Daemon,
    _state: TempDir,
}

impl Service {
    async fn start(variables: &[(&str, &str)]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let config = config(state.path(), variables);
        let worker = vec![
            OsString::from(env!("CARGO_BIN_EXE_builderd")),
            OsString::from("worker"),
        ];
        Self {
            daemon: Daemon::start(&config, worker).await.unwrap(),
            _state: state,
        }
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

    /// The same call over gRPC, its message made from the JSON.
    async fn grpc_status(&self, method: &str, body: &Value) -> tonic::Status {
        fn message<M: prost::Message + Default>(name: &str, body: &Value) -> M {
            let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
            let descriptor = pool
                .get_message_by_name(&format!("builder.v1.{name}Request"))
                .unwrap();
            let dynamic = DynamicMessage::deserialize(descriptor, body).unwrap();
            M::decode(dynamic.encode_to_vec().as_slice()).unwrap()
        }
        let mut grpc = self.grpc().await;
        let result = match method {
            "CreateBuild" => grpc
                .create_build(message::<proto::CreateBuildRequest>(method, body))
                .await
                .map(drop),
            "GetBuild" => grpc
                .get_build(message::<proto::GetBuildRequest>(method, body))
                .await
                .map(drop),
            "ListBuilds" => grpc
                .list_builds(message::<proto::ListBuildsRequest>(method, body))
                .await
                .map(drop),
            "CancelBuild" => grpc
                .cancel_build(message::<proto::CancelBuildRequest>(method, body))
                .await
                .map(drop),
            "DeleteBuild" => grpc
                .delete_build(message::<proto::DeleteBuildRequest>(method, body))
                .await
                .map(drop),
            "GetTenantQuotas" => grpc
                .get_tenant_quotas(message::<proto::GetTenantQuotasRequest>(method, body))
                .await
                .map(drop),
            "GetBuildStats" => grpc
                .get_build_stats(message::<proto::GetBuildStatsRequest>(method, body))
                .await
                .map(drop),
            "StreamBuildLogs" => grpc
                .stream_build_logs(message::<proto::StreamBuildLogsRequest>(method, body))
                .await
                .map(drop),
            other => panic!("{other}"),
        };
        result.expect_err(&format!("{method} {body} was accepted"))
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

fn connect_code(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "invalid_argument",
        Code::Unimplemented => "unimplemented",
        Code::NotFound => "not_found",
        Code::PermissionDenied => "permission_denied",
        Code::FailedPrecondition => "failed_precondition",
        other => panic!("{other:?}"),
    }
}

const NO_BUILD: &str = "build-00000000000070008000000000000000";

#[tokio::test]
async fn malformed_requests_are_refused_by_the_name_of_the_field() {
    use Code::{InvalidArgument, NotFound, Unimplemented};

    let service = Service::start(&[]).await;
    let long = "x".repeat(2000);
    let tenant = "/config/tenant/tenant_id";
    let image = "/config/source/docker_image/image_uri";
    let rootfs = |field: &str| format!("/config/target/microvm_rootfs/{field}");
    let limit = |field: &str| format!("/config/limits/{field}");
    let auth = "/config/source/docker_image/auth";
    let mut cases: Vec<(&str, Value, Code, String)> = Vec::new();
    let mut case = |method: &'static str, body: Value, code: Code, expected: &str| {
        cases.push((method, body, code, expected.to_owned()));
    };

    case("CreateBuild", json!({}), InvalidArgument, "config: required");
    case(
        "CreateBuild",
        json!({"config": {}}),
        InvalidArgument,
        "config.tenant: required",
    );
    case(
        "CreateBuild",
        create(tenant, json!("")),
        InvalidArgument,
        "config.tenant.tenant_id: required",
    );
    for bad in ["-a", "a/b", "a b", "ü", "..", &"a".repeat(64)] {
        case(
            "CreateBuild",
            create(tenant, json!(bad)),
            InvalidArgument,
            "config.tenant.tenant_id: expected a tenant's name",
        );
    }
    case(
        "CreateBuild",
        create("/config/tenant/tier", json!(9)),
        InvalidArgument,
        "config.tenant.tier: expected a TenantTier",
    );
    case(
        "CreateBuild",
        create("/config/tenant/customer_id", json!(long)),
        InvalidArgument,
        "config.tenant.customer_id: expected at most",
    );
    case(
        "CreateBuild",
        create("/config/build_name", json!("a\nb")),
        InvalidArgument,
        "config.build_name: expected text without control",
    );
    case(
        "CreateBuild",
        create("/config/labels", json!({"a": long})),
        InvalidArgument,
        "config.labels: expected at most",
    );
    let many: Vec<_> = (0..2000).map(|number| number.to_string()).collect();
    case(
        "CreateBuild",
        create("/config/tenant/permissions", json!(many)),
        InvalidArgument,
        "config.tenant.permissions: expected at most 1024 entries",
    );
    case(
        "CreateBuild",
        create("/config/source", json!({})),
        InvalidArgument,
        "config.source: required",
    );
    case(
        "CreateBuild",
        create("/config/source", json!({"git_repository": {}})),
        Unimplemented,
        "config.source.git_repository: ",
    );
    case(
        "CreateBuild",
        create("/config/source", json!({"archive": {}})),
        Unimplemented,
        "config.source.archive: ",
    );
    case(
        "CreateBuild",
        create(image, json!("")),
        InvalidArgument,
        "config.source.docker_image.image_uri: required",
    );
    for bad in [
        "UPPER/case",
        "a b",
        "nginx:",
        "nginx@sha256:12",
        "http://nginx",
        "../etc",
        "nginx:1\u{0}",
    ] {
        case(
            "CreateBuild",
            create(image, json!(bad)),
            InvalidArgument,
            "config.source.docker_image.image_uri: expected an image in a registry",
        );
    }
    // Files of the service's own machine are not for its callers.
    for bad in [
        "oci:/etc",
        "oci-archive:/etc/passwd",
        "docker-archive:/etc/passwd",
    ] {
        case(
            "CreateBuild",
            create(image, json!(bad)),
            InvalidArgument,
            "config.source.docker_image.image_uri: expected an image in a registry",
        );
    }
    for bad in ["amd64", "linux/", "linux/amd64/v1/x", "linux/am d64"] {
        case(
            "CreateBuild",
            create("/config/source/docker_image/platform", json!(bad)),
            InvalidArgument,
            "config.source.docker_image.platform: expected os/",
        );
    }
    case(
        "CreateBuild",
        create(auth, json!({"username": "u"})),
        InvalidArgument,
        "config.source.docker_image.auth.password: required",
    );
    case(
        "CreateBuild",
        create(auth, json!({"password": "hunter2"})),
        InvalidArgument,
        "config.source.docker_image.auth.username: required",
    );
    case(
        "CreateBuild",
        create(auth, json!({"registry": "r"})),
        InvalidArgument,
        "config.source.docker_image.auth: required",
    );
    case(
        "CreateBuild",
        create(
            auth,
            json!({"username": "u", "password": "hunter2", "token": "hunter2"}),
        ),
        InvalidArgument,
        "config.source.docker_image.auth.token: expected either",
    );
    case(
        "CreateBuild",
        create(auth, json!({"username": "u", "password": "hunter2\r\n"})),
        InvalidArgument,
        "config.source.docker_image.auth.password: expected",
    );
    case(
        "CreateBuild",
        create("/config/target", json!({})),
        InvalidArgument,
        "config.target: required",
    );
    case(
        "CreateBuild",
        create("/config/target", json!({"container_image": {}})),
        Unimplemented,
        "config.target.container_image: ",
    );
    for strategy in ["INIT_STRATEGY_DIRECT", "INIT_STRATEGY_CUSTOM"] {
        case(
            "CreateBuild",
            create(&rootfs("init_strategy"), json!(strategy)),
            Unimplemented,
            "config.target.microvm_rootfs.init_strategy: ",
        );
    }
    case(
        "CreateBuild",
        create(&rootfs("init_strategy"), json!(17)),
        InvalidArgument,
        "config.target.microvm_rootfs.init_strategy: expected an InitStrategy",
    );
    case(
        "CreateBuild",
        create(&rootfs("preserve_paths"), json!(["/a"])),
        Unimplemented,
        "config.target.microvm_rootfs.preserve_paths: ",
    );
    for (field, value) in [
        ("strip_debug_symbols", json!(true)),
        ("compress_binaries", json!(true)),
        ("remove_docs", json!(true)),
        ("remove_cache", json!(true)),
        ("preserve_paths", json!(["/a"])),
        ("exclude_patterns", json!(["*.md"])),
    ] {
        let path = rootfs(&format!("optimization/{field}"));
        case(
            "CreateBuild",
            create(&path, value),
            Unimplemented,
            &format!("config.target.microvm_rootfs.optimization.{field}: "),
        );
    }
    case(
        "CreateBuild",
        create(&rootfs("profile"), json!("rx")),
        InvalidArgument,
        "config.target.microvm_rootfs.profile: expected rw or ro, got \"rx\"",
    );
    case(
        "CreateBuild",
        create(&rootfs("layer_mode"), json!("podman")),
        InvalidArgument,
        "config.target.microvm_rootfs.layer_mode: expected oci or docker",
    );
    case(
        "CreateBuild",
        create(&rootfs("free_space_bytes"), json!(-1)),
        InvalidArgument,
        "config.target.microvm_rootfs.free_space_bytes: expected 0 (not given) or more, got -1",
    );
    case(
        "CreateBuild",
        create(&rootfs("free_space_bytes"), json!("9223372036854775807")),
        InvalidArgument,
        "config.target.microvm_rootfs.free_space_bytes: expected at most",
    );
    case(
        "CreateBuild",
        create(&rootfs("free_inodes"), json!("-9223372036854775808")),
        InvalidArgument,
        "config.target.microvm_rootfs.free_inodes: expected 0",
    );
    case(
        "CreateBuild",
        create(
            "/config/target/microvm_rootfs",
            json!({"profile": "ro", "free_inodes": 1}),
        ),
        InvalidArgument,
        "config.target.microvm_rootfs.free_inodes: expected nothing",
    );
    case(
        "CreateBuild",
        create(&rootfs("runtime_config/working_dir"), json!("srv")),
        InvalidArgument,
        "config.target.microvm_rootfs.runtime_config.working_dir: expected an absolute path",
    );
    case(
        "CreateBuild",
        create(&rootfs("runtime_config/environment"), json!({"A=B": "c"})),
        InvalidArgument,
        "config.target.microvm_rootfs.runtime_config.environment: expected names",
    );
    case(
        "CreateBuild",
        create(&rootfs("runtime_config/environment"), json!({"": "c"})),
        InvalidArgument,
        "config.target.microvm_rootfs.runtime_config.environment: expected names",
    );
    case(
        "CreateBuild",
        create(&rootfs("runtime_config/command"), json!(["a\u{0}b"])),
        InvalidArgument,
        "config.target.microvm_rootfs.runtime_config.command: expected text without zero",
    );
    for port in ["0", "65536", "http", "80/icmp", "+80", "", "80/"] {
        case(
            "CreateBuild",
            create(&rootfs("runtime_config/exposed_ports"), json!([port])),
            InvalidArgument,
            "config.target.microvm_rootfs.runtime_config.exposed_ports: expected",
        );
    }
    for strategy in ["go_api", "sinatra", "nodejs"] {
        case(
            "CreateBuild",
            create("/config/strategy", json!({strategy: {}})),
            Unimplemented,
            &format!("config.strategy.{strategy}: "),
        );
    }
    case(
        "CreateBuild",
        create("/config/strategy/docker_extract/preserve_layers", json!(true)),
        Unimplemented,
        "config.strategy.docker_extract.preserve_layers: ",
    );
    case(
        "CreateBuild",
        create("/config/strategy/docker_extract/exclude_patterns", json!(["x"])),
        Unimplemented,
        "config.strategy.docker_extract.exclude_patterns: ",
    );
    for field in [
        "max_memory_bytes",
        "max_cpu_cores",
        "max_disk_bytes",
        "timeout_seconds",
        "max_concurrent_builds",
        "max_daily_builds",
        "max_storage_bytes",
        "max_build_time_minutes",
    ] {
        case(
            "CreateBuild",
            create(&limit(field), json!(-1)),
            InvalidArgument,
            &format!("config.limits.{field}: expected 0 (not given) or more, got -1"),
        );
    }
    for (field, value) in [
        ("max_cpu_cores", json!(1)),
        ("max_concurrent_builds", json!(1)),
        ("max_daily_builds", json!(1)),
        ("max_storage_bytes", json!(1)),
        ("allowed_git_hosts", json!(["github.com"])),
        ("allow_external_network", json!(true)),
        ("allow_privileged_builds", json!(true)),
        ("blocked_commands", json!(["rm"])),
        ("sandbox_level", json!(3)),
    ] {
        case(
            "CreateBuild",
            create(&limit(field), value),
            Unimplemented,
            &format!("config.limits.{field}: "),
        );
    }
    case(
        "CreateBuild",
        create(&limit("sandbox_level"), json!(4)),
        InvalidArgument,
        "config.limits.sandbox_level: expected 0",
    );
    case(
        "CreateBuild",
        create(&limit("sandbox_level"), json!(-1)),
        InvalidArgument,
        "config.limits.sandbox_level: expected 0",
    );
    case(
        "CreateBuild",
        create(&limit("allowed_registries"), json!(["ghcr.io"])),
        InvalidArgument,
        "config.source.docker_image.image_uri: ",
    );
    case(
        "CreateBuild",
        create(&limit("allowed_registries"), json!(["*x"])),
        InvalidArgument,
        "config.limits.allowed_registries: ",
    );

    for method in ["GetBuild", "CancelBuild", "DeleteBuild", "StreamBuildLogs"] {
        case(
            method,
            json!({"build_id": NO_BUILD}),
            InvalidArgument,
            "tenant_id: required",
        );
        case(
            method,
            json!({"tenant_id": "a/b", "build_id": NO_BUILD}),
            InvalidArgument,
            "tenant_id: expected a tenant's name",
        );
        case(
            method,
            json!({"tenant_id": "acme"}),
            InvalidArgument,
            "build_id: required",
        );
        for bad in [
            "build-",
            "x",
            "build-0000000000000000000000000000000G",
            "../../etc/passwd",
        ] {
            case(
                method,
                json!({"tenant_id": "acme", "build_id": bad}),
                InvalidArgument,
                "build_id: expected a build's name",
            );
        }
    }
    for method in ["GetBuild", "CancelBuild", "DeleteBuild", "StreamBuildLogs"] {
        case(
            method,
            json!({"tenant_id": "acme", "build_id": NO_BUILD}),
            NotFound,
            "there is no such build",
        );
    }
    case(
        "StreamBuildLogs",
        json!({"tenant_id": "acme", "build_id": NO_BUILD, "from_sequence": -1}),
        InvalidArgument,
        "from_sequence: expected 0",
    );
    case("ListBuilds", json!({}), InvalidArgument, "tenant_id: required");
    case(
        "ListBuilds",
        json!({"tenant_id": "acme", "page_size": -1}),
        InvalidArgument,
        "page_size: expected 0",
    );
    case(
        "ListBuilds",
        json!({"tenant_id": "acme", "page_token": "nonsense"}),
        InvalidArgument,
        "page_token: ",
    );
    case(
        "ListBuilds",
        json!({"tenant_id": "acme", "state_filter": [0]}),
        InvalidArgument,
        "state_filter: expected a BuildState",
    );
    case(
        "ListBuilds",
        json!({"tenant_id": "acme", "state_filter": [77]}),
        InvalidArgument,
        "state_filter: expected a BuildState",
    );
    for method in ["GetTenantQuotas", "GetBuildStats"] {
        case(method, json!({}), InvalidArgument, "tenant_id: required");
    }
    case(
        "GetBuildStats",
        json!({
            "tenant_id": "acme",
            "start_time": "2026-01-02T00:00:00Z",
            "end_time": "2026-01-01T00:00:00Z",
        }),
        InvalidArgument,
        "end_time: lies before start_time",
    );

    for (method, body, code, expected) in &cases {
        let status = service.grpc_status(method, body).await;
        assert_eq!(status.code(), *code, "gRPC {method} {body}: {status}");
        assert!(
            status.message().contains(expected.as_str()),
            "gRPC {method} {body}: {}",
            status.message()
        );
        assert!(!status.message().contains("hunter2"), "{}", status.message());
        if *method == "StreamBuildLogs" {
            continue;
        }
        let (_, answer) = service.connect(method, &[], body).await;
        assert_eq!(
            answer["code"],
            connect_code(*code),
            "Connect {method} {body}: {answer}"
        );
        let message = answer["message"].as_str().unwrap();
        assert!(
            message.contains(expected.as_str()),
            "Connect {method} {body}: {message}"
        );
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
    let status = service
        .grpc_status("CreateBuild", &create("/config/build_name", json!("a\nb")))
        .await;
    let details = builderd::status::RpcStatus::decode(status.details()).unwrap();
    let request = builderd::status::BadRequest::decode(details.details[0].value.as_slice()).unwrap();
    assert_eq!(request.field_violations[0].field, "config.build_name");
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

    let request = create("/config/build_name", json!("n"));
    let (_, answer) = service
        .connect("CreateBuild", &[("idempotency-key", "k")], &request)
        .await;
    assert_eq!(answer["code"], "unimplemented");
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
