//! Dashboards and alert rules against Debian's Prometheus: every metric in them is there, and every panel shows something.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use test_support::{
    assetmanagerd::FakeAssetManager,
    image::{Image, Layer},
    lab,
    registry::{Misbehaviour, Registry},
};

use super::{Daemon, PATIENCE, sample};

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(name)
}

/// Ends with its scope.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Fails only when it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The expressions of all panels, with their titles.
fn panels(name: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(deploy(name)).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().clone();
    let targets = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets
            .into_iter()
            .map(move |target| (title.clone(), target["expr"].as_str().unwrap().to_owned()))
    });
    targets.collect()
}

/// The metrics of ours that a text names.
fn metrics_of(text: &str) -> BTreeSet<String> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
        .filter(|word| word.starts_with("builderd_"))
        .map(str::to_owned)
        .collect()
}

/// Beside the running daemon, as an operator does.
fn refuse_all_builds(state: &Path, tenant: &str) {
    let limited = Command::new(env!("CARGO_BIN_EXE_builderd"))
        .env_clear()
        .args([
            "tenant",
            "set-limits",
            tenant,
            "--daily-builds",
            "0",
            "--create",
            "--dev",
        ])
        .arg("--state-dir")
        .arg(state)
        .output()
        .unwrap();
    assert!(limited.status.success(), "{limited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_shows_something_and_every_rule_is_sound() {
    let programs = lab::program("prometheus", "prometheus")
        .and_then(|prometheus| Ok((prometheus, lab::program("promtool", "prometheus")?)));
    let (prometheus, promtool) = match programs {
        Ok(programs) => programs,
        Err(missing) => return lab::skip(missing),
    };
    let rules = deploy("prometheus/builderd.rules.yml");
    let checked = Command::new(promtool)
        .args(["check", "rules"])
        .arg(&rules)
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}{}",
        String::from_utf8_lossy(&checked.stdout),
        String::from_utf8_lossy(&checked.stderr)
    );

    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample());
    let slow = Image::new().layer(&Layer::new().file("a", [7; 70_000])).build();
    let stalled = registry.publish("team/slow", "1", &slow);
    let assets = FakeAssetManager::start().unwrap();
    let state = tempfile::tempdir().unwrap();
    let asset_endpoint = assets.endpoint();
    let daemon = Daemon::start(
        state.path(),
        &[
            ("OTEL_ENABLED", "true"),
            // Nobody listens there: what Prometheus sees does not depend on a collector.
            ("OTEL_ENDPOINT", "127.0.0.1:1"),
            ("OTEL_HIGH_CARDINALITY_ENABLED", "true"),
            ("ASSETMANAGER_ENABLED", "true"),
            ("ASSETMANAGER_ENDPOINT", &asset_endpoint),
        ],
    );
    refuse_all_builds(state.path(), "greedy");
    let place = tempfile::tempdir().unwrap();
    let config = place.path().join("prometheus.yml");
    let text = json!({
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [rules.canonicalize().unwrap()],
        "scrape_configs": [{
            "job_name": "builderd",
            "static_configs": [{"targets": [daemon.metrics.unwrap().to_string()]}],
        }],
    });
    fs::write(&config, text.to_string()).unwrap();
    let mut child = Command::new(prometheus)
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            place.path().join("data").display()
        ))
        .arg("--web.listen-address=127.0.0.1:0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stderr.take().unwrap());
    let _prometheus = Prometheus(child);
    let (found, address) = mpsc::channel();
    std::thread::spawn(move || {
        // Reads on to the end: a full pipe would stop it.
        for line in output.lines().map_while(Result::ok) {
            if let Some((_, address)) = line.split_once("msg=\"Listening on\" address=") {
                let _ = found.send(address.to_owned());
            }
        }
    });
    let address: String = address.recv_timeout(PATIENCE).unwrap();

    // Again and again until all is seen: a rate needs two samples with a difference between them.
    let expressions: Vec<(String, String)> = ["grafana/builderd.json", "grafana/builderd-tenants.json"]
        .into_iter()
        .flat_map(panels)
        .collect();
    assert!(expressions.len() > 30, "{expressions:?}");
    let mut open = expressions.clone();
    let deadline = Instant::now() + 2 * PATIENCE;
    let mut round: u32 = 0;
    while !open.is_empty() {
        // Another one each time: no worker runs for an image that is there, so there is no memory of one.
        round += 1;
        let content = round.to_be_bytes();
        let fresh = Image::new().layer(&Layer::new().file("round", content)).build();
        let fresh = registry.publish("team/app", &format!("round-{round}"), &fresh);
        daemon.build(&fresh, &[]).await;
        daemon.build(&reference.replace(":1", ":none"), &[]).await;
        registry.misbehave("team/slow/blobs", Misbehaviour::Hang);
        let cancelled = daemon.create(&stalled, &[]).await;
        daemon.wait(&cancelled, &["_PULLING"]).await;
        let body = json!({"build_id": cancelled, "tenant_id": "acme"});
        daemon.call("CancelBuild", body, &[]).await;
        registry.behave();
        registry.release();
        // Refused, each time.
        let config = json!({
            "tenant": {"tenant_id": "greedy"},
            "source": {"docker_image": {"image_uri": reference.replace(":1", ":none")}},
            "target": {"microvm_rootfs": {"init_strategy": "INIT_STRATEGY_TINI"}},
            "strategy": {"docker_extract": {}},
        });
        daemon.call("CreateBuild", json!({ "config": config }), &[]).await;
        let mut empty = Vec::new();
        for (title, expression) in open {
            let query = expression.replace("$__rate_interval", "1m");
            let mut url = reqwest::Url::parse(&format!("http://{address}/api/v1/query")).unwrap();
            url.query_pairs_mut().append_pair("query", &query);
            let answer = daemon.http.get(url).send().await.unwrap();
            let answer: Value = answer.json().await.unwrap();
            assert_eq!(answer["status"], "success", "{title}: {query}: {answer}");
            let has_any = answer["data"]["result"]
                .as_array()
                .is_some_and(|series| series.iter().any(|one| one["value"][1] != "NaN"));
            if !has_any {
                empty.push((title, expression));
            }
        }
        open = empty;
        assert!(open.is_empty() || Instant::now() < deadline, "empty: {open:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    let scraped = daemon.scrape().await;
    let there: BTreeSet<String> = scraped
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .map(str::to_owned)
        .collect();
    let rules = fs::read_to_string(&rules).unwrap();
    let mut named = metrics_of(&rules);
    for (_, expression) in &expressions {
        named.extend(metrics_of(expression));
    }
    for name in named {
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(&name);
        assert!(there.contains(base), "{name} is not in {there:?}");
    }
    let url = format!("http://{address}/api/v1/rules");
    let answer: Value = daemon.http.get(url).send().await.unwrap().json().await.unwrap();
    let groups = answer["data"]["groups"].as_array().unwrap();
    let loaded: Vec<&Value> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    assert!(loaded.len() > 8, "{answer}");
    assert!(loaded.iter().all(|rule| rule["health"] != "err"), "{answer}");
}
