//! What is on the port for Prometheus for those who keep watch: what waits, what is lost, and whether it works at all.

use test_support::{
    assetmanagerd::{Code, FakeAssetManager},
    image::{Image, Layer},
    pki::{Authority, Subject, replace},
    registry::{Misbehaviour, Registry},
};

use super::{Daemon, Duration, PATIENCE, Value, sample, value};

/// What has to be seen: a metric, its labels, and whether its value is right.
type Expected = (&'static str, &'static str, fn(f64) -> bool);

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_and_what_is_lost_is_told() {
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample());
    let slow = Image::new().layer(&Layer::new().file("a", [7; 70_000])).build();
    let stalled = registry.publish("team/slow", "1", &slow);
    let assets = FakeAssetManager::start().unwrap();
    assets.fail_times(usize::MAX, Code::Unavailable);
    let state = tempfile::tempdir().unwrap();
    let asset_endpoint = assets.endpoint();
    let daemon = Daemon::start(
        state.path(),
        &[
            ("OTEL_ENABLED", "true"),
            ("OTEL_ENDPOINT", "127.0.0.1:1"),
            ("ASSETMANAGER_ENABLED", "true"),
            ("ASSETMANAGER_ENDPOINT", &asset_endpoint),
            ("MAX_CONCURRENT_BUILDS", "1"),
            // Takes nothing: the disk is full from the start.
            ("AUDIT_ENABLED", "true"),
            ("AUDIT_LOG_PATH", "/dev/full"),
        ],
    );
    let before = daemon.scrape().await;
    for tier in ["free", "pro", "enterprise", "dedicated"] {
        for name in ["builderd_queue_builds", "builderd_queue_oldest_seconds"] {
            let label = format!("tenant_tier=\"{tier}\"");
            assert_eq!(
                value(&before, name, &[&label]),
                Some(0.0),
                "{name} {tier}\n{before}"
            );
        }
    }
    daemon.build(&reference, &[]).await;
    registry.misbehave("team/slow/blobs", Misbehaviour::Hang);
    let running = daemon.create(&stalled, &[]).await;
    daemon.wait(&running, &["_PULLING"]).await;
    daemon.create(&reference, &[]).await;
    let is_one = |value: f64| value == 1.0;
    let is_none = |value: f64| value == 0.0;
    let is_some = |value: f64| value > 0.0;
    let expected: [Expected; 10] = [
        ("builderd_queue_builds", "tenant_tier=\"pro\"", is_one),
        ("builderd_queue_builds", "tenant_tier=\"free\"", is_none),
        ("builderd_queue_oldest_seconds", "tenant_tier=\"pro\"", is_some),
        ("builderd_queue_oldest_seconds", "tenant_tier=\"free\"", is_none),
        ("builderd_queued_builds", "", is_one),
        ("builderd_assetmanager_waiting", "action=\"register\"", is_one),
        ("builderd_assetmanager_waiting", "action=\"delete\"", is_none),
        (
            "builderd_assetmanager_waiting_oldest_seconds",
            "action=\"register\"",
            is_some,
        ),
        ("builderd_assetmanager_waiting_failing", "", is_one),
        // Three calls of CreateBuild.
        ("builderd_audit_events_lost_total", "", |value| value >= 3.0),
    ];
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let text = daemon.scrape().await;
        let wrong: Vec<_> = expected
            .iter()
            .filter(|(name, label, is_right)| !value(&text, name, &[label]).is_some_and(is_right))
            .map(|(name, label, _)| (name, label))
            .collect();
        if wrong.is_empty() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{wrong:?}\n{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    registry.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_needs_no_certificate_on_the_port_of_the_metrics() {
    let authority = Authority::of_trust_domain("test.example");
    let state = tempfile::tempdir().unwrap();
    let host = Subject::host(&["localhost"]).and_uri("spiffe://test.example/builderd");
    let (certificate, key) = authority.issue(&host).write(state.path(), "tls");
    let authorities = state.path().join("ca.crt");
    replace(&authorities, &authority.pem());
    let daemon = Daemon::start(
        &state.path().join("state"),
        &[
            ("OTEL_ENABLED", "true"),
            ("OTEL_ENDPOINT", "127.0.0.1:1"),
            ("TLS_MODE", "file"),
            ("TLS_CERT_FILE", certificate.to_str().unwrap()),
            ("TLS_KEY_FILE", key.to_str().unwrap()),
            ("TLS_CA_FILE", authorities.to_str().unwrap()),
            ("AUTH_MODE", "mtls"),
        ],
    );
    let trusting = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap()])
        .build()
        .unwrap();
    let refused = trusting
        .get(format!("https://localhost:{}/health", daemon.address.port()))
        .send()
        .await;
    assert!(refused.is_err(), "{refused:?}");

    let metrics = daemon.metrics.unwrap();
    let ask = async |path: &str| {
        let answer = daemon.http.get(format!("http://{metrics}{path}")).send().await;
        let answer = answer.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(ask("/health/live").await, (200, "alive\n".to_owned()));
    let (status, report) = ask("/health").await;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(
        (status, report["status"].as_str()),
        (200, Some("healthy")),
        "{report}"
    );
    // Nothing but what is documented, and nothing of tenants.
    let names: Vec<_> = report.as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["checks", "status", "uptime_seconds", "version"]);
    let (status, _) = ask("/builder.v1.BuilderService/ListBuilds").await;
    assert_eq!(status, 404, "no method is on this port");
}
