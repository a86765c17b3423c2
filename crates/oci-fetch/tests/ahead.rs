//! Layers whose download is begun before somebody reads them.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use oci_fetch::Digest;
use tokio::io::AsyncReadExt as _;

#[tokio::test]
async fn only_what_is_not_here_is_begun() {
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
    let begun = client.begin_layer(&found, 0).await.unwrap().unwrap();
    begun.verified().await.unwrap();
    let mut whole = Vec::new();
    let mut file = begun.file_at_hand().await.expect("all of it is there");
    std::io::Read::read_to_end(&mut file, &mut whole).unwrap();
    assert_eq!(
        whole, image.layers[0],
        "what was downloaded is a file like any other"
    );
    assert!(
        client.begin_layer(&found, 0).await.unwrap().is_none(),
        "all of it is here"
    );

    let begun = client.begin_layer(&found, 1).await.unwrap().unwrap();
    assert!(begun.file_at_hand().await.is_none(), "on its way");
    let opened = client.open_layer(&found, 1).await.unwrap();
    let mut front = vec![0; 50_000];
    opened.reader().read_exact(&mut front).await.unwrap();
    server.cut_stalled();
    opened.verified().await.unwrap();
    begun.verified().await.unwrap();
    assert_eq!(
        server.layer_requests(&image).len(),
        3,
        "each once, and the rest of the second"
    );
    let error = client.begin_layer(&found, 2).await.unwrap_err();
    assert_eq!(*error.kind(), oci_fetch::FetchErrorKind::InvalidInput);
}
