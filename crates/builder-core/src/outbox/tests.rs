//! Against an assetmanagerd on loopback that fails as it is told, with a clock that the test sets.

use std::{collections::BTreeSet, time::UNIX_EPOCH};

use assetclient::{Config, Delivery};
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use test_support::assetmanagerd::{Code, FakeAssetManager, Misbehaviour, Request, proto};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::*;
use crate::{
    artifact::LocalStore,
    build::{Build, BuildState},
    store::{BuildChange, Finished, tests},
};

const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Stands still until it is set.
#[derive(Debug)]
struct ManualClock(watch::Sender<SystemTime>);

impl ManualClock {
    fn advance(&self, by: Duration) {
        self.0.send_modify(|now| *now += by);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.borrow()
    }

    fn wait_until(&self, moment: SystemTime) -> BoxFuture<'_, ()> {
        let mut now = self.0.subscribe();
        Box::pin(async move {
            // The sender lives as long as this borrow of it.
            let _ = now.wait_for(|now| *now >= moment).await;
        })
    }
}

struct Fixture {
    directory: TempDir,
    store: Store,
    assets: FakeAssetManager,
    client: Config,
    clock: Arc<ManualClock>,
    wake: Arc<Notify>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let assets = FakeAssetManager::start().unwrap();
        // Not today, so that nothing is due by the machine's clock.
        let now = UNIX_EPOCH + Duration::from_secs(4_000_000_000);
        Self {
            store: Store::open(directory.path()).unwrap(),
            client: Config::new(assets.endpoint()),
            assets,
            directory,
            clock: Arc::new(ManualClock(watch::Sender::new(now))),
            wake: Arc::default(),
            running: None,
        }
    }

    fn start(&mut self) {
        let outbox = Outbox::new(
            self.store.clone(),
            AssetClient::connect_lazy(self.client.clone()).unwrap(),
            Arc::new(LocalStore::new(self.directory.path().join("output"))),
            self.clock.clone(),
            Arc::clone(&self.wake),
        );
        let stopped = CancellationToken::new();
        self.running = Some((stopped.clone(), tokio::spawn(outbox.run(stopped))));
    }

    async fn stop(&mut self) {
        let (stopped, task) = self.running.take().unwrap();
        stopped.cancel();
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    }

    /// A build of alice's that has completed, and with which an id is suggested; empty for none.
    async fn complete(&self, suggested: &str) -> BuildId {
        let new = tests::new_build("alice");
        let id = new.id;
        tests::insert(&self.store, new).await.unwrap();
        let registration = Registration {
            asset_id: match suggested {
                "" => id.to_string(),
                suggested => suggested.to_owned(),
            },
            customer_id: "customer-1".to_owned(),
            name: String::new(),
            source_image: "nginx:1".to_owned(),
            backend: "s3".to_owned(),
            location: format!("alice/{id}.ext4"),
            size_bytes: 5,
            checksum: "ab".to_owned(),
        };
        let change = BuildChange {
            state: Some(BuildState::Completed),
            completed_at: Some(crate::store::now()),
            finished: Some(Finished {
                size_bytes: 5,
                stored_bytes: 5,
                checksum: "ab".to_owned(),
            }),
            registration: Some(registration),
            ..BuildChange::default()
        };
        self.store.change(id, change).await.unwrap();
        self.wake.notify_one();
        id
    }

    async fn build(&self, id: BuildId) -> Build {
        self.store.get(id).await.unwrap().unwrap().build
    }

    /// Attempts, whether it is uncertain, and the last error.
    async fn row(&self, id: BuildId) -> Option<(u32, bool, Option<String>)> {
        let read = move |connection: &rusqlite::Connection| {
            let mut statement = connection
                .prepare("SELECT attempts, uncertain, last_error FROM asset_outbox WHERE build_id = ?1")?;
            let mut rows = statement.query([id.to_string()])?;
            match rows.next()? {
                Some(row) => Ok(Some((row.get(0)?, row.get(1)?, row.get(2)?))),
                None => Ok(None),
            }
        };
        self.store.read(read).await.unwrap()
    }

    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so().await {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn failed(&self, id: BuildId) -> (u32, bool, String) {
        self.until("an attempt fails", async || {
            self.row(id).await.is_some_and(|(_, _, error)| error.is_some())
        })
        .await;
        let (attempts, uncertain, error) = self.row(id).await.unwrap();
        (attempts, uncertain, error.unwrap())
    }

    async fn known(&self, id: BuildId) -> String {
        self.until("the image is known", async || {
            self.build(id).await.asset_id.is_some() && self.row(id).await.is_none()
        })
        .await;
        self.build(id).await.asset_id.unwrap()
    }

    fn registrations(&self) -> usize {
        let is_registration =
            |request: &Request| matches!(request, Request::Register(_) | Request::Upload(..));
        let calls = self.assets.calls();
        calls.iter().filter(|call| is_registration(&call.request)).count()
    }

    async fn log(&self, id: BuildId) -> Vec<String> {
        let size = crate::store::PageSize {
            lines: 100,
            bytes: usize::MAX,
        };
        let lines =
            move |connection: &rusqlite::Connection| crate::store::lines_after(connection, id, 1, size);
        let page = self.store.read(lines).await.unwrap();
        page.lines.into_iter().map(|line| line.message).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_registered_once_however_the_first_attempt_goes_wrong() {
    let cases = [
        (
            Misbehaviour::Refuse(Code::Unavailable),
            true,
            "it is not available",
            2,
        ),
        (
            Misbehaviour::Refuse(Code::ResourceExhausted),
            true,
            "it failed with RESOURCE_EXHAUSTED",
            2,
        ),
        (
            Misbehaviour::Refuse(Code::Internal),
            true,
            "it failed with INTERNAL",
            2,
        ),
        (
            Misbehaviour::Refuse(Code::PermissionDenied),
            false,
            "it refused with PERMISSION_DENIED",
            2,
        ),
        (Misbehaviour::Hang, true, "it does not answer in time", 2),
        (Misbehaviour::Garbage, true, "its answer makes no sense", 2),
        (Misbehaviour::LoseAnswer, true, "it is not available", 1),
    ];
    for (how, uncertain, reason, registrations) in cases {
        let mut fixture = Fixture::new();
        fixture.client.timeout = match how {
            Misbehaviour::Hang => Duration::from_millis(300),
            _ => PATIENCE,
        };
        fixture.assets.misbehave(1, how);
        fixture.start();
        let id = fixture.complete("").await;
        assert_eq!(
            fixture.failed(id).await,
            (1, uncertain, reason.to_owned()),
            "{how:?}"
        );
        let build = fixture.build(id).await;
        assert_eq!(
            (build.state, build.asset_id),
            (BuildState::Completed, None),
            "{how:?}"
        );

        // From here on it has all the time that it wants.
        fixture.stop().await;
        fixture.client.timeout = PATIENCE;
        fixture.start();
        assert_eq!(fixture.known(id).await, id.to_string(), "{how:?}");
        let known: Vec<_> = fixture.assets.assets().into_keys().collect();
        assert_eq!(known, [id.to_string()], "{how:?}");
        assert_eq!(fixture.registrations(), registrations, "{how:?}");
        let log = fixture.log(id).await;
        assert!(log.iter().any(|line| line.contains(reason)), "{log:?}");
        assert!(
            log.last()
                .unwrap()
                .starts_with("Registered the image with assetmanagerd as"),
            "{log:?}"
        );
        fixture.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_without_assetmanagerd_loses_nothing() {
    const BUILDS: usize = 20;
    let mut fixture = Fixture::new();
    fixture.assets.fail_times(usize::MAX, Code::Unavailable);
    fixture.start();
    let mut builds = Vec::new();
    for _ in 0..BUILDS {
        builds.push(fixture.complete("").await);
    }
    for id in &builds {
        fixture.failed(*id).await;
    }
    for minute in 1..=60 {
        let before = fixture.assets.calls().len();
        fixture.clock.advance(Duration::from_secs(60));
        if minute % 6 == 0 {
            // Longer than the longest pause: everything was due since.
            fixture
                .until("it goes on trying", async || {
                    fixture.assets.calls().len() > before
                })
                .await;
        }
    }
    fixture.assets.misbehave(0, Misbehaviour::Hang);
    fixture.clock.advance(LONGEST_PAUSE);
    for id in &builds {
        assert_eq!(fixture.known(*id).await, id.to_string());
    }
    let known: BTreeSet<String> = fixture.assets.assets().into_keys().collect();
    assert_eq!(known, builds.iter().map(ToString::to_string).collect());
    // 9 attempts in the first 5 minutes with doubling pauses, and then one each 2.5 to 5 minutes: never a flood.
    let calls = fixture.assets.calls().len();
    assert!(calls < BUILDS * 2 * 45, "{calls} calls");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_assetmanagerd_is_back_nobody_waits_for_the_rest_of_its_pause() {
    let mut fixture = Fixture::new();
    fixture.assets.fail_times(usize::MAX, Code::Unavailable);
    fixture.start();
    let (first, second) = (fixture.complete("").await, fixture.complete("").await);
    fixture.failed(first).await;
    fixture.failed(second).await;
    fixture.assets.misbehave(0, Misbehaviour::Hang);
    // The clock stands still, so that neither is due; a third one is, and shows that assetmanagerd is back.
    let third = fixture.complete("").await;
    for id in [third, first, second] {
        fixture.known(id).await;
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_answer_and_its_note_registers_nothing_twice() {
    let mut fixture = Fixture::new();
    let id = fixture.complete("of-mine").await;
    // What a service did that was killed in this moment.
    let claimed = fixture
        .store
        .claim_duties(fixture.clock.now(), 1, Vec::new(), pause)
        .await
        .unwrap();
    let [claimed] = &claimed[..] else {
        panic!("{claimed:?}")
    };
    assert!(!claimed.was_uncertain);
    fixture.assets.add(proto::Asset {
        id: "of-mine".to_owned(),
        build_id: id.to_string(),
        checksum: "ab".to_owned(),
        ..proto::Asset::default()
    });
    fixture.start();
    assert_eq!(fixture.known(id).await, "of-mine");
    assert_eq!(fixture.registrations(), 0);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suggested_id_that_another_has_is_left_to_it() {
    for (name, other) in [
        (
            "another build's",
            proto::Asset {
                build_id: "build-x".to_owned(),
                ..proto::Asset::default()
            },
        ),
        ("nobody's", proto::Asset::default()),
    ] {
        let mut fixture = Fixture::new();
        fixture.assets.add(proto::Asset {
            id: "wanted".to_owned(),
            ..other
        });
        fixture.start();
        let id = fixture.complete("wanted").await;
        assert_eq!(fixture.known(id).await, id.to_string(), "{name}");
        assert_eq!(fixture.assets.assets().len(), 2, "{name}");
        let log = fixture.log(id).await;
        assert!(
            log.iter()
                .any(|line| line.starts_with("An asset wanted exists already")),
            "{log:?}"
        );
        fixture.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_build_leaves_no_asset_behind() {
    // (what the attempt before the deletion met, whether the asset came to be)
    let cases = [
        (None, false),
        (Some(Misbehaviour::Refuse(Code::PermissionDenied)), false),
        (Some(Misbehaviour::LoseAnswer), true),
        (Some(Misbehaviour::Refuse(Code::Internal)), false),
    ];
    for (how, came_to_be) in cases {
        let mut fixture = Fixture::new();
        let id = match how {
            None => fixture.complete("").await,
            Some(how) => {
                fixture.assets.misbehave(1, how);
                fixture.start();
                let id = fixture.complete("").await;
                fixture.failed(id).await;
                fixture.stop().await;
                id
            }
        };
        assert_eq!(fixture.assets.assets().len(), usize::from(came_to_be), "{how:?}");
        fixture.store.bury(id, None, None).await.unwrap();
        let is_certain = matches!(how, None | Some(Misbehaviour::Refuse(Code::PermissionDenied)));
        assert_eq!(fixture.row(id).await.is_none(), is_certain, "{how:?}");
        // Deletions are dated by the machine's clock.
        let now = i64::try_from(
            fixture
                .clock
                .now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_micros(),
        )
        .unwrap();
        let date = move |transaction: &rusqlite::Transaction<'_>| {
            Ok(transaction.execute("UPDATE asset_outbox SET created_at = ?1", [now])?)
        };
        fixture.store.write(date).await.unwrap();
        fixture.start();
        if !is_certain && !came_to_be {
            // It may still come: it is looked for once more later.
            fixture.failed(id).await;
            fixture.assets.add(proto::Asset {
                id: id.to_string(),
                build_id: id.to_string(),
                ..proto::Asset::default()
            });
            fixture.clock.advance(HOUR);
        }
        fixture
            .until("nothing is left to do", async || fixture.row(id).await.is_none())
            .await;
        assert!(fixture.assets.assets().is_empty(), "{how:?}");
        fixture.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_registered_while_its_build_is_deleted_is_forgotten() {
    let fixture = Fixture::new();
    let id = fixture.complete("").await;
    let now = fixture.clock.now();
    let claimed = fixture
        .store
        .claim_duties(now, 1, Vec::new(), pause)
        .await
        .unwrap();
    fixture.store.bury(id, None, None).await.unwrap();
    let line = crate::store::NewLine::new(
        crate::event::Level::Info,
        crate::event::Component::Publisher,
        "known",
    );
    fixture
        .store
        .registered(&claimed[0], "chosen-by-the-server".to_owned(), line, now)
        .await
        .unwrap();
    let duties = fixture
        .store
        .claim_duties(now, 9, Vec::new(), pause)
        .await
        .unwrap();
    let [claimed] = &duties[..] else {
        panic!("{duties:?}")
    };
    let crate::store::Duty::Delete(deletion) = &claimed.duty else {
        panic!("{duties:?}")
    };
    assert_eq!(
        deletion.asset_ids,
        [id.to_string(), "chosen-by-the-server".to_owned()]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_became_known_is_not_deleted_by_who_has_not_seen_it() {
    let mut fixture = Fixture::new();
    fixture.start();
    let id = fixture.complete("").await;
    let asset = fixture.known(id).await;
    fixture.stop().await;
    let unseen = fixture.store.bury(id, None, None).await;
    assert!(
        matches!(unseen, Err(crate::store::StoreError::AssetChanged)),
        "{unseen:?}"
    );
    fixture.store.bury(id, Some(asset), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_no_answer_and_the_next_start_looks_first() {
    let mut fixture = Fixture::new();
    fixture.client.timeout = HOUR;
    fixture.assets.misbehave(1, Misbehaviour::Hang);
    fixture.start();
    let id = fixture.complete("").await;
    fixture
        .until("it is asked", async || !fixture.assets.calls().is_empty())
        .await;
    fixture.stop().await;
    assert_eq!(fixture.row(id).await, Some((1, true, None)));
    fixture.start();
    fixture.known(id).await;
    let calls = fixture.assets.calls();
    assert!(matches!(calls[1].request, Request::Get(_)), "{calls:?}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_wrong_keeps_nobody_waiting() {
    let mut fixture = Fixture::new();
    fixture.assets.fail_times(1, Code::Unavailable);
    fixture.start();
    let id = fixture.complete("").await;
    fixture.failed(id).await;
    fixture.clock.0.send_modify(|now| *now -= 1000 * HOUR);
    fixture.wake.notify_one();
    fixture.known(id).await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_uploaded_when_that_is_the_setting_and_not_again_after_a_lost_answer() {
    let mut fixture = Fixture::new();
    fixture.client.delivery = Delivery::Upload;
    fixture.assets.misbehave(1, Misbehaviour::LoseAnswer);
    let id = fixture.complete("").await;
    let directory = fixture.directory.path().join("output/alice");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join(format!("{id}.ext4")), b"image").unwrap();
    fixture.start();
    fixture.failed(id).await;
    // The checksum is of the bytes that arrived, which here are not those that the row tells of.
    let mut asset = fixture.assets.assets().remove(&id.to_string()).unwrap();
    assert_eq!((asset.size_bytes, asset.build_id.as_str()), (5, &*id.to_string()));
    asset.checksum = "ab".to_owned();
    fixture.assets.add(asset);
    fixture.clock.advance(HOUR);
    fixture.known(id).await;
    assert_eq!(fixture.registrations(), 1);
    fixture.stop().await;
}

#[test]
fn pauses_double_up_to_the_longest_less_a_random_part() {
    for (attempts, whole) in [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (u32::MAX, 300)] {
        let whole = Duration::from_secs(whole);
        for _ in 0..100 {
            let pause = pause(attempts);
            assert!(pause <= whole && pause >= whole / 2, "{attempts}: {pause:?}");
        }
    }
    let several: BTreeSet<Duration> = (0..50).map(|_| pause(9)).collect();
    assert!(several.len() > 1);
}
