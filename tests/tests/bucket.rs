//! Images in a bucket of moto, which others wrote to stand in for S3.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use builderd::proto::{BuildState, DeleteBuildRequest};
use builderd_e2e::{
    api::{Api, TENANT},
    bench::Bench,
    parts,
};
use sha2::{Digest as _, Sha256};
use test_support::{lab, registry::Misbehaviour};

const BUCKET: &str = "images";
const PATIENCE: Duration = Duration::from_secs(60);

/// The server. Dropping it kills it.
struct Moto {
    child: Child,
    endpoint: String,
    http: reqwest::Client,
}

impl Moto {
    /// With one empty bucket.
    async fn start(python: &Path) -> Self {
        let mut child = Command::new(python)
            .args(["-m", "moto.server", "--host", "127.0.0.1", "--port", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stderr.take().unwrap();
        let (found, endpoint) = mpsc::channel();
        // Reads on to the end: a full pipe would stop the server.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("Running on http://") {
                    let _ = found.send(format!("http://{}", address.trim()));
                }
            }
        });
        let moto = Self {
            endpoint: endpoint.recv_timeout(PATIENCE).expect("moto listens"),
            child,
            http: reqwest::Client::new(),
        };
        let made = moto
            .http
            .put(format!("{}/{BUCKET}", moto.endpoint))
            .send()
            .await
            .unwrap();
        assert!(made.status().is_success(), "{}", made.status());
        moto
    }

    /// An object, if it is there.
    async fn object(&self, name: &str) -> Option<Vec<u8>> {
        let url = format!("{}/{BUCKET}/{name}", self.endpoint);
        let answer = self.http.get(url).send().await.unwrap();
        match answer.status().as_u16() {
            404 => None,
            200 => Some(answer.bytes().await.unwrap().to_vec()),
            status => panic!("{name}: {status}"),
        }
    }

    /// Keys of all objects, and unfinished uploads, as the server's own XML has them.
    async fn keys(&self, query: &str) -> Vec<String> {
        let url = format!("{}/{BUCKET}?{query}", self.endpoint);
        let text = self.http.get(url).send().await.unwrap().text().await.unwrap();
        let keys = text.split("<Key>").skip(1);
        keys.map(|rest| rest.split("</Key>").next().unwrap().to_owned())
            .collect()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // Fails only when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn settings(endpoint: &str) -> [(&str, &str); 6] {
    [
        ("STORAGE_BACKEND", "s3"),
        ("STORAGE_S3_BUCKET", BUCKET),
        ("STORAGE_S3_REGION", "eu-central-1"),
        ("STORAGE_S3_ENDPOINT", endpoint),
        ("STORAGE_S3_ACCESS_KEY", "AKIDEXAMPLE"),
        ("STORAGE_S3_SECRET_KEY", "not-a-secret-in-a-test"),
    ]
}

fn python() -> Result<PathBuf, lab::Missing> {
    parts::root()?;
    parts::lab_part("python/bin/python3")
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_build_ends_in_a_bucket_of_moto_also_after_a_kill_and_leaves_it_when_it_is_deleted() {
    let python = match python() {
        Ok(python) => python,
        Err(missing) => return lab::skip(missing),
    };
    let moto = Moto::start(&python).await;
    let mut bench = match Bench::start(&settings(&moto.endpoint)) {
        Ok(bench) => bench,
        Err(missing) => return lab::skip(missing),
    };
    // Killed in the middle, it starts over and ends in the bucket all the same.
    bench.registry.misbehave("/blobs/", Misbehaviour::StallAt(1));
    let api = Api::new(bench.daemon.address()).unwrap();
    let build_id = api.create(&bench.reference).await.unwrap();
    assert!(bench.registry.wait_for_stalled(1, PATIENCE));
    bench.crash_and_restart();
    bench.registry.behave();
    bench.registry.release();
    let api = Api::new(bench.daemon.address()).unwrap();
    let build = api.finish(&build_id, |_| {}).await.unwrap();
    let log = bench.daemon.log();
    assert_eq!(
        build.state(),
        BuildState::Completed,
        "{}\n{log}",
        build.error_message
    );
    let image_name = format!("{TENANT}/{build_id}.ext4");
    assert_eq!(build.rootfs_path, format!("s3://{BUCKET}/{image_name}"));
    let image = moto.object(&image_name).await.unwrap();
    assert_eq!(hex::encode(Sha256::digest(&image)), build.rootfs_checksum);
    let sidecars =
        ["firecracker.json", "metadata.json"].map(|ending| format!("{TENANT}/{build_id}.{ending}"));
    assert_eq!(
        moto.keys("list-type=2").await,
        [std::slice::from_ref(&image_name), &sidecars[..]].concat(),
        "{log}"
    );
    assert_eq!(moto.keys("uploads").await, Vec::<String>::new());
    assert!(!log.contains("not-a-secret-in-a-test"), "{log}");

    let request = DeleteBuildRequest {
        build_id,
        tenant_id: TENANT.into(),
        force: false,
    };
    api.grpc().delete_build(request).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !moto.keys("list-type=2").await.is_empty() {
        assert!(Instant::now() < deadline, "{}", bench.daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(moto.object(&image_name).await, None);
}
