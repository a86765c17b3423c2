//! Many followers, some of whom do not read.

use std::{fs, path::Path, sync::Arc, time::Duration};

use futures_util::StreamExt;

use super::*;
use crate::{
    build::BuildState,
    event::{Component, Level},
    request::{Backend, BuildRequest},
    service::{Builder, BuilderConfig},
    store::{BuildChange, NewBuild, NewLine, now},
};

const FOLLOWERS: usize = 200;
const LINES: usize = 500;
const LINE_BYTES: usize = 4000;

fn request() -> BuildRequest {
    serde_json::from_value(serde_json::json!({
        "tenant": {"tenant_id": "alice", "customer_id": "", "organization_id": "", "claimed_tier": null,
            "permissions": [], "metadata": {}},
        "source": {"image_uri": "nginx:1", "platform": null, "pull_tags": []},
        "target": {"init": "tini", "profile": "rw", "free_space_bytes": 0, "free_inodes": 0, "layer_mode": "oci",
            "runtime": {"command": [], "entrypoint": [], "working_dir": null, "environment": {}, "exposed_ports": []}},
        "limits": {}, "build_name": "", "labels": {}, "suggested_asset_id": "",
    }))
    .unwrap()
}

/// A service that is never asked to build.
async fn service(directory: &Path) -> Builder {
    let config = BuilderConfig {
        database_directory: directory.join("database"),
        output_directory: directory.join("output"),
        workspace_directory: directory.join("workspace"),
        scratch_directory: directory.join("scratch"),
        node: tenant::NodeCapacity {
            queued_builds: 1,
            ..tenant::NodeCapacity::builds(1)
        },
        reserve_disk: false,
        quota_check_interval: Duration::from_secs(300),
        build_timeout: Duration::from_secs(60),
        worker_command: vec!["/bin/false".into()],
        launcher: None,
        guest_init: Arc::from(&b""[..]),
        guest_architecture: "amd64".to_owned(),
        backend: Backend::Native,
        cache_enabled: false,
        cache_max_bytes: 0,
        max_compressed_bytes: None,
        layers_in_parallel: 1,
        fetch: oci_fetch::ClientConfig::new(directory.join("blobs")),
        tenants: tenant::TierTable::default(),
        asset_manager: None,
        artifacts: crate::artifact::ArtifactConfig::Local,
        storage_max_bytes: None,
        audit: false,
        cleanup_interval: Duration::from_secs(3600),
    };
    Builder::start(config).await.unwrap()
}

/// A build of alice's that is live and never runs.
async fn stored(builder: &Builder, directory: &Path) -> BuildId {
    let id = BuildId::generate();
    builder.inner.live.insert(id);
    let new = NewBuild {
        id,
        request: request(),
        requested: tenant::RequestedLimits::default(),
        key: None,
        created_at: now(),
        rootfs_path: directory.join("none"),
        lines: vec![NewLine::new(Level::Info, Component::Builder, "first")],
    };
    let inserted = builder.inner.store.insert(
        new,
        tenant::TierTable::default(),
        tenant::NodeCapacity::builds(1),
        |_| Ok(Vec::new()),
    );
    inserted.await.unwrap();
    id
}

fn inner_places(builder: &Builder) -> usize {
    builder.inner.log_streams.count()
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_tenant_opens_so_many_logs_and_a_refusal_reads_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let builder = service(directory.path()).await;
    let id = stored(&builder, directory.path()).await;
    let open = |tenant: &str| builder.open_log(tenant.parse().unwrap(), id, 0, true);
    let mut streams = Vec::new();
    for _ in 0..MAX_LOG_STREAMS_PER_TENANT {
        streams.push(open("alice").await.map_err(|error| error.to_string()).unwrap());
    }
    for _ in 0..3 {
        let refused = open("alice").await.map(drop).unwrap_err();
        assert!(matches!(refused, ServiceError::ResourceExhausted(_)), "{refused}");
    }
    // It is a bound for each tenant, and a refusal takes no place.
    for _ in 0..3 {
        let refused = open("bob").await.map(drop).unwrap_err();
        assert!(matches!(refused, ServiceError::PermissionDenied), "{refused}");
    }
    assert_eq!(inner_places(&builder), MAX_LOG_STREAMS_PER_TENANT);
    streams.pop();
    streams.push(open("alice").await.map_err(|error| error.to_string()).unwrap());
    drop(streams);
    assert_eq!(inner_places(&builder), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_followers_see_all_lines_and_those_who_do_not_read_hold_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let builder = service(directory.path()).await;
    let inner = Arc::clone(&builder.inner);
    let id = stored(&builder, directory.path()).await;
    let live = inner.live.get(id).unwrap();

    let before = resident_bytes();
    let mut readers = Vec::new();
    let mut sleepers = Vec::new();
    for number in 0..FOLLOWERS {
        let mut lines = Box::pin(builder.logs("alice".parse().unwrap(), id, 0, true));
        assert_eq!(lines.next().await.unwrap().unwrap().sequence, 1);
        // Every second one reads nothing more before all is over.
        if number % 2 == 0 {
            readers.push(tokio::spawn(async move { rest(lines).await }));
        } else {
            sleepers.push(lines);
        }
    }
    for batch in 0..LINES / 10 {
        let text = format!("{batch} {}", "x".repeat(LINE_BYTES));
        let change = BuildChange {
            lines: vec![NewLine::new(Level::Info, Component::Builder, text); 10],
            ..BuildChange::default()
        };
        live.broadcast(inner.store.change(id, change).await.unwrap());
    }
    let end = BuildChange {
        state: Some(BuildState::Completed),
        lines: vec![NewLine::new(Level::Info, Component::Builder, "last")],
        ..BuildChange::default()
    };
    live.broadcast(inner.store.change(id, end).await.unwrap());
    inner.live.remove(id);
    for reader in readers {
        assert_eq!(reader.await.unwrap(), LINES as u64 + 2);
    }
    // Everything for everybody would be 200 times 2 MB.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 150 << 20, "{grown} bytes");
    for sleeper in sleepers {
        assert_eq!(rest(sleeper).await, LINES as u64 + 2);
    }
}

/// Reads on from the second line; gives the number of the last one, having seen that none was missing.
async fn rest(lines: impl Stream<Item = Result<LogLine, ServiceError>>) -> u64 {
    let mut lines = std::pin::pin!(lines);
    let mut last = 1;
    while let Some(line) = lines.next().await {
        let line = line.unwrap();
        assert_eq!(line.sequence, last + 1);
        last = line.sequence;
    }
    last
}
