//! What the box costs a build: the same image by the same program, with and without it, in turns, as Markdown.
//!
//! ```sh
//! cargo build --release -p builderd --bins
//! BUILDERD_BINARY=target/release/builderd cargo run --release -p builderd-e2e --bin box_bench [IMAGE-OF-THE-LAB [RUNS]]
//! ```
//!
//! Each run has a daemon and state of its own, so that nothing is reused; the registry is Debian's docker-registry, on loopback.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use builderd::proto::BuildState;
use builderd_e2e::{api::Api, daemon::Daemon, docker_registry::DockerRegistry, parts};

/// Wall clock from the request to the end of the log, and CPU time as the build says, in seconds.
type Cost = (f64, f64);

#[tokio::main]
#[expect(clippy::print_stdout, reason = "its result")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "nginx".to_owned());
    let runs: usize = match arguments.next() {
        Some(count) => count.parse().context("RUNS: expected a number")?,
        None => 5,
    };
    ensure!(runs > 0, "RUNS: expected at least 1");
    let registry = DockerRegistry::start()?;
    let reference = registry.push(&parts::lab_image(&name)?, "site/image", "oci")?;
    // Once for the page cache, and not counted.
    build(&reference, "true").await?;
    let (mut boxed, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        boxed.push(build(&reference, "true").await?);
        plain.push(build(&reference, "false").await?);
    }
    println!("| {name}, {runs} runs | wall seconds | CPU seconds of the workers |\n|---|---|---|");
    for (case, costs) in [("in boxes", &boxed), ("plain processes", &plain)] {
        let wall = spread(costs.iter().map(|cost| cost.0));
        let cpu = spread(costs.iter().map(|cost| cost.1));
        println!("| {case} | {} | {} |", wall.1, cpu.1);
    }
    let share = |which: fn(&Cost) -> f64| {
        let (with, without) = (
            spread(boxed.iter().map(which)).0,
            spread(plain.iter().map(which)).0,
        );
        (with - without) / without * 100.0
    };
    println!(
        "| more in boxes, of the medians | {:.1} % | {:.1} % |",
        share(|cost| cost.0),
        share(|cost| cost.1)
    );
    Ok(())
}

async fn build(reference: &str, isolation: &str) -> anyhow::Result<Cost> {
    let state = tempfile::tempdir()?;
    let settings = [("TENANT_ISOLATION_ENABLED", isolation)];
    let daemon = Daemon::start(&parts::builderd()?, state.path(), &settings)?;
    let api = Api::new(daemon.address())?;
    let started = Instant::now();
    let build_id = api.create(reference).await?;
    let build = api.finish(&build_id, |_| {}).await?;
    let wall = started.elapsed().as_secs_f64();
    ensure!(
        build.state() == BuildState::Completed,
        "{}\n{}",
        build.error_message,
        daemon.log()
    );
    let is_boxed = build
        .isolation
        .is_some_and(|isolation| isolation.sandbox_level > 0);
    ensure!(
        is_boxed == (isolation == "true"),
        "isolation is not as asked for: {}",
        daemon.log()
    );
    let cpu_ms = build.metrics.map_or(0, |metrics| metrics.cpu_time_ms);
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a build")]
    let cpu = cpu_ms as f64 / 1000.0;
    Ok((wall, cpu))
}

/// The median, and it with the lowest and the highest in words.
fn spread(values: impl Iterator<Item = f64>) -> (f64, String) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let median = values[values.len() / 2];
    let (lowest, highest) = (values[0], values[values.len() - 1]);
    (median, format!("{median:.2} ({lowest:.2}–{highest:.2})"))
}
