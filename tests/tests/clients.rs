//! Clients that others wrote each create a build and stream its log to the end.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use builderd::proto::{
    BuildConfig, BuildSource, BuildState, BuildTarget, CreateBuildRequest, DockerImageSource, MicroVmRootfs,
    TenantContext, build_source::SourceType, build_target::TargetType,
};
use builderd_e2e::{
    api::{Api, TENANT, seed_request},
    bench::Bench,
    check, parts,
};
use serde_json::Value;
use test_support::{lab, registry::Misbehaviour};

/// Runs a client and checks what it printed.
fn check_client(bench: &Bench, name: &str, client: &mut Command, refused: &str) {
    let output = client.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{name}: {errors}\n{}",
        bench.daemon.log()
    );
    let saw: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sequences: Vec<i64> = saw["sequences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sequence| sequence.as_i64().unwrap())
        .collect();
    assert_eq!(
        saw["state"],
        "BUILD_STATE_COMPLETED",
        "{name}: {saw}\n{}",
        bench.daemon.log()
    );
    assert!(sequences.len() > 1, "{name}: {saw}");
    assert!(
        sequences.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "{name}: a gap in {sequences:?}"
    );
    assert_eq!(saw["refused"], refused, "{name}");
}

fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

#[test]
fn privileged_grpcio_creates_a_build_and_streams_its_log() {
    let parts = parts::lab_part("python/bin/python3").and_then(|python| Ok((python, Bench::start(&[])?)));
    let (python, bench) = match parts {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let mut client = Command::new(python);
    client
        .arg(script("grpc_client.py"))
        .arg(bench.daemon.address().to_string())
        .arg(bench.descriptors());
    check_client(
        &bench,
        "grpcio",
        client.args([&seed_request(&bench.reference), TENANT]),
        "NOT_FOUND",
    );
}

#[test]
fn privileged_connect_node_creates_a_build_and_streams_its_log_over_every_transport() {
    let parts = parts::lab_part("node/node_modules").and_then(|modules| Ok((modules, Bench::start(&[])?)));
    let (modules, bench) = match parts {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    for transport in [
        "connect/json/1.1",
        "connect/proto/1.1",
        "connect/json/2",
        "connect/proto/2",
        "grpc/proto/2",
        "grpc-web/proto/1.1",
    ] {
        let mut client = Command::new("node");
        client
            .arg(script("connect_client.mjs"))
            .args([transport, &format!("http://{}", bench.daemon.address())])
            .arg(bench.descriptors())
            .args([&seed_request(&bench.reference), TENANT])
            .arg(&modules);
        check_client(&bench, transport, &mut client, "NotFound");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_tonic_creates_a_build_and_streams_its_log() {
    let bench = match Bench::start(&[]) {
        Ok(bench) => bench,
        Err(missing) => return lab::skip(missing),
    };
    let api = Api::new(bench.daemon.address()).unwrap();
    let source = DockerImageSource {
        image_uri: bench.reference.clone(),
        ..Default::default()
    };
    let config = BuildConfig {
        tenant: Some(TenantContext {
            tenant_id: TENANT.into(),
            ..Default::default()
        }),
        source: Some(BuildSource {
            source_type: Some(SourceType::DockerImage(source)),
        }),
        target: Some(BuildTarget {
            target_type: Some(TargetType::MicrovmRootfs(MicroVmRootfs::default())),
        }),
        ..Default::default()
    };
    let request = CreateBuildRequest { config: Some(config) };
    let created = api.grpc().create_build(request).await.unwrap().into_inner();
    let mut sequences = Vec::new();
    let build = api
        .finish(&created.build_id, |line| sequences.push(line.sequence))
        .await
        .unwrap();
    assert_eq!(
        build.state(),
        BuildState::Completed,
        "{}\n{}",
        build.error_message,
        bench.daemon.log()
    );
    assert!(
        sequences.len() > 1 && sequences.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "{sequences:?}"
    );
    assert_eq!(build.rootfs_path, created.rootfs_path);
    assert_eq!(
        check::sha256(build.rootfs_path.as_ref()).unwrap(),
        build.rootfs_checksum
    );
    check::e2fsck(build.rootfs_path.as_ref()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_seeds_curl_line_starts_a_build_that_completes() {
    let parts = lab::program("curl", "curl").and_then(|curl| Ok((curl, Bench::start(&[])?)));
    let (curl, bench) = match parts {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let address = bench.daemon.address();
    let output = Command::new(&curl)
        .args(["--silent", "--show-error", "-X", "POST"])
        .arg(format!("http://{address}/builder.v1.BuilderService/CreateBuild"))
        .args([
            "-H",
            "Content-Type: application/json",
            "-d",
            &seed_request(&bench.reference),
        ])
        .output()
        .unwrap();
    let created: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(created["state"], "BUILD_STATE_PENDING", "{created}");
    let api = Api::new(address).unwrap();
    let build = api
        .finish(created["buildId"].as_str().unwrap(), |_| {})
        .await
        .unwrap();
    assert_eq!(
        build.state(),
        BuildState::Completed,
        "{}\n{}",
        build.error_message,
        bench.daemon.log()
    );
    assert!(Path::new(&build.rootfs_path).is_file());

    let health = api.health().await.unwrap();
    assert_eq!(
        (health.status, health.body["status"].as_str()),
        (200, Some("healthy")),
        "{}",
        health.body
    );
    assert!(bench.daemon.stop().unwrap().success());
}

#[test]
fn privileged_grpcio_finds_its_way_by_reflection_and_keeps_its_deadlines() {
    let parts = parts::lab_part("python/bin/python3").and_then(|python| Ok((python, Bench::start(&[])?)));
    let (python, bench) = match parts {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    // The build stands still, so that its log has no end.
    bench.registry.misbehave("/blobs/", Misbehaviour::StallAt(0));
    let output = Command::new(python)
        .arg(script("grpc_features.py"))
        .arg(bench.daemon.address().to_string())
        .args([&seed_request(&bench.reference), TENANT])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{}", bench.daemon.log());
    let saw: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(saw["methods"].as_array().unwrap().len(), 8, "{saw}");
    assert_eq!(saw["health"], "SERVING", "{saw}");
    assert_eq!(saw["deadline"], "DEADLINE_EXCEEDED", "{saw}");
    assert_eq!(saw["cancelled"], "CANCELLED", "{saw}");
    assert_eq!(saw["malformed"], "INVALID_ARGUMENT", "{saw}");
    assert_eq!(saw["violations"], serde_json::json!(["build_id"]), "{saw}");
    assert_eq!(saw["oversized"], "RESOURCE_EXHAUSTED", "{saw}");
    assert_eq!(saw["state"], "BUILD_STATE_CANCELLED", "{saw}");
    bench.registry.release();
}

#[test]
fn privileged_a_followed_log_goes_on_after_the_service_was_killed() {
    let parts = parts::builderd_cli().and_then(|client| Ok((client, Bench::start(&[])?)));
    let (client, mut bench) = match parts {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    bench.registry.misbehave("/blobs/", Misbehaviour::StallAt(0));
    let mut follower = Command::new(client)
        .args([
            "create-build",
            "--follow",
            "--json",
            "--tenant",
            TENANT,
            "--server",
        ])
        .arg(format!("http://{}", bench.daemon.address()))
        .arg(&bench.reference)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = move || -> Option<Value> {
        let line = lines.next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap())
    };
    assert!(next().unwrap()["created"]["buildId"].is_string());
    let mut sequences = vec![sequence(&next().unwrap()).unwrap()];

    bench.crash_and_restart();
    bench.registry.behave();
    bench.registry.release();
    let mut build = Value::Null;
    while let Some(object) = next() {
        match sequence(&object) {
            Some(sequence) => sequences.push(sequence),
            None => build = object,
        }
    }
    let status = follower.wait().unwrap();
    let log = bench.daemon.log();
    assert!(status.success(), "{build}\n{log}");
    assert_eq!(build["build"]["state"], "BUILD_STATE_COMPLETED", "{log}");
    let expected: Vec<i64> = (1..).take(sequences.len()).collect();
    assert_eq!(sequences, expected, "{log}");
}

/// The number of the log line that the client printed, if it is one.
fn sequence(object: &Value) -> Option<i64> {
    object["log"]["sequence"]
        .as_str()
        .map(|sequence| sequence.parse().unwrap())
}
