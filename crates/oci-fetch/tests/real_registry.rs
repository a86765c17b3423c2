//! Against Debian's docker-registry: plain, Basic, TLS with an own authority and client certificates, a cold
//! pull-through cache, and the redirect middleware.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use common::*;
use oci_fetch::{Client, ClientConfig, Digest, FetchErrorKind, Ranges};

const PROGRAM: &str = "/usr/bin/docker-registry";

/// A running registry with its storage; killed at the end.
struct Registry {
    address: String,
    process: Child,
    directory: tempfile::TempDir,
}

impl Drop for Registry {
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

/// Starts a registry; `http` and `rest` are more lines of its configuration, in which `DIRECTORY` is its own.
async fn start(http: &str, rest: &str, prepare: impl Fn(&Path)) -> Registry {
    // Another process can take the port between the look and the start, so there are a few turns.
    for _ in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let place = directory.path().to_str().unwrap();
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {place}/data}}}}\n\
             http:\n  addr: {address}\n{http}\n{rest}\n"
        )
        .replace("DIRECTORY", place);
        let path = directory.path().join("config.yml");
        std::fs::write(&path, text).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut process = Command::new(PROGRAM)
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(&address).await.is_ok() {
                return Registry {
                    address,
                    process,
                    directory,
                };
            }
            if process.try_wait().unwrap().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        let _ = process.kill();
        let _ = process.wait();
        eprintln!(
            "{}",
            std::fs::read_to_string(directory.path().join("log")).unwrap_or_default()
        );
    }
    panic!("docker-registry does not start");
}

