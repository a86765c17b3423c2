//! Clients that others wrote each create a build and stream its log to the end.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{path::Path, process::Command};

use builderd::proto::{
    BuildConfig, BuildSource, BuildState, BuildTarget, CreateBuildRequest, DockerImageSource, MicroVmRootfs,
    TenantContext, build_source::SourceType, build_target::TargetType,
};
use builderd_e2e::{
    api::{Api, TENANT, seed_request},
    check,
    daemon::Daemon,
    parts,
};
use serde_json::Value;
use tempfile::TempDir;
use test_support::{
    image::{Image, Layer},
    lab::{self, Missing},
    registry::Registry,
};

/// A daemon, a registry with one small image, and where the descriptors are.
struct Bench {
    daemon: Daemon,
    reference: String,
    directory: TempDir,
    _registry: Registry,
}

impl Bench {
    fn new() -> Result<Self, Missing> {
        parts::root()?;
        let builderd = parts::builderd()?;
        let registry = Registry::start().unwrap();
        let image = Image::new()
            .layer(&Layer::new().file("bin/sh", b"#!"))
            .cmd(&["/bin/sh"])
            .build();
        let reference = registry.publish("team/app", "1", &image);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(
            directory.path().join("descriptors"),
            builderd::proto::FILE_DESCRIPTOR_SET,
        )
        .unwrap();
        let daemon = Daemon::start(&builderd, &directory.path().join("state"), &[]).unwrap();
        Ok(Self {
            daemon,
            reference,
            directory,
            _registry: registry,
        })
    }

    /// Runs a client and checks what it printed.
    fn check(&self, name: &str, client: &mut Command, refused: &str) {
        let output = client.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {errors}\n{}", self.daemon.log());
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
            self.daemon.log()
        );
        assert!(sequences.len() > 1, "{name}: {saw}");
        assert!(
            sequences.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "{name}: a gap in {sequences:?}"
        );
        assert_eq!(saw["refused"], refused, "{name}");
    }

    fn descriptors(&self) -> std::path::PathBuf {
        self.directory.path().join("descriptors")
    }
}

fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

#[test]
fn grpcio_creates_a_build_and_streams_its_log() {
    let parts = parts::lab_part("python/bin/python3").and_then(|python| Ok((python, Bench::new()?)));
    let (python, bench) = match parts {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let mut client = Command::new(python);
    client
        .arg(script("grpc_client.py"))
        .arg(bench.daemon.address().to_string())
        .arg(bench.descriptors());
    bench.check(
        "grpcio",
        client.args([&seed_request(&bench.reference), TENANT]),
        "NOT_FOUND",
    );
}

#[test]
fn connect_node_creates_a_build_and_streams_its_log_over_every_transport() {
    let parts = parts::lab_part("node/node_modules").and_then(|modules| Ok((modules, Bench::new()?)));
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
        bench.check(transport, &mut client, "NotFound");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tonic_creates_a_build_and_streams_its_log() {
    let bench = match Bench::new() {
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
async fn the_seeds_curl_line_starts_a_build_that_completes() {
    let parts = lab::program("curl", "curl").and_then(|curl| Ok((curl, Bench::new()?)));
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
