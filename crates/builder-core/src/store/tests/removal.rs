//! Tombstones, usage, and what is due.

use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Fixture {
    /// A build that completed at `at`, after ten seconds, with an image of 1000 bytes.
    async fn completed(&self, tenant: &str, at: SystemTime) -> BuildId {
        let mut new = new_build(tenant);
        new.created_at = at - Duration::from_secs(20);
        let id = insert(&self.store, new).await.unwrap().id;
        self.begin(id, at - Duration::from_secs(10)).await;
        let change = BuildChange {
            completed_at: Some(at),
            finished: Some(Finished {
                size_bytes: 5000,
                stored_bytes: 1000,
                checksum: "ab".to_owned(),
            }),
            metrics: Some(BuildMetrics {
                cpu_time_ms: Some(2_500),
                ..BuildMetrics::default()
            }),
            ..to(BuildState::Completed)
        };
        self.change(id, change).await;
        id
    }
}

fn alice() -> tenant::TenantId {
    "alice".parse().unwrap()
}

#[tokio::test]
async fn a_tombstone_keeps_what_is_counted_and_nothing_that_was_written() {
    let fixture = Fixture::new();
    let moment = UNIX_EPOCH + 20_000 * DAY + DAY / 2;
    let id = fixture.completed("alice", moment).await;
    let running = fixture.add("alice").await;
    assert!(matches!(
        fixture.store.bury(running, None, None).await,
        Err(StoreError::NotEnded)
    ));
    let sums = fixture.store.window(alice(), None, None, 10).await.unwrap().0;

    fixture.store.bury(id, None, None).await.unwrap();
    assert!(matches!(
        fixture.store.bury(id, None, None).await,
        Err(StoreError::NoSuchBuild)
    ));
    assert!(fixture.store.get(id).await.unwrap().is_none());
    let late = fixture.store.change(id, BuildChange::default()).await;
    assert!(matches!(late, Err(StoreError::NoSuchBuild)));
    let listed = fixture.store.list(alice(), Vec::new(), None, 10).await.unwrap();
    assert_eq!((listed.total, listed.builds.len()), (1, 1));
    let (after, recent) = fixture.store.window(alice(), None, None, 10).await.unwrap();
    assert_eq!(
        (after.stored_bytes, sums.stored_bytes, recent.len()),
        (0, 1000, 1)
    );
    assert_eq!(
        (
            after.total,
            after.completed,
            after.cpu_time,
            after.average_build_time
        ),
        (2, 1, Duration::from_millis(2_500), Some(Duration::from_secs(10)))
    );
    let usage = fixture.store.usage(alice(), moment).await.unwrap().1;
    assert_eq!((usage.builds_started_today, usage.storage_bytes), (1, 0));
    let left: (String, i64) = fixture
        .store
        .read(move |connection| {
            let row = "SELECT request || metrics || current_step || COALESCE(error_message, ''),
                       (SELECT COUNT(*) FROM build_logs WHERE build_ordinal = ordinal) FROM builds WHERE id = ?1";
            Ok(connection.query_row(row, [id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?)
        })
        .await
        .unwrap();
    assert_eq!(left, ("{}{}".to_owned(), 0));

    assert_eq!(
        fixture.store.claim(id, alice()).await.unwrap(),
        FileClaim::Removed
    );
    assert_eq!(
        fixture.store.claim(running, alice()).await.unwrap(),
        FileClaim::Needed
    );
    let bob = "bob".parse().unwrap();
    assert_eq!(
        fixture.store.claim(running, bob).await.unwrap(),
        FileClaim::Unknown
    );
    // What a build that came to nothing left behind is nobody's.
    for state in ["failed", "cancelled"] {
        fixture
            .store
            .write(move |transaction| {
                let update = "UPDATE builds SET state = ?1 WHERE id = ?2";
                transaction.execute(update, [state, &running.to_string()])?;
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(
            fixture.store.claim(running, alice()).await.unwrap(),
            FileClaim::Removed,
            "{state}"
        );
    }
    assert_eq!(fixture.store.drop_tombstones(now() - DAY, 10).await.unwrap(), 0);
    assert_eq!(fixture.store.drop_tombstones(now() + DAY, 10).await.unwrap(), 1);
}

#[tokio::test]
async fn days_are_utc_and_a_clock_that_steps_back_gives_nothing_away() {
    let fixture = Fixture::new();
    let midnight = UNIX_EPOCH + 20_000 * DAY;
    fixture
        .completed("alice", midnight - Duration::from_secs(60))
        .await;
    fixture
        .completed("alice", midnight + Duration::from_secs(60))
        .await;
    // Began before midnight, ended after.
    fixture
        .completed("alice", midnight + Duration::from_secs(5))
        .await;
    fixture.completed("bob", midnight + Duration::from_secs(60)).await;
    let figures = |moment: SystemTime| {
        let store = fixture.store.clone();
        async move {
            let usage = store.usage(alice(), moment).await.unwrap().1;
            (
                usage.builds_started_today,
                usage.builds_completed_today,
                usage.cpu_time_today,
            )
        }
    };
    let cpu = Duration::from_millis(2_500);
    assert_eq!(figures(midnight + DAY / 2).await, (1, 2, 2 * cpu));
    assert_eq!(figures(midnight + DAY).await, (0, 0, Duration::ZERO));
    assert_eq!(figures(midnight - DAY / 2).await, (3, 3, 3 * cpu));
    let window = fixture
        .store
        .window(alice(), Some(midnight), None, 10)
        .await
        .unwrap();
    assert_eq!((window.0.total, window.1.len()), (1, 1));
}

#[tokio::test]
async fn what_waits_and_what_runs_is_told_apart() {
    let fixture = Fixture::new();
    fixture.add("alice").await;
    let begun = fixture.add("alice").await;
    fixture.begin(begun, now()).await;
    let pulling = fixture.add("alice").await;
    fixture.begin(pulling, now()).await;
    fixture.change(pulling, to(BuildState::Pulling)).await;
    let usage = fixture.store.usage(alice(), now()).await.unwrap().1;
    assert_eq!((usage.queued_builds, usage.active_builds), (1, 2));
}

#[tokio::test]
async fn builds_expire_by_the_tier_of_their_tenants_record() {
    let fixture = Fixture::new();
    let now = now();
    let mut ids = Vec::new();
    for (tenant, days) in [("alice", 29), ("alice", 31), ("bob", 31), ("bob", 91)] {
        ids.push(fixture.completed(tenant, now - days * DAY).await);
    }
    fixture
        .store
        .write(|transaction| {
            transaction.execute(
                "UPDATE tenants SET tier = 'enterprise' WHERE tenant_id = 'bob'",
                [],
            )?;
            Ok(())
        })
        .await
        .unwrap();
    let keeps = |tier| match tier {
        tenant::Tier::Enterprise => 90 * DAY,
        _ => 30 * DAY,
    };
    let expired = |after, limit| {
        fixture
            .store
            .expired(tenant::Tier::Free, now, after, limit, keeps)
    };
    let all = expired(None, 10).await.unwrap();
    let found: Vec<_> = all.builds.iter().map(|build| build.id).collect();
    assert_eq!(found, [ids[3], ids[1]], "oldest first");
    // Page by page, also past those that are kept.
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let page = expired(after, 1).await.unwrap();
        found.extend(page.builds.iter().map(|build| build.id));
        let Some(last) = page.looked_at_until else { break };
        after = Some(last);
    }
    assert_eq!(found, [ids[3], ids[1]]);
}

#[tokio::test]
async fn a_removed_image_frees_its_room_and_leaves_build_and_log() {
    let fixture = Fixture::new();
    let id = fixture.completed("alice", now()).await;
    assert_eq!(fixture.store.kept_images().await.unwrap().len(), 1);
    fixture
        .store
        .forget_image(id, None, line("removed"), None)
        .await
        .unwrap();
    assert_eq!(fixture.store.stored_bytes().await.unwrap(), 0);
    assert!(fixture.store.kept_images().await.unwrap().is_empty());
    let build = fixture.store.get(id).await.unwrap().unwrap().build;
    assert!(build.image_removed_at.is_some() && build.state == BuildState::Completed);
    assert_eq!(
        fixture.store.claim(id, alice()).await.unwrap(),
        FileClaim::Removed
    );
}
