//! Builds and images that are removed: by request, because their time is over, because room is needed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/fixture.rs"]
mod fixture;
#[path = "bin/serve/mod.rs"]
#[allow(dead_code, reason = "its main function is for the process of its own")]
mod serve;

use std::{fs, path::PathBuf, time::Duration};

use builder_core::{
    ServiceError,
    audit::{Actor, AuditEvent},
    build::{BuildId, BuildState},
    service::{Builder, BuilderConfig, ListQuery, StatsWindow},
};
use common::{PATIENCE, files_below, request, worker_command};
use fixture::{Service, alice, assert_gapless, bob, lines};
use tenant::{TenantDefaults, Tier, TierTable};
use test_support::assetmanagerd::{Code, FakeAssetManager};
use tokio::time::Instant;

/// Of one build: the image, its metadata, its machine configuration.
const FILES: usize = 3;

impl Service {
    fn images(&self) -> Vec<PathBuf> {
        files_below(&self.directory.path().join("output"))
    }

    /// Starts the service again with other settings.
    async fn restart_with(self, change: impl Fn(&mut BuilderConfig)) -> Self {
        self.builder.shutdown(Duration::ZERO).await;
        let Self {
            directory,
            builder,
            registry,
            reference,
        } = self;
        drop(builder);
        let deadline = Instant::now() + PATIENCE;
        let builder = loop {
            let mut config = serve::config(directory.path(), worker_command("worker"));
            change(&mut config);
            match Builder::start(config).await {
                Ok(builder) => break builder,
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::task::yield_now().await,
            }
        };
        Self {
            directory,
            builder,
            registry,
            reference,
        }
    }

    async fn completed(&self) -> BuildId {
        let id = self.create().await.id;
        let build = self.ended(id).await;
        assert_eq!(build.state, BuildState::Completed, "{:?}", build.error_message);
        id
    }

    async fn wait_for<F: Future<Output = bool>>(&self, what: &str, is_so: impl Fn() -> F) {
        let wait = async {
            while !is_so().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}");
    }

    /// What the audit log is to be told of what the service did of its own accord: action and build, in their order.
    async fn own_acts(&self) -> Vec<(String, String)> {
        let events = self.builder.audit_events(100).await.unwrap();
        let acts = events.into_iter().map(|(_, line)| {
            let event: AuditEvent = serde_json::from_str(&line).unwrap();
            assert_eq!(event.actor, Actor::builderd());
            assert_eq!(event.tenant.as_deref(), Some("alice"), "{line}");
            assert!(event.reason.is_some(), "{line}");
            (event.action, event.target.unwrap())
        });
        acts.collect()
    }

    async fn is_gone(&self, id: BuildId) -> bool {
        matches!(self.builder.get(&alice(), &id).await, Err(ServiceError::NotFound))
    }
}

