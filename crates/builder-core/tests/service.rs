//! The service: accepted, queued, run, followed, cancelled, shut down.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/fixture.rs"]
mod fixture;
#[path = "bin/serve/mod.rs"]
#[allow(dead_code, reason = "its main function is for the process of its own")]
mod serve;

use std::{fs, time::Duration};

use builder_core::{
    ServiceError, StartErrorKind,
    build::{BuildId, BuildState},
    event::{Component, ERROR_KIND, Level},
    request::BuildRequest,
    service::{Builder, BuilderConfig, Check, ListQuery},
};
use common::{PATIENCE, host_architecture, noise, request, worker_command};
use fixture::{Service, alice, assert_gapless, bob, lines};
use futures_util::{StreamExt, future::Either};
use tenant::{TenantDefaults, TenantId, Tier, TierTable};
use test_support::{
    assetmanagerd::FakeAssetManager,
    image::{Image, Layer},
    registry::Misbehaviour,
};
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_accepted_run_and_kept() {
    let service = Service::start().await;
    let accepted = service.create().await;
    assert_eq!(accepted.state, BuildState::Pending);
    let expected_path = service
        .directory
        .path()
        .join(format!("output/alice/{}.ext4", accepted.id));
    assert_eq!(accepted.rootfs_path, expected_path);

    let build = service.ended(accepted.id).await;
    assert_eq!(build.state, BuildState::Completed, "{:?}", build.error_message);
    assert_eq!(
        (build.progress_percent, build.current_step.as_str()),
        (100, "done")
    );
    assert_eq!(build.created_at, accepted.created_at);
    assert!(build.started_at.unwrap() >= build.created_at);
    assert!(build.completed_at.unwrap() >= build.started_at.unwrap());
    assert_eq!(
        build.rootfs_size_bytes,
        Some(fs::metadata(&expected_path).unwrap().len())
    );
    assert_eq!(build.rootfs_checksum.unwrap().len(), 64);
    assert_eq!(build.image_metadata.unwrap().original_image, service.reference);
    assert!(build.metrics.total_duration_ms.is_some());
    assert!(expected_path.with_extension("metadata.json").exists());

    let log = lines(service.builder.logs(alice(), accepted.id, 0, false))
        .await
        .unwrap();
    assert_gapless(&log, 1);
    let rest = lines(service.builder.logs(alice(), accepted.id, 3, true))
        .await
        .unwrap();
    assert_eq!(rest, log[2..]);
    let beyond = lines(service.builder.logs(alice(), accepted.id, 1_000_000, true))
        .await
        .unwrap();
    assert!(beyond.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_build_says_why_and_leaves_no_file() {
    let service = Service::start().await;
    let missing = service.registry.reference("team/app", "absent");
    let accepted = service.builder.create(request(&missing)).await.unwrap();
    let build = service.ended(accepted.id).await;
    assert_eq!(build.state, BuildState::Failed);
    let reason = build.error_message.unwrap();
    assert!(reason.contains("team/app"), "{reason}");
    let log = lines(service.builder.logs(alice(), accepted.id, 0, false))
        .await
        .unwrap();
    let last = log.last().unwrap();
    assert_eq!(
        (last.level, last.message.as_str()),
        (Level::Error, format!("The build failed: {reason}").as_str())
    );
    assert_eq!(last.metadata[ERROR_KIND], "image_not_found");
    assert_eq!(
        common::files_below(&service.directory.path().join("output")),
        Vec::<std::path::PathBuf>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_long_pull_has_its_rate_and_the_time_left() {
    let service = Service::start().await;
    let layer = Layer::new().file("noise", noise(4 << 20, 1));
    let image = Image::new()
        .layer(&layer)
        .platform("linux", &host_architecture(), "");
    let reference = service.registry.publish("team/large", "1", &image.build());
    // It would take two minutes; the test ends it as soon as it has seen the line.
    service.registry.misbehave(
        "/blobs/",
        Misbehaviour::Drip {
            chunk_bytes: 1 << 12,
            pause: Duration::from_millis(100),
        },
    );
    let id = service.builder.create(request(&reference)).await.unwrap().id;
    let mut log = std::pin::pin!(service.builder.logs(alice(), id, 0, true));
    let line = tokio::time::timeout(PATIENCE, async {
        while let Some(line) = log.next().await {
            let line = line.unwrap();
            if line.message.starts_with("Pulling: ") {
                return line;
            }
        }
        panic!("the build ended without a word about its pull");
    });
    let line = line.await.expect("a line comes while the layer does");
    assert_eq!((line.level, line.component), (Level::Info, Component::Puller));
    assert!(
        line.message.contains(" MB/s, ") && line.message.ends_with(" s left"),
        "{}",
        line.message
    );
    let figure = |name: &str| line.metadata[name].parse::<u64>().unwrap();
    assert!(figure("pull.arrived_bytes") < figure("pull.total_bytes"));
    assert!(figure("pull.bytes_per_second") > 0 && figure("pull.seconds_left") > 0);
    service.builder.cancel(&alice(), &id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_see_every_line_once_however_fast_they_read() {
    let service = Service::start_with(|config| {
        let figures = tenant::TenantDefaults {
            concurrent_builds: 4,
            ..tenant::TenantDefaults::default()
        };
        config.node.concurrent_builds = 4;
        config.tenants = tenant::TierTable::new(tenant::Tier::Pro, &figures);
    })
    .await;
    // A build with far more lines than a follower may lag behind.
    let mut base = Layer::new();
    let mut top = Layer::new();
    for number in 0..150 {
        base = base
            .directory(format!("d{number}"), 0o755)
            .symlink(format!("l{number}"), format!("d{number}"));
        top = top.file(format!("l{number}/x"), b"");
    }
    let image = Image::new()
        .layer(&base)
        .layer(&top)
        .platform("linux", &host_architecture(), "")
        .build();
    let reference = service.registry.publish("team/notes", "1", &image);
    service.stall();
    let mut followers = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..4 {
        let id = service.builder.create(request(&reference)).await.unwrap().id;
        ids.push(id);
        for from in [0, 1, 2, 5, 400] {
            followers.push((
                id,
                from,
                tokio::spawn(lines(service.builder.logs(alice(), id, from, true))),
            ));
        }
    }
    // One that reads its first line, and the next only when the build is over.
    let mut slow = std::pin::pin!(service.builder.logs(alice(), ids[0], 0, true));
    let first = slow.next().await.unwrap().unwrap();
    assert_eq!(first.sequence, 1);
    service.let_go();

    for (id, from, follower) in followers {
        let seen = follower.await.unwrap().unwrap();
        let all = lines(service.builder.logs(alice(), id, 0, false)).await.unwrap();
        assert!(all.len() > 150);
        assert_gapless(&all, 1);
        let skipped = usize::try_from(u64::max(from, 1) - 1).unwrap().min(all.len());
        assert_eq!(seen, all[skipped..], "from {from}");
        assert_eq!(service.get(id).await.state, BuildState::Completed);
    }
    let rest = lines(slow).await.unwrap();
    assert_gapless(&rest, 2);
    assert_eq!(
        rest.len() + 1,
        lines(service.builder.logs(alice(), ids[0], 0, false))
            .await
            .unwrap()
            .len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tenant_sees_or_touches_anothers_build() {
    let service = Service::start().await;
    let id = service.create().await.id;
    service.ended(id).await;
    let unknown = BuildId::generate();
    let denied = |error: ServiceError| assert!(matches!(error, ServiceError::PermissionDenied), "{error}");
    let absent = |error: ServiceError| assert!(matches!(error, ServiceError::NotFound), "{error}");
    denied(service.builder.get(&bob(), &id).await.unwrap_err());
    denied(service.builder.cancel(&bob(), &id).await.unwrap_err());
    absent(service.builder.get(&alice(), &unknown).await.unwrap_err());
    absent(service.builder.cancel(&alice(), &unknown).await.unwrap_err());
    for follow in [false, true] {
        denied(
            lines(service.builder.logs(bob(), id, 0, follow))
                .await
                .unwrap_err(),
        );
        absent(
            lines(service.builder.logs(alice(), unknown, 0, follow))
                .await
                .unwrap_err(),
        );
    }
    let page = service.builder.list(query(bob(), 0, "")).await.unwrap();
    assert_eq!((page.builds.len(), page.total_count), (0, 0));
}

fn query(tenant: TenantId, page_size: u32, page_token: &str) -> ListQuery {
    ListQuery {
        tenant,
        states: Vec::new(),
        page_size,
        page_token: page_token.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_first_come_first_served_and_can_be_left() {
    let service = Service::start().await;
    service.stall();
    let first = service.create().await.id;
    service.stalled().await;
    let (second, third) = (service.create().await, service.create().await);
    assert_eq!((second.queue_position, third.queue_position), (Some(0), Some(1)));
    assert_eq!(service.get(third.id).await.queue_position, Some(1));
    assert_eq!(service.get(first).await.state, BuildState::Pulling);

    let page = service.builder.list(query(alice(), 2, "")).await.unwrap();
    assert_eq!(
        page.builds.iter().map(|build| build.id).collect::<Vec<_>>(),
        [third.id, second.id]
    );
    let last = service
        .builder
        .list(query(alice(), 2, &page.next_page_token))
        .await
        .unwrap();
    assert_eq!(
        (last.builds[0].id, last.next_page_token.as_str(), last.total_count),
        (first, "", 3)
    );
    let pending = ListQuery {
        states: vec![BuildState::Pending],
        ..query(alice(), 0, "")
    };
    assert_eq!(service.builder.list(pending).await.unwrap().total_count, 2);

    // One that waits.
    let follower = tokio::spawn(lines(service.builder.logs(alice(), second.id, 0, true)));
    let cancelled = service.builder.cancel(&alice(), &second.id).await.unwrap();
    assert_eq!(cancelled.state, BuildState::Cancelled);
    assert_eq!(
        follower.await.unwrap().unwrap().last().unwrap().message,
        "The build was cancelled"
    );
    assert_eq!(service.get(third.id).await.queue_position, Some(0));

    // One that runs.
    let started = Instant::now();
    let cancelled = service.builder.cancel(&alice(), &first).await.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(cancelled.state, BuildState::Cancelled);
    let again = service.builder.cancel(&alice(), &first).await.unwrap();
    assert_eq!(
        again.state,
        BuildState::Cancelled,
        "to cancel twice is no mistake"
    );

    service.let_go();
    assert_eq!(service.ended(third.id).await.state, BuildState::Completed);
    let late = service.builder.cancel(&alice(), &third.id).await.unwrap_err();
    assert!(matches!(late, ServiceError::FailedPrecondition(_)), "{late}");
    assert_eq!(
        common::files_below(&service.directory.path().join("output")).len(),
        3,
        "the image, its metadata and its machine configuration"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses() {
    let service = Service::start_with(|config| config.node.queued_builds = 1).await;
    service.stall();
    service.create().await;
    service.stalled().await;
    service.create().await;
    let refused = service
        .builder
        .create(request(&service.reference))
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, ServiceError::ResourceExhausted(told) if (told.quota, told.limit) == ("queued_builds", 1)),
        "{refused}"
    );
    service.builder.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_are_refused_with_the_field() {
    type Change = fn(&mut BuildRequest);
    let service = Service::start().await;
    let image = "config.source.docker_image.image_uri";
    let cases: [(&str, Change, &str); 10] = [
        (
            "no reference",
            |request| request.source.image_uri = String::new(),
            image,
        ),
        (
            "not a reference",
            |request| request.source.image_uri = "UPPER/case".to_owned(),
            image,
        ),
        (
            "a layout",
            |request| request.source.image_uri = "oci:/etc:1".to_owned(),
            image,
        ),
        (
            "an archive",
            |request| request.source.image_uri = "docker-archive:/etc/passwd".to_owned(),
            image,
        ),
        (
            "no platform",
            |request| request.source.platform = Some("linux".to_owned()),
            "config.source.docker_image.platform",
        ),
        (
            "a platform that our init is not for",
            |request| request.source.platform = Some("linux/s390x".to_owned()),
            "config.source.docker_image.platform",
        ),
        (
            "relative directory",
            |request| request.target.runtime.working_dir = Some("srv".to_owned()),
            "config.target.microvm_rootfs.runtime_config.working_dir",
        ),
        (
            "less memory than a worker takes",
            |request| request.limits.max_memory_bytes = Some((16 << 20) - 1),
            "config.limits.max_memory_bytes",
        ),
        (
            "own list does not allow it",
            |request| request.limits.allowed_registries = vec!["ghcr.io".to_owned()],
            image,
        ),
        (
            "own list is malformed",
            |request| request.limits.allowed_registries = vec!["a b".to_owned()],
            "config.limits.allowed_registries",
        ),
    ];
    for (case, change, expected) in cases {
        let mut request = request(&service.reference);
        change(&mut request);
        match service.builder.create(request).await {
            Err(ServiceError::InvalidArgument { field, .. }) => assert_eq!(field, expected, "{case}"),
            other => panic!("{case}: {other:?}"),
        }
    }
    for token in ["x", "b", "bxyz", "b10000000000000000", "b-1"] {
        let refused = service.builder.list(query(alice(), 0, token)).await.unwrap_err();
        assert!(
            matches!(&refused, ServiceError::InvalidArgument { field, .. } if field == "page_token"),
            "{token}"
        );
    }
    assert_eq!(
        service
            .builder
            .list(query(alice(), 0, ""))
            .await
            .unwrap()
            .total_count,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_of_the_request_holds_but_cannot_be_raised() {
    let service = Service::start_with(|config| config.build_timeout = Duration::from_secs(1)).await;
    service.stall();
    for seconds in [None, Some(1), Some(3600)] {
        let mut request = request(&service.reference);
        request.limits.timeout_seconds = seconds;
        let id = service.builder.create(request).await.unwrap().id;
        let build = service.ended(id).await;
        assert_eq!(build.state, BuildState::Failed);
        assert!(build.error_message.unwrap().contains("longer than the 1 seconds"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tier_of_the_record_decides_whatever_the_request_claims() {
    let service =
        Service::start_with(|config| config.tenants = TierTable::new(Tier::Free, &TenantDefaults::default()))
            .await;
    let mut claims = request(&service.reference);
    claims.tenant.claimed_tier = Some(Tier::Dedicated);
    match service.builder.create(claims.clone()).await {
        Err(ServiceError::InvalidArgument { field, message }) => {
            assert_eq!(field, "config.source.docker_image.image_uri");
            assert!(message.contains("docker.io, ghcr.io"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    // More than the tenant has is cut, and the log says so; less holds.
    let service = Service::start().await;
    let mut request = request(&service.reference);
    request.limits.max_memory_bytes = Some(1 << 50);
    request.limits.max_disk_bytes = Some(100_000);
    let id = service.builder.create(request).await.unwrap().id;
    let build = service.ended(id).await;
    assert!(build.error_message.unwrap().contains("100000"));
    let log = lines(service.builder.logs(alice(), id, 0, false)).await.unwrap();
    let cut = log.iter().find(|line| line.level == Level::Warn).unwrap();
    assert!(
        cut.message.contains("memory") && cut.message.contains("2147483648 bytes allowed"),
        "{}",
        cut.message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_creator_went_away_runs_all_the_same() {
    let service = Service::start().await;
    let create = Box::pin(service.builder.create(request(&service.reference)));
    // One step of it, then dropped.
    assert!(matches!(
        futures_util::future::select(create, std::future::ready(())).await,
        Either::Right(_)
    ));
    let deadline = Instant::now() + PATIENCE;
    let id = loop {
        let page = service.builder.list(query(alice(), 0, "")).await.unwrap();
        if let Some(build) = page.builds.first() {
            break build.id;
        }
        assert!(Instant::now() < deadline);
    };
    assert_eq!(service.ended(id).await.state, BuildState::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_image_is_registered_and_the_build_knows_its_asset() {
    let assets = FakeAssetManager::start().unwrap();
    let service = Service::start_with(|config| {
        config.asset_manager = Some(assetclient::Config::new(assets.endpoint()));
    })
    .await;
    let mut request = request(&service.reference);
    request.tenant.customer_id = "customer-1".to_owned();
    request.suggested_asset_id = "asset-of-mine".to_owned();
    let id = service.builder.create(request).await.unwrap().id;
    assert_eq!(service.ended(id).await.state, BuildState::Completed);
    let build = service.registered(id).await;
    assert_eq!(build.asset_id.as_deref(), Some("asset-of-mine"));
    let known = assets.assets();
    let asset = &known["asset-of-mine"];
    assert_eq!(asset.location, format!("alice/{id}.ext4"));
    assert_eq!(Some(&asset.checksum), build.rootfs_checksum.as_ref());
    assert_eq!(asset.labels["docker_image"], service.reference);
    assert_eq!(asset.labels["customer_id"], "customer-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_completes_without_assetmanagerd_and_says_so() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let service = Service::start_with(|config| {
        config.asset_manager = Some(assetclient::Config::new(format!("http://{nobody}")));
    })
    .await;
    let build = service.ended(service.create().await.id).await;
    assert_eq!((build.state, build.asset_id), (BuildState::Completed, None));
    // Told after the end of the build, which did not wait for it.
    let deadline = Instant::now() + PATIENCE;
    let warning = loop {
        let log = lines(service.builder.logs(alice(), build.id, 0, false))
            .await
            .unwrap();
        if let Some(warning) = log.into_iter().find(|line| line.level == Level::Warn) {
            break warning;
        }
        assert!(Instant::now() < deadline, "a warning");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(
        warning.message,
        "The image is not registered with assetmanagerd yet: it cannot be reached; it is tried again until it is"
    );
    // Nothing was ever sent, so nobody has to be asked before it is deleted.
    service.builder.delete(&alice(), &build.id, false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_what_does_not_work() {
    let service = Service::start().await;
    let health = service.builder.health().await;
    assert_eq!(
        (health.storage, health.database, health.draining),
        (Check::Healthy, Check::Healthy, false)
    );
    let output = service.directory.path().join("output");
    fs::remove_dir_all(&output).unwrap();
    fs::write(&output, b"in the way").unwrap();
    let health = service.builder.health().await;
    assert!(matches!(health.storage, Check::Unhealthy(reason) if reason.contains("output")));
    assert_eq!(health.database, Check::Healthy);

    let id = service.create().await.id;
    let build = service.ended(id).await;
    assert_eq!(build.state, BuildState::Failed);
    assert!(
        build
            .error_message
            .unwrap()
            .contains("output directory cannot be written to")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_cannot_work_names_what_is_wrong() {
    type Change = fn(&mut BuilderConfig);
    let cases: [(StartErrorKind, Change); 6] = [
        (StartErrorKind::OutputDirectory, |config| {
            config.output_directory = "/proc/nowhere".into()
        }),
        (StartErrorKind::WorkspaceDirectory, |config| {
            config.workspace_directory = "/proc/nowhere".into()
        }),
        (StartErrorKind::ScratchDirectory, |config| {
            config.scratch_directory = "/proc/nowhere".into()
        }),
        (StartErrorKind::Database, |config| {
            config.database_directory = "/proc/nowhere".into()
        }),
        (StartErrorKind::AssetManager, |config| {
            config.asset_manager = Some(assetclient::Config::new("https://localhost:8083"));
        }),
        (StartErrorKind::Configuration, |config| {
            config.worker_command.clear()
        }),
    ];
    for (kind, change) in cases {
        let directory = tempfile::tempdir().unwrap();
        let mut config = serve::config(directory.path(), worker_command("worker"));
        change(&mut config);
        assert_eq!(Builder::start(config).await.unwrap_err().kind, kind);
    }
    let service = Service::start().await;
    let second = Builder::start(serve::config(service.directory.path(), worker_command("worker"))).await;
    let error = second.unwrap_err();
    assert_eq!(error.kind, StartErrorKind::DatabaseInUse);
    let message = error.to_string();
    let directory = service.directory.path().display().to_string();
    assert!(
        message.starts_with("another builderd uses ") && message.contains(&directory),
        "{message}"
    );
    assert!(
        message.ends_with(": stop it or use another directory"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_lines_are_the_end_of_the_log() {
    let service = Service::start().await;
    let id = service.create().await.id;
    service.ended(id).await;
    let all = lines(service.builder.logs(alice(), id, 0, false)).await.unwrap();
    for limit in [0, 3, all.len(), 1000] {
        let last = service.builder.last_lines(&alice(), id, limit).await.unwrap();
        assert_eq!(last, all[all.len().saturating_sub(limit)..], "{limit}");
    }
    let others = service.builder.last_lines(&bob(), id, 3).await;
    assert!(
        matches!(others, Err(ServiceError::PermissionDenied)),
        "{others:?}"
    );
}
