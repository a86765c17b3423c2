//! Several tenants on one service: limits, turns, keys, and what is billed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/fixture.rs"]
mod fixture;
#[path = "bin/serve/mod.rs"]
#[allow(dead_code, reason = "its main function is for the process of its own")]
mod serve;

use std::time::Duration;

use builder_core::{
    ServiceError,
    build::{Build, BuildId, BuildState},
    request::BuildRequest,
    service::StatsWindow,
};
use common::{PATIENCE, request};
use fixture::{Service, alice, lines, restart};
use tenant::{TenantDefaults, TenantId, Tier, TierTable, ledger};

fn tiers(concurrent_builds: u32, daily_builds: u32) -> TierTable {
    let figures = TenantDefaults {
        concurrent_builds,
        daily_builds,
        ..TenantDefaults::default()
    };
    TierTable::new(Tier::Pro, &figures)
}

impl Service {
    fn request_of(&self, tenant: &str) -> BuildRequest {
        let mut request = request(&self.reference);
        request.tenant.tenant_id = tenant.parse().unwrap();
        request
    }

    async fn create_for(&self, tenant: &str) -> Build {
        self.builder.create(self.request_of(tenant)).await.unwrap()
    }

    async fn get_for(&self, tenant: &str, id: BuildId) -> Build {
        self.builder.get(&tenant.parse().unwrap(), &id).await.unwrap()
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let wait = async {
            while !is_so().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}");
    }

    /// Cancels a build and waits for it to have stopped.
    async fn cancel_for(&self, tenant: &str, id: BuildId) {
        let tenant: TenantId = tenant.parse().unwrap();
        assert_eq!(
            self.builder.cancel(&tenant, &id).await.unwrap().state,
            BuildState::Cancelled
        );
    }

