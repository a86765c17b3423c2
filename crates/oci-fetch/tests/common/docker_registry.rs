//! Debian's docker-registry, where it is installed.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use oci_fetch::Digest;

use super::{LIMIT, MANIFEST, TestImage, skip};

const PROGRAM: &str = "/usr/bin/docker-registry";

/// A running registry with its storage; killed at the end.
pub struct DockerRegistry {
    pub address: String,
    pub directory: tempfile::TempDir,
    process: Child,
}

impl DockerRegistry {
    /// Starts a registry on a port that the system chooses; `http` and `rest` are more lines of its configuration, in which
    /// `DIRECTORY` is its own. `None` where it, or another program that the test needs, is not installed.
    pub fn start(programs: &[&str], http: &str, rest: &str, prepare: impl Fn(&Path)) -> Option<Self> {
        if !programs
            .iter()
            .chain([&PROGRAM])
            .all(|program| is_installed(program))
        {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        let place = directory.path().to_str().unwrap();
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {place}/data}}}}\n\
             http:\n  addr: 127.0.0.1:0\n{http}\n{rest}\n"
        )
        .replace("DIRECTORY", place);
        let config = directory.path().join("config.yml");
        fs::write(&config, text).unwrap();
        let process = Command::new(PROGRAM)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::from(File::create("/dev/null").unwrap()))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut registry = Self {
            address: String::new(),
            directory,
            process,
        };
        let log = registry.process.stderr.take().unwrap();
        let (found, address) = mpsc::channel();
        // Reads on to the end: a full pipe would stop the registry.
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if let Some((_, after)) = line.split_once("listening on ") {
                    let end = after.find(['"', ' ', ',']).unwrap_or(after.len());
                    // Nobody waits any more once the first address was read.
                    let _ = found.send(after[..end].to_owned());
                }
            }
        });
        registry.address = address.recv_timeout(LIMIT).expect("docker-registry listens");
        Some(registry)
    }

    /// A plain one without accounts.
    pub fn start_plain() -> Option<Self> {
        Self::start(&[], "", "", |_| ())
    }

    /// Pushes `REPOSITORY:1` over plain HTTP.
    pub async fn push(&self, repository: &str, image: &TestImage) {
        push(
            &http(),
            &format!("http://{}", self.address),
            None,
            repository,
            image,
        )
        .await;
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn is_installed(program: &str) -> bool {
    let is_there = Path::new(program).exists();
    if !is_there {
        skip(&format!("{program} is not installed"));
    }
    is_there
}

pub fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Pushes `REPOSITORY:1`.
pub async fn push(
    client: &reqwest::Client,
    base: &str,
    user: Option<(&str, &str)>,
    repository: &str,
    image: &TestImage,
) {
    let authorised = |request: reqwest::RequestBuilder| match user {
        Some((user, password)) => request.basic_auth(user, Some(password)),
        None => request,
    };
    for blob in image.layers.iter().chain([&image.config]) {
        let start = authorised(client.post(format!("{base}/v2/{repository}/blobs/uploads/")))
            .send()
            .await
            .unwrap();
        let location = start.headers()["location"].to_str().unwrap();
        let target = url::Url::parse(base).unwrap().join(location).unwrap();
        let digest = Digest::sha256(blob).to_string();
        let put = client
            .put(target.clone())
            .query_pair("digest", &digest)
            .body(blob.clone());
        assert!(authorised(put).send().await.unwrap().status().is_success());
    }
    let put = client
        .put(format!("{base}/v2/{repository}/manifests/1"))
        .header("content-type", MANIFEST)
        .body(image.manifest.clone());
    assert!(authorised(put).send().await.unwrap().status().is_success());
}

/// reqwest's own `query` is a feature that this workspace does not use.
trait QueryPair {
    fn query_pair(self, name: &str, value: &str) -> Self;
}

impl QueryPair for reqwest::RequestBuilder {
    fn query_pair(self, name: &str, value: &str) -> Self {
        let (client, request) = self.build_split();
        let mut request = request.unwrap();
        request.url_mut().query_pairs_mut().append_pair(name, value);
        Self::from_parts(client, request)
    }
}
