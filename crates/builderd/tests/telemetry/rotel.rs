//! A collector that others have written between the daemon and the one of the tests: rotel, from PyPI. It is no part of
//! Debian, so the test is left out where it is not; docs/development says how to get it.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use test_support::{lab, otlp::Collector, registry::Registry};

use super::{Daemon, PATIENCE, sample};

/// Whoever takes the port that was just found free is rare.
const ATTEMPTS: usize = 5;

/// Ends with its scope.
struct Rotel {
    child: Child,
    address: SocketAddr,
}

impl Drop for Rotel {
    fn drop(&mut self) {
        // Fails only when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program: in `PATH`, or where pip has put it in the test bed's Python. `None` where it is not or does not run.
fn program() -> Option<PathBuf> {
    let python = lab::directory().join("python/lib");
    let versions = fs::read_dir(python).into_iter().flatten().flatten();
    let in_lab = versions.map(|version| version.path().join("site-packages/rotel/rotel-agent"));
    let in_path = lab::program("rotel-agent", "").ok();
    in_path.into_iter().chain(in_lab).find(|program| {
        let ran = Command::new(program).arg("version").output();
        ran.is_ok_and(|output| output.status.success())
    })
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Starts it; what it takes it passes on to `collector`. It cannot say which port the system has given it, so that it gets
/// one that was free a moment ago.
fn start(program: &PathBuf, collector: &Collector) -> Rotel {
    for _ in 0..ATTEMPTS {
        let (grpc, address) = (free_address(), free_address());
        let child = Command::new(program)
            .env_clear()
            .arg("start")
            .args(["--otlp-grpc-endpoint", &grpc.to_string()])
            .args(["--otlp-http-endpoint", &address.to_string()])
            .args(["--exporter", "otlp", "--otlp-exporter-protocol", "http"])
            .arg("--otlp-exporter-endpoint")
            .arg(format!("http://{}", collector.endpoint()))
            .args(["--batch-timeout", "100ms"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut rotel = Rotel { child, address };
        let deadline = Instant::now() + PATIENCE;
        while rotel.child.try_wait().unwrap().is_none() {
            if TcpStream::connect(rotel.address).is_ok() {
                return rotel;
            }
            assert!(Instant::now() < deadline, "rotel does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    panic!("rotel does not start");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_of_others_takes_metrics_and_traces() {
    let Some(program) = program() else {
        return lab::skip_optional("rotel is not here: `pip install rotel` into the test bed's Python");
    };
    let registry = Registry::start().unwrap();
    let reference = registry.publish("team/app", "1", &sample());
    let collector = Collector::start().unwrap();
    let rotel = start(&program, &collector);
    let state = tempfile::tempdir().unwrap();
    let endpoint = rotel.address.to_string();
    let daemon = Daemon::start(
        state.path(),
        &[
            ("OTEL_ENABLED", "true"),
            ("OTEL_ENDPOINT", &endpoint),
            ("OTEL_SERVICE_NAME", "images"),
            ("OTEL_SERVICE_VERSION", "9.9"),
        ],
    );
    let id = daemon.build(&reference, &[]).await;
    // What is left is sent at the end.
    let (status, _) = daemon.stop();
    assert!(status.success(), "{status}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let spans = collector.spans();
        let is_traced = spans
            .iter()
            .any(|span| span.service == "images" && span.attributes.get("build.id") == Some(&id));
        let has_metrics = collector.metrics().contains("builderd_builds_total");
        if is_traced && has_metrics {
            break;
        }
        assert!(Instant::now() < deadline, "{spans:?} {:?}", collector.metrics());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(collector.services()["images"], "9.9");
    assert_eq!(collector.unreadable(), 0);
}
