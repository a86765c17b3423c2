mod migration;
mod reading;
mod removal;

use std::{collections::BTreeMap, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::{
    build::{BuildId, BuildMetrics, BuildState},
    event::{Component, Level},
    request::{
        BuildRequest, DockerImageSource, ExtractOptions, InitStrategy, LayerMode, Optimization, Profile,
        RegistryCredentials, RequestedLimits, RootfsTarget, RuntimeOverrides, Secret, TenantContext,
    },
};

fn request(tenant: &str) -> BuildRequest {
    BuildRequest {
        tenant: TenantContext {
            tenant_id: tenant.parse().unwrap(),
            customer_id: "customer".to_owned(),
            organization_id: String::new(),
            claimed_tier: None,
            permissions: Vec::new(),
            metadata: BTreeMap::new(),
        },
        source: DockerImageSource {
            image_uri: "nginx:1".to_owned(),
            platform: None,
            pull_tags: Vec::new(),
            credentials: None,
        },
        target: RootfsTarget {
            init: InitStrategy::Tini,
            runtime: RuntimeOverrides::default(),
            profile: Profile::ReadWrite,
            free_space_bytes: 0,
            free_inodes: 0,
            layer_mode: LayerMode::Oci,
            optimization: Optimization::default(),
            preserve_paths: Vec::new(),
            verity: true,
        },
        flatten_filesystem: false,
        extract: ExtractOptions::default(),
        limits: RequestedLimits::default(),
        build_name: String::new(),
        labels: BTreeMap::new(),
        suggested_asset_id: String::new(),
    }
}

fn line(message: &str) -> NewLine {
    NewLine::new(Level::Info, Component::Builder, message)
}

/// So many lines, however long.
const fn page(lines: usize) -> PageSize {
    let bytes = usize::MAX;
    PageSize { lines, bytes }
}

pub(crate) fn new_build(tenant: &str) -> NewBuild {
    let id = BuildId::generate();
    NewBuild {
        id,
        request: request(tenant),
        requested: tenant::RequestedLimits::default(),
        key: None,
        created_at: now(),
        rootfs_path: PathBuf::from(format!("/images/{id}.ext4")),
        lines: vec![line("accepted")],
    }
}

pub(crate) async fn insert(store: &Store, new: NewBuild) -> Result<crate::build::Build, StoreError> {
    match store
        .insert(
            new,
            table(tenant::Tier::Pro),
            tenant::NodeCapacity::builds(9),
            |_| Ok(Vec::new()),
        )
        .await?
    {
        Inserted::New(build) => Ok(*build),
        Inserted::Repeated(id) => panic!("{id} was accepted before"),
    }
}

/// Limits that none of these tests meets.
fn table(default_tier: tenant::Tier) -> tenant::TierTable {
    let figures = tenant::TenantDefaults {
        concurrent_builds: 1_000,
        daily_builds: 1_000,
        ..tenant::TenantDefaults::default()
    };
    tenant::TierTable::new(default_tier, &figures)
}

struct Fixture {
    directory: TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        Self { directory, store }
    }

    async fn add(&self, tenant: &str) -> BuildId {
        insert(&self.store, new_build(tenant)).await.unwrap().id
    }

    async fn begin(&self, id: BuildId, at: SystemTime) {
        begin(&self.store, id, at).await;
    }

    async fn change(&self, id: BuildId, change: BuildChange) -> Vec<crate::event::LogLine> {
        self.store.change(id, change).await.unwrap()
    }
}

/// Starts this build, whosever turn it is.
async fn begin(store: &Store, id: BuildId, at: SystemTime) {
    store
            .write(move |transaction| {
                let (id, at) = (id.to_string(), to_micros(at));
                for statement in [
                    "UPDATE builds SET started_at = ?2, attempts = attempts + 1 WHERE id = ?1",
                    "UPDATE admissions SET running = 1, first_started_at = ?2 WHERE build_id = ?1",
                    "INSERT INTO reservations
                        (build_id, tenant_id, memory_bytes, cpu_cores, disk_bytes, started_at, checked_at)
                        SELECT build_id, tenant_id, 1, 1, 1, ?2, ?2 FROM admissions WHERE build_id = ?1",
                    "INSERT INTO charges SELECT build_id, tenant_id, ?2 / 86400000000 FROM admissions WHERE build_id = ?1",
                ] {
                    assert_eq!(transaction.execute(statement, rusqlite::params![id, at])?, 1);
                }
                Ok(())
            })
            .await
            .unwrap();
}

