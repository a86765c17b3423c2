//! Requests that cannot be meant as they are: for each the method, the body, the code, and a part of the message.

use serde_json::{Value, json};
use tonic::Code::{self, InvalidArgument, NotFound, Unimplemented};

use crate::{NO_BUILD, create};

/// A request, and how it is refused.
pub(crate) struct Case {
    pub(crate) method: &'static str,
    pub(crate) body: Value,
    pub(crate) code: Code,
    pub(crate) expected: String,
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = create_build();
    cases.append(&mut of_builds());
    cases
}

fn create_build() -> Vec<Case> {
    let long = "x".repeat(2000);
    let tenant = "/config/tenant/tenant_id";
    let image = "/config/source/docker_image/image_uri";
    let rootfs = |field: &str| format!("/config/target/microvm_rootfs/{field}");
    let limit = |field: &str| format!("/config/limits/{field}");
    let auth = "/config/source/docker_image/auth";
    let mut cases = Vec::new();
    let mut case = |method: &'static str, body: Value, code: Code, expected: &str| {
        cases.push(Case {
            method,
            body,
            code,
            expected: expected.to_owned(),
        });
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
    // Each entry is in order, and all of them together are not.
    let entries = |count: usize| -> Value {
        let entry = |number: usize| (format!("key-{number:04}"), json!("x".repeat(1000)));
        (0..count).map(entry).collect::<serde_json::Map<_, _>>().into()
    };
    for (field, count) in [
        ("/config/labels", 300),
        ("/config/tenant/metadata", 300),
        (rootfs("runtime_config/environment").as_str(), 300),
    ] {
        let name = field[1..].replace('/', ".");
        case(
            "CreateBuild",
            create(field, entries(count)),
            InvalidArgument,
            &format!("{name}: expected at most 262144 bytes in all of config"),
        );
    }
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
    case(
        "CreateBuild",
        create(&rootfs("init_strategy"), json!(17)),
        InvalidArgument,
        "config.target.microvm_rootfs.init_strategy: expected an InitStrategy",
    );
    case(
        "CreateBuild",
        create(&rootfs("optimization/compress_binaries"), json!(true)),
        Unimplemented,
        "config.target.microvm_rootfs.optimization.compress_binaries: a compressed executable",
    );
    for field in [
        "preserve_paths",
        "optimization/preserve_paths",
        "optimization/exclude_patterns",
    ] {
        for pattern in ["[z-a]", "", "# nothing", "a\u{0}b", &"x".repeat(1025)] {
            case(
                "CreateBuild",
                create(&rootfs(field), json!(["/fine", pattern])),
                InvalidArgument,
                &format!(
                    "config.target.microvm_rootfs.{}: expected ",
                    field.replace('/', ".")
                ),
            );
        }
    }
    case(
        "CreateBuild",
        create(&rootfs("preserve_paths"), json!(vec!["/a"; 513])),
        InvalidArgument,
        "config.target.microvm_rootfs.preserve_paths: expected at most 512 patterns, got 513",
    );
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
        create(
            "/config/strategy/docker_extract/exclude_patterns",
            json!(["[z-a]"]),
        ),
        InvalidArgument,
        "config.strategy.docker_extract.exclude_patterns: expected patterns",
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
        ("allowed_git_hosts", json!(["github.com"])),
        ("allow_external_network", json!(true)),
        ("allow_privileged_builds", json!(true)),
        ("blocked_commands", json!(["rm"])),
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
        create(&limit("sandbox_level"), json!(3)),
        InvalidArgument,
        "config.limits.sandbox_level: this service runs without isolation",
    );
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
    cases
}

/// The other methods.
fn of_builds() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |method: &'static str, body: Value, code: Code, expected: &str| {
        cases.push(Case {
            method,
            body,
            code,
            expected: expected.to_owned(),
        });
    };
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
    cases
}
