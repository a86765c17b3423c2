//! One download for many, the cache between parties, cancellation, and what survives a crash.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::*;
use oci_fetch::{Client, Digest, FetchErrorKind};
use tokio::io::AsyncReadExt;

fn names(cache: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(cache.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_builds_of_one_image_cause_one_download() {
    let image = TestImage::new(&[noise(2 << 20, 1), noise(1 << 20, 2)]);
    let server = Server::with_image(&image, |_| None).await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    let source = server.source("app:1");
    let contexts: Vec<_> = (0..20)
        .map(|number| as_tenant(&format!("tenant-{number}")))
        .collect();
    let pulls = contexts
        .iter()
        .map(|context| pull_with(&client, &source, context));
    for layers in futures_util::future::join_all(pulls).await {
        assert_eq!(layers.unwrap(), image.layers);
    }
    assert_eq!(server.layer_requests(&image).len(), 2);
    // The next process has them too, and hashes them on first use.
    let client = server.client(cache.path());
    assert_eq!(
        pull_with(&client, &source, &as_tenant("late")).await.unwrap(),
        image.layers
    );
    assert_eq!(server.layer_requests(&image).len(), 2);
    assert_eq!(client.cache_statistics().hits, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joined_download_does_not_wait_behind_the_others_of_who_asked_first() {
    let image = TestImage::new(&[0, 1, 2, 3].map(|seed| noise(300_000, seed)));
    let server = Server::with_image(&image, stall(&image.layers[..3], 100_000)).await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client_of_four_connections(cache.path());
    let source = server.source("app:1");
    let greedy = client
        .resolve(&source, &amd64(), &as_tenant("greedy"))
        .await
        .unwrap();
    let mut held = Vec::new();
    for index in 0..3 {
        let blob = client.open_layer(&greedy, index).await.unwrap();
        let mut reader = blob.reader();
        reader.read_exact(&mut vec![0; 100_000]).await.unwrap();
        held.push((blob, reader));
    }
    // Three of four are what one party may hold, so this one waits; and it is what another wants.
    let waiting = client.open_layer(&greedy, 3).await.unwrap();
    let modest = client
        .resolve(&source, &amd64(), &as_tenant("modest"))
        .await
        .unwrap();
    let joined = client.open_layer(&modest, 3).await.unwrap();
    let (bytes, _) = tokio::time::timeout(LIMIT, read(&joined)).await.unwrap().unwrap();
    assert_eq!(bytes, image.layers[3]);
    assert_eq!(read(&waiting).await.unwrap().0, image.layers[3]);
    let digest = Digest::sha256(&image.layers[3]).to_string();
    let requests = server.layer_requests(&image);
    let asked = requests
        .iter()
        .filter(|seen| seen.path.ends_with(&digest))
        .count();
    assert_eq!(asked, 1, "one download for both");
    drop(held);
}

#[tokio::test]
async fn readers_see_bytes_as_they_arrive_and_none_before() {
    let image = TestImage::one_layer(300_000);
    let layer = image.layers[0].clone();
    let server = Server::with_image(&image, {
        let digest = Digest::sha256(&layer).to_string();
        move |seen| {
            (seen.path.ends_with(&digest) && seen.nth == 0)
                .then(|| Reply::ok("x", layer.clone()).manner(Manner::StallAt(100_000)))
        }
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    let found = resolve(&client, &server.source("app:1")).await.unwrap();
    let blob = client.open_layer(&found, 0).await.unwrap();
    assert!(blob.from_network());
    assert!(blob.file_at_hand().await.is_none(), "half of it is not there");
    let mut reader = blob.reader();
    let mut first = vec![0; 100_000];
    reader.read_exact(&mut first).await.unwrap();
    assert_eq!(first, image.layers[0][..100_000]);
    assert_eq!(*blob.downloaded().borrow(), 100_000);
    server.cut_stalled();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, image.layers[0][100_000..]);
    let verified = blob.verified().await.unwrap();
    assert_eq!(verified.digest(), &Digest::sha256(&image.layers[0]));
    let mut file = tokio::fs::File::from_std(blob.complete_file().await.unwrap());
    let mut whole = Vec::new();
    file.read_to_end(&mut whole).await.unwrap();
    assert_eq!(whole, image.layers[0]);
    assert!(
        std::io::Write::write_all(&mut file.into_std().await, b"x").is_err(),
        "the descriptor is read-only"
    );
}

/// The first answers say that it is too much, so that the number of transfers is halved with layers under way.
#[tokio::test]
async fn one_layer_more_than_slots_opened_late_comes_through_while_the_number_of_slots_falls() {
    for (per_host, layers) in [(2, 3), (6, 7), (16, 17)] {
        let image = TestImage::new(&(0..layers).map(|seed| noise(100_000, seed)).collect::<Vec<_>>());
        let digests: Vec<String> = image
            .layers
            .iter()
            .map(|layer| Digest::sha256(layer).to_string())
            .collect();
        let server = Server::with_image(&image, move |seen| {
            let index = digests.iter().position(|digest| seen.path.ends_with(digest))?;
            (seen.nth == 0 && index % 2 == 0).then(|| Reply::new(503))
        })
        .await;
        let cache = tempfile::tempdir().unwrap();
        let client = Client::new(server.config(cache.path()).with_connections(per_host, 64)).unwrap();
        let found = resolve(&client, &server.source("app:1")).await.unwrap();
        let mut blobs = Vec::new();
        for index in 0..image.layers.len() {
            blobs.push(client.open_layer(&found, index).await.unwrap());
        }
        // The last one first, the others not before it is whole.
        for (blob, layer) in blobs.iter().zip(&image.layers).rev() {
            let (bytes, _) = tokio::time::timeout(LIMIT, read(blob)).await.unwrap().unwrap();
            assert_eq!(&bytes, layer, "{per_host} slots");
        }
    }
}

#[tokio::test]
async fn layers_opened_late_do_not_hold_up_the_others() {
    // One slot, five layers, consumers that read the last one first: crane hung here.
    let image = TestImage::new(&(0..5).map(|seed| noise(500_000, seed)).collect::<Vec<_>>());
    let server = Server::with_image(&image, |_| None).await;
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(server.config(cache.path()).with_connections(1, 1)).unwrap();
    let found = resolve(&client, &server.source("app:1")).await.unwrap();
    let mut blobs = Vec::new();
    for index in 0..5 {
        blobs.push(client.open_layer(&found, index).await.unwrap());
    }
    for (blob, layer) in blobs.iter().zip(&image.layers).rev() {
        let (bytes, _) = tokio::time::timeout(LIMIT, read(blob)).await.unwrap().unwrap();
        assert_eq!(&bytes, layer);
    }
}

#[tokio::test]
async fn a_download_that_nobody_wants_any_more_stops_and_frees_its_slot() {
    let image = TestImage::new(&[noise(500_000, 1), noise(1000, 2)]);
    let first = Digest::sha256(&image.layers[0]).to_string();
    let layer = image.layers[0].clone();
    let server = Server::with_image(&image, move |seen| {
        (seen.path.ends_with(&first) && seen.nth == 0)
            .then(|| Reply::ok("x", layer.clone()).manner(Manner::StallAt(200_000)))
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let config = server
        .config(cache.path())
        .with_connections(1, 1)
        .with_timeouts(oci_fetch::Timeouts::default());
    let client = Client::new(config).unwrap();
    let found = resolve(&client, &server.source("app:1")).await.unwrap();
    let blob = client.open_layer(&found, 0).await.unwrap();
    let mut reader = blob.reader();
    reader.read_exact(&mut vec![0; 200_000]).await.unwrap();
    drop(blob);
    // The reader alone keeps it alive; the second layer waits for the slot.
    let other = client.open_layer(&found, 1).await.unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(100), other.verified())
            .await
            .is_err()
    );
    drop(reader);
    tokio::time::timeout(LIMIT, other.verified())
        .await
        .unwrap()
        .unwrap();
    // What had arrived is there for the next one to resume, up to the last aligned byte.
    let part = cache.path().join(part_name(&server, &image.layers[0]));
    files::until_unlocked(part).await;
    let blob = client.open_layer(&found, 0).await.unwrap();
    assert_eq!(read(&blob).await.unwrap().0, image.layers[0]);
    let range = server.layer_requests(&image).last().unwrap().range().unwrap();
    assert_eq!(range, (196_608, Some(499_999)));
}

#[tokio::test]
async fn a_pull_ends_for_one_party_when_its_time_is_over() {
    let image = TestImage::one_layer(500_000);
    let digest = Digest::sha256(&image.layers[0]).to_string();
    let layer = image.layers[0].clone();
    let server = Server::with_image(&image, move |seen| {
        seen.path
            .ends_with(&digest)
            .then(|| Reply::ok("x", layer.clone()).manner(Manner::StallAt(200_000)))
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    // Longer than the limit, so that nothing else ends the wait.
    let patient = oci_fetch::Timeouts {
        no_progress: Duration::from_secs(3600),
        ..oci_fetch::Timeouts::default()
    };
    let config = server
        .config(cache.path())
        .with_timeouts(patient)
        .with_pull_timeout(Duration::from_secs(600));
    let client = Client::new(config).unwrap();
    let found = resolve(&client, &server.source("app:1")).await.unwrap();
    let blob = client.open_layer(&found, 0).await.unwrap();
    let mut reader = blob.reader();
    reader.read_exact(&mut vec![0; 200_000]).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(600)).await;
    let cause = reader.read(&mut [0]).await.unwrap_err();
    assert!(
        cause.to_string().contains("longer than the 600 seconds"),
        "{cause}"
    );
    assert_eq!(kind(blob.verified().await), FetchErrorKind::TimedOut);
}

#[tokio::test]
async fn one_partys_failing_rights_do_not_fail_the_other() {
    let image = TestImage::one_layer(300_000);
    let digest = Digest::sha256(&image.layers[0]).to_string();
    let layer = image.layers[0].clone();
    let revoked = Arc::new(AtomicBool::new(false));
    let server = Server::with_image(&image, {
        let revoked = Arc::clone(&revoked);
        move |seen| {
            let Some(authorization) = seen.authorization() else {
                return Some(Reply::challenge("Basic realm=x"));
            };
            let is_alice = authorization == "Basic YWxpY2U6YQ==";
            if !seen.path.ends_with(&digest) {
                return None;
            }
            if is_alice && revoked.swap(true, Ordering::SeqCst) {
                return Some(Reply::new(403));
            }
            is_alice.then(|| Reply::ok("x", layer.clone()).manner(Manner::StallAt(100_000)))
        }
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    let source = server.source("app:1");
    let alice = client
        .resolve(&source, &amd64(), &as_user("one", "alice", "a"))
        .await
        .unwrap();
    let bob = client
        .resolve(&source, &amd64(), &as_user("two", "bob", "b"))
        .await
        .unwrap();
    let for_alice = client.open_layer(&alice, 0).await.unwrap();
    let mut reader = for_alice.reader();
    reader.read_exact(&mut vec![0; 1000]).await.unwrap();
    let for_bob = client.open_layer(&bob, 0).await.unwrap();
    server.cut_stalled();
    assert_eq!(read(&for_bob).await.unwrap().0, image.layers[0]);
    let last = server.layer_requests(&image).last().unwrap().clone();
    assert_eq!(last.authorization(), Some("Basic Ym9iOmI="));
    assert_eq!(last.range(), Some((100_000, Some(299_999))));
}

#[tokio::test]
async fn a_manifest_that_merely_names_anothers_blob_gets_nothing() {
    // `private` holds the layer; `thief` holds a manifest and config that name it, but not the layer.
    let image = TestImage::one_layer(1000);
    let mut store = Store::default();
    store.publish("private", "1", &image);
    store.blob("thief", &image.config);
    store.manifest("thief", "1", MANIFEST, &image.manifest);
    store.publish("mirror", "1", &image);
    let server = Server::start(store.clone(), |_| None).await;
    let foreign = {
        // Another registry, which says yes to everything but has no bytes.
        let mut foreign = Store::default();
        foreign.blob("thief", &image.config);
        foreign.manifest("thief", "1", MANIFEST, &image.manifest);
        Server::start(foreign, |seen| {
            (seen.method == "HEAD").then(|| Reply::ok("x", vec![0; 1000]))
        })
        .await
    };
    let cache = tempfile::tempdir().unwrap();
    let config = server
        .config(cache.path())
        .with_plain_http(&foreign.address.to_string())
        .unwrap();
    let client = Client::new(config).unwrap();
    let layers = pull_with(&client, &server.source("private:1"), &as_tenant("owner"))
        .await
        .unwrap();
    assert_eq!(layers, image.layers);
    for source in [server.source("thief:1"), foreign.source("thief:1")] {
        let result = pull_with(&client, &source, &as_tenant("thief")).await;
        assert_eq!(kind(result), FetchErrorKind::NotFound, "{source}");
    }
    // Another repository of the registry that does hold the blob is believed after it was asked, once.
    let before = server.layer_requests(&image).len();
    for _ in 0..2 {
        assert_eq!(
            pull_with(&client, &server.source("mirror:1"), &as_tenant("x"))
                .await
                .unwrap(),
            image.layers
        );
    }
    let asked: Vec<_> = server
        .layer_requests(&image)
        .split_off(before)
        .into_iter()
        .map(|seen| seen.method)
        .collect();
    assert_eq!(asked, ["HEAD"]);
}

#[tokio::test]
async fn a_running_download_is_not_joined_without_proof_either() {
    let image = TestImage::one_layer(300_000);
    let digest = Digest::sha256(&image.layers[0]).to_string();
    let layer = image.layers[0].clone();
    let mut store = Store::default();
    store.publish("private", "1", &image);
    store.blob("thief", &image.config);
    store.manifest("thief", "1", MANIFEST, &image.manifest);
    let server = Server::start(store, move |seen| {
        (seen.path.contains("private") && seen.path.ends_with(&digest))
            .then(|| Reply::ok("x", layer.clone()).manner(Manner::StallAt(100_000)))
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(
        server
            .config(cache.path())
            .with_timeouts(oci_fetch::Timeouts::default()),
    )
    .unwrap();
    let owner = resolve(&client, &server.source("private:1")).await.unwrap();
    let blob = client.open_layer(&owner, 0).await.unwrap();
    blob.reader().read_exact(&mut [0; 10]).await.unwrap();
    let thief = resolve(&client, &server.source("thief:1")).await.unwrap();
    assert_eq!(kind(client.open_layer(&thief, 0).await), FetchErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_first_without_right_does_not_profit_from_who_asks_second_with_it() {
    let image = TestImage::one_layer(300_000);
    let mut store = Store::default();
    store.publish("private", "1", &image);
    store.blob("thief", &image.config);
    store.manifest("thief", "1", MANIFEST, &image.manifest);
    // The thief's request hangs until the owner has joined the download.
    let digest = Digest::sha256(&image.layers[0]).to_string();
    let has_owner = Arc::new((Mutex::new(false), Condvar::new()));
    let waited_in_vain = Arc::new(AtomicBool::new(false));
    let server = Server::start(store, {
        let (has_owner, waited_in_vain) = (Arc::clone(&has_owner), Arc::clone(&waited_in_vain));
        move |seen| {
            if seen.path == format!("/v2/thief/blobs/{digest}") {
                let (came, changed) = &*has_owner;
                let came = came.lock().unwrap();
                let (came, _) = changed.wait_timeout_while(came, LIMIT, |came| !*came).unwrap();
                waited_in_vain.fetch_or(!*came, Ordering::SeqCst);
            }
            None
        }
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(server.config(cache.path()).with_ranges(oci_fetch::Ranges {
        connections: 1,
        ..oci_fetch::Ranges::default()
    }))
    .unwrap();
    let thief = client
        .resolve(&server.source("thief:1"), &amd64(), &as_tenant("thief"))
        .await
        .unwrap();
    let owner = client
        .resolve(&server.source("private:1"), &amd64(), &as_tenant("owner"))
        .await
        .unwrap();
    let for_thief = client.open_layer(&thief, 0).await.unwrap();
    let for_owner = client.open_layer(&owner, 0).await.unwrap();
    *has_owner.0.lock().unwrap() = true;
    has_owner.1.notify_all();
    assert_eq!(read(&for_owner).await.unwrap().0, image.layers[0]);
    assert_eq!(kind(for_thief.verified().await), FetchErrorKind::NotFound);
    let mut stolen = Vec::new();
    assert!(for_thief.reader().read_to_end(&mut stolen).await.is_err() && stolen.is_empty());
    assert!(for_thief.complete_file().await.is_err());
    assert!(
        !waited_in_vain.load(Ordering::SeqCst),
        "the owner did not join in time"
    );
    // Nor does the cache remember the thief's repository as a source.
    drop((for_thief, for_owner));
    assert_eq!(kind(client.open_layer(&thief, 0).await), FetchErrorKind::NotFound);
}

#[tokio::test]
async fn a_registry_without_head_shows_a_blob_by_its_first_byte() {
    let image = TestImage::one_layer(1000);
    let mut store = Store::default();
    store.publish("app", "1", &image);
    store.publish("copy", "1", &image);
    let server = Server::start(store, |seen| (seen.method == "HEAD").then(|| Reply::new(405))).await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    for name in ["app:1", "copy:1"] {
        let layers = pull_with(&client, &server.source(name), &as_tenant("t"))
            .await
            .unwrap();
        assert_eq!(layers, image.layers, "{name}");
    }
    let asked: Vec<_> = server.layer_requests(&image).iter().map(Seen::range).collect();
    assert_eq!(asked, [None, None, Some((0, Some(0)))]);
}

#[tokio::test]
async fn a_changed_image_value_opens_nothing_else() {
    let image = TestImage::one_layer(1000);
    let other = TestImage::new(&[noise(500, 9)]);
    let mut store = Store::default();
    store.publish("app", "1", &image);
    store.publish("secret", "1", &other);
    let server = Server::start(store, |_| None).await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    pull_with(&client, &server.source("secret:1"), &as_tenant("owner"))
        .await
        .unwrap();
    let mut found = resolve(&client, &server.source("app:1")).await.unwrap();
    found.layers[0].digest = Digest::sha256(&other.layers[0]);
    found.layers[0].size_bytes = 500;
    let blob = client.open_layer(&found, 0).await.unwrap();
    assert_eq!(read(&blob).await.unwrap().0, image.layers[0]);
    assert_eq!(
        kind(client.open_layer(&found, 1).await),
        FetchErrorKind::InvalidInput
    );
}

#[tokio::test]
async fn a_damaged_cached_blob_is_noticed_and_fetched_again() {
    let image = TestImage::one_layer(100_000);
    let server = Server::with_image(&image, |_| None).await;
    let cache = tempfile::tempdir().unwrap();
    let source = server.source("app:1");
    pull_with(&server.client(cache.path()), &source, &as_tenant("t"))
        .await
        .unwrap();
    let path = cache
        .path()
        .join("blobs/sha256")
        .join(Digest::sha256(&image.layers[0]).hex());
    files::until_unlocked(cache.path().join(part_name(&server, &image.layers[0]))).await;
    assert!(path.exists());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, vec![0; 100_000]).unwrap();
    let client = server.client(cache.path());
    assert_eq!(
        kind(pull_with(&client, &source, &as_tenant("t")).await),
        FetchErrorKind::Transient
    );
    assert_eq!(
        pull_with(&client, &source, &as_tenant("t")).await.unwrap(),
        image.layers
    );
}

#[tokio::test]
async fn a_part_of_a_killed_process_is_resumed_and_a_rotten_one_is_not_trusted() {
    let image = TestImage::one_layer(1 << 20);
    let server = Server::with_image(&image, |_| None).await;
    for (is_rotten, expected_start) in [(false, 458_752), (true, 458_752)] {
        let cache = tempfile::tempdir().unwrap();
        let client = server.client(cache.path());
        let mut front = image.layers[0][..500_000].to_vec();
        front[1000] ^= u8::from(is_rotten);
        std::fs::write(cache.path().join(part_name(&server, &image.layers[0])), front).unwrap();
        let result = pull_with(&client, &server.source("app:1"), &as_tenant("t")).await;
        let range = server.layer_requests(&image).last().unwrap().range().unwrap();
        assert_eq!(range.0, expected_start);
        if is_rotten {
            assert_eq!(kind(result), FetchErrorKind::Transient);
            assert!(names(cache.path()).is_empty());
            assert_eq!(
                pull_with(&client, &server.source("app:1"), &as_tenant("t"))
                    .await
                    .unwrap(),
                image.layers
            );
        } else {
            assert_eq!(result.unwrap(), image.layers);
        }
    }
}

#[tokio::test]
async fn a_part_of_anothers_download_is_shown_to_nobody_without_right() {
    let image = TestImage::one_layer(1 << 20);
    let mut store = Store::default();
    store.blob("thief", &image.config);
    store.manifest("thief", "1", MANIFEST, &image.manifest);
    let server = Server::start(store, |_| None).await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    let part = part_name(&server, &image.layers[0]);
    std::fs::write(cache.path().join(part), &image.layers[0][..500_000]).unwrap();
    let thief = resolve(&client, &server.source("thief:1")).await.unwrap();
    let blob = client.open_layer(&thief, 0).await.unwrap();
    let mut stolen = Vec::new();
    assert!(blob.reader().read_to_end(&mut stolen).await.is_err());
    assert!(stolen.is_empty());
    assert_eq!(kind(blob.verified().await), FetchErrorKind::NotFound);
}

#[tokio::test]
async fn local_layers_are_verified_too() {
    let image = TestImage::one_layer(100_000);
    let directory = tempfile::tempdir().unwrap();
    let blobs = directory.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for bytes in [&image.layers[0], &image.config, &image.manifest] {
        std::fs::write(blobs.join(Digest::sha256(bytes).hex()), bytes).unwrap();
    }
    std::fs::write(
        directory.path().join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let descriptor = serde_json::json!({"mediaType": MANIFEST, "digest": Digest::sha256(&image.manifest).to_string(), "size": image.manifest.len()});
    std::fs::write(
        directory.path().join("index.json"),
        serde_json::json!({"schemaVersion": 2, "manifests": [descriptor]}).to_string(),
    )
    .unwrap();
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(oci_fetch::ClientConfig::new(cache.path())).unwrap();
    let source = format!("oci:{}", directory.path().display()).parse().unwrap();
    assert_eq!(
        pull_with(&client, &source, &as_tenant("t")).await.unwrap(),
        image.layers
    );
    let found = resolve(&client, &source).await.unwrap();
    let blob = client.open_layer(&found, 0).await.unwrap();
    assert!(!blob.from_network());
    assert!(blob.complete_file().await.is_ok());
    let mut at_hand = Vec::new();
    let mut file = blob.file_at_hand().await.expect("all of it is there");
    std::io::Read::read_to_end(&mut file, &mut at_hand).unwrap();
    assert_eq!(at_hand, image.layers[0]);
    assert!(
        std::io::Write::write_all(&mut file, b"x").is_err(),
        "the descriptor is read-only"
    );
    let mut changed = image.layers[0].clone();
    changed[5] ^= 1;
    std::fs::write(blobs.join(Digest::sha256(&image.layers[0]).hex()), changed).unwrap();
    let wrong = client.open_layer(&found, 0).await.unwrap();
    assert!(
        wrong.file_at_hand().await.is_some(),
        "whether it is right is another question"
    );
    assert_eq!(
        kind(wrong.verified().await.map(drop)),
        FetchErrorKind::DigestMismatch
    );
    assert_eq!(
        kind(pull_with(&client, &source, &as_tenant("t")).await),
        FetchErrorKind::DigestMismatch
    );
}

#[tokio::test]
async fn a_cache_with_a_limit_of_zero_keeps_nothing_after_use() {
    let image = TestImage::one_layer(1000);
    let server = Server::with_image(&image, |_| None).await;
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(server.config(cache.path()).with_cache_limit(0)).unwrap();
    assert_eq!(
        pull_with(&client, &server.source("app:1"), &as_tenant("t"))
            .await
            .unwrap(),
        image.layers
    );
    files::until(&cache.path().join("blobs/sha256"), || {
        names(cache.path()).is_empty()
    })
    .await;
}