fn to(state: BuildState) -> BuildChange {
    BuildChange {
        state: Some(state),
        ..BuildChange::default()
    }
}

#[tokio::test]
async fn a_build_survives_reopening_with_everything_but_its_credentials() {
    let Fixture { directory, store } = Fixture::new();
    let mut new = new_build("alice");
    new.request.source.credentials = Some(RegistryCredentials {
        username: "robot-name".to_owned(),
        password: Secret::new("hunter2-secret".to_owned()),
        ..RegistryCredentials::default()
    });
    let id = new.id;
    let inserted = insert(&store, new.clone()).await.unwrap();
    assert_eq!(inserted.created_at, new.created_at);
    begin(&store, id, now()).await;
    store
        .change(
            id,
            BuildChange {
                state: Some(BuildState::Completed),
                completed_at: Some(now()),
                progress: Some((100, "done".to_owned())),
                finished: Some(Finished {
                    size_bytes: 4096,
                    stored_bytes: 4096,
                    checksum: "ab".to_owned(),
                }),
                metrics: Some(BuildMetrics {
                    pulled_bytes: Some(7),
                    ..BuildMetrics::default()
                }),
                lines: vec![line("done")],
                ..BuildChange::default()
            },
        )
        .await
        .unwrap();
    drop(store);
    // The writer thread closes the file a moment after the last handle is gone.
    let store = loop {
        match Store::open(directory.path()) {
            Ok(store) => break store,
            Err(StoreError::Locked { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    let stored = store.get(id).await.unwrap().unwrap();
    assert!(stored.needs_credentials);
    assert_eq!(stored.attempts, 1);
    let build = stored.build;
    assert_eq!(build.state, BuildState::Completed);
    assert_eq!(build.rootfs_size_bytes, Some(4096));
    assert_eq!(build.metrics.pulled_bytes, Some(7));
    assert_eq!(build.request.source.credentials, None);
    assert_eq!(build.rootfs_path, new.rootfs_path);

    for file in std::fs::read_dir(directory.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("hunter2-secret") && !text.contains("robot-name"));
    }
}

#[tokio::test]
async fn a_second_service_cannot_open_the_same_database() {
    let fixture = Fixture::new();
    assert!(matches!(
        Store::open(fixture.directory.path()),
        Err(StoreError::Locked { .. })
    ));
}

#[tokio::test]
async fn a_database_of_a_later_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let connection = Connection::open(directory.path().join("builderd.db")).unwrap();
    connection.pragma_update(None, "user_version", 1_000).unwrap();
    drop(connection);
    assert!(matches!(
        Store::open(directory.path()),
        Err(StoreError::TooNew {
            found: 1_000,
            known: schema::VERSION
        })
    ));
}

#[test]
fn the_migrations_are_well_formed() {
    schema::migrations().validate().unwrap();
}

#[tokio::test]
async fn states_and_percentages_only_go_forward_and_nothing_follows_the_end() {
    let fixture = Fixture::new();
    let id = fixture.add("alice").await;
    fixture.change(id, to(BuildState::Building)).await;
    let back = BuildChange {
        progress: Some((10, "a".to_owned())),
        ..to(BuildState::Pulling)
    };
    fixture
        .change(
            id,
            BuildChange {
                progress: Some((50, "b".to_owned())),
                ..BuildChange::default()
            },
        )
        .await;
    fixture.change(id, back).await;
    let build = fixture.store.get(id).await.unwrap().unwrap().build;
    assert_eq!((build.state, build.progress_percent), (BuildState::Building, 50));

    fixture.change(id, to(BuildState::Failed)).await;
    let late = BuildChange {
        lines: vec![line("late")],
        ..to(BuildState::Completed)
    };
    assert!(matches!(
        fixture.store.change(id, late).await,
        Err(StoreError::Ended)
    ));
    assert_eq!(
        fixture.store.get(id).await.unwrap().unwrap().build.state,
        BuildState::Failed
    );
    assert!(matches!(
        fixture
            .store
            .change(BuildId::generate(), BuildChange::default())
            .await,
        Err(StoreError::NoSuchBuild)
    ));
}

#[tokio::test]
async fn a_transaction_that_fails_or_panics_leaves_nothing_and_the_writer_goes_on() {
    let fixture = Fixture::new();
    let id = fixture.add("alice").await;
    let erase = |transaction: &Transaction<'_>| transaction.execute("DELETE FROM builds", []);
    let failed: Result<(), _> = fixture
        .store
        .write(move |transaction| {
            erase(transaction)?;
            Err(StoreError::Ended)
        })
        .await;
    assert!(matches!(failed, Err(StoreError::Ended)));
    let panicked: Result<(), _> = fixture
        .store
        .write(move |transaction| {
            erase(transaction)?;
            panic!("on purpose")
        })
        .await;
    assert!(matches!(panicked, Err(StoreError::Stopped)));
    assert!(fixture.store.get(id).await.unwrap().is_some());
    fixture.change(id, to(BuildState::Pulling)).await;
}

#[tokio::test]
async fn log_lines_are_numbered_without_gaps_whoever_writes_them() {
    let fixture = Fixture::new();
    let id = fixture.add("alice").await;
    let mut writers = Vec::new();
    for writer in 0..8 {
        let store = fixture.store.clone();
        writers.push(tokio::spawn(async move {
            for number in 0..25 {
                let lines = vec![line(&format!("{writer}.{number}")), line("second")];
                let written = store
                    .change(
                        id,
                        BuildChange {
                            lines,
                            ..BuildChange::default()
                        },
                    )
                    .await
                    .unwrap();
                assert_eq!(written[0].sequence + 1, written[1].sequence);
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let lines = fixture
        .store
        .read(move |connection| lines_after(connection, id, 1, page(1000)))
        .await
        .unwrap()
        .lines;
    assert_eq!(lines.len(), 1 + 8 * 25 * 2);
    assert!(
        lines
            .iter()
            .zip(1..)
            .all(|(line, sequence)| line.sequence == sequence)
    );
    let some = fixture
        .store
        .read(move |connection| lines_after(connection, id, 399, page(2)))
        .await
        .unwrap()
        .lines;
    assert_eq!(
        some.iter().map(|line| line.sequence).collect::<Vec<_>>(),
        [399, 400]
    );
}

#[tokio::test]
async fn a_log_is_bounded_and_still_has_its_last_words() {
    let fixture = Fixture::new();
    let id = fixture.add("alice").await;
    let long = "x".repeat(10_000);
    for _ in 0..3 {
        let lines = (0..4_000).map(|_| line(&long)).collect();
        fixture
            .change(
                id,
                BuildChange {
                    lines,
                    ..BuildChange::default()
                },
            )
            .await;
    }
    fixture
        .change(
            id,
            BuildChange {
                lines: vec![line("the reason")],
                ..to(BuildState::Failed)
            },
        )
        .await;
    let lines = fixture
        .store
        .read(move |connection| lines_after(connection, id, 1, page(100_000)))
        .await
        .unwrap()
        .lines;
    assert!(lines.len() < 2_000, "{} lines", lines.len());
    assert!(lines.iter().all(|line| line.message.len() <= 4_100));
    let last: Vec<&str> = lines
        .iter()
        .rev()
        .take(2)
        .map(|line| line.message.as_str())
        .collect();
    assert_eq!(
        last,
        ["the reason", "The log is full: further lines are left out"]
    );
    assert!(
        lines
            .iter()
            .zip(1..)
            .all(|(line, sequence)| line.sequence == sequence)
    );
}

#[tokio::test]
async fn pages_do_not_shift_when_builds_are_added() {
    let fixture = Fixture::new();
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(fixture.add("alice").await);
        fixture.add("bob").await;
    }
    fixture.change(ids[3], to(BuildState::Failed)).await;
    let alice: tenant::TenantId = "alice".parse().unwrap();
    let page = |before, states: &[BuildState]| fixture.store.list(alice.clone(), states.to_vec(), before, 2);

    let first = page(None, &[]).await.unwrap();
    assert_eq!((first.total, first.builds.len()), (5, 2));
    assert_eq!(first.builds[0].id, ids[4]);
    let newcomer = fixture.add("alice").await;
    let mut seen: Vec<BuildId> = first.builds.iter().map(|build| build.id).collect();
    let mut before = first.next_before;
    while let Some(next) = before {
        let page = page(Some(next), &[]).await.unwrap();
        assert_eq!(page.total, 6);
        seen.extend(page.builds.iter().map(|build| build.id));
        before = page.next_before;
    }
    ids.reverse();
    assert_eq!(seen, ids);
    assert!(!seen.contains(&newcomer));

    let failed = page(None, &[BuildState::Failed, BuildState::Cancelled])
        .await
        .unwrap();
    assert_eq!((failed.total, failed.next_before), (1, None));
    assert_eq!(failed.builds[0].state, BuildState::Failed);
    let bob = fixture
        .store
        .list("bob".parse().unwrap(), Vec::new(), None, 5)
        .await
        .unwrap();
    assert_eq!(
        (bob.total, bob.next_before),
        (5, None),
        "a full last page has no next one"
    );
}

#[tokio::test]
async fn an_interrupted_build_goes_back_to_the_start() {
    let fixture = Fixture::new();
    let (ended, interrupted) = (fixture.add("alice").await, fixture.add("alice").await);
    fixture.change(ended, to(BuildState::Completed)).await;
    fixture.begin(interrupted, now()).await;
    fixture.change(interrupted, to(BuildState::Building)).await;
    fixture
        .store
        .requeue(interrupted, line("again"), Requeued::Crash)
        .await
        .unwrap();
    assert!(matches!(
        fixture.store.requeue(ended, line("again"), Requeued::Crash).await,
        Err(StoreError::Ended)
    ));
    let unfinished = fixture.store.unfinished().await.unwrap();
    assert_eq!(unfinished.len(), 1);
    let stored = &unfinished[0];
    assert_eq!(
        (stored.build.id, stored.build.state),
        (interrupted, BuildState::Pending)
    );
    assert_eq!((stored.build.started_at, stored.attempts), (None, 1));
}

#[tokio::test]
async fn a_refused_build_leaves_no_row_and_no_tenant() {
    let fixture = Fixture::new();
    let new = new_build("carol");
    let id = new.id;
    let refused = fixture
        .store
        .insert(
            new.clone(),
            table(tenant::Tier::Free),
            tenant::NodeCapacity::builds(1),
            |_| Err(ServiceError::FailedPrecondition("no".to_owned())),
        )
        .await;
    assert!(matches!(refused, Err(StoreError::Refused(_))));
    assert!(fixture.store.get(id).await.unwrap().is_none());
    let carol: tenant::TenantId = "carol".parse().unwrap();
    assert!(fixture.store.record(carol.clone()).await.unwrap().is_none());

    fixture
        .store
        .insert(
            new,
            table(tenant::Tier::Free),
            tenant::NodeCapacity::builds(1),
            |limits| Ok(vec![line(&limits.daily_builds.to_string())]),
        )
        .await
        .unwrap();
    let record = fixture.store.record(carol).await.unwrap().unwrap();
    assert_eq!(record.tier, tenant::Tier::Free);
    let lines = fixture
        .store
        .read(move |connection| lines_after(connection, id, 1, page(10)))
        .await
        .unwrap()
        .lines;
    assert_eq!(
        lines.iter().map(|line| line.message.as_str()).collect::<Vec<_>>(),
        ["accepted", "1000"]
    );
}
