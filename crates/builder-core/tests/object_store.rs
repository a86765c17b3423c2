//! Images in a bucket: a real client against an S3 server of this process that checks signatures.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/fixture.rs"]
mod fixture;
#[path = "common/s3.rs"]
mod s3;
#[path = "bin/serve/mod.rs"]
#[allow(dead_code, reason = "its main function is for the process of its own")]
mod serve;

use std::{fs, path::PathBuf, time::Duration};

use builder_core::{
    StartErrorKind,
    artifact::{
        ArtifactConfig, ArtifactFault, ArtifactKey, ArtifactStore, BucketStore, GcsConfig, S3Config, S3Keys,
        StagedImage,
    },
    build::{Build, BuildId, BuildState},
    pipeline::{machine_path, metadata_path},
    request::Secret,
    service::{Builder, BuilderConfig, Check},
};
use common::{PATIENCE, files_below, noise, worker_command};
use fixture::{Service, alice};
use http::Method;
use s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use test_support::assetmanagerd::FakeAssetManager;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

fn s3_config(server: &S3Server) -> S3Config {
    S3Config {
        bucket: BUCKET.to_owned(),
        region: String::new(),
        endpoint: Some(server.endpoint().to_owned()),
        keys: Some(S3Keys {
            access_key: Secret::new(ACCESS_KEY.to_owned()),
            secret_key: Secret::new(SECRET_KEY.to_owned()),
        }),
    }
}

fn into_bucket(server: &S3Server) -> impl Fn(&mut BuilderConfig) + use<> {
    let config = s3_config(server);
    move |builder| builder.artifacts = ArtifactConfig::S3(config.clone())
}

/// What is on this machine of images: staged ones, notes of uploads, images.
fn left_here(directory: &TempDir) -> Vec<PathBuf> {
    let below = |name: &str| files_below(&directory.path().join(name));
    [
        below("workspace/artifacts"),
        below("workspace/uploads"),
        below("output"),
    ]
    .concat()
}

