//! Fetching alone: all layers of an image into an empty blob cache, each digest verified.

use std::{path::PathBuf, time::Instant};

use anyhow::Context as _;
use oci_fetch::{Client, ClientConfig, ImageSource, Loopback, Platform, PullContext, Ranges};
use serde::{Deserialize, Serialize};

/// What `builderd-bench pull` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The image in a registry on loopback
    reference: String,
    /// The cache
    cache: PathBuf,
    /// Connections for one blob [default: the library's]
    #[arg(long)]
    connections: Option<usize>,
    /// Wait until the blobs are on the disk
    #[arg(long)]
    durable: bool,
}

/// What fetching took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pulled {
    /// Seconds from the first request to the last digest.
    pub(crate) wall: f64,
    pub(crate) bytes: u64,
}

/// `builderd-bench pull`: prints a [`Pulled`] as JSON.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut config = ClientConfig::new(&arguments.cache)
        .with_loopback(Loopback::PlainHttp)
        .with_durable_cache(arguments.durable);
    if let Some(connections) = arguments.connections {
        config = config.with_ranges(Ranges {
            connections,
            ..Ranges::default()
        });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let pulled = runtime.block_on(pull(config, &arguments.reference))?;
    println!("{}", serde_json::to_string(&pulled)?);
    Ok(())
}

async fn pull(config: ClientConfig, reference: &str) -> anyhow::Result<Pulled> {
    let source: ImageSource = reference.parse()?;
    let context = PullContext {
        isolation_key: "bench".to_owned(),
        credentials: None,
    };
    let client = Client::new(config)?;
    let start = Instant::now();
    let image = client.resolve(&source, &Platform::host(), &context).await?;
    let mut blobs = Vec::new();
    // All begin to arrive when they are opened; then each is waited for.
    for layer in 0..image.layers.len() {
        blobs.push(client.open_layer(&image, layer).await?);
    }
    for blob in &blobs {
        blob.verified()
            .await
            .with_context(|| format!("layer {}", blob.digest()))?;
    }
    Ok(Pulled {
        wall: start.elapsed().as_secs_f64(),
        bytes: image.total_size_bytes(),
    })
}
