//! What holds a build's workers, as a tenant and an operator see it, and what is left when the service is killed.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use builderd::proto::BuildState;
use builderd_e2e::{
    api::{Api, TENANT, seed_request},
    bench::Bench,
    boxes, check,
};
use serde_json::Value;
use test_support::{lab, registry::Misbehaviour};

/// As long as anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bench whose daemon has found every layer of isolation here.
fn bench() -> Option<Bench> {
    let bench = match Bench::start(&[]) {
        Ok(bench) => bench,
        Err(missing) => {
            lab::skip(missing);
            return None;
        }
    };
    let log = bench.daemon.log();
    if let Some(line) = log
        .lines()
        .find(|line| line.contains("without a layer of their box"))
    {
        lab::skip(line);
        return None;
    }
    Some(bench)
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Files that only a build in progress has.
fn unfinished_files(state: &Path) -> Vec<PathBuf> {
    let is_unfinished = |path: &PathBuf| {
        let text = path.to_string_lossy();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.is_file()
            && (name.ends_with(".part") || text.contains("/packs/tmp/") || text.contains("/staging/"))
            || path.is_file() && name.starts_with('.') && name.contains("build-")
    };
    let all = check::paths_below(state).unwrap();
    all.into_iter().filter(is_unfinished).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_service_killed_in_mid_build_leaves_no_process_no_mount_no_control_group_and_no_file() {
    let Some(mut bench) = bench() else { return };
    bench.registry.misbehave(&bench.layer, Misbehaviour::StallAt(1));
    let api = Api::new(bench.daemon.address()).unwrap();
    let build_id = api.create(&bench.reference).await.unwrap();
    let killed = bench.daemon.process_id();
    // A worker stands in its box and waits for the rest of its layer.
    until("a worker runs in a box", async || {
        boxes::processes_in_boxes(killed).len() >= 3
    })
    .await;
    let inside = boxes::processes_in_boxes(killed);

    bench.crash_and_restart();
    until("the processes of the boxes end with the daemon", async || {
        !inside
            .iter()
            .any(|process| Path::new("/proc").join(process.to_string()).exists())
    })
    .await;
    assert_eq!(boxes::control_groups_of(killed), Vec::<PathBuf>::new());
    assert_eq!(boxes::mounts_of_boxes().unwrap(), Vec::<String>::new());

    bench.registry.behave();
    bench.registry.release();
    let api = Api::new(bench.daemon.address()).unwrap();
    let build = api.finish(&build_id, |_| {}).await.unwrap();
    assert_eq!(
        build.state(),
        BuildState::Completed,
        "{}\n{}",
        build.error_message,
        bench.daemon.log()
    );
    let running = bench.daemon.process_id();
    until("the build's own control group goes with it", async || {
        boxes::control_groups_of(running)
            .iter()
            .flat_map(|group| boxes::with_all_below(group))
            .all(|group| !group.to_string_lossy().contains(&build_id))
    })
    .await;
    assert_eq!(
        unfinished_files(bench.daemon.state_directory()),
        Vec::<PathBuf>::new()
    );
    assert_eq!(boxes::processes_in_boxes(running), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_tenant_reads_how_its_build_was_shut_in() {
    let Some(bench) = bench() else { return };
    let api = Api::new(bench.daemon.address()).unwrap();
    // A request can only raise what a tenant has at least.
    for (asked, level) in [(0, 2), (1, 2), (3, 3)] {
        let mut request: Value = serde_json::from_str(&seed_request(&bench.reference)).unwrap();
        request["config"]["limits"]["sandbox_level"] = asked.into();
        let answer = api.call("CreateBuild", &request.to_string()).await.unwrap();
        let build_id = answer.body["buildId"].as_str().unwrap().to_owned();
        let build = api.finish(&build_id, |_| {}).await.unwrap();
        assert_eq!(build.state(), BuildState::Completed, "{}", bench.daemon.log());
        let isolation = build.isolation.unwrap();
        assert_eq!(isolation.sandbox_level, level, "{asked}: {isolation:?}");
        assert_eq!(isolation.sandbox_id, build_id);
        assert_eq!(isolation.network_namespace, "private");
        assert_eq!(isolation.filesystem_namespace, "private");
        assert!(!isolation.cgroup_path.is_empty());
        for context in ["no_new_privs", "no-capabilities", "seccomp", "landlock"] {
            assert!(
                isolation.security_contexts.iter().any(|has| has == context),
                "{isolation:?}"
            );
        }
        let has_own_user = isolation.security_contexts.iter().any(|has| has == "own-user");
        assert_eq!(has_own_user, level == 3, "{isolation:?}");
        // The same in JSON.
        let json = api.build_as_json(&build_id).await.unwrap();
        assert_eq!(json["isolation"]["sandboxLevel"], level, "{json}");
        assert_eq!(json["tenant"]["tenantId"].as_str().unwrap_or(TENANT), TENANT);
    }
    let mut request: Value = serde_json::from_str(&seed_request(&bench.reference)).unwrap();
    request["config"]["limits"]["sandbox_level"] = 4.into();
    let answer = api.call("CreateBuild", &request.to_string()).await.unwrap();
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(
        answer.body["message"].as_str().unwrap().contains("sandbox_level"),
        "{}",
        answer.body
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_without_its_control_groups_the_service_is_unwell_and_builds_nothing() {
    let Some(bench) = bench() else { return };
    let api = Api::new(bench.daemon.address()).unwrap();
    let health = api.health().await.unwrap();
    assert_eq!(
        (health.status, &health.body["checks"]["isolation"]),
        (200, &"healthy".into())
    );

    // What an operator's clumsy script may do: the groups are empty, so that nothing keeps them.
    for group in boxes::control_groups_of(bench.daemon.process_id()) {
        for directory in boxes::with_all_below(&group) {
            fs::remove_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        }
    }
    until("/health answers 503", async || {
        let health = api.health().await.unwrap();
        health.status == 503 && health.body["checks"]["isolation"] == "unhealthy"
    })
    .await;
    let build_id = api.create(&bench.reference).await.unwrap();
    let build = api.finish(&build_id, |_| {}).await.unwrap();
    assert_eq!(
        build.state(),
        BuildState::Failed,
        "no build runs without its limits"
    );
    // The reason is the operator's, with paths of the machine in it.
    assert!(
        !build.error_message.contains("/sys/fs"),
        "{}",
        build.error_message
    );
}