fn names_of(build: &Build) -> Vec<String> {
    [".ext4", ".firecracker.json", ".metadata.json"]
        .map(|ending| format!("alice/{}{ending}", build.id))
        .to_vec()
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_ends_in_the_bucket_and_leaves_it_when_it_is_deleted() {
    let server = S3Server::start().await;
    let assets = FakeAssetManager::start().unwrap();
    let service = Service::start_with(|config| {
        into_bucket(&server)(config);
        config.asset_manager = Some(assetclient::Config::new(assets.endpoint()));
    })
    .await;
    let created = service.create().await;
    let url = format!("s3://{BUCKET}/alice/{}.ext4", created.id);
    assert_eq!(created.rootfs_path.to_str(), Some(url.as_str()));
    let build = service.ended(created.id).await;
    assert_eq!(build.state, BuildState::Completed, "{:?}", build.error_message);
    assert_eq!(build.rootfs_path.to_str(), Some(url.as_str()));

    let objects = server.objects();
    assert_eq!(server.names(), names_of(&build));
    let image = &objects[0].1;
    assert_eq!(Some(hex::encode(Sha256::digest(image))), build.rootfs_checksum);
    assert_eq!(Some(image.len() as u64), build.rootfs_size_bytes);
    let metadata: serde_json::Value = serde_json::from_slice(&objects[2].1).unwrap();
    assert!(metadata.is_object());
    let stored: u64 = objects.iter().map(|(_, content)| content.len() as u64).sum();
    let usage = service.builder.quotas(&alice()).await.unwrap().usage;
    assert_eq!(usage.storage_bytes, stored);
    assert_eq!(left_here(&service.directory), Vec::<PathBuf>::new());
    assert_eq!(service.builder.health().await.storage, Check::Healthy);
    service.registered(build.id).await;
    let registered = assets.assets();
    let asset = registered.values().next().unwrap();
    assert_eq!(
        (asset.backend, asset.location.as_str()),
        (2, format!("alice/{}.ext4", build.id).as_str())
    );

    // A former image is not on this machine any more: the same one is made anew, and is the same.
    let again = service.ended(service.create().await.id).await;
    assert_eq!(
        (again.state, again.rootfs_checksum),
        (BuildState::Completed, build.rootfs_checksum)
    );

    service.registered(again.id).await;
    for id in [build.id, again.id] {
        service.builder.delete(&alice(), &id, false).await.unwrap();
    }
    assert_eq!(server.names(), Vec::<String>::new());
    assert_eq!(server.unfinished_parts(), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_cancelled_in_mid_upload_leaves_nothing() {
    let server = S3Server::start().await;
    let service = Service::start_with(into_bucket(&server)).await;
    server.hang("partNumber");
    let id = service.create().await.id;
    server.hung().await;
    assert_eq!(service.get(id).await.current_step, "uploading the image");
    assert!(!server.names().iter().any(|name| name.ends_with(".ext4")));
    let build = service.builder.cancel(&alice(), &id).await.unwrap();
    assert_eq!(build.state, BuildState::Cancelled);
    assert!(build.metrics.cpu_time_ms.is_some(), "what it took counts");
    // A cancelled build does not wait for a bucket that takes its time; what there is to remove is removed all the same.
    eventually("nothing is left", || {
        server.names().is_empty()
            && server.unfinished_parts().is_empty()
            && server.requests(&Method::DELETE, "uploadId") > 0
            && left_here(&service.directory).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_answers_nothing_does_not_keep_a_build_from_being_cancelled() {
    for step in ["uploads", "partNumber"] {
        let server = S3Server::start().await;
        let service = Service::start_with(into_bucket(&server)).await;
        server.hang(step);
        let id = service.create().await.id;
        server.hung().await;
        // Now nothing is answered any more, the requests that withdraw the upload neither.
        server.hang("/");
        // Withdrawing alone may take 20 seconds before it is given up: that must not be waited for.
        let cancelled =
            tokio::time::timeout(Duration::from_secs(15), service.builder.cancel(&alice(), &id)).await;
        assert_eq!(
            cancelled.expect(step).unwrap().state,
            BuildState::Cancelled,
            "{step}"
        );
        assert_eq!(service.get(id).await.state, BuildState::Cancelled, "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_build_bounds_its_upload() {
    let server = S3Server::start().await;
    let service = Service::start_with(|config| {
        into_bucket(&server)(config);
        config.build_timeout = Duration::from_secs(15);
    })
    .await;
    server.hang("partNumber");
    let id = service.create().await.id;
    let build = service.ended(id).await;
    assert_eq!(build.state, BuildState::Failed);
    let message = build.error_message.unwrap();
    assert!(message.contains("took longer than the 15 seconds"), "{message}");
    assert_eq!(server.names(), Vec::<String>::new());
    assert_eq!(server.unfinished_parts(), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stumbles_is_asked_again() {
    let server = S3Server::start().await;
    let service = Service::start_with(into_bucket(&server)).await;
    server.fail_times("partNumber", 2);
    let build = service.ended(service.create().await.id).await;
    assert_eq!(build.state, BuildState::Completed, "{:?}", build.error_message);
    assert!(server.requests(&Method::PUT, "partNumber") >= 3);
    assert_eq!(server.names(), names_of(&build));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_a_crash_cut_off_is_ended_by_the_next_start() {
    let server = S3Server::start().await;
    let directory = tempfile::tempdir().unwrap();
    let workspace = directory.path().join("workspace");
    let store = BucketStore::s3(&s3_config(&server), &workspace).unwrap();
    let (key, staged) = stage(&store, 20 << 20).await;
    server.hang("partNumber=2");
    {
        let stop = CancellationToken::new();
        let publishing = store.publish(&key, &staged, &stop);
        tokio::select! {
            _ = publishing => panic!("the upload should hang"),
            () = server.hung() => {}
        }
        // Dropped as in a crash: nothing is undone.
    }
    server.behave();
    eventually("parts are there", || !server.unfinished_parts().is_empty()).await;
    drop(store);
    let store = BucketStore::s3(&s3_config(&server), &workspace).unwrap();
    let listed: Vec<_> = store.list().await.unwrap();
    assert_eq!(
        listed.iter().map(|stored| &stored.key).collect::<Vec<_>>(),
        [&key]
    );
    store.remove(&key).await.unwrap();
    assert_eq!(store.list().await.unwrap(), []);
    assert_eq!(server.names(), Vec::<String>::new());
    assert_eq!(server.unfinished_parts(), Vec::<PathBuf>::new());
    assert_eq!(left_here(&directory), Vec::<PathBuf>::new());
    store.remove(&key).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_many_parts_arrives_as_it_was() {
    let server = S3Server::start().await;
    let directory = tempfile::tempdir().unwrap();
    let store = BucketStore::s3(&s3_config(&server), directory.path()).unwrap();
    let (key, staged) = stage(&store, (50 << 20) + 123).await;
    let sent = fs::read(&staged.image).unwrap();
    let published = store
        .publish(&key, &staged, &CancellationToken::new())
        .await
        .unwrap();
    let objects = server.objects();
    assert!(objects[0].1 == sent);
    assert_eq!(server.requests(&Method::PUT, "partNumber"), 7);
    let stored: usize = objects.iter().map(|(_, content)| content.len()).sum();
    assert_eq!(published.stored_bytes, stored as u64);
    let listed = store.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].stored_bytes), (1, stored as u64));

    // What does not have its checksum any more does not arrive.
    let (key, staged) = stage(&store, 9 << 20).await;
    fs::write(&staged.image, noise(9 << 20, 77)).unwrap();
    let error = store
        .publish(&key, &staged, &CancellationToken::new())
        .await
        .unwrap_err();
    assert!(error.source.to_string().contains("its SHA-256 is"), "{error:?}");
    assert_eq!(server.names().len(), 3);
    assert_eq!(server.unfinished_parts(), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_keep_in_the_bucket_is_left_alone() {
    let server = S3Server::start().await;
    let directory = tempfile::tempdir().unwrap();
    let other = BucketStore::s3(&s3_config(&server), directory.path()).unwrap();
    let service = Service::start_with(into_bucket(&server)).await;
    // Another service's: younger than this one's database, and not in it.
    let (key, staged) = stage(&other, 100_000).await;
    other
        .publish(&key, &staged, &CancellationToken::new())
        .await
        .unwrap();
    let before = server.names();
    service.builder.shutdown(Duration::ZERO).await;
    let Service {
        directory, builder, ..
    } = service;
    drop(builder);
    let deadline = Instant::now() + PATIENCE;
    let builder = loop {
        let mut config = serve::config(directory.path(), worker_command("worker"));
        into_bucket(&server)(&mut config);
        match Builder::start(config).await {
            Ok(builder) => break builder,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(server.names(), before);
    builder.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_bucket_that_cannot_be_used_says_what_is_wrong() {
    let server = S3Server::start().await;
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    type Change = Box<dyn Fn(&mut S3Config)>;
    let cases: [(&str, Change, StartErrorKind, &str); 4] = [
        (
            "no such bucket",
            Box::new(|config| config.bucket = "absent".to_owned()),
            StartErrorKind::Bucket,
            "there is no such bucket",
        ),
        (
            "wrong secret key",
            Box::new(|config| {
                config.keys.as_mut().unwrap().secret_key = Secret::new("wrong+secret".to_owned())
            }),
            StartErrorKind::BucketCredentials,
            "the credentials are refused",
        ),
        (
            "wrong access key",
            Box::new(|config| config.keys.as_mut().unwrap().access_key = Secret::new("AKIDOTHER".to_owned())),
            StartErrorKind::BucketCredentials,
            "the credentials are refused",
        ),
        (
            "nobody listens",
            Box::new(move |config| config.endpoint = Some(closed.clone())),
            StartErrorKind::BucketEndpoint,
            "failed to list the bucket",
        ),
    ];
    for (name, change, kind, said) in cases {
        let directory = tempfile::tempdir().unwrap();
        let mut s3 = s3_config(&server);
        change(&mut s3);
        let mut config = serve::config(directory.path(), worker_command("worker"));
        config.artifacts = ArtifactConfig::S3(s3);
        let error = Builder::start(config).await.unwrap_err();
        let shown = format!("{error:?} {error}");
        assert_eq!(error.kind, kind, "{name}: {shown}");
        assert!(error.message.contains(said), "{name}: {shown}");
        for secret in [ACCESS_KEY, SECRET_KEY, "wrong+secret", "AKIDOTHER"] {
            assert!(!shown.contains(secret), "{name}: {shown}");
        }
    }
    assert_eq!(server.names(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_went_away_is_unhealthy() {
    let server = S3Server::start().await;
    let service = Service::start_with(into_bucket(&server)).await;
    server.hang("list-type");
    let health = service.builder.health().await;
    assert!(matches!(health.storage, Check::Unhealthy(_)), "{health:?}");
}

/// The client for Google Cloud Storage against a server that is not Google's: it speaks S3, whose shape is the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_client_for_cloud_storage_puts_lists_and_removes() {
    let server = S3Server::start_with(false).await;
    let directory = tempfile::tempdir().unwrap();
    let credentials = directory.path().join("key.json");
    let key = serde_json::json!({
        "gcs_base_url": server.endpoint(), "disable_oauth": true,
        "client_email": "", "private_key": "", "private_key_id": "",
    });
    fs::write(&credentials, key.to_string()).unwrap();
    let gcs = GcsConfig {
        bucket: BUCKET.to_owned(),
        project: Some("my-project-1".to_owned()),
        credentials: Some(credentials),
    };
    let store = BucketStore::gcs(&gcs, directory.path()).unwrap();
    store.probe().await.unwrap();
    let (key, staged) = stage(&store, 9 << 20).await;
    let sent = fs::read(&staged.image).unwrap();
    assert_eq!(
        store.location(&key).to_str(),
        Some(format!("gs://{BUCKET}/alice/{}.ext4", key.build).as_str())
    );
    store
        .publish(&key, &staged, &CancellationToken::new())
        .await
        .unwrap();
    assert!(server.objects()[0].1 == sent);
    assert_eq!(store.list().await.unwrap().len(), 1);
    store.remove(&key).await.unwrap();
    assert_eq!(server.names(), Vec::<String>::new());

    let absent = GcsConfig {
        bucket: "absent".to_owned(),
        ..gcs
    };
    let store = BucketStore::gcs(&absent, directory.path()).unwrap();
    assert_eq!(
        store.probe().await.unwrap_err().fault,
        ArtifactFault::NoSuchBucket
    );
}

/// An image of noise where the pipeline would have written it.
async fn stage(store: &BucketStore, size_bytes: usize) -> (ArtifactKey, StagedImage) {
    let key = ArtifactKey {
        tenant: alice(),
        build: BuildId::generate(),
    };
    store.prepare(&key).await.unwrap();
    let image = store.staging_path(&key);
    let content = noise(size_bytes, 5);
    fs::write(&image, &content).unwrap();
    let (metadata, machine) = (metadata_path(&image), machine_path(&image));
    for sidecar in [&metadata, &machine] {
        fs::write(sidecar, "{}").unwrap();
    }
    let staged = StagedImage {
        image,
        metadata,
        machine,
        checksum: hex::encode(Sha256::digest(&content)),
    };
    (key, staged)
}