async fn push(
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

fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn image() -> TestImage {
    TestImage::new(&[noise(3 << 20, 1), noise(1000, 2), noise(3 << 20, 1)])
}

fn client(cache: &Path, address: &str) -> ClientConfig {
    quick(ClientConfig::new(cache))
        .with_plain_http(address)
        .unwrap()
        .with_ranges(Ranges {
            connections: 4,
            min_blob_bytes: 1 << 20,
            range_bytes: 512 << 10,
        })
}

#[tokio::test]
async fn a_plain_registry_serves_by_tag_digest_and_range() {
    if !is_installed(PROGRAM) {
        return;
    }
    let registry = start("", "", |_| ()).await;
    let image = image();
    push(
        &http(),
        &format!("http://{}", registry.address),
        None,
        "team/app",
        &image,
    )
    .await;
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(client(cache.path(), &registry.address)).unwrap();
    let digest = Digest::sha256(&image.manifest);
    for name in [
        "team/app:1".to_owned(),
        format!("team/app@{digest}"),
        format!("team/app:1@{digest}"),
    ] {
        let source = format!("{}/{name}", registry.address).parse().unwrap();
        assert_eq!(
            pull_with(&client, &source, &as_tenant("t")).await.unwrap(),
            image.layers,
            "{name}"
        );
        client.shrink_cache(0).await.unwrap();
    }
    for name in ["team/app:2", "team/other:1"] {
        let source = format!("{}/{name}", registry.address).parse().unwrap();
        assert_eq!(
            kind(resolve(&client, &source).await),
            FetchErrorKind::NotFound,
            "{name}"
        );
    }
}

#[tokio::test]
async fn basic_authentication_with_bcrypt() {
    if !is_installed(PROGRAM) || !is_installed("/usr/bin/htpasswd") {
        return;
    }
    let auth = "auth: {htpasswd: {realm: test, path: DIRECTORY/htpasswd}}";
    let registry = start("", auth, |directory| {
        let lines = Command::new("/usr/bin/htpasswd")
            .args(["-nbB", "-C", "4", "alice", "secret"])
            .output()
            .unwrap();
        std::fs::write(directory.join("htpasswd"), lines.stdout).unwrap();
    })
    .await;
    let image = image();
    push(
        &http(),
        &format!("http://{}", registry.address),
        Some(("alice", "secret")),
        "app",
        &image,
    )
    .await;
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(client(cache.path(), &registry.address)).unwrap();
    let source = format!("{}/app:1", registry.address).parse().unwrap();
    assert_eq!(
        pull_with(&client, &source, &as_user("t", "alice", "secret"))
            .await
            .unwrap(),
        image.layers
    );
    // What is in the cache now is nobody else's.
    assert_eq!(
        kind(pull_with(&client, &source, &as_tenant("t")).await),
        FetchErrorKind::Unauthorized
    );
    assert_eq!(
        kind(pull_with(&client, &source, &as_user("t", "alice", "x")).await),
        FetchErrorKind::Unauthorized
    );
}

/// An authority, a server certificate for 127.0.0.1 and a client certificate, in PEM.
fn make_certificates(directory: &Path) {
    let script = r"
        set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
        printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE' > server.ext
        printf 'extendedKeyUsage=clientAuth\nbasicConstraints=CA:FALSE' > client.ext
        for name in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name -keyout $name.key -out $name.csr
            openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $name.ext -out $name.pem
        done
        cat client.pem client.key > identity.pem";
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn tls_with_an_own_authority_and_client_certificates() {
    if !is_installed(PROGRAM) || !is_installed("/usr/bin/openssl") {
        return;
    }
    let http = "  tls: {certificate: DIRECTORY/server.pem, key: DIRECTORY/server.key, clientcas: [DIRECTORY/ca.pem]}";
    let registry = start(http, "", make_certificates).await;
    let read = |name: &str| std::fs::read(registry.directory.path().join(name)).unwrap();
    let pusher = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(&read("ca.pem")).unwrap()])
        .identity(reqwest::Identity::from_pem(&read("identity.pem")).unwrap())
        .build()
        .unwrap();
    let image = image();
    push(
        &pusher,
        &format!("https://{}", registry.address),
        None,
        "app",
        &image,
    )
    .await;
    let source = format!("{}/app:1", registry.address).parse().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let base = || {
        quick(ClientConfig::new(cache.path()))
            .with_private_registry(&registry.address)
            .unwrap()
    };
    let with_authority = || {
        base()
            .with_certificate_authorities(&registry.address, read("ca.pem"))
            .unwrap()
    };
    let with_both = with_authority()
        .with_client_certificate(&registry.address, read("identity.pem"))
        .unwrap();
    let pulled = pull_with(&Client::new(with_both).unwrap(), &source, &as_tenant("t")).await;
    assert_eq!(pulled.unwrap(), image.layers);
    for (name, config) in [
        ("unknown authority", base()),
        ("no client certificate", with_authority()),
    ] {
        let result = resolve(&Client::new(config).unwrap(), &source).await;
        assert_eq!(kind(result), FetchErrorKind::Transient, "{name}");
    }
    let broken = base()
        .with_client_certificate(&registry.address, "not PEM")
        .unwrap();
    assert_eq!(kind(Client::new(broken)), FetchErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_cold_pull_through_cache_answers_ranges_with_the_whole() {
    if !is_installed(PROGRAM) {
        return;
    }
    let upstream = start("", "", |_| ()).await;
    let image = image();
    push(
        &http(),
        &format!("http://{}", upstream.address),
        None,
        "app",
        &image,
    )
    .await;
    let proxy = start(
        "",
        &format!("proxy: {{remoteurl: http://{}}}", upstream.address),
        |_| (),
    )
    .await;
    let source = format!("{}/app:1", proxy.address).parse().unwrap();
    for turn in ["cold", "warm"] {
        let cache = tempfile::tempdir().unwrap();
        let client = Client::new(client(cache.path(), &proxy.address)).unwrap();
        assert_eq!(
            pull_with(&client, &source, &as_tenant("t")).await.unwrap(),
            image.layers,
            "{turn}"
        );
    }
}

#[tokio::test]
async fn layers_may_come_from_a_storage_that_the_registry_redirects_to() {
    if !is_installed(PROGRAM) {
        return;
    }
    let image = image();
    let blobs: Vec<_> = image.layers.iter().chain([&image.config]).cloned().collect();
    let storage = Server::start(Store::default(), move |seen| {
        let blob = blobs
            .iter()
            .find(|blob| seen.path.contains(Digest::sha256(blob).hex()))?;
        let mut store = Store::default();
        store.blob("x", blob);
        let path = format!("/v2/x/blobs/{}", Digest::sha256(blob));
        Some(store.reply(&Seen { path, ..seen.clone() }))
    })
    .await;
    let rest = format!(
        "middleware: {{storage: [{{name: redirect, options: {{baseurl: 'http://{}'}}}}]}}",
        storage.address
    );
    let registry = start("", &rest, |_| ()).await;
    push(
        &http(),
        &format!("http://{}", registry.address),
        None,
        "app",
        &image,
    )
    .await;
    let source = format!("{}/app:1", registry.address).parse().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let config = client(cache.path(), &registry.address)
        .with_plain_http(&storage.address.to_string())
        .unwrap();
    let client = Client::new(config).unwrap();
    assert_eq!(
        pull_with(&client, &source, &as_tenant("t")).await.unwrap(),
        image.layers
    );
    assert!(storage.log().iter().any(|seen| seen.range().is_some()));
}

#[tokio::test]
async fn the_example_makes_a_layout_that_resolves() {
    if !is_installed(PROGRAM) {
        return;
    }
    let registry = start("", "", |_| ()).await;
    let image = image();
    push(
        &http(),
        &format!("http://{}", registry.address),
        None,
        "app",
        &image,
    )
    .await;
    // Cargo builds examples before it runs tests, beside the directory of the test programs.
    let program: PathBuf = std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .join("../examples/pull");
    if !program.exists() {
        println!("skipped: the example has not been built");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("layout");
    let output = tokio::task::spawn_blocking({
        let (source, target) = (format!("{}/app:1", registry.address), target.clone());
        move || {
            Command::new(program)
                .arg(source)
                .arg(target)
                .arg("linux/amd64")
                .output()
                .unwrap()
        }
    })
    .await
    .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(ClientConfig::new(cache.path())).unwrap();
    let source = format!("oci:{}", target.display()).parse().unwrap();
    assert_eq!(
        pull_with(&client, &source, &as_tenant("t")).await.unwrap(),
        image.layers
    );
}

/// A token service for docker-registry: signs with a key of its own, by the openssl program.
///
/// Source: distribution, "Token Authentication Implementation".
fn sign_token(directory: &Path, account: &str, scope: Option<&str>) -> String {
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let der = Command::new("openssl")
        .args(["x509", "-in", "token.pem", "-outform", "DER"])
        .current_dir(directory)
        .output()
        .unwrap()
        .stdout;
    let chain = base64::engine::general_purpose::STANDARD.encode(der);
    let header = serde_json::json!({"typ": "JWT", "alg": "RS256", "x5c": [chain]});
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let access: Vec<_> = scope
        .and_then(|scope| scope.strip_prefix("repository:")?.rsplit_once(':'))
        .map(|(name, actions)| {
            serde_json::json!({"type": "repository", "name": name, "actions": actions.split(',').collect::<Vec<_>>()})
        })
        .into_iter()
        .collect();
    let claims = serde_json::json!({
        "iss": "test-issuer", "sub": account, "aud": "test-service", "jti": "1",
        "exp": now + 300, "nbf": now - 10, "iat": now - 10, "access": access,
    });
    let signed = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    std::fs::write(directory.join("claims"), &signed).unwrap();
    let signature = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign", "token.key", "claims"])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        signature.status.success(),
        "{}",
        String::from_utf8_lossy(&signature.stderr)
    );
    format!("{signed}.{}", encode(&signature.stdout))
}

#[tokio::test]
async fn token_authentication_with_an_own_signer() {
    if !is_installed(PROGRAM) || !is_installed("/usr/bin/openssl") {
        return;
    }
    let keys = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=tokens",
        ])
        .args(["-keyout", "token.key", "-out", "token.pem"])
        .current_dir(keys.path())
        .output()
        .unwrap();
    assert!(made.status.success());
    let place = keys.path().to_owned();
    let service = Server::start(Store::default(), move |seen| {
        let query: std::collections::HashMap<String, String> =
            url::Url::parse(&format!("http://x{}", seen.path))
                .unwrap()
                .query_pairs()
                .into_owned()
                .collect();
        if query.get("service").map(String::as_str) != Some("test-service") {
            return Some(Reply::new(400));
        }
        let scope = query.get("scope").map(String::as_str);
        // `private` is alice's, everything else is anybody's.
        let is_alice = seen.authorization() == Some("Basic YWxpY2U6c2VjcmV0");
        let is_private = scope.is_some_and(|scope| scope.starts_with("repository:private:"));
        let granted = scope.filter(|_| is_alice || !is_private);
        let token = sign_token(&place, if is_alice { "alice" } else { "" }, granted);
        Some(Reply::ok(
            "application/json",
            serde_json::json!({"token": token, "expires_in": 300}).to_string(),
        ))
    })
    .await;
    let auth = format!(
        "auth: {{token: {{realm: 'http://{}/token', service: test-service, issuer: test-issuer, rootcertbundle: {}/token.pem}}}}",
        service.address,
        keys.path().display()
    );
    let registry = start("", &auth, |_| ()).await;
    let image = image();
    for repository in ["public", "private"] {
        let token = sign_token(
            keys.path(),
            "alice",
            Some(&format!("repository:{repository}:pull,push")),
        );
        let mut headers = http::HeaderMap::new();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        let pusher = reqwest::Client::builder()
            .no_proxy()
            .default_headers(headers)
            .build()
            .unwrap();
        push(
            &pusher,
            &format!("http://{}", registry.address),
            None,
            repository,
            &image,
        )
        .await;
    }
    let cache = tempfile::tempdir().unwrap();
    let config = client(cache.path(), &registry.address)
        .with_plain_http(&service.address.to_string())
        .unwrap();
    let client = Client::new(config).unwrap();
    let source = |repository: &str| format!("{}/{repository}:1", registry.address).parse().unwrap();
    let pulled = pull_with(&client, &source("public"), &as_tenant("t")).await;
    assert_eq!(pulled.unwrap(), image.layers);
    let private = source("private");
    assert_eq!(
        kind(pull_with(&client, &private, &as_tenant("t")).await),
        FetchErrorKind::Unauthorized
    );
    let alice = as_user("t", "alice", "secret");
    assert_eq!(pull_with(&client, &private, &alice).await.unwrap(), image.layers);
    assert_eq!(
        kind(pull_with(&client, &private, &as_user("u", "bob", "x")).await),
        FetchErrorKind::Unauthorized
    );
}

