//! Puts a running service under load and says how it bore it, as one JSON object.
//!
//! ```sh
//! builderd serve --dev --tenant-default-tier dedicated &
//! cargo run --release -p builderd-e2e --bin load -- 127.0.0.1:8082 nginx:1.21-alpine $! [BUILDS [FOLLOWERS_PER_BUILD]]
//! ```

use anyhow::{Context as _, bail};
use builderd_e2e::load::{Load, peak_memory, run};
use serde_json::json;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a program for people and scripts")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (address, image, process, counts) = match &arguments[..] {
        [address, image, process, counts @ ..] if counts.len() <= 2 => (address, image, process, counts),
        _ => bail!("usage: load HOST:PORT IMAGE PROCESS_ID [BUILDS [FOLLOWERS_PER_BUILD]]"),
    };
    let count = |index: usize, default: usize| match counts.get(index) {
        None => Ok(default),
        Some(text) => text
            .parse()
            .context("BUILDS, FOLLOWERS_PER_BUILD: expected whole numbers"),
    };
    let load = Load {
        address: address
            .parse()
            .context("HOST:PORT: expected an address and a port")?,
        image: image.clone(),
        builds: count(0, 50)?,
        followers_per_build: count(1, 4)?,
    };
    let process: u32 = process.parse().context("PROCESS_ID: expected a number")?;
    let outcome = run(&load).await?;
    let milliseconds = |percent| outcome.percentile(percent).as_secs_f64() * 1000.0;
    println!(
        "{}",
        json!({
            "builds": load.builds,
            "followers": load.builds * load.followers_per_build,
            "completed": outcome.completed,
            "log_lines": outcome.lines,
            "seconds": outcome.took.as_secs_f64(),
            "get_build_calls": outcome.get_build.len(),
            "get_build_p50_ms": milliseconds(50),
            "get_build_p99_ms": milliseconds(99),
            "peak_memory_bytes": peak_memory(process)?,
        })
    );
    Ok(())
}
