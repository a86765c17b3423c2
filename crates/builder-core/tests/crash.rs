//! A service that is killed in the middle of a build, and the one that comes after it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "bin/serve/mod.rs"]
#[allow(dead_code, reason = "its main function is for the process of its own")]
mod serve;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use builder_core::{
    build::{BuildId, BuildState},
    event::LogLine,
    request::BuildRequest,
    service::{Builder, Check},
    worker::{Launcher, ProcessLauncher, Survivor, WorkerSpec},
};
use common::{PATIENCE, files_below, request, sample, worker_command};
use futures_util::StreamExt;
use tenant::TenantId;
use test_support::registry::{Misbehaviour, Registry};
use tokio::time::Instant;

fn alice() -> TenantId {
    "alice".parse().unwrap()
}

/// A service in a process of its own, with a build submitted to it.
struct Running {
    child: Child,
    id: Option<BuildId>,
}

impl Running {
    fn start(directory: &Path, request: Option<&BuildRequest>, password: Option<&str>) -> Self {
        let request = request
            .map(|request| serde_json::to_string(request).unwrap())
            .unwrap_or_default();
        let mut child = Command::new(env!("CARGO_BIN_EXE_builder-core-test-worker"))
            .arg("serve")
            .arg(directory)
            .arg(request)
            .args(password)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Self {
            child,
            id: line.trim().parse().ok(),
        }
    }

    /// SIGKILL: nothing is cleared up.
    fn kill(mut self) -> Option<BuildId> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.id
    }
}

async fn restart(directory: &Path) -> Builder {
    Builder::start(serve::config(directory, worker_command("worker")))
        .await
        .unwrap()
}

async fn log(builder: &Builder, id: BuildId) -> Vec<LogLine> {
    let lines = builder.logs(alice(), id, 0, true).map(Result::unwrap).collect();
    tokio::time::timeout(PATIENCE, lines)
        .await
        .expect("the build ends")
}

/// Hidden files below the output directory, and unfinished ones of the caches.
fn leftovers(directory: &Path) -> Vec<PathBuf> {
    let hidden = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with('.');
    let mut left: Vec<_> = files_below(&directory.join("output"))
        .into_iter()
        .filter(hidden)
        .collect();
    left.extend(files_below(&directory.join("workspace/cache/packs/tmp")));
    left.extend(files_below(&directory.join("workspace/staging")));
    left
}

fn stalling_registry() -> (Registry, String) {
    let registry = Registry::start().unwrap();
    let image = sample().build();
    let reference = registry.publish("team/app", "1", &image);
    registry.misbehave(
        &image.layers[0].digest,
        Misbehaviour::StallAt(image.layers[0].size_bytes / 2),
    );
    (registry, reference)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_was_running_starts_over_and_its_leftovers_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (registry, reference) = stalling_registry();
    let killed = Running::start(directory.path(), Some(&request(&reference)), None);
    assert!(registry.wait_for_stalled(1, PATIENCE));
    let id = killed.kill().unwrap();
    assert!(
        !leftovers(directory.path()).is_empty(),
        "the build was in the middle of it"
    );
    registry.behave();
    registry.release();

    let builder = restart(directory.path()).await;
    let log = log(&builder, id).await;
    let build = builder.get(&alice(), &id).await.unwrap();
    assert_eq!(build.state, BuildState::Completed, "{:?}", build.error_message);
    assert_eq!(leftovers(directory.path()), Vec::<PathBuf>::new());
    assert_eq!(files_below(&directory.path().join("output")).len(), 3);
    assert!(
        log.iter()
            .zip(1..)
            .all(|(line, sequence)| line.sequence == sequence)
    );
    assert!(log.iter().any(|line| line.message.contains("it starts over")));
}

/// A launcher that says that a build of the last start has processes that SIGKILL has not ended, until it is told
/// otherwise.
#[derive(Debug)]
struct Outlived {
    launcher: ProcessLauncher,
    build: String,
    are_gone: Arc<AtomicBool>,
}

impl Launcher for Outlived {
    fn survivors(&self) -> Vec<Box<dyn Survivor>> {
        vec![Box::new(Undead {
            build: self.build.clone(),
            are_gone: Arc::clone(&self.are_gone),
        })]
    }

    fn launch(&self, spec: WorkerSpec) -> Result<sandbox::Child, sandbox::LaunchError> {
        self.launcher.launch(spec)
    }
}

#[derive(Debug)]
struct Undead {
    build: String,
    are_gone: Arc<AtomicBool>,
}

impl Survivor for Undead {
    fn build(&self) -> &str {
        &self.build
    }

    fn is_gone(&self) -> bool {
        self.are_gone.load(Ordering::Relaxed)
    }
}

