//! A service that is killed at each step of a build, and at any other moment: whatever it was doing, the next one has
//! every build, with its image and its log, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "bin/serve/mod.rs"]
#[allow(dead_code, reason = "its main function is for the process of its own")]
mod serve;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use builder_core::{
    build::{Build, BuildId, BuildState},
    event::LogLine,
    service::Builder,
};
use common::{PATIENCE, files_below, request, sample, worker_command};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tenant::TenantId;
use test_support::registry::Registry;

fn alice() -> TenantId {
    "alice".parse().unwrap()
}

/// A service in a process of its own with one build, and the build's name if it got as far as saying it.
fn serve(directory: &Path, reference: &str, die_at: Option<&str>) -> (Child, Option<BuildId>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_builder-core-test-worker"));
    command
        .arg("serve")
        .arg(directory)
        .arg(serde_json::to_string(&request(reference)).unwrap())
        .stdout(Stdio::piped());
    if let Some(start) = die_at {
        command.env(serve::DIE_AT, start);
    }
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    (child, line.trim().parse().ok())
}

/// Starts the next service, and lets it build what there is.
async fn take_up(directory: &Path) -> (Builder, Vec<(Build, Vec<LogLine>)>) {
    let builder = Builder::start(serve::config(directory, worker_command("worker")))
        .await
        .unwrap();
    let query = builder_core::service::ListQuery {
        tenant: alice(),
        states: Vec::new(),
        page_size: 0,
        page_token: String::new(),
    };
    let mut ended = Vec::new();
    for build in builder.list(query).await.unwrap().builds {
        let log = builder.logs(alice(), build.id, 0, true).map(Result::unwrap);
        let log = tokio::time::timeout(PATIENCE, log.collect::<Vec<_>>())
            .await
            .expect("the build ends");
        ended.push((builder.get(&alice(), &build.id).await.unwrap(), log));
    }
    (builder, ended)
}

/// Everything that must be so after any crash.
fn check(directory: &Path, ended: &[(Build, Vec<LogLine>)], case: &str) {
    for (build, log) in ended {
        assert_eq!(
            build.state,
            BuildState::Completed,
            "{case}: {:?}",
            build.error_message
        );
        let image = fs::read(&build.rootfs_path).unwrap();
        assert_eq!(
            build.rootfs_checksum.as_deref(),
            Some(hex::encode(Sha256::digest(&image)).as_str()),
            "{case}"
        );
        let metadata = builder_core::pipeline::metadata_path(&build.rootfs_path);
        serde_json::from_slice::<serde_json::Value>(&fs::read(metadata).unwrap()).unwrap();
        let sequences: Vec<u64> = log.iter().map(|line| line.sequence).collect();
        assert_eq!(sequences, (1..=log.len() as u64).collect::<Vec<_>>(), "{case}");
        assert!(
            log.last().unwrap().message.starts_with("The build is complete"),
            "{case}"
        );
    }
    assert_eq!(
        files_below(&directory.join("output")).len(),
        3 * ended.len(),
        "{case}"
    );
    for place in ["workspace/cache/packs/tmp", "workspace/staging"] {
        assert_eq!(files_below(&directory.join(place)).len(), 0, "{case}: {place}");
    }
    let database = rusqlite::Connection::open(directory.join("database/builderd.db")).unwrap();
    let sound: String = database
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(sound, "ok", "{case}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_killed_at_any_step_loses_nothing() {
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample().build());
    for step in [
        "Accepted",
        "The build begins",
        "Resolved",
        "Indexed layer",
        "Published the image",
        "The build is complete",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (mut killed, id) = serve(directory.path(), &reference, Some(step));
        let status = killed.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{step}: {status}");
        let (_builder, ended) = take_up(directory.path()).await;
        let ids: Vec<_> = ended.iter().map(|(build, _)| build.id).collect();
        assert_eq!(ids.len(), 1, "{step}");
        assert!(id.is_none_or(|id| id == ids[0]), "{step}");
        check(directory.path(), &ended, step);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_killed_while_it_copies_or_notes_an_image_loses_nothing() {
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample().build());
    for step in ["Reused the image", "Published the image"] {
        let directory = tempfile::tempdir().unwrap();
        // The image of the first build is the one that the second copies.
        for die_at in ["The build is complete", step] {
            let (mut killed, _) = serve(directory.path(), &reference, Some(die_at));
            assert_eq!(killed.wait().unwrap().signal(), Some(9), "{step}");
        }
        // What a write that was cut short by the kill leaves, beside the record that it was to replace.
        let records = files_below(&directory.path().join("workspace/cache/images"));
        for record in records {
            let text = fs::read(&record).unwrap();
            fs::write(
                record.with_file_name(".unfinished-killed"),
                &text[..text.len() / 2],
            )
            .unwrap();
        }
        let (_builder, ended) = take_up(directory.path()).await;
        assert_eq!(ended.len(), 2, "{step}");
        check(directory.path(), &ended, step);
        let reused = |log: &[LogLine]| {
            log.iter()
                .any(|line| line.message.starts_with("Reused the image"))
        };
        assert!(
            ended.iter().any(|(_, log)| reused(log)),
            "{step}: no image was reused"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_killed_again_and_again_loses_nothing() {
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample().build());
    let directory = tempfile::tempdir().unwrap();
    let mut accepted = Vec::new();
    // Whatever moments these are on this machine: the promise holds for every one. Two, because a build that was running
    // at three deaths is given up.
    for milliseconds in [20, 90] {
        let (mut killed, id) = serve(directory.path(), &reference, None);
        accepted.extend(id);
        std::thread::sleep(Duration::from_millis(milliseconds));
        killed.kill().unwrap();
        killed.wait().unwrap();
    }
    let (_builder, ended) = take_up(directory.path()).await;
    let ids: Vec<_> = ended.iter().rev().map(|(build, _)| build.id).collect();
    assert_eq!(ids, accepted);
    check(directory.path(), &ended, "killed again and again");
}
