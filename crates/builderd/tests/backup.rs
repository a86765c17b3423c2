//! A backup that is taken while builds run holds all of them, and a daemon that starts on it finishes them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use builderd::{
    config::{Config, Values},
    daemon::Daemon,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use test_support::{
    image::{Image, Layer},
    registry::Registry,
};

/// Longer than all builds take on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(240);

const BUILDS: usize = 50;

async fn start(state: &Path) -> Daemon {
    let environment = [(OsString::from("UNKEY_BUILDERD_PORT"), OsString::from("0"))];
    let values = Values::collect(environment, |_| None, Some(state)).unwrap();
    let config = Config::from_values(&values, true).unwrap();
    let worker = vec![
        OsString::from(env!("CARGO_BIN_EXE_builderd")),
        OsString::from("worker"),
    ];
    Daemon::start(&config, worker).await.unwrap()
}

async fn call(daemon: &Daemon, method: &str, body: Value) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/builder.v1.BuilderService/{method}", daemon.address());
    let request = client
        .post(url)
        .header("content-type", "application/json")
        .body(body.to_string());
    request.send().await.unwrap().json().await.unwrap()
}

async fn builds(daemon: &Daemon) -> Vec<Value> {
    let body = json!({"tenant_id": "acme", "page_size": 200});
    let answer = call(daemon, "ListBuilds", body).await;
    answer["builds"].as_array().cloned().unwrap_or_default()
}

fn count(builds: &[Value], state: &str) -> usize {
    builds
        .iter()
        .filter(|build| build["state"] == format!("BUILD_STATE_{state}"))
        .count()
}

/// Waits until so many builds have completed.
async fn completed(daemon: &Daemon, wanted: usize) -> Vec<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let builds = builds(daemon).await;
        assert_eq!(count(&builds, "FAILED"), 0, "{builds:?}");
        if count(&builds, "COMPLETED") >= wanted {
            return builds;
        }
        assert!(Instant::now() < deadline, "{builds:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn backup(state: &Path, output: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_builderd"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("UNKEY_BUILDERD_") {
            command.env_remove(name);
        }
    }
    command
        .arg("backup")
        .arg(output)
        .args(["--dev", "--state-dir"])
        .arg(state)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_during_fifty_builds_misses_none_of_them() {
    let registry = Registry::start().unwrap();
    let state = tempfile::tempdir().unwrap();
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("builderd.db");
    let daemon = start(state.path()).await;
    for n in 0..BUILDS {
        let layer = Layer::new().file("etc/number", n.to_string().as_bytes());
        let image = Image::new().layer(&layer).cmd(&["/bin/sh"]).build();
        let reference = registry.publish("team/app", &n.to_string(), &image);
        let config = json!({
            "tenant": {"tenant_id": "acme"},
            "source": {"docker_image": {"image_uri": reference}},
            "target": {"microvm_rootfs": {"init_strategy": "INIT_STRATEGY_TINI"}},
            "strategy": {"docker_extract": {}},
        });
        let answer = call(&daemon, "CreateBuild", json!({ "config": config })).await;
        assert!(answer["buildId"].is_string(), "{answer}");
    }
    completed(&daemon, 3).await;
    let taken = backup(state.path(), &output);
    assert!(
        taken.status.success(),
        "{}",
        String::from_utf8_lossy(&taken.stderr)
    );
    let said = String::from_utf8_lossy(&taken.stdout).into_owned();
    assert!(said.contains(&format!("{BUILDS} builds")), "{said}");
    assert_eq!(output.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        fs::read_dir(place.path()).unwrap().count(),
        1,
        "the copy needs no other file"
    );
    // What is there is never replaced.
    let again = backup(state.path(), &output);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        again.status.code() == Some(73) && said.contains("is there already"),
        "{said}"
    );

    let before = completed(&daemon, BUILDS).await;
    daemon.shutdown(Duration::from_secs(20)).await;

    // As docs/operations says it: the copy in the place of the database, without what belonged to the old one.
    let data = state.path().join("data");
    for name in ["builderd.db", "builderd.db-wal", "builderd.db-shm"] {
        let _ = fs::remove_file(data.join(name));
    }
    fs::copy(&output, data.join("builderd.db")).unwrap();
    let daemon = start(state.path()).await;
    let after = completed(&daemon, BUILDS).await;
    let id = |build: &Value| build["buildId"].as_str().unwrap().to_owned();
    let mut expected: Vec<_> = before
        .iter()
        .map(|build| (id(build), build["rootfsChecksum"].clone()))
        .collect();
    let mut found: Vec<_> = after
        .iter()
        .map(|build| (id(build), build["rootfsChecksum"].clone()))
        .collect();
    expected.sort_by(|left, right| left.0.cmp(&right.0));
    found.sort_by(|left, right| left.0.cmp(&right.0));
    assert_eq!(found, expected);
    for build in &after {
        let image = fs::read(build["rootfsPath"].as_str().unwrap()).unwrap();
        assert_eq!(
            build["rootfsChecksum"].as_str().unwrap(),
            hex::encode(Sha256::digest(&image)),
            "{build}"
        );
    }
    daemon.shutdown(Duration::from_secs(20)).await;
}

#[test]
fn a_backup_of_nothing_says_so_and_leaves_nothing() {
    let state = tempfile::tempdir().unwrap();
    let place = tempfile::tempdir().unwrap();
    let none = backup(state.path(), &place.path().join("copy.db"));
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(
        none.status.code() == Some(69) && said.contains("there is no database"),
        "{said}"
    );
    // Neither is there anything left of one that is no database of ours.
    fs::create_dir_all(state.path().join("data")).unwrap();
    fs::write(state.path().join("data/builderd.db"), b"").unwrap();
    let empty = backup(state.path(), &place.path().join("copy.db"));
    assert!(!empty.status.success(), "{empty:?}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}