fn short_retention(config: &mut BuilderConfig) {
    let defaults = TenantDefaults {
        retention: Duration::from_millis(1),
        ..TenantDefaults::default()
    };
    config.tenants = TierTable::new(Tier::Pro, &defaults);
    config.cleanup_interval = Duration::from_millis(20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_build_is_gone_with_its_files_and_still_counted() {
    let service = Service::start().await;
    let id = service.completed().await;
    let builder = &service.builder;
    let other = builder.delete(&bob(), &id, true).await;
    assert!(matches!(other, Err(ServiceError::PermissionDenied)), "{other:?}");
    let before = builder.quotas(&alice()).await.unwrap();
    assert_eq!(before.limits.concurrent_builds, 3);
    assert!(before.usage.storage_bytes > 0);
    assert_eq!(service.images().len(), FILES);

    builder.delete(&alice(), &id, false).await.unwrap();
    assert_eq!(service.images(), Vec::<PathBuf>::new());
    for (name, answer) in [
        ("get", builder.get(&alice(), &id).await.map(drop)),
        ("delete", builder.delete(&alice(), &id, false).await),
        ("cancel", builder.cancel(&alice(), &id).await.map(drop)),
        ("logs", lines(builder.logs(alice(), id, 0, true)).await.map(drop)),
        ("another's", builder.get(&bob(), &id).await.map(drop)),
    ] {
        assert!(
            matches!(answer, Err(ServiceError::NotFound)),
            "{name}: {answer:?}"
        );
    }
    let query = ListQuery {
        tenant: alice(),
        states: Vec::new(),
        page_size: 0,
        page_token: String::new(),
    };
    assert_eq!(builder.list(query).await.unwrap().total_count, 0);
    let after = builder.quotas(&alice()).await.unwrap().usage;
    assert_eq!(
        (
            after.storage_bytes,
            after.builds_started_today,
            after.builds_completed_today
        ),
        (
            0,
            before.usage.builds_started_today,
            before.usage.builds_completed_today
        )
    );
    let stats = builder.stats(&alice(), StatsWindow::default()).await.unwrap();
    assert_eq!(
        (stats.total_builds, stats.successful_builds, stats.recent.len()),
        (1, 1, 0)
    );
    assert!(stats.average_build_time.is_some() && stats.storage_bytes == 0);
    let others = builder.stats(&bob(), StatsWindow::default()).await.unwrap();
    assert_eq!((others.total_builds, others.average_build_time), (0, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_or_waiting_build_is_deleted_by_force_alone() {
    let service = Service::start().await;
    service.stall();
    let running = service.create().await.id;
    service.stalled().await;
    let waiting = service.create().await.id;
    for id in [waiting, running] {
        let refused = service.builder.delete(&alice(), &id, false).await;
        assert!(
            matches!(refused, Err(ServiceError::FailedPrecondition(_))),
            "{refused:?}"
        );
        service.builder.delete(&alice(), &id, true).await.unwrap();
        assert!(service.is_gone(id).await);
    }
    assert_eq!(service.images(), Vec::<PathBuf>::new());
    // The slot is free again.
    service.let_go();
    service.completed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_use_is_deleted_by_nobody() {
    let assets = FakeAssetManager::start().unwrap();
    let endpoint = assets.endpoint();
    let service = Service::start_with(|config| {
        config.asset_manager = Some(assetclient::Config::new(endpoint));
    })
    .await;
    let id = service.completed().await;
    let asset = service.registered(id).await.asset_id.unwrap();
    assets.set_reference_count(&asset, 2);
    for force in [false, true] {
        let refused = service.builder.delete(&alice(), &id, force).await.unwrap_err();
        assert_eq!(refused.to_string(), "2 virtual machines use the image");
        assert!(matches!(refused, ServiceError::FailedPrecondition(_)));
    }
    assets.set_reference_count(&asset, 0);
    assets.fail_times(1, Code::Unavailable);
    let unknown = service.builder.delete(&alice(), &id, true).await;
    assert!(
        matches!(unknown, Err(ServiceError::FailedPrecondition(_))),
        "{unknown:?}"
    );
    assert_eq!(service.images().len(), FILES);

    service.builder.delete(&alice(), &id, false).await.unwrap();
    assert!(assets.assets().is_empty() && service.images().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_go_when_their_time_is_over_but_not_from_under_a_virtual_machine() {
    let assets = FakeAssetManager::start().unwrap();
    let client = assetclient::Config::new(assets.endpoint());
    let service = Service::start_with(|config| config.asset_manager = Some(client.clone())).await;
    let (used, unused) = (service.completed().await, service.completed().await);
    service.registered(unused).await;
    assets.set_reference_count(&service.registered(used).await.asset_id.unwrap(), 1);
    let service = service
        .restart_with(|config| {
            config.asset_manager = Some(client.clone());
            config.audit = true;
            short_retention(config);
        })
        .await;
    service
        .wait_for("the unused one goes", || service.is_gone(unused))
        .await;
    assert_eq!(service.get(used).await.state, BuildState::Completed);
    // The row goes first, then its files.
    service
        .wait_for("with its files", async || service.images().len() == FILES)
        .await;
    assets.set_reference_count(&service.registered(used).await.asset_id.unwrap(), 0);
    service
        .wait_for("then the other goes", || service.is_gone(used))
        .await;
    service
        .wait_for("with its files", async || service.images().is_empty())
        .await;
    let act = |id: BuildId| ("retention.delete".to_owned(), id.to_string());
    assert_eq!(service.own_acts().await, [act(unused), act(used)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_room_is_needed_images_go_and_builds_stay_unless_a_virtual_machine_uses_them() {
    let assets = FakeAssetManager::start().unwrap();
    let client = assetclient::Config::new(assets.endpoint());
    let service = Service::start_with(|config| config.asset_manager = Some(client.clone())).await;
    let (used, unused) = (service.completed().await, service.completed().await);
    service.registered(unused).await;
    let asset = service.registered(used).await.asset_id.unwrap();
    assets.set_reference_count(&asset, 1);
    let service = service
        .restart_with(|config| {
            config.asset_manager = Some(client.clone());
            config.storage_max_bytes = Some(1);
            config.audit = true;
            config.cleanup_interval = Duration::from_millis(20);
        })
        .await;
    service
        .wait_for("the unused image goes", async || {
            service.get(unused).await.image_removed_at.is_some()
        })
        .await;
    let log = lines(service.builder.logs(alice(), unused, 0, true))
        .await
        .unwrap();
    assert_gapless(&log, 1);
    assert!(log.last().unwrap().message.contains("to make room"));
    let evicted = ("storage.evict".to_owned(), unused.to_string());
    assert_eq!(service.own_acts().await, [evicted]);
    assert!(service.get(used).await.image_removed_at.is_none());
    service
        .wait_for("a full service refuses", async || {
            let refused = service.builder.create(request(&service.reference)).await;
            matches!(refused, Err(ServiceError::ResourceExhausted(_)))
        })
        .await;
    assert!(service.get(used).await.rootfs_path.exists());
    assets.set_reference_count(&asset, 0);
    service
        .wait_for("room again", async || {
            service.builder.create(request(&service.reference)).await.is_ok()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_a_build_are_swept_at_the_start_unless_they_are_older_than_the_database() {
    let service = Service::start().await;
    let id = service.completed().await;
    let directory = service.directory.path().join("output/alice");
    let orphan = directory.join(format!("{}.ext4", BuildId::generate()));
    // Its name says January 1970.
    let older = directory.join("build-0000170000007000800000000000000a.ext4");
    let foreign = directory.join("notes.txt");
    for path in [&orphan, &older, &foreign] {
        fs::write(path, b"something").unwrap();
    }
    let service = service.restart_with(|_| ()).await;
    assert!(!orphan.exists());
    assert!(older.exists() && foreign.exists());
    assert!(service.get(id).await.rootfs_path.exists());
}
