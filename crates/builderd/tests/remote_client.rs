//! `builderd-cli` against a real daemon: every command, what it prints, and the code it ends with.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    ffi::OsString,
    path::Path,
    process::{Output, Stdio},
};

use builderd::{
    config::{Config, Values},
    daemon::Daemon,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use test_support::{
    image::{Image, Layer},
    registry::{Misbehaviour, Registry},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

struct Bench {
    daemon: Daemon,
    state: TempDir,
    registry: Registry,
    reference: String,
}

impl Bench {
    async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let daemon = start_on(state.path(), 0).await;
        let registry = Registry::start().unwrap();
        let image = Image::new()
            .layer(&Layer::new().file("bin/sh", b"#!"))
            .cmd(&["/bin/sh"])
            .build();
        let reference = registry.publish("team/app", "1", &image);
        Self {
            daemon,
            state,
            registry,
            reference,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_builderd-cli"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UNKEY_BUILDERD_") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .env(
                "UNKEY_BUILDERD_SERVER_ADDRESS",
                format!("http://{}", self.daemon.address()),
            )
            .env("UNKEY_BUILDERD_TENANT_ID", "acme")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.unwrap()
    }

    /// Runs a command that must work, for its standard output.
    async fn stdout(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let text = self.stdout(arguments).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }
}

async fn start_on(state: &Path, port: u16) -> Daemon {
    let environment = [(
        OsString::from("UNKEY_BUILDERD_PORT"),
        OsString::from(port.to_string()),
    )];
    let values = Values::collect(environment, |_| None, Some(state)).unwrap();
    let config = Config::from_values(&values, true).unwrap();
    let worker = vec![
        OsString::from(env!("CARGO_BIN_EXE_builderd")),
        OsString::from("worker"),
    ];
    Daemon::start(&config, worker).await.unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_created_followed_shown_and_listed() {
    let bench = Bench::start().await;
    let followed = bench
        .run(&[
            "create-build",
            "--follow",
            "--name",
            "nightly",
            "--label",
            "a=b",
            "--init",
            "direct",
            "--remove-docs",
            "--exclude",
            "/absent",
            "--preserve",
            "/bin",
            &bench.reference,
        ])
        .await;
    assert!(followed.status.success(), "{}", errors(&followed));
    let record = String::from_utf8(followed.stdout.clone()).unwrap();
    assert!(record.contains("state    "), "{record}");
    assert!(
        record.contains("COMPLETED") && record.contains("nightly"),
        "{record}"
    );
    assert!(
        record.contains("0 bytes of 0 files by exclude_patterns, 0 bytes of 0 files by remove_docs"),
        "{record}"
    );
    // The log went along on standard error.
    assert!(errors(&followed).lines().count() > 2, "{}", errors(&followed));

    let listed = bench
        .json(&["list-builds", "--json", "--state", "completed"])
        .await;
    assert_eq!(listed["totalCount"], 1);
    let id = listed["builds"][0]["buildId"].as_str().unwrap().to_owned();
    assert!(errors(&followed).contains(&id));
    let table = bench.stdout(&["list-builds"]).await;
    assert!(
        table.starts_with("BUILD ") && table.contains(&id) && table.contains(&bench.reference),
        "{table}"
    );
    let none = bench.json(&["list-builds", "--json", "--state", "failed"]).await;
    assert_eq!(none["builds"], serde_json::json!([]));

    let build = bench.json(&["get-build", &id, "--json"]).await;
    assert_eq!(build["build"]["config"]["labels"]["a"], "b");
    let rootfs = &build["build"]["config"]["target"]["microvmRootfs"];
    assert_eq!(rootfs["initStrategy"], "INIT_STRATEGY_DIRECT");
    assert_eq!(rootfs["optimization"]["removeDocs"], true);
    assert_eq!(rootfs["optimization"]["excludePatterns"][0], "/absent");
    assert!(rootfs.to_string().contains(r#"["/bin"]"#), "{rootfs}");
    let image = build["build"]["rootfsPath"].as_str().unwrap();
    assert!(Path::new(image).is_file());
    // Nothing was registered: there is no name for it, not an empty one.
    assert_eq!(build["build"].get("assetId"), None);
    assert_eq!(build["build"].get("errorMessage"), None);

    let log = bench.stdout(&["stream-logs", &id, "--json"]).await;
    let sequences: Vec<_> = log
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["sequence"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let expected: Vec<_> = (1..=sequences.len())
        .map(|sequence| sequence.to_string())
        .collect();
    assert_eq!(sequences, expected);
    let rest = bench
        .stdout(&["stream-logs", &id, "--json", "--from-sequence", "3", "--follow"])
        .await;
    assert_eq!(rest.lines().count(), sequences.len() - 2);

    // Every line is an object that says what it is.
    let followed = bench
        .stdout(&["create-build", "--follow", "--json", &bench.reference])
        .await;
    let kinds: Vec<_> = followed
        .lines()
        .map(|line| {
            let value: Value = serde_json::from_str(line).unwrap();
            value.as_object().unwrap().keys().next().unwrap().clone()
        })
        .collect();
    assert_eq!(kinds.first().map(String::as_str), Some("created"));
    assert_eq!(kinds.last().map(String::as_str), Some("build"));
    assert!(kinds[1..kinds.len() - 1].iter().all(|kind| kind == "log") && kinds.len() > 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_scripts_what_happened() {
    let bench = Bench::start().await;
    let missing = bench.registry.reference("team/app", "missing");
    let no_build = "build-00000000000070008000000000000000";
    let encrypted = format!("https://{}", bench.daemon.address());
    let authority = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/authority.pem");
    for (code, arguments, said) in [
        (1, vec!["create-build", "--follow", &missing], ""),
        (
            64,
            vec!["create-build", "UPPER/case"],
            "config.source.docker_image.image_uri",
        ),
        (64, vec!["create-build"], "IMAGE"),
        (
            64,
            vec!["get-build", "nonsense"],
            "INVALID_ARGUMENT: build_id: expected",
        ),
        (
            64,
            vec!["get-build", no_build, "--tenant", "a/b"],
            "INVALID_ARGUMENT: tenant_id",
        ),
        (
            64,
            vec!["get-build", no_build, "--server", "localhost:1"],
            "--server: expected http://",
        ),
        (
            64,
            vec!["get-build", no_build, "--server", "http://u:p@localhost:1"],
            "--server: expected http://",
        ),
        (
            64,
            vec![
                "get-build",
                no_build,
                "--server",
                "https://localhost:1",
                "--tls-mode",
                "spiffe",
                "--tls-ca",
                "/dev/null",
            ],
            "not with --tls-mode spiffe",
        ),
        (
            64,
            vec![
                "get-build",
                no_build,
                "--server",
                "https://localhost:1",
                "--tls-mode",
                "disabled",
            ],
            "needs an http://",
        ),
        (
            69,
            vec![
                "get-build",
                no_build,
                "--server",
                "https://localhost:1",
                "--tls-mode",
                "spiffe",
                "--spiffe-socket",
                "/nonexistent/agent.sock",
            ],
            "--spiffe-socket: no agent answers at /nonexistent/agent.sock: No such file",
        ),
        (
            64,
            vec!["get-build", no_build, "--tls-mode", "system"],
            "needs an https://",
        ),
        (
            64,
            vec!["get-build", no_build, "--tls-ca", "/dev/null"],
            "nothing is encrypted",
        ),
        (64, vec!["list-builds", "--state", "done"], "expected pending"),
        (66, vec!["get-build", no_build], "NOT_FOUND: "),
        (66, vec!["stream-logs", "--follow", no_build], "NOT_FOUND: "),
        (
            69,
            vec!["get-build", no_build, "--server", "http://127.0.0.1:1"],
            "cannot be reached",
        ),
        (
            69,
            vec![
                "get-build",
                no_build,
                "--server",
                &encrypted,
                "--tls-ca",
                authority,
            ],
            "it does not speak TLS; a service without TLS is reached by an http:// address",
        ),
    ] {
        let output = bench.run(&arguments).await;
        let errors = errors(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(said), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
    }
    let output = bench.run(&["get-build", no_build, "--json"]).await;
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "NOT_FOUND");
    assert_eq!(error["error"]["exit_code"], 66);

    let ended = bench.json(&["list-builds", "--json", "--state", "failed"]).await;
    let id = ended["builds"][0]["buildId"].as_str().unwrap();
    let output = bench.run(&["cancel-build", id]).await;
    assert_eq!(output.status.code(), Some(65), "{}", errors(&output));
    let other = bench.run(&["get-build", id, "--tenant", "other"]).await;
    assert_eq!(other.status.code(), Some(77), "{}", errors(&other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_request_may_come_from_a_file() {
    let bench = Bench::start().await;
    let file = bench.state.path().join("request.json");
    let request = |tenant: &str| {
        serde_json::json!({"config": {
            "tenant": {"tenant_id": tenant},
            "source": {"docker_image": {"image_uri": bench.reference, "auth": {"username": "u", "password": "hunter2"}}},
            "target": {"microvm_rootfs": {}},
        }})
        .to_string()
    };
    let path = file.to_str().unwrap();
    std::fs::write(&file, request("")).unwrap();
    let created = bench.json(&["create-build", "--json", "--request", path]).await;
    assert_eq!(created["state"], "BUILD_STATE_PENDING");
    for (content, said) in [
        (request("other"), "--tenant is \"acme\""),
        (
            request("").replace("\"hunter2\"", "[\"hunter2\"]"),
            "of another type",
        ),
        (request("").replace('}', ""), "expected JSON"),
    ] {
        std::fs::write(&file, content).unwrap();
        let output = bench.run(&["create-build", "--request", path]).await;
        assert_eq!(output.status.code(), Some(64));
        let errors = errors(&output);
        assert!(errors.contains(said) && !errors.contains("hunter2"), "{errors}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn following_goes_on_after_the_service_was_away() {
    let bench = Bench::start().await;
    // The build stands still until it is let go.
    bench.registry.misbehave("/blobs/", Misbehaviour::StallAt(0));
    let mut child = bench
        .command(&["create-build", "--follow", "--json", &bench.reference])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let created: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    let id = created["created"]["buildId"].as_str().unwrap().to_owned();
    let first: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!(first["log"]["sequence"], "1");

    let port = bench.daemon.address().port();
    let Bench {
        daemon,
        state,
        registry,
        ..
    } = bench;
    daemon.shutdown(std::time::Duration::ZERO).await;
    registry.behave();
    registry.release();
    // What is waited for is the port: the follower may be connecting to it just now.
    let daemon = start_on(state.path(), port).await;

    let mut sequences = vec![1];
    let mut last = Value::Null;
    while let Some(line) = lines.next_line().await.unwrap() {
        let value: Value = serde_json::from_str(&line).unwrap();
        match value["log"]["sequence"].as_str() {
            Some(sequence) => sequences.push(sequence.parse::<i64>().unwrap()),
            None => last = value,
        }
    }
    let output = child.wait_with_output().await.unwrap();
    let expected: Vec<_> = (1..=i64::try_from(sequences.len()).unwrap()).collect();
    assert_eq!(sequences, expected, "{}", errors(&output));
    assert_eq!(last["build"]["buildId"], id.as_str(), "{}", errors(&output));
    assert_eq!(
        last["build"]["state"],
        "BUILD_STATE_COMPLETED",
        "{}",
        errors(&output)
    );
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert!(
        errors(&output).contains("going on with line"),
        "{}",
        errors(&output)
    );
    daemon.shutdown(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_follower_says_how_to_go_on() {
    let bench = Bench::start().await;
    bench.registry.misbehave("/blobs/", Misbehaviour::StallAt(0));
    let mut child = bench
        .command(&["create-build", "--follow", "--json", &bench.reference])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let created: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    let id = created["created"]["buildId"].as_str().unwrap().to_owned();
    // The first line of the log shows that the follower follows, with its handler in place.
    lines.next_line().await.unwrap().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", errors(&output));
    let said = errors(&output);
    assert!(said.contains("the build goes on") && said.contains(&id), "{said}");
    let cancelled = bench.stdout(&["cancel-build", &id]).await;
    assert!(cancelled.contains("CANCELLED"), "{cancelled}");
    bench.registry.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_get_completions_without_a_service() {
    let bench = Bench::start().await;
    for shell in ["bash", "zsh", "fish"] {
        let script = bench.stdout(&["completions", shell]).await;
        assert!(
            script.contains("create-build") && script.contains("tls-mode"),
            "{shell}"
        );
    }
}