    fn ledger(&self) -> Vec<ledger::LedgerRow> {
        let path = self.directory.path().join("database/builderd.db");
        let connection = rusqlite::Connection::open(path).unwrap();
        ledger::rows_since(&connection, 0, 1_000).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flooding_tenant_delays_three_small_ones_by_one_build_at_most() {
    let service = Service::start_with(|config| {
        config.node.concurrent_builds = 2;
        config.tenants = tiers(2, 1_000);
    })
    .await;
    service.stall();
    let mut flood = Vec::new();
    for _ in 0..40 {
        flood.push(service.create_for("flood").await.id);
    }
    service
        .until("the flood has both places", async || {
            service.get_for("flood", flood[1]).await.started_at.is_some()
        })
        .await;
    let mut small = Vec::new();
    for tenant in ["one", "two", "three"] {
        let build = service.create_for(tenant).await;
        let place = build.queue_position.unwrap();
        assert!(place <= 3, "{tenant} is at place {place} behind 38 others");
        small.push((tenant, build.id));
    }
    // Nothing ends by itself: each end gives one place away. Whom it goes to does not depend on any time.
    let mut ended = 0;
    let started = async |tenant: &str, id| service.get_for(tenant, id).await.started_at.is_some();
    let mut running: Vec<(&str, BuildId)> = vec![("flood", flood[0]), ("flood", flood[1])];
    let mut waiting: Vec<(&str, BuildId)> = small.clone();
    waiting.extend(flood[2..].iter().map(|id| ("flood", *id)));
    while !small.iter().all(|one| !waiting.contains(one)) {
        let (tenant, id) = running.remove(0);
        service.cancel_for(tenant, id).await;
        ended += 1;
        assert!(
            ended <= 4,
            "three small builds wait for {ended} others: {small:?} {waiting:?}"
        );
        service
            .until("somebody gets the place", async || {
                for (tenant, id) in &waiting {
                    if started(tenant, *id).await {
                        return true;
                    }
                }
                false
            })
            .await;
        let mut still = Vec::new();
        for (tenant, id) in waiting {
            if started(tenant, id).await {
                running.push((tenant, id));
            } else {
                still.push((tenant, id));
            }
        }
        waiting = still;
    }
    service.builder.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_at_its_limit_delays_nobody_and_places_are_told() {
    let service = Service::start_with(|config| {
        config.node.concurrent_builds = 3;
        config.tenants = tiers(1, 1_000);
    })
    .await;
    service.stall();
    let first = service.create_for("a").await.id;
    service.stalled().await;
    let (second, third) = (service.create_for("a").await.id, service.create_for("a").await.id);
    let other = service.create_for("b").await.id;
    service
        .until("the other tenant's build begins", async || {
            service.get_for("b", other).await.started_at.is_some()
        })
        .await;
    assert_eq!(service.get_for("a", third).await.queue_position, Some(1));
    assert_eq!(service.get_for("a", second).await.started_at, None);
    let quotas = service.builder.quotas(&"a".parse().unwrap()).await.unwrap();
    assert_eq!((quotas.usage.active_builds, quotas.usage.queued_builds), (1, 2));
    service.cancel_for("a", first).await;
    service
        .until("the next one begins", async || {
            service.get_for("a", second).await.started_at.is_some()
        })
        .await;
    service.builder.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_survives_a_restart() {
    let service = Service::start().await;
    service.stall();
    let running = service.create_for("a").await.id;
    service.stalled().await;
    let mut waiting = Vec::new();
    for tenant in ["a", "a", "b", "a", "c", "b"] {
        waiting.push((tenant, service.create_for(tenant).await.id));
    }
    let places = async |builder: &builder_core::service::Builder, without: Option<BuildId>| {
        let mut places = Vec::new();
        for (tenant, id) in waiting.iter().filter(|(_, id)| Some(*id) != without) {
            let build = builder.get(&tenant.parse().unwrap(), id).await.unwrap();
            places.push((build.queue_position.unwrap(), *id));
        }
        places.sort_unstable_by_key(|(place, _)| *place);
        places.into_iter().map(|(_, id)| id).collect::<Vec<_>>()
    };
    let before = places(&service.builder, None).await;
    service.builder.shutdown(Duration::ZERO).await;
    let Service {
        directory,
        builder,
        registry,
        ..
    } = service;
    drop(builder);
    let builder = restart(&directory).await;
    let again = builder.get(&"a".parse().unwrap(), &running).await.unwrap();
    assert!(!again.state.is_terminal());
    // The interrupted build is the next one of its tenant, whose turn comes after those of the others that had none yet.
    let next = before[0];
    let (tenant, _) = waiting.iter().find(|(_, id)| *id == next).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while builder
        .get(&tenant.parse().unwrap(), &next)
        .await
        .unwrap()
        .started_at
        .is_none()
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the next one does not begin"
        );
        tokio::task::yield_now().await;
    }
    assert_eq!(places(&builder, Some(next)).await, before[1..]);
    builder.shutdown(Duration::ZERO).await;
    drop(registry);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_gives_the_same_build_and_a_used_up_day_tells_when_it_frees() {
    let service = Service::start_with(|config| config.tenants = tiers(1, 2)).await;
    let same = service.request_of("alice");
    let first = service.builder.create_once(same.clone(), "k-1").await.unwrap().id;
    service.ended(first).await;
    let mut with_password = same.clone();
    with_password.source.credentials = Some(builder_core::request::RegistryCredentials::default());
    for again in [same.clone(), with_password] {
        let build = service.builder.create_once(again, "k-1").await.unwrap();
        assert_eq!((build.id, build.state), (first, BuildState::Completed));
    }
    let mut other = same.clone();
    other.build_name = "other".to_owned();
    let reused = service.builder.create_once(other, "k-1").await;
    assert!(
        matches!(reused, Err(ServiceError::AlreadyExists(_))),
        "{reused:?}"
    );
    let bad = service.builder.create_once(same.clone(), "a key").await;
    assert!(
        matches!(bad, Err(ServiceError::InvalidArgument { .. })),
        "{bad:?}"
    );
    let theirs = service
        .builder
        .create_once(service.request_of("bob"), "k-1")
        .await
        .unwrap()
        .id;
    assert_ne!(theirs, first);

    let second = service.builder.create_once(same.clone(), "k-2").await.unwrap().id;
    service.ended(second).await;
    match service.builder.create(same.clone()).await {
        Err(ServiceError::ResourceExhausted(told)) => {
            assert_eq!((told.quota, told.current, told.limit), ("daily_builds", 2, 2));
            let wait = told.retry_after.unwrap();
            assert!(
                wait <= Duration::from_secs(86_400) && told.frees_at.is_some(),
                "{told:?}"
            );
        }
        // Midnight was in between.
        Ok(_) => {}
        Err(other) => panic!("{other}"),
    }
    service.builder.delete(&alice(), &first, false).await.unwrap();
    let gone = service.builder.create_once(same, "k-1").await;
    assert!(
        matches!(gone, Err(ServiceError::FailedPrecondition(_))),
        "{gone:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_fit_into_the_storage_is_not_published() {
    let service = Service::start_with(|config| {
        let figures = TenantDefaults {
            storage_bytes: 10_000,
            ..TenantDefaults::default()
        };
        config.tenants = TierTable::new(Tier::Pro, &figures);
    })
    .await;
    let id = service.create().await.id;
    let build = service.ended(id).await;
    assert_eq!(build.state, BuildState::Failed);
    let reason = build.error_message.unwrap();
    assert!(
        reason.starts_with("storage: ") && reason.contains("of 10000 bytes"),
        "{reason}"
    );
    let usage = service.builder.quotas(&alice()).await.unwrap().usage;
    assert_eq!((usage.storage_bytes, usage.builds_started_today), (0, 1));
    assert_eq!(
        common::files_below(&service.directory.path().join("output")),
        Vec::<std::path::PathBuf>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_has_a_row_for_each_build_and_the_figures_are_those_of_the_tenant() {
    let service = Service::start().await;
    let completed = service.create().await.id;
    assert_eq!(service.ended(completed).await.state, BuildState::Completed);
    let missing = service.registry.reference("team/app", "absent");
    let failed = service.builder.create(request(&missing)).await.unwrap().id;
    service.ended(failed).await;
    service.stall();
    let mut large = service.request_of("alice");
    large.source.image_uri = service
        .registry
        .publish("team/other", "1", &common::sample().build());
    let running = service.builder.create(large).await.unwrap().id;
    let waiting = service.create().await.id;
    service.cancel_for("alice", waiting).await;
    service.cancel_for("alice", running).await;
    for id in [waiting, running] {
        lines(service.builder.logs(alice(), id, 0, true)).await.unwrap();
    }
    let rows = service.ledger();
    let seen: Vec<_> = rows
        .iter()
        .map(|row| (row.event_id.clone(), row.outcome.unwrap().as_str(), row.refunded))
        .collect();
    assert_eq!(
        seen,
        [
            (completed.to_string(), "completed", false),
            (failed.to_string(), "failed", false),
            (waiting.to_string(), "cancelled", false),
            (running.to_string(), "cancelled", false),
        ]
    );
    let build = service.get(completed).await;
    let row = &rows[0];
    assert_eq!(
        (row.ended_at, row.started_at),
        (build.completed_at.unwrap(), build.started_at)
    );
    assert_eq!(u64::try_from(row.cpu.as_millis()).ok(), build.metrics.cpu_time_ms);
    assert_eq!(Some(row.pulled_bytes), build.metrics.pulled_bytes);
    assert!(row.wall > Duration::ZERO && row.stored_bytes > 0);
    let quotas = service.builder.quotas(&alice()).await.unwrap();
    assert_eq!(quotas.usage.storage_bytes, row.stored_bytes);
    let cpu: Duration = rows.iter().map(|row| row.cpu).sum();
    assert_eq!(
        quotas.usage.cpu_time_today, cpu,
        "usage is the sum over the ledger"
    );
    let stats = service
        .builder
        .stats(&alice(), StatsWindow::default())
        .await
        .unwrap();
    assert_eq!((stats.cpu_time, stats.storage_bytes), (cpu, row.stored_bytes));

    // Deleting gives storage back, and its time goes into the ledger; nothing else changes.
    service.builder.delete(&alice(), &completed, false).await.unwrap();
    let after = service.builder.quotas(&alice()).await.unwrap().usage;
    assert_eq!(after.storage_bytes, 0);
    assert_eq!(after.builds_started_today, quotas.usage.builds_started_today);
    let all = service.ledger();
    assert_eq!(all[..4], rows);
    assert!(all[4..].iter().all(|row| row.kind == ledger::LedgerKind::Storage));
    assert!(!all[4..].is_empty());
}
