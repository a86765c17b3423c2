//! What the tests have in common.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test program uses a part"
)]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

pub mod docker_registry;
pub mod exchange;
pub mod files;
pub mod server;
pub mod store;

use std::time::Duration;

use base64::Engine as _;
pub use exchange::{Manner, Reply, Seen};
use oci_fetch::{
    Blob, Client, ClientConfig, Credentials, Digest, FetchError, FetchErrorKind, Image, ImageSource,
    Platform, PullContext, RetryPolicy, Timeouts, Verified,
};
pub use server::{Server, stall};
pub use store::{INDEX, MANIFEST, Store, TestImage, noise};
use tokio::io::AsyncReadExt;

/// How long [`impatient`] waits.
const IMPATIENCE: Duration = Duration::from_millis(400);

/// No test takes so long, on no machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Settings of a client that repeats at once, and waits long: how busy the machine is must not matter.
pub fn quick(config: ClientConfig) -> ClientConfig {
    config.with_timeouts(Timeouts::default()).with_retry(RetryPolicy {
        attempts: 4,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(2),
        longest_retry_after: Duration::from_secs(2),
    })
}

/// The same without patience, where what is tested is that it ends.
pub fn impatient(config: ClientConfig) -> ClientConfig {
    quick(config).with_timeouts(Timeouts {
        header: IMPATIENCE,
        no_progress: IMPATIENCE,
        document: IMPATIENCE,
        ..Timeouts::default()
    })
}

pub fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

pub fn as_tenant(key: &str) -> PullContext {
    PullContext {
        isolation_key: key.to_owned(),
        credentials: None,
    }
}

pub fn as_user(key: &str, user: &str, password: &str) -> PullContext {
    PullContext {
        isolation_key: key.to_owned(),
        credentials: Some(Credentials::basic(user, password)),
    }
}

/// Where a download of a layer from this server leaves what it has, below the cache directory.
pub fn part_name(server: &Server, layer: &[u8]) -> String {
    let registry = Digest::sha256(server.address.to_string().as_bytes());
    format!(
        "blobs/sha256/{}-{}.part",
        Digest::sha256(layer).hex(),
        &registry.hex()[..16]
    )
}

/// The value of an `Authorization` header.
pub fn basic(user: &str, password: &str) -> String {
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    )
}

/// A fault in the answers to requests for the layer.
pub fn on_layer(
    image: &TestImage,
    fault: impl Fn(&Seen, &[u8]) -> Option<Reply> + Send + Sync + 'static,
) -> impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static {
    let layer = image.layers[0].clone();
    let digest = Digest::sha256(&layer).to_string();
    move |seen| {
        if seen.path.ends_with(&digest) {
            fault(seen, &layer)
        } else {
            None
        }
    }
}

pub async fn resolve(client: &Client, source: &ImageSource) -> Result<Image, FetchError> {
    client.resolve(source, &amd64(), &as_tenant("t")).await
}

/// Reads a blob to its end and waits for the verdict.
pub async fn read(blob: &Blob) -> Result<(Vec<u8>, Verified), FetchError> {
    let mut bytes = Vec::new();
    let read = blob.reader().read_to_end(&mut bytes).await;
    let verified = blob.verified().await?;
    read.expect("a verified blob can be read");
    Ok((bytes, verified))
}

/// Pulls all layers of `app:1` in parallel, by a fresh client with a cache of its own.
pub async fn pull(server: &Server) -> Result<Vec<Vec<u8>>, FetchError> {
    let cache = tempfile::tempdir().unwrap();
    pull_with(
        &server.client(cache.path()),
        &server.source("app:1"),
        &as_tenant("t"),
    )
    .await
}

pub async fn pull_with(
    client: &Client,
    source: &ImageSource,
    context: &PullContext,
) -> Result<Vec<Vec<u8>>, FetchError> {
    let image = client.resolve(source, &amd64(), context).await?;
    let layers = (0..image.layers.len()).map(|index| {
        let image = &image;
        async move {
            read(&client.open_layer(image, index).await?)
                .await
                .map(|(bytes, _)| bytes)
        }
    });
    futures_util::future::try_join_all(layers).await
}

pub fn kind<T>(result: Result<T, FetchError>) -> FetchErrorKind {
    match result {
        Ok(_) => panic!("succeeded"),
        Err(error) => error.kind().clone(),
    }
}

/// Prints why a test does nothing; an error where the environment promises that everything is there.
pub fn skip(reason: &str) {
    assert!(
        std::env::var_os("BUILDERD_REQUIRE_LAB").is_none(),
        "cannot run: {reason}"
    );
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {reason}\n"));
}
