//! Builds through the daemon, from an image in a registry to a file with an ext4 file system.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{ffi::OsString, fs, io::Read as _, path::Path, time::Duration};

use builderd::{
    config::{Config, Values},
    daemon::Daemon,
    proto::{self, builder_service_client::BuilderServiceClient},
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use support::{client, envelope, frames};
use tempfile::TempDir;
use test_support::{
    image::{BuiltImage, Image, Layer},
    registry::{Authentication, Misbehaviour, Registry},
};
use tonic::{Code, transport::Endpoint};

/// Longer than any step takes on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(60);

struct Service {
    daemon: Daemon,
    state: TempDir,
}

impl Service {
    async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let daemon = Self::start_on(state.path()).await;
        Self { daemon, state }
    }

    async fn start_on(state: &Path) -> Daemon {
        let environment = [(OsString::from("UNKEY_BUILDERD_PORT"), OsString::from("0"))];
        let values = Values::collect(environment, |_| None, Some(state)).unwrap();
        let config = Config::from_values(&values, true).unwrap();
        let worker = vec![
            OsString::from(env!("CARGO_BIN_EXE_builderd")),
            OsString::from("worker"),
        ];
        Daemon::start(&config, worker).await.unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.daemon.address())
    }

    async fn call(&self, method: &str, body: Value) -> Value {
        let response = client()
            .post(self.url(&format!("/builder.v1.BuilderService/{method}")))
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .unwrap();
        response.json().await.unwrap()
    }

    async fn create(&self, reference: &str, auth: Option<(&str, &str)>) -> String {
        let mut image = json!({"image_uri": reference});
        if let Some((username, password)) = auth {
            image["auth"] = json!({"username": username, "password": password});
        }
        let answer = self
            .call(
                "CreateBuild",
                json!({"config": {
                    "tenant": {"tenant_id": "acme", "tier": "TENANT_TIER_FREE"},
                    "source": {"docker_image": image},
                    "target": {"microvm_rootfs": {"init_strategy": "INIT_STRATEGY_TINI"}},
                    "strategy": {"docker_extract": {}},
                }}),
            )
            .await;
        answer["buildId"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    /// Follows a build's log to its end over Connect: the lines.
    async fn follow(&self, build_id: &str) -> Vec<Value> {
        let body = json!({"build_id": build_id, "tenant_id": "acme", "follow": true}).to_string();
        let response = client()
            .post(self.url("/builder.v1.BuilderService/StreamBuildLogs"))
            .header("content-type", "application/connect+json")
            .body(envelope(body.as_bytes()))
            .timeout(PATIENCE)
            .send()
            .await
            .unwrap();
        let mut frames = frames(&response.bytes().await.unwrap());
        let (flags, end) = frames.pop().unwrap();
        assert_eq!(
            (flags, end.as_slice()),
            (2, b"{}".as_slice()),
            "{}",
            String::from_utf8_lossy(&end)
        );
        frames
            .iter()
            .map(|(_, line)| serde_json::from_slice(line).unwrap())
            .collect()
    }

    async fn build(&self, build_id: &str) -> Value {
        self.call("GetBuild", json!({"build_id": build_id, "tenant_id": "acme"}))
            .await["build"]
            .clone()
    }

    async fn grpc(&self) -> BuilderServiceClient<tonic::transport::Channel> {
        BuilderServiceClient::new(
            Endpoint::from_shared(self.url(""))
                .unwrap()
                .connect()
                .await
                .unwrap(),
        )
    }
}

fn sample() -> BuiltImage {
    let base = Layer::new()
        .directory("etc", 0o755)
        .file("etc/motd", b"hello")
        .file("etc/old", b"gone soon");
    let top = Layer::new()
        .whiteout("etc/old")
        .symlink("etc/link", "motd")
        .hard_link("etc/hard", "etc/motd");
    Image::new()
        .layer(&base)
        .layer(&top)
        .cmd(&["/bin/app"])
        .env(&["A=1"])
        .build()
}

/// The magic number of ext4's superblock (fs/ext4/ext4.h, `s_magic`).
fn is_ext4(path: &Path) -> bool {
    let mut head = [0; 1024 + 0x3a];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head[1024 + 0x38..] == [0x53, 0xef]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_becomes_a_file_and_its_log_tells_how() {
    let registry = Registry::start().unwrap();
    let image = sample();
    registry.publish("team/app", "v1", &image);
    let service = Service::start().await;

    let id = service.create(&registry.reference("team/app", "v1"), None).await;
    let lines = service.follow(&id).await;
    let sequences: Vec<_> = lines
        .iter()
        .map(|line| line["sequence"].as_str().unwrap().parse::<usize>().unwrap())
        .collect();
    assert_eq!(
        sequences,
        (1..=lines.len()).collect::<Vec<_>>(),
        "no gap and no repetition"
    );

    let build = service.build(&id).await;
    assert_eq!(build["state"], "BUILD_STATE_COMPLETED", "{build}");
    assert_eq!(build["progressPercent"], 100);
    assert_eq!(build["imageMetadata"]["imageDigest"], image.manifest_digest);
    assert_eq!(build["imageMetadata"]["command"], json!(["/bin/app"]));
    assert_eq!(build["config"]["tenant"]["tier"], "TENANT_TIER_FREE");
    assert_eq!(build["buildLogs"].as_array().unwrap().len(), lines.len());
    let path = Path::new(build["rootfsPath"].as_str().unwrap());
    assert!(path.is_absolute() && is_ext4(path), "{}", path.display());
    let size = fs::metadata(path).unwrap().len().to_string();
    assert_eq!(build["rootfsSizeBytes"], size);
    assert_eq!(build["rootfsChecksum"].as_str().unwrap().len(), 64);
    assert!(path.with_extension("metadata.json").exists());

    let listed = service
        .call(
            "ListBuilds",
            json!({"tenantId": "acme", "stateFilter": ["BUILD_STATE_COMPLETED"]}),
        )
        .await;
    assert_eq!(
        (listed["totalCount"].as_i64(), &listed["builds"][0]["buildId"]),
        (Some(1), &json!(id))
    );
    let none = service
        .call(
            "ListBuilds",
            json!({"tenantId": "acme", "stateFilter": ["BUILD_STATE_FAILED"]}),
        )
        .await;
    assert_eq!(none, json!({}));
    let other = service
        .call("GetBuild", json!({"build_id": id, "tenant_id": "other"}))
        .await;
    assert_eq!(other["code"], "permission_denied");

    // The second half of the log, as after a broken connection.
    let mut grpc = service.grpc().await;
    let request = proto::StreamBuildLogsRequest {
        build_id: id,
        tenant_id: "acme".to_owned(),
        follow: true,
        from_sequence: 3,
    };
    let rest: Vec<_> = grpc
        .stream_build_logs(request)
        .await
        .unwrap()
        .into_inner()
        .collect()
        .await;
    assert_eq!(rest.len(), lines.len() - 2);
    assert_eq!(rest[0].as_ref().unwrap().sequence, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_used_and_never_seen_again() {
    let registry = Registry::start_with(Authentication::basic("robot", "hunter2")).unwrap();
    registry.publish("team/app", "v1", &sample());
    let service = Service::start().await;
    let reference = registry.reference("team/app", "v1");

    let id = service.create(&reference, Some(("robot", "hunter2"))).await;
    let lines = service.follow(&id).await;
    let build = service.build(&id).await;
    assert_eq!(build["state"], "BUILD_STATE_COMPLETED", "{build}");
    assert_eq!(build["config"]["source"]["dockerImage"].get("auth"), None);
    for text in [build.to_string(), json!(lines).to_string()] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    for file in files_below(service.state.path()) {
        let bytes = match fs::read(&file) {
            // Temporary files go away beside us.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.unwrap(),
        };
        assert!(
            !bytes.windows(7).any(|window| window == b"hunter2"),
            "{}",
            file.display()
        );
    }

    let id = service.create(&reference, Some(("robot", "wrong"))).await;
    service.follow(&id).await;
    let build = service.build(&id).await;
    assert_eq!(build["state"], "BUILD_STATE_FAILED");
    assert!(!build["errorMessage"].as_str().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_cannot_succeed_fails_with_a_reason_and_leaves_nothing() {
    let registry = Registry::start().unwrap();
    registry.publish("team/app", "v1", &sample());
    let service = Service::start().await;
    let id = service
        .create(&registry.reference("team/app", "no-such-tag"), None)
        .await;
    let lines = service.follow(&id).await;
    let build = service.build(&id).await;
    assert_eq!(build["state"], "BUILD_STATE_FAILED");
    let reason = build["errorMessage"].as_str().unwrap();
    assert!(
        lines.last().unwrap()["message"]
            .as_str()
            .unwrap()
            .contains(reason),
        "{lines:?}"
    );
    let images = files_below(&service.state.path().join("rootfs"));
    assert!(images.is_empty(), "{images:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_build_ends_at_once() {
    let registry = Registry::start().unwrap();
    registry.publish("team/app", "v1", &sample());
    registry.misbehave("/blobs/", Misbehaviour::Hang);
    let service = Service::start().await;
    let id = service.create(&registry.reference("team/app", "v1"), None).await;
    assert!(tokio::task::block_in_place(
        || registry.wait_for_requests(1, "/blobs/", PATIENCE)
    ));

    let answer = service
        .call("CancelBuild", json!({"build_id": id, "tenant_id": "acme"}))
        .await;
    assert_eq!(answer, json!({"success": true, "state": "BUILD_STATE_CANCELLED"}));
    let again = service
        .call("CancelBuild", json!({"build_id": id, "tenant_id": "acme"}))
        .await;
    assert_eq!(again, answer, "a repeated request finds what it asked for");
    service.follow(&id).await;
    registry.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_followed_logs_and_they_resume_after_the_restart() {
    let registry = Registry::start().unwrap();
    registry.publish("team/app", "v1", &sample());
    registry.misbehave("/blobs/", Misbehaviour::Hang);
    let service = Service::start().await;
    let id = service.create(&registry.reference("team/app", "v1"), None).await;

    let mut grpc = service.grpc().await;
    let mut request = proto::StreamBuildLogsRequest {
        build_id: id.clone(),
        tenant_id: "acme".to_owned(),
        follow: true,
        from_sequence: 0,
    };
    let mut lines = grpc
        .stream_build_logs(request.clone())
        .await
        .unwrap()
        .into_inner();
    let first = lines.next().await.unwrap().unwrap();
    assert_eq!(first.sequence, 1);

    let Service { daemon, state } = service;
    let stopping = tokio::spawn(daemon.shutdown(Duration::ZERO));
    let mut last = first.sequence;
    let end = loop {
        match lines.next().await.expect("the stream ends with a status") {
            Ok(line) => last = line.sequence,
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::Unavailable);
    tokio::time::timeout(PATIENCE, stopping)
        .await
        .expect("the daemon stops")
        .unwrap();
    registry.behave();
    registry.release();

    let daemon = Service::start_on(state.path()).await;
    let service = Service { daemon, state };
    request.from_sequence = last + 1;
    let mut grpc = service.grpc().await;
    let rest: Vec<_> = grpc
        .stream_build_logs(request)
        .await
        .unwrap()
        .into_inner()
        .collect()
        .await;
    let sequences: Vec<_> = rest.iter().map(|line| line.as_ref().unwrap().sequence).collect();
    assert_eq!(
        sequences,
        (last + 1..=last + i64::try_from(rest.len()).unwrap()).collect::<Vec<_>>()
    );
    let build = service.build(&id).await;
    let ended = ["BUILD_STATE_COMPLETED", "BUILD_STATE_FAILED"];
    assert!(ended.iter().any(|state| build["state"] == *state), "{build}");
}

fn files_below(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.push(path);
            }
        }
    }
    // An image is sparse and large; what it holds is the image's own.
    files.retain(|file| file.extension().is_none_or(|extension| extension != "ext4"));
    files
}
