//! Many at once: every follower gets every line, every build completes, and the daemon's memory stays bounded.

use builderd_e2e::{
    bench::Bench,
    load::{Load, peak_memory, run},
};
use test_support::lab;

/// Far above what is seen, far below what a leak for each follower or line would take.
const MEMORY_BOUND: u64 = 512 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn privileged_two_hundred_followers_of_fifty_builds_are_served_within_bounds() {
    let bench = match Bench::start(&[("TENANT_DEFAULT_TIER", "dedicated")]) {
        Ok(bench) => bench,
        Err(missing) => return lab::skip(missing),
    };
    let load = Load {
        address: bench.daemon.address(),
        image: bench.reference.clone(),
        builds: 50,
        followers_per_build: 4,
    };
    let outcome = run(&load)
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", bench.daemon.log()));
    assert_eq!(outcome.completed, 50, "{}", bench.daemon.log());
    assert!(outcome.lines >= 200 * 5, "{} lines", outcome.lines);
    assert!(!outcome.get_build.is_empty());
    let peak = peak_memory(bench.daemon.process_id()).unwrap();
    // Shown with `--nocapture`.
    println!(
        "{} calls of GetBuild, p50 {:?}, p99 {:?}; {:?} in all; {peak} bytes at most",
        outcome.get_build.len(),
        outcome.percentile(50),
        outcome.percentile(99),
        outcome.took
    );
    assert!(peak < MEMORY_BOUND, "{peak} bytes");
}
