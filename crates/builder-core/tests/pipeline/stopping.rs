//! Builds that end before their end.

use std::{fs, sync::Arc, time::Duration};

use builder_core::BuildErrorKind;
use test_support::{registry::Misbehaviour, registry::Registry};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::common::{PATIENCE, Site, request, sample};

/// A registry that sends half of the first layer and then nothing.
fn stalled() -> (Registry, String) {
    let registry = Registry::start().unwrap();
    let image = sample().build();
    let reference = registry.publish("team/app", "1", &image);
    registry.misbehave(
        &image.layers[0].digest,
        Misbehaviour::StallAt(image.layers[0].size_bytes / 2),
    );
    (registry, reference)
}

/// Runs `act` on another thread when the registry has stalled.
fn when_stalled(
    registry: &Arc<Registry>,
    act: impl FnOnce() + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let registry = Arc::clone(registry);
    std::thread::spawn(move || {
        assert!(registry.wait_for_stalled(1, PATIENCE));
        act();
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_build_ends_at_once_and_leaves_nothing() {
    let site = Site::new();
    let (registry, reference) = stalled();
    let registry = Arc::new(registry);
    let cancel = CancellationToken::new();
    let canceller = {
        let cancel = cancel.clone();
        when_stalled(&registry, move || cancel.cancel())
    };
    let cancelled_at = {
        let cancel = cancel.clone();
        tokio::spawn(async move {
            cancel.cancelled().await;
            Instant::now()
        })
    };
    let ended = site.build_until(&request(&reference), "x.ext4", cancel).await;
    let took = cancelled_at.await.unwrap().elapsed();
    canceller.join().unwrap();
    assert_eq!(ended.error().kind(), &BuildErrorKind::Cancelled);
    assert!(took < Duration::from_secs(1), "{took:?}");
    site.assert_clean("cancelled");
    let registry = Arc::into_inner(registry).unwrap();
    assert!(registry.wait_for_idle(PATIENCE), "the download goes on");

    // And what is left in the caches is good for the next build.
    registry.behave();
    site.build(&request(&reference), "x.ext4").await.outcome();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_takes_too_long_says_so() {
    for mode in ["worker", "hang"] {
        let mut site = Site::with_worker(mode);
        site.config.limits.timeout = Some(Duration::from_millis(500));
        let (_registry, reference) = stalled();
        let started = Instant::now();
        let ended = site.build(&request(&reference), "x.ext4").await;
        assert_eq!(ended.error().kind(), &BuildErrorKind::TimedOut, "{mode}");
        assert!(
            ended.error().to_string().contains("0.5 seconds"),
            "{}",
            ended.error()
        );
        assert!(
            started.elapsed() < Duration::from_secs(3),
            "{mode}: {:?}",
            started.elapsed()
        );
        site.assert_clean(mode);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_is_named_and_the_next_build_works() {
    let site = Site::new();
    let (registry, reference) = stalled();
    let registry = Arc::new(registry);
    let workers = Arc::clone(&site.workers);
    let killer = when_stalled(&registry, move || {
        // The worker of the layer that stalls may be a moment away; the others have ended or will.
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < deadline {
            let ids = workers.ids.lock().unwrap().clone();
            for id in ids {
                let id = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
                let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
            }
            if workers.ids.lock().unwrap().len() >= 3 && workers.none_left() {
                return;
            }
            std::thread::yield_now();
        }
    });
    let ended = site.build(&request(&reference), "x.ext4").await;
    killer.join().unwrap();
    assert_eq!(ended.error().kind(), &BuildErrorKind::Internal);
    assert!(
        ended.error().to_string().contains("was killed (signal 9)"),
        "{}",
        ended.error()
    );
    site.assert_clean("killed");

    registry.behave();
    registry.release();
    site.build(&request(&reference), "x.ext4").await.outcome();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_future_is_dropped_leaves_nothing_either() {
    let site = Site::new();
    let (registry, reference) = stalled();
    let registry = Arc::new(registry);
    let (stalled, is_stalled) = tokio::sync::oneshot::channel();
    let workers = Arc::clone(&site.workers);
    let watcher = when_stalled(&registry, move || {
        // A worker that starts after the look below would be taken for one that was left.
        let deadline = Instant::now() + PATIENCE;
        while workers.ids.lock().unwrap().len() < 3 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        stalled.send(()).unwrap();
    });
    let build_request = request(&reference);
    tokio::select! {
        _ = site.build(&build_request, "x.ext4") => panic!("the registry stalls"),
        _ = is_stalled => {}
    }
    watcher.join().unwrap();
    // Nobody waits for the end of what was dropped, so it may be a moment away.
    let unfinished = site.directory.path().join("workspace/cache/packs/tmp");
    let is_over = || site.workers.none_left() && fs::read_dir(&unfinished).unwrap().count() == 0;
    let deadline = Instant::now() + PATIENCE;
    while !is_over() && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    site.assert_clean("dropped");
}