/// A real, if small, gzip-compressed tar layer, and the digest of the tar.
fn tar_layer(name: &str, content: &[u8]) -> (Vec<u8>, Digest) {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).unwrap();
    let tar = builder.into_inner().unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &tar).unwrap();
    (encoder.finish().unwrap(), Digest::sha256(&tar))
}

#[tokio::test]
async fn what_skopeo_writes_is_the_same_image_in_every_form() {
    if !is_installed(PROGRAM) || !is_installed("/usr/bin/skopeo") {
        return;
    }
    let registry = start("", "", |_| ()).await;
    let (layers, diff_ids): (Vec<_>, Vec<_>) = [
        tar_layer("a", b"one"),
        tar_layer("b", &noise(100_000, 3)),
        tar_layer("a", b"one"),
    ]
    .into_iter()
    .unzip();
    let mut image = TestImage::new(&layers);
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64", "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>()},
    });
    image.config = config.to_string().into_bytes();
    let (digest, size) = (Digest::sha256(&image.config).to_string(), image.config.len());
    image.edit(|manifest| {
        manifest["config"]["digest"] = digest.into();
        manifest["config"]["size"] = size.into();
    });
    push(
        &http(),
        &format!("http://{}", registry.address),
        None,
        "app",
        &image,
    )
    .await;
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(client(cache.path(), &registry.address)).unwrap();
    let source = format!("{}/app:1", registry.address).parse().unwrap();
    let expected = resolve(&client, &source).await.unwrap();
    for (form, is_compressed) in [
        (format!("oci:{place}/layout:1"), true),
        (format!("oci-archive:{place}/oci.tar:1"), true),
        (
            format!("docker-archive:{place}/docker.tar:example.com/app:1"),
            false,
        ),
    ] {
        let status = Command::new("skopeo")
            .args([
                "copy",
                "-q",
                "--src-tls-verify=false",
                &format!("docker://{}/app:1", registry.address),
                &form,
            ])
            .output()
            .unwrap();
        assert!(
            status.status.success(),
            "{form}: {}",
            String::from_utf8_lossy(&status.stderr)
        );
        let found = resolve(&client, &form.parse().unwrap()).await.unwrap();
        let digests = |image: &oci_fetch::Image| -> Vec<Digest> {
            image.layers.iter().map(|layer| layer.diff_id.clone()).collect()
        };
        assert_eq!(digests(&found), digests(&expected), "{form}");
        assert_eq!(found.config, expected.config, "{form}");
        let blobs = pull_with(&client, &form.parse().unwrap(), &as_tenant("t"))
            .await
            .unwrap();
        if is_compressed {
            assert_eq!(found.manifest_digest, expected.manifest_digest, "{form}");
            assert_eq!(blobs, layers, "{form}");
        } else {
            assert_eq!(
                blobs.iter().map(|blob| Digest::sha256(blob)).collect::<Vec<_>>(),
                diff_ids,
                "{form}"
            );
        }
    }
}
