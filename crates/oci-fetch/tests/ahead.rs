//! Layers whose download is begun before somebody reads them.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use oci_fetch::{Digest, FetchErrorKind};
use tokio::io::AsyncReadExt as _;

#[tokio::test]
async fn what_was_downloaded_is_a_file_and_at_hand() {
    let image = TestImage::new(&[noise(200_000, 1), noise(100_000, 2)]);
    let stalled = (
        Digest::sha256(&image.layers[1]).to_string(),
        image.layers[1].clone(),
    );
    let server = Server::with_image(&image, move |seen| {
        let (digest, layer) = &stalled;
        (seen.path.ends_with(digest) && seen.nth == 0)
            .then(|| Reply::ok("x", layer.clone()).manner(Manner::StallAt(50_000)))
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    let found = resolve(&client, &server.source("app:1")).await.unwrap();
    assert!(!client.is_at_hand(&found, 0).await.unwrap());
    let begun = client.open_layer(&found, 0).await.unwrap();
    begun.verified().await.unwrap();
    let mut whole = Vec::new();
    let mut file = begun.file_at_hand().await.expect("all of it is there");
    std::io::Read::read_to_end(&mut file, &mut whole).unwrap();
    assert_eq!(whole, image.layers[0]);

    let begun = client.open_layer(&found, 1).await.unwrap();
    begun.reader().read_exact(&mut [0; 50_000]).await.unwrap();
    assert!(begun.file_at_hand().await.is_none(), "half of it is on its way");
    assert!(!client.is_at_hand(&found, 1).await.unwrap());
    server.cut_stalled();
    begun.verified().await.unwrap();
    let blobs = cache.path().join("blobs/sha256");
    let second = blobs.join(Digest::sha256(&image.layers[1]).hex());
    files::until(&blobs, || second.exists()).await;
    assert!(client.is_at_hand(&found, 1).await.unwrap());
    let error = client.is_at_hand(&found, 2).await.unwrap_err();
    assert_eq!(*error.kind(), FetchErrorKind::InvalidInput);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_waits_for_its_turn_does_not_run_by_the_rights_of_who_comes_later() {
    let image = TestImage::new(&[0, 1, 2, 3].map(|seed| noise(300_000, seed)));
    let mut store = Store::default();
    store.publish("private", "1", &image);
    store.manifest("thief", "1", MANIFEST, &image.manifest);
    for bytes in [
        &image.config,
        &image.layers[0],
        &image.layers[1],
        &image.layers[2],
    ] {
        store.blob("thief", bytes);
    }
    let server = Server::start(store, stall(&image.layers[..3], 100_000)).await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client_of_four_connections(cache.path());
    let thief = client
        .resolve(&server.source("thief:1"), &amd64(), &as_tenant("thief"))
        .await
        .unwrap();
    // Three of four are what one party may hold, so the fourth waits.
    let mut held = Vec::new();
    for index in 0..3 {
        let blob = client.open_layer(&thief, index).await.unwrap();
        blob.reader().read_exact(&mut vec![0; 100_000]).await.unwrap();
        held.push(blob);
    }
    let for_thief = client.open_layer(&thief, 3).await.unwrap();
    let owner = client
        .resolve(&server.source("private:1"), &amd64(), &as_tenant("owner"))
        .await
        .unwrap();
    let for_owner = client.open_layer(&owner, 3).await.unwrap();
    let read_by_owner = tokio::time::timeout(LIMIT, read(&for_owner)).await;
    assert_eq!(read_by_owner.unwrap().unwrap().0, image.layers[3]);
    assert!(for_thief.file_at_hand().await.is_none());
    drop(held);
    let refused = tokio::time::timeout(LIMIT, for_thief.verified()).await;
    assert_eq!(kind(refused.unwrap()), FetchErrorKind::NotFound);
    assert!(for_thief.file_at_hand().await.is_none());
    let mut stolen = Vec::new();
    assert!(for_thief.reader().read_to_end(&mut stolen).await.is_err() && stolen.is_empty());
}
