//! Downloads the layers of an image into a fresh cache, all at once, and says how long that took.
//!
//! ```text
//! cargo run --release -p oci-fetch --example throughput -- 127.0.0.1:5000/big:1 /var/tmp/cache 4
//! {"bytes":246415360,"seconds":0.31,"bytes_per_second":794888258,"peak_memory_bytes":31457280}
//! ```
//!
//! The last argument is the number of connections for one blob (1 for no ranges, 4 when left out). The cache directory must
//! be empty or missing. Nothing is synced to the disk, so that the figure compares with `curl -o FILE`; every digest is
//! verified. `peak_memory_bytes` is the most that the process had in memory.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::time::Instant;

use anyhow::bail;
use futures_util::future::try_join_all;
use oci_fetch::{Client, ClientConfig, ImageSource, Loopback, Platform, PullContext, Ranges};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (source, cache, connections) = match arguments.as_slice() {
        [source, cache] => (source, cache, 4),
        [source, cache, connections] => (source, cache, connections.parse()?),
        _ => bail!("usage: throughput IMAGE CACHE_DIRECTORY [CONNECTIONS]"),
    };
    if std::fs::read_dir(cache).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{cache} is not empty: what is in a cache is not downloaded");
    }
    let source: ImageSource = source.parse()?;
    let config = ClientConfig::new(cache)
        .with_loopback(Loopback::PlainHttp)
        .with_durable_cache(false)
        .with_ranges(Ranges {
            connections,
            ..Ranges::default()
        });
    let client = Client::new(config)?;
    let started = Instant::now();
    let image = client
        .resolve(&source, &Platform::host(), &PullContext::default())
        .await?;
    let blobs = try_join_all((0..image.layers.len()).map(|layer| client.open_layer(&image, layer))).await?;
    try_join_all(blobs.iter().map(oci_fetch::Blob::verified)).await?;
    let seconds = started.elapsed().as_secs_f64();
    let bytes = image.total_size_bytes();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = bytes as f64 / seconds;
    println!(
        r#"{{"bytes":{bytes},"seconds":{seconds:.3},"bytes_per_second":{rate:.0},"peak_memory_bytes":{}}}"#,
        peak_memory_bytes()
    );
    Ok(())
}

/// Source: proc_pid_status(5), `VmHWM`. 0 when the kernel does not say.
fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kibibytes| kibibytes * 1024)
}