/// As soon as the last handle of the service before is gone.
async fn restart_with_survivors(directory: &Path, build: BuildId, are_gone: &Arc<AtomicBool>) -> Builder {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut config = serve::config(directory, worker_command("worker"));
        config.launcher = Some(Arc::new(Outlived {
            launcher: ProcessLauncher::from_command(&worker_command("worker")).unwrap(),
            build: build.to_string(),
            are_gone: Arc::clone(are_gone),
        }));
        match Builder::start(config).await {
            Ok(builder) => return builder,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_processes_outlive_the_service_keeps_its_place_over_restarts() {
    for is_cancelled in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (registry, reference) = stalling_registry();
        let killed = Running::start(directory.path(), Some(&request(&reference)), None);
        assert!(registry.wait_for_stalled(1, PATIENCE));
        let id = killed.kill().unwrap();

        let are_gone = Arc::default();
        let builder = restart_with_survivors(directory.path(), id, &are_gone).await;
        let other = builder.create(request(&reference)).await.unwrap().id;
        builder.shutdown(PATIENCE).await;
        drop(builder);
        let builder = restart_with_survivors(directory.path(), id, &are_gone).await;
        let state_of = async |id| builder.get(&alice(), &id).await.unwrap().state;
        let alarm = Check::Alarm("1 workers live on after SIGKILL".to_owned());
        assert_eq!(builder.health().await.isolation, alarm);
        let held = builder.get(&alice(), &id).await.unwrap();
        assert!(!held.state.is_terminal() && held.started_at.is_some(), "{held:?}");
        assert_eq!(state_of(other).await, BuildState::Pending, "there is one place");

        are_gone.store(!is_cancelled, Ordering::Relaxed);
        let expected = if is_cancelled {
            let builder = builder.clone();
            let cancelling = tokio::spawn(async move { builder.cancel(&alice(), &id).await });
            are_gone.store(true, Ordering::Relaxed);
            cancelling.await.unwrap().unwrap().state
        } else {
            BuildState::Completed
        };
        registry.behave();
        registry.release();
        let told = log(&builder, id).await;
        assert_eq!(state_of(id).await, expected);
        assert!(
            told.iter().any(|line| line.message.contains("outlived")),
            "{told:?}"
        );
        log(&builder, other).await;
        assert_eq!(state_of(other).await, BuildState::Completed);
        assert_eq!(builder.health().await.isolation, Check::Disabled);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_had_credentials_ends_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let (registry, reference) = stalling_registry();
    let killed = Running::start(
        directory.path(),
        Some(&request(&reference)),
        Some("hunter2-secret"),
    );
    assert!(registry.wait_for_stalled(1, PATIENCE));
    let id = killed.kill().unwrap();

    let builder = restart(directory.path()).await;
    let build = builder.get(&alice(), &id).await.unwrap();
    assert_eq!(build.state, BuildState::Failed);
    assert_eq!(
        build.error_message.as_deref(),
        Some("credentials are not kept over a restart; submit again")
    );
    assert_eq!(leftovers(directory.path()), Vec::<PathBuf>::new());
    assert_eq!(
        log(&builder, id)
            .await
            .last()
            .unwrap()
            .message
            .matches("submit again")
            .count(),
        1
    );
    for file in files_below(directory.path()) {
        let found = fs::read(&file)
            .unwrap()
            .windows(14)
            .any(|window| window == b"hunter2-secret");
        assert!(!found, "{} holds a password", file.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_takes_the_service_down_each_time_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let (registry, reference) = stalling_registry();
    let mut id = None;
    for attempt in 0..3 {
        registry.forget_requests();
        let first = request(&reference);
        let running = Running::start(directory.path(), (attempt == 0).then_some(&first), None);
        assert!(registry.wait_for_requests(1, "/manifests/", PATIENCE));
        id = id.or(running.kill());
    }
    let builder = restart(directory.path()).await;
    let build = builder.get(&alice(), &id.unwrap()).await.unwrap();
    assert_eq!(build.state, BuildState::Failed);
    assert!(build.error_message.unwrap().contains("3 times"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_of_a_killed_service_do_not_outlive_it() {
    let directory = tempfile::tempdir().unwrap();
    let (registry, reference) = stalling_registry();
    let killed = Running::start(directory.path(), Some(&request(&reference)), None);
    assert!(registry.wait_for_stalled(1, PATIENCE));
    let parent = killed.child.id();
    let mut workers = Vec::new();
    let deadline = std::time::Instant::now() + PATIENCE;
    while workers.is_empty() && std::time::Instant::now() < deadline {
        workers = children_of(parent);
    }
    assert!(!workers.is_empty(), "a worker waits for the rest of its layer");
    killed.kill();
    while workers.iter().any(|worker| is_alive(*worker)) {
        assert!(
            std::time::Instant::now() < deadline,
            "a worker outlives its service"
        );
        std::thread::yield_now();
    }
}

fn stat(process: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

fn is_alive(process: u32) -> bool {
    stat(process).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

fn children_of(parent: u32) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|process| stat(*process).is_some_and(|(_, found)| found == parent))
        .collect()
}
