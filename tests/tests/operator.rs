//! What an operator does beside a running daemon: tenants, their usage and its cost, and the audit log of all of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use builderd::proto::{BuildState, DeleteBuildRequest, GetBuildRequest};
use builderd_e2e::{
    api::{Api, TENANT},
    daemon::Daemon,
    parts,
};
use serde_json::Value;
use test_support::{
    image::{Image, Layer},
    lab,
    registry::Registry,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with an audit log, and a registry with one image.
struct Site {
    builderd: PathBuf,
    state: tempfile::TempDir,
    daemon: Daemon,
    api: Api,
    reference: String,
    _registry: Registry,
}

impl Site {
    fn start(builderd: PathBuf, settings: &[(&str, &str)]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let log = audit_path(state.path());
        let mut all = vec![
            ("AUDIT_ENABLED", "true"),
            ("AUDIT_LOG_PATH", log.to_str().unwrap()),
        ];
        all.extend(settings);
        let daemon = Daemon::start(&builderd, state.path(), &all).unwrap();
        let registry = Registry::start().unwrap();
        let image = Image::new()
            .layer(&Layer::new().file("bin/sh", b"#!"))
            .cmd(&["/bin/sh"])
            .build();
        Self {
            reference: registry.publish("team/app", "1", &image),
            _registry: registry,
            api: Api::new(daemon.address()).unwrap(),
            builderd,
            state,
            daemon,
        }
    }

    /// Runs `builderd` with the daemon's state.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.builderd);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UNKEY_BUILDERD_") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .args(["--dev", "--state-dir"])
            .arg(self.state.path())
            .output()
            .unwrap()
    }

    fn say(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.say(arguments)).unwrap()
    }

    /// Exit code and words of a command that is refused.
    fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Waits for an event of the audit log.
    async fn event(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(audit_path(self.state.path())).unwrap_or_default();
            let found = text
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .find(|event| is_it(event));
            if let Some(event) = found {
                return event;
            }
            assert!(
                Instant::now() < deadline,
                "no event: {what}\n{text}\n{}",
                self.daemon.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn completed(&self) -> String {
        let build_id = self.api.create(&self.reference).await.unwrap();
        let build = self.api.finish(&build_id, |_| {}).await.unwrap();
        assert_eq!(build.state(), BuildState::Completed, "{}", build.error_message);
        build_id
    }
}

fn audit_path(state: &Path) -> PathBuf {
    state.join("audit.log")
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_changed_beside_a_running_daemon_and_every_change_is_in_the_audit_log() {
    let builderd = match parts::builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let site = Site::start(builderd, &[]);
    site.completed().await;

    let listed = site.json(&["tenant", "list", "--json"]);
    assert_eq!(
        (&listed[0]["tenant_id"], &listed[0]["tier"]),
        (&TENANT.into(), &"pro".into())
    );
    assert!(site.say(&["tenant", "list"]).contains(TENANT));

    let changed = site.json(&[
        "tenant",
        "set-tier",
        TENANT,
        "enterprise",
        "--reason",
        "they paid",
        "--json",
    ]);
    assert_eq!(
        (&changed["tier"], &changed["weight"], &changed["version"]),
        (&"enterprise".into(), &4.into(), &2.into())
    );
    let event = site
        .event("set-tier", |event| event["action"] == "tenant.set-tier")
        .await;
    assert_eq!(
        (
            &event["tenant"],
            &event["actor"]["kind"],
            &event["reason"],
            &event["result"]
        ),
        (&TENANT.into(), &"cli".into(), &"they paid".into(), &"ok".into())
    );
    assert_eq!(
        (&event["change"]["from"]["tier"], &event["change"]["to"]["tier"]),
        (&"pro".into(), &"enterprise".into())
    );
    assert!(
        event["actor"]["id"].as_str().unwrap().starts_with("uid "),
        "{event}"
    );

    let limits = [
        "tenant",
        "set-limits",
        TENANT,
        "--memory",
        "4GiB",
        "--registries",
        "127.0.0.1,quay.io",
    ];
    site.say(&limits);
    site.say(&[
        "tenant",
        "set-limits",
        TENANT,
        "--daily-builds",
        "7",
        "--reset",
        "registries",
    ]);
    let shown = site.json(&["tenant", "show", TENANT, "--json"]);
    assert_eq!(
        shown["limits"],
        serde_json::json!({ "memory_bytes": 4_u64 << 30, "daily_builds": 7 })
    );
    assert_eq!(shown["events"].as_array().unwrap().len(), 3);
    let text = site.say(&["tenant", "show", TENANT]);
    assert!(
        text.contains("daily_builds=7") && text.contains("tenant.set-limits"),
        "{text}"
    );

    let refusals: [(&[&str], i32, &str); 6] = [
        (&["tenant", "show", "nobody"], 66, "there is no tenant nobody"),
        (&["tenant", "set-tier", "nobody", "pro"], 66, "--create"),
        (&["tenant", "set-tier", TENANT, "gold"], 64, "gold"),
        (&["tenant", "set-limits", TENANT], 64, "nothing is to be changed"),
        (
            &["tenant", "set-tier", TENANT, "free", "--if-version", "1"],
            75,
            "version",
        ),
        (&["tenant", "set-limits", TENANT, "--memory", "lots"], 64, "lots"),
    ];
    for (arguments, code, words) in refusals {
        let (found, text) = site.refused(arguments);
        assert!(
            found == code && text.contains(words),
            "{arguments:?}: {found} {text}"
        );
    }
    assert_eq!(site.json(&["tenant", "show", TENANT, "--json"])["version"], 4);
    site.say(&["tenant", "set-tier", "newcomer", "free", "--create"]);

    // The daemon builds on, and by the record as it is now.
    site.completed().await;
    assert_eq!(
        site.json(&["tenant", "list", "--json"]).as_array().unwrap().len(),
        2
    );
    assert!(site.daemon.stop().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_change_or_are_refused_are_in_the_audit_log_and_no_secret_is() {
    let builderd = match parts::builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let site = Site::start(builderd, &[]);
    let build_id = site.completed().await;
    let created = site
        .event("CreateBuild", |event| event["action"] == "CreateBuild")
        .await;
    assert_eq!(
        (
            &created["tenant"],
            &created["target"],
            &created["result"],
            &created["actor"]["kind"]
        ),
        (
            &TENANT.into(),
            &build_id.as_str().into(),
            &"ok".into(),
            &"unchecked".into()
        )
    );
    assert!(
        created["actor"]["address"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );

    // Another tenant's build: refused, and noted although nothing would have changed.
    let foreign = GetBuildRequest {
        build_id: build_id.clone(),
        tenant_id: "mallory".into(),
    };
    site.api.grpc().get_build(foreign).await.unwrap_err();
    let refused = site
        .event("GetBuild", |event| event["action"] == "GetBuild")
        .await;
    assert_eq!(
        (
            &refused["tenant"],
            &refused["target"],
            &refused["result"],
            &refused["code"]
        ),
        (
            &"mallory".into(),
            &build_id.as_str().into(),
            &"refused".into(),
            &"PERMISSION_DENIED".into()
        )
    );

    // A request with a password that is refused for something else.
    let body = serde_json::json!({ "config": {
        "tenant": { "tenant_id": TENANT },
        "source": { "docker_image": { "image_uri": "no such form", "auth": { "username": "u", "password": "hunter2-secret" } } },
        "target": { "microvm_rootfs": {} },
    } });
    let answer = site.api.call("CreateBuild", &body.to_string()).await.unwrap();
    assert_eq!(answer.status, 400);
    site.event("a refused CreateBuild", |event| {
        event["action"] == "CreateBuild" && event["code"] == "INVALID_ARGUMENT"
    })
    .await;

    let delete = DeleteBuildRequest {
        build_id: build_id.clone(),
        tenant_id: TENANT.into(),
        force: false,
    };
    site.api.grpc().delete_build(delete).await.unwrap();
    let deleted = site
        .event("DeleteBuild", |event| event["action"] == "DeleteBuild")
        .await;
    assert_eq!(
        (&deleted["target"], &deleted["result"]),
        (&build_id.as_str().into(), &"ok".into())
    );
    let text = fs::read_to_string(audit_path(site.state.path())).unwrap();
    assert!(!text.contains("hunter2"), "{text}");
    assert!(site.daemon.stop().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_without_a_token_are_in_the_audit_log_whatever_they_speak() {
    let builderd = match parts::builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let tokens = tempfile::NamedTempFile::new().unwrap();
    let site = Site::start(
        builderd,
        &[
            ("AUTH_MODE", "bearer"),
            ("AUTH_TOKENS_FILE", tokens.path().to_str().unwrap()),
        ],
    );
    let request = GetBuildRequest {
        build_id: "build-x".into(),
        tenant_id: TENANT.into(),
    };
    site.api.grpc().get_build(request).await.unwrap_err();
    site.api.call("ListBuilds", "{}").await.unwrap();
    for method in ["GetBuild", "ListBuilds"] {
        let event = site.event(method, |event| event["action"] == method).await;
        assert_eq!(
            (&event["code"], &event["actor"]["kind"], &event["result"]),
            (&"UNAUTHENTICATED".into(), &"unknown".into(), &"refused".into()),
            "{event}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_audit_log_neither_blocks_nor_ends_a_build() {
    let builderd = match parts::builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    // Every write to it fails as on a full disk.
    let site = Site::start(builderd, &[("AUDIT_LOG_PATH", "/dev/full")]);
    let build_id = site.completed().await;
    assert!(site.api.build(&build_id).await.is_ok());
    let deadline = Instant::now() + PATIENCE;
    while !site.daemon.log().contains("Events of the audit log are lost") {
        assert!(Instant::now() < deadline, "{}", site.daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(site.daemon.stop().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_exported_with_stable_ids_and_priced() {
    let builderd = match parts::builderd() {
        Ok(builderd) => builderd,
        Err(missing) => return lab::skip(missing),
    };
    let site = Site::start(builderd, &[]);
    // Rows as builds and days leave them, of known figures.
    let database = rusqlite::Connection::open(site.state.path().join("data/builderd.db"));
    let database = database.unwrap();
    database.busy_timeout(PATIENCE).unwrap();
    let insert = |id: &str,
                  kind: &str,
                  customer: &str,
                  refunded: bool,
                  ended: &str,
                  cpu_ms: i64,
                  pulled: i64,
                  byte_seconds: i64| {
        let outcome = if kind == "build" { "completed" } else { "stored" };
        database
            .execute(
                "INSERT INTO ledger (event_id, kind, build_id, tenant_id, customer_id, tier, outcome, refunded, started_at,
                    ended_at, wall_ms, cpu_ms, peak_memory_bytes, pulled_bytes, stored_bytes, stored_byte_seconds)
                 VALUES (?1, ?2, ?1, 'billed', ?3, 'pro', ?4, ?5, NULL, unixepoch(?6) * 1000000, 1000, ?7, 0, ?8, 0, ?9)",
                rusqlite::params![id, kind, customer, outcome, refunded, ended, cpu_ms, pulled, byte_seconds],
            )
            .unwrap();
    };
    insert(
        "build-1",
        "build",
        "one, \"the first\"",
        false,
        "2026-01-31 23:59:59",
        90_000,
        1 << 30,
        0,
    );
    insert(
        "build-2",
        "build",
        "two",
        true,
        "2026-02-01 00:00:00",
        60_000,
        0,
        0,
    );
    insert(
        "build-1.storage.2026-02-01",
        "storage",
        "one, \"the first\"",
        false,
        "2026-02-02 00:00:00",
        0,
        0,
        (2 * 86_400) << 30,
    );
    let prices = site.state.path().join("prices.json");
    let table = r#"{"currency":"EUR","default":{"build":"0.5","cpu_minute":"0.2","gib_pulled":"0.01","gib_day_stored":"0.001"}}"#;
    fs::write(&prices, table).unwrap();
    let prices = prices.to_str().unwrap();

    let lines = site.say(&[
        "usage", "export", "--format", "jsonl", "--tenant", "billed", "--prices", prices,
    ]);
    let rows: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let figures: Vec<_> = rows
        .iter()
        .map(|row| (row["event_id"].as_str().unwrap(), row["cost"].as_str().unwrap()))
        .collect();
    assert_eq!(
        figures,
        [
            ("build-1", "0.81"),
            ("build-2", "0.00"),
            ("build-1.storage.2026-02-01", "0.002")
        ]
    );
    assert_eq!(rows[0]["ended_at"], "2026-01-31T23:59:59.000000Z");
    assert_eq!(rows[0]["customer_id"], "one, \"the first\"");

    // The next export goes on where the last one ended; a time is of what ended then or later.
    let after = rows[0]["sequence"].to_string();
    let next = site.say(&["usage", "export", "--tenant", "billed", "--after", &after]);
    assert_eq!(next.lines().count(), 3, "{next}");
    let since = site.say(&["usage", "export", "--tenant", "billed", "--since", "2026-02-01"]);
    assert_eq!(since, next);
    let first = site.say(&[
        "usage",
        "export",
        "--tenant",
        "billed",
        "--until",
        "2026-02-01T00:00:00Z",
    ]);
    let row = first.lines().nth(1).unwrap();
    assert!(
        row.contains(
            r#"billed,"one, ""the first""",pro,completed,false,,2026-01-31T23:59:59.000000Z,1000,90000,"#
        ),
        "{row}"
    );

    let costs = site.json(&[
        "usage", "cost", "--by", "customer", "--tenant", "billed", "--prices", prices, "--json",
    ]);
    let costs: Vec<_> = costs
        .as_array()
        .unwrap()
        .iter()
        .map(|sum| {
            (
                sum["customer_id"].as_str().unwrap(),
                sum["cost"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(costs, [("one, \"the first\"", "0.812"), ("two", "0.00")]);
    let text = site.say(&["usage", "cost", "--tenant", "billed", "--prices", prices]);
    assert!(text.contains("0.812 EUR"), "{text}");

    let (code, words) = site.refused(&["usage", "export", "--since", "yesterday"]);
    assert!(code == 64 && words.contains("yesterday"), "{code} {words}");
    fs::write(site.state.path().join("wrong.json"), "{}").unwrap();
    let wrong = site.state.path().join("wrong.json");
    let (code, words) = site.refused(&["usage", "cost", "--prices", wrong.to_str().unwrap()]);
    assert!(code == 64 && words.contains("currency"), "{code} {words}");
}
