//! What a daemon tells of itself: metrics that are scraped and sent, traces, and lines of the log that belong to them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod monitoring;
mod operators;
mod rotel;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use test_support::{
    assetmanagerd::FakeAssetManager,
    image::{BuiltImage, Image, Layer},
    otlp::{Collector, Span},
    registry::{Misbehaviour, Registry},
};

/// Longer than any step takes on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A trace that a caller began and keeps.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// `builderd serve --dev` as a process of its own, since spans belong to one.
struct Daemon {
    child: Child,
    address: SocketAddr,
    metrics: Option<SocketAddr>,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    http: reqwest::Client,
}

impl Daemon {
    fn start(state: &Path, settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_builderd"));
        command
            .args(["serve", "--dev", "--port", "0", "--state-dir"])
            .arg(state);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("UNKEY_BUILDERD_") || name.starts_with("OTEL_") {
                command.env_remove(name);
            }
        }
        let own = [
            ("LOG_FORMAT", "json"),
            ("OTEL_PROMETHEUS_PORT", "0"),
            ("TENANT_DEFAULT_MAX_DAILY_BUILDS", "100000"),
        ];
        for (name, value) in own.iter().chain(settings) {
            command.env(format!("UNKEY_BUILDERD_{name}"), value);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (found, addresses) = mpsc::channel();
        let kept = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let parsed: Value = serde_json::from_str(&line).unwrap_or_default();
                for name in ["server.address", "metrics.address"] {
                    if let Some(address) = parsed[name].as_str() {
                        // Nobody waits any more later on.
                        let _ = found.send((name, address.parse().unwrap()));
                    }
                }
                kept.lock().unwrap().push(line);
            }
        });
        let next = |wanted| {
            let (name, address): (&str, SocketAddr) = addresses
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("no {wanted}: {:?}", log.lock().unwrap()));
            assert_eq!(name, wanted);
            address
        };
        let address = next("server.address");
        let is_told = |name: &str| {
            settings
                .iter()
                .any(|(known, value)| *known == name && *value == "true")
        };
        let is_scraped = is_told("OTEL_ENABLED")
            && !settings
                .iter()
                .any(|(name, value)| *name == "OTEL_PROMETHEUS_ENABLED" && *value == "false");
        let metrics = is_scraped.then(|| next("metrics.address"));
        Self {
            child,
            address,
            metrics,
            log,
            reader: Some(reader),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(PATIENCE)
                .build()
                .unwrap(),
        }
    }

    async fn call(&self, method: &str, body: Value, headers: &[(&str, &str)]) -> Value {
        let url = format!("http://{}/builder.v1.BuilderService/{method}", self.address);
        let mut request = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .body(body.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap().json().await.unwrap()
    }

    async fn create(&self, reference: &str, headers: &[(&str, &str)]) -> String {
        let config = json!({
            "tenant": {"tenant_id": "acme"},
            "source": {"docker_image": {"image_uri": reference}},
            "target": {"microvm_rootfs": {"init_strategy": "INIT_STRATEGY_TINI"}},
            "strategy": {"docker_extract": {}},
        });
        let answer = self
            .call("CreateBuild", json!({ "config": config }), headers)
            .await;
        answer["buildId"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    /// Asks until the build is in one of these states.
    async fn wait(&self, build_id: &str, states: &[&str]) -> String {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let body = json!({"build_id": build_id, "tenant_id": "acme"});
            let answer = self.call("GetBuild", body, &[]).await;
            let state = answer["build"]["state"].as_str().unwrap_or_default().to_owned();
            if states.iter().any(|wanted| state.ends_with(wanted)) {
                return state;
            }
            assert!(std::time::Instant::now() < deadline, "{answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn build(&self, reference: &str, headers: &[(&str, &str)]) -> String {
        let id = self.create(reference, headers).await;
        self.wait(&id, &["_COMPLETED", "_FAILED"]).await;
        id
    }

    async fn scrape(&self) -> String {
        let url = format!("http://{}/metrics", self.metrics.unwrap());
        let answer = self.http.get(url).send().await.unwrap();
        let content_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(content_type.starts_with("text/plain"), "{content_type}");
        answer.text().await.unwrap()
    }

    /// Scrapes until there is a metric of this name: a call counts once its answer was read.
    async fn scraped(&self, name: &str) -> String {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let text = self.scrape().await;
            if value(&text, name, &[]).is_some() {
                return text;
            }
            assert!(std::time::Instant::now() < deadline, "{text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn stop(mut self) -> (ExitStatus, Vec<Value>) {
        kill(
            Pid::from_raw(self.child.id().try_into().unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
        let status = self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        let log = self.log.lock().unwrap();
        let parsed = log
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
            .collect();
        (status, parsed)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sample() -> BuiltImage {
    Image::new()
        .layer(&Layer::new().directory("bin", 0o755).file("bin/sh", b"#!"))
        .layer(&Layer::new().file("etc/motd", b"hello"))
        .cmd(&["/bin/sh"])
        .build()
}

/// The value of a sample whose line begins with this name and has all of these labels.
fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line = text.lines().find(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Every metric that dashboards and alerts may rely on, with the labels that it has.
const DOCUMENTED: [(&str, &[&str]); 33] = [
    (
        "builderd_builds_total",
        &[
            "build_type=",
            "source_type=",
            "tenant_tier=\"pro\"",
            "status=\"completed\"",
        ],
    ),
    ("builderd_build_errors_total", &["status=\"image_not_found\""]),
    ("builderd_build_cancellations_total", &["status=\"cancelled\""]),
    (
        "builderd_build_steps_total",
        &["step=\"resolve\"", "status=\"failed\""],
    ),
    ("builderd_build_step_errors_total", &["step=\"resolve\""]),
    (
        "builderd_assetmanager_calls_total",
        &["method=\"RegisterAsset\"", "status=\"OK\""],
    ),
    ("builderd_build_duration_seconds_count", &["status=\"failed\""]),
    ("builderd_pull_duration_seconds_count", &["build_type="]),
    ("builderd_extract_duration_seconds_count", &["build_type="]),
    ("builderd_optimize_duration_seconds_count", &["build_type="]),
    ("builderd_build_step_duration_seconds_count", &["step=\"layers\""]),
    ("builderd_build_step_duration_seconds_count", &["step=\"write\""]),
    (
        "builderd_build_step_duration_seconds_count",
        &["step=\"contents\""],
    ),
    ("builderd_build_step_duration_seconds_count", &["step=\"place\""]),
    ("builderd_image_size_bytes_count", &["build_type="]),
    ("builderd_rootfs_size_bytes_count", &["build_type="]),
    ("builderd_compression_ratio_count", &["build_type="]),
    ("builderd_build_memory_usage_bytes_count", &["build_type="]),
    ("builderd_build_disk_usage_bytes_count", &["build_type="]),
    ("builderd_build_cpu_usage_cores_count", &["build_type="]),
    ("builderd_active_builds", &[]),
    ("builderd_queued_builds", &[]),
    ("builderd_storage_usage_bytes", &[]),
    ("builderd_blob_cache_bytes", &[]),
    ("builderd_blob_cache_in_use_bytes", &[]),
    ("builderd_storage_limit_bytes", &[]),
    ("builderd_telemetry_spans_lost_total", &["reason=\"queue_full\""]),
    ("builderd_queue_builds", &["tenant_tier=\"free\""]),
    ("builderd_queue_oldest_seconds", &["tenant_tier=\"dedicated\""]),
    ("builderd_assetmanager_waiting", &["action=\"delete\""]),
    (
        "builderd_assetmanager_waiting_oldest_seconds",
        &["action=\"register\""],
    ),
    ("builderd_assetmanager_waiting_failing", &[]),
    ("builderd_audit_events_lost_total", &[]),
];

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_traces_tell_of_builds_that_completed_failed_and_were_cancelled() {
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample());
    let slow = Image::new().layer(&Layer::new().file("a", [7; 70_000])).build();
    let stalled = registry.publish("team/slow", "1", &slow);
    let collector = Collector::start().unwrap();
    let assets = FakeAssetManager::start().unwrap();
    let state = tempfile::tempdir().unwrap();
    let endpoint = collector.endpoint();
    let asset_endpoint = assets.endpoint();
    let daemon = Daemon::start(
        state.path(),
        &[
            ("OTEL_ENABLED", "true"),
            ("OTEL_ENDPOINT", &endpoint),
            ("OTEL_SERVICE_NAME", "images"),
            ("OTEL_SERVICE_VERSION", "9.9"),
            ("OTEL_SAMPLING_RATE", "0"),
            ("ASSETMANAGER_ENABLED", "true"),
            ("ASSETMANAGER_ENDPOINT", &asset_endpoint),
            // Lines of warnings know their build, too, whatever is logged below.
            ("LOG_LEVEL", "info"),
        ],
    );
    let traced = format!("00-{TRACE}-{CALLER}-01");
    let completed = daemon.build(&reference, &[("traceparent", &traced)]).await;
    daemon.build(&reference, &[]).await;
    let missing = reference.replace(":1", ":none");
    daemon.build(&missing, &[]).await;
    registry.misbehave("team/slow/blobs", Misbehaviour::Hang);
    let cancelled = daemon.create(&stalled, &[]).await;
    daemon.wait(&cancelled, &["_PULLING"]).await;
    let body = json!({"build_id": cancelled, "tenant_id": "acme"});
    daemon.call("CancelBuild", body, &[]).await;
    registry.release();

    // Images are registered after the end of their build.
    let deadline = std::time::Instant::now() + PATIENCE;
    while assets.assets().len() < 2 {
        assert!(std::time::Instant::now() < deadline, "{:?}", assets.calls());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let text = daemon.scraped("builderd_assetmanager_calls_total").await;
    for (name, labels) in DOCUMENTED {
        assert!(
            value(&text, name, labels).is_some(),
            "{name} {labels:?} is not in\n{text}"
        );
    }
    for (status, count) in [("completed", 2.0), ("failed", 1.0), ("cancelled", 1.0)] {
        let label = format!("status=\"{status}\"");
        assert_eq!(
            value(&text, "builderd_builds_total", &[&label]),
            Some(count),
            "{status}"
        );
    }
    assert!(value(&text, "builderd_storage_usage_bytes", &[]) > Some(0.0));
    assert!(value(&text, "builderd_blob_cache_bytes", &[]) > Some(0.0));
    assert!(value(&text, "builderd_blob_cache_layers_total", &["result=\"miss\""]) > Some(0.0));
    assert_eq!(value(&text, "builderd_active_builds", &[]), Some(0.0));
    assert!(
        !text.contains("tenant_id") && !text.contains("acme"),
        "tenants are not told apart by default"
    );
    let names: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| name.starts_with("builderd_"))
        .collect();

    // What is still open at the end is not sent: the span of the registration ends after its answer is stored.
    let deadline = std::time::Instant::now() + PATIENCE;
    while !collector.spans().iter().any(|span| span.name == "register") {
        assert!(std::time::Instant::now() < deadline, "{:?}", collector.spans());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (status, log) = daemon.stop();
    assert!(status.success(), "{status}");
    assert_eq!(collector.unreadable(), 0);
    let sent = collector.metrics();
    for name in names {
        assert!(sent.contains(name), "{name} was scraped and not sent: {sent:?}");
    }
    assert_eq!(
        collector.services().get("images").map(String::as_str),
        Some("9.9")
    );

    // Of four traces one came with a decision to keep it; of the others none is to be kept.
    let spans = collector.spans();
    assert!(
        spans
            .iter()
            .all(|span| span.trace_id == TRACE && span.service == "images"),
        "{spans:?}"
    );
    let named = |name: &str| -> &Span {
        spans
            .iter()
            .find(|span| span.name == name)
            .unwrap_or_else(|| panic!("no {name} in {spans:?}"))
    };
    let request = named("builder.v1.BuilderService/CreateBuild");
    assert_eq!(request.parent_span_id, CALLER);
    let build = named("build");
    assert_eq!(build.parent_span_id, request.span_id);
    assert_eq!(build.attributes["build.id"], completed);
    for step in [
        "resolve", "layers", "write", "contents", "place", "publish", "register",
    ] {
        assert_eq!(named(step).parent_span_id, build.span_id, "{step}");
    }
    assert_eq!(named("layer").parent_span_id, named("layers").span_id);
    let passed_on: Vec<String> = assets.trace_parents();
    assert!(
        passed_on.contains(&format!("00-{TRACE}-{}-01", named("register").span_id)),
        "{passed_on:?}"
    );

    let of_build: Vec<&Value> = log.iter().filter(|line| line["build_id"] == *completed).collect();
    for message in ["Build begins", "Build ended"] {
        let line = of_build
            .iter()
            .find(|line| line["message"] == message)
            .unwrap_or_else(|| panic!("no {message:?} in {of_build:?}"));
        assert_eq!(
            (line["trace_id"].as_str(), line["tenant_id"].as_str()),
            (Some(TRACE), Some("acme"))
        );
    }
    assert!(
        log.iter()
            .all(|line| line.get("otel.name").is_none() && line["timestamp"].is_string()),
        "{log:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_loses_no_build_and_holds_up_no_stop() {
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample());
    let state = tempfile::tempdir().unwrap();
    // A port that somebody holds who never answers: the worst of collectors.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    let daemon = Daemon::start(
        state.path(),
        &[
            ("OTEL_ENABLED", "true"),
            ("OTEL_ENDPOINT", &endpoint),
            ("OTEL_HIGH_CARDINALITY_ENABLED", "true"),
        ],
    );
    for _ in 0..3 {
        let id = daemon.build(&reference, &[]).await;
        assert!(
            daemon
                .wait(&id, &["_COMPLETED", "_FAILED"])
                .await
                .ends_with("_COMPLETED")
        );
    }
    let text = daemon.scrape().await;
    for name in ["builderd_builds_total", "builderd_tenant_builds_total"] {
        assert_eq!(
            value(&text, name, &["tenant_id=\"acme\"", "status=\"completed\""]),
            Some(3.0),
            "{name}\n{text}"
        );
    }
    let (status, _) = daemon.stop();
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_telemetry_lines_have_traces_and_no_port_is_open() {
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample());
    let state = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(state.path(), &[("LOG_LEVEL", "info")]);
    let traced = format!("00-{TRACE}-{CALLER}-00");
    let first = daemon.build(&reference, &[("traceparent", &traced)]).await;
    // What is no trace context is none.
    let second = daemon.build(&reference, &[("traceparent", "nonsense")]).await;
    let (_, log) = daemon.stop();
    let mut traces = BTreeMap::new();
    for line in &log {
        if let (Some(build), Some(trace)) = (line["build_id"].as_str(), line["trace_id"].as_str()) {
            traces.insert(build.to_owned(), trace.to_owned());
        }
    }
    assert_eq!(traces[&first], TRACE);
    assert!(
        traces[&second].len() == 32 && traces[&second] != TRACE,
        "{traces:?}"
    );
    assert!(
        log.iter().all(|line| line.get("metrics.address").is_none()),
        "{log:?}"
    );
}
