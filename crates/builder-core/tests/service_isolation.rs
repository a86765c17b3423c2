//! What the service does when isolation fails: an alarm for a worker that cannot be killed, no health without boxes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/fixture.rs"]
mod fixture;
#[path = "bin/serve/mod.rs"]
#[allow(dead_code, reason = "its main function is for the process of its own")]
mod serve;

use std::{
    fs::File,
    sync::{Arc, Mutex},
    time::Duration,
};

use builder_core::{
    build::BuildState,
    service::Check,
    worker::{Launcher, ProcessLauncher, WorkerSpec},
};
use common::{PATIENCE, worker_command};
use fixture::{Service, alice};
use test_support::frozen::Frozen;
use tokio::time::Instant;

/// Starts workers that write to a file as soon as they run.
#[derive(Debug)]
struct Stuck {
    file: File,
    launcher: ProcessLauncher,
    ids: Mutex<Vec<u32>>,
}

impl Launcher for Stuck {
    fn launch(&self, mut spec: WorkerSpec) -> Result<sandbox::Child, sandbox::LaunchError> {
        spec.descriptors.push((self.file.try_clone().unwrap().into(), 60));
        let child = self.launcher.launch(spec)?;
        self.ids.lock().unwrap().push(child.id());
        Ok(child)
    }
}

impl Stuck {
    /// A worker sleeps as no signal reaches it: state D of `proc_pid_stat(5)`.
    fn has_one_asleep(&self) -> bool {
        self.ids.lock().unwrap().iter().any(|id| {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('D'))
        })
    }
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + 2 * PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_worker_that_cannot_be_killed_keeps_its_place_and_raises_an_alarm() {
    let (frozen, file) = match Frozen::new() {
        Ok(made) => made,
        Err(reason) => {
            test_support::lab::skip(format!("no file system can be frozen here: {reason}"));
            return;
        }
    };
    let launcher = Arc::new(Stuck {
        file,
        launcher: ProcessLauncher::from_command(&worker_command("stuck")).unwrap(),
        ids: Mutex::default(),
    });
    let own = Arc::clone(&launcher);
    let service = Service::start_with(|config| config.launcher = Some(own)).await;
    let stuck = service.create().await.id;
    let waiting = service.create().await.id;
    until("a worker writes", async || launcher.has_one_asleep()).await;
    assert_eq!(service.builder.health().await.isolation, Check::Disabled);

    let builder = service.builder.clone();
    let cancelling = tokio::spawn(async move { builder.cancel(&alice(), &stuck).await });
    until("the alarm is raised", async || {
        matches!(service.builder.health().await.isolation, Check::Alarm(_))
    })
    .await;
    assert!(!service.get(stuck).await.state.is_terminal());
    assert_eq!(
        service.get(waiting).await.state,
        BuildState::Pending,
        "there is one place"
    );

    frozen.thaw();
    assert_eq!(service.ended(stuck).await.state, BuildState::Cancelled);
    assert_eq!(
        service.ended(waiting).await.state,
        BuildState::Failed,
        "it has had its turn"
    );
    until("the alarm is over", async || {
        service.builder.health().await.isolation == Check::Disabled
    })
    .await;
    // Answered, one way or the other: patience with a build that does not end is bounded.
    let _ = cancelling.await.unwrap();
}

/// Boxes can be made, or not.
#[derive(Debug)]
struct Boxes {
    launcher: ProcessLauncher,
    works: bool,
}

impl Launcher for Boxes {
    fn check(&self) -> Option<Result<(), String>> {
        Some(if self.works {
            Ok(())
        } else {
            Err("no control group".to_owned())
        })
    }

    fn launch(&self, spec: WorkerSpec) -> Result<sandbox::Child, sandbox::LaunchError> {
        self.launcher.launch(spec)
    }
}

#[tokio::test]
async fn isolation_that_does_not_work_any_more_is_seen() {
    for works in [true, false] {
        let launcher = ProcessLauncher::from_command(&worker_command("worker")).unwrap();
        let boxes = Arc::new(Boxes { launcher, works });
        let service = Service::start_with(|config| config.launcher = Some(boxes)).await;
        let isolation = service.builder.health().await.isolation;
        let expected = if works {
            Check::Healthy
        } else {
            Check::Unhealthy("no control group".to_owned())
        };
        assert_eq!(isolation, expected);
    }
}
