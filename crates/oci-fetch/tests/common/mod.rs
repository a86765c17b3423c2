//! A registry on 127.0.0.1 that misbehaves as a test tells it to, and writes down what it was asked.
//!
//! It speaks HTTP/1.1 byte by byte, because a well-made server library refuses to do most of what is needed here.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use oci_fetch::{
    Blob, Client, ClientConfig, Credentials, Digest, FetchError, FetchErrorKind, Image, ImageSource,
    Platform, PullContext, RetryPolicy, Timeouts, Verified,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// How many requests with this method and path came before.
    pub nth: usize,
}

impl Seen {
    pub fn authorization(&self) -> Option<&str> {
        self.headers.get("authorization").map(String::as_str)
    }

    /// First and last byte asked for.
    pub fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self
            .headers
            .get("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }

    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/") && self.method == "GET"
    }
}

/// What the server sends back.
#[derive(Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub manner: Manner,
}

/// How the body goes out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Whole,
    /// Closes the connection after so many bytes.
    CutAt(usize),
    /// Sends nothing more after so many bytes, and keeps the connection.
    StallAt(usize),
    /// One byte at a time, with a pause after each.
    Drip(Duration),
    /// Without `Content-Length`, in chunks.
    Chunked,
    /// The body over and over, in chunks, until the client closes.
    Endless,
    /// The body is the whole of what goes out, head and all.
    Raw,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            manner: Manner::Whole,
        }
    }

    pub fn ok(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new(200).header("content-type", content_type).body(body)
    }

    pub fn redirect(location: &str) -> Self {
        Self::new(307).header("location", location)
    }

    pub fn challenge(challenge: &str) -> Self {
        Self::new(401).header("www-authenticate", challenge)
    }

    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(0).body(bytes).manner(Manner::Raw)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn manner(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self
    }
}

/// What a healthy registry has: paths without `/v2/`, content types, bytes.
#[derive(Default, Clone)]
pub struct Store {
    files: HashMap<String, (String, Vec<u8>)>,
}

/// An image of layers that are not tars; nothing here looks into them.
#[derive(Clone)]
pub struct TestImage {
    pub layers: Vec<Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl TestImage {
    pub fn new(layers: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|layer| Digest::sha256(layer).to_string())
            .collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": {"Cmd": ["/hello"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::sha256(bytes).to_string(), "size": bytes.len()});
        let described: Vec<_> = layers
            .iter()
            .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": described,
        });
        Self {
            layers: layers.to_vec(),
            config,
            manifest: manifest.to_string().into_bytes(),
        }
    }

    pub fn one_layer(length: usize) -> Self {
        Self::new(&[noise(length, 1)])
    }

    /// The manifest with something changed, the digests left as they are.
    pub fn edit(&mut self, change: impl FnOnce(&mut serde_json::Value)) {
        let mut manifest = serde_json::from_slice(&self.manifest).unwrap();
        change(&mut manifest);
        self.manifest = manifest.to_string().into_bytes();
    }
}

impl Store {
    pub fn publish(&mut self, repository: &str, tag: &str, image: &TestImage) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.blob(repository, blob);
        }
        self.manifest(repository, tag, MANIFEST, &image.manifest);
    }

    pub fn blob(&mut self, repository: &str, bytes: &[u8]) {
        let path = format!("{repository}/blobs/{}", Digest::sha256(bytes));
        self.files
            .insert(path, ("application/octet-stream".to_owned(), bytes.to_vec()));
    }

    pub fn manifest(&mut self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        for selector in [tag.to_owned(), Digest::sha256(bytes).to_string()] {
            self.files.insert(
                format!("{repository}/manifests/{selector}"),
                (media_type.to_owned(), bytes.to_vec()),
            );
        }
    }

    pub fn reply(&self, seen: &Seen) -> Reply {
        let path = seen.path.strip_prefix("/v2/").unwrap_or_default();
        let Some((content_type, bytes)) = self.files.get(path) else {
            let body = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"secret words of the server"}]}"#;
            return Reply::new(404)
                .header("content-type", "application/json")
                .body(body);
        };
        match seen.range() {
            Some((first, _)) if first >= bytes.len() => Reply::new(416),
            Some((first, last)) => {
                let last = last.unwrap_or(usize::MAX).min(bytes.len() - 1);
                Reply::new(206)
                    .header("content-range", &format!("bytes {first}-{last}/{}", bytes.len()))
                    .body(&bytes[first..=last])
            }
            None => Reply::ok(content_type, bytes.clone()),
        }
    }
}

/// Bytes that do not compress and differ by seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Answers before the store does; `None` leaves it to the store.
type Fault = dyn Fn(&Seen) -> Option<Reply> + Send + Sync;

pub struct Server {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
    sent: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    store: Store,
    fault: Box<Fault>,
    log: Arc<Mutex<Vec<Seen>>>,
    sent: Arc<AtomicUsize>,
}

impl Server {
    pub async fn start(store: Store, fault: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, store, fault)
    }

    /// On a listener whose address the fault already knows.
    pub fn on(
        listener: TcpListener,
        store: Store,
        fault: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let sent = Arc::new(AtomicUsize::new(0));
        let shared = Arc::new(Shared {
            store,
            fault: Box::new(fault),
            log: Arc::clone(&log),
            sent: Arc::clone(&sent),
        });
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    // The client may close at any time.
                    let _ = serve(stream, &shared).await;
                });
            }
        });
        Self {
            address,
            log,
            sent,
            task,
        }
    }

    /// A registry with one image, `app:1`.
    pub async fn with_image(
        image: &TestImage,
        fault: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let mut store = Store::default();
        store.publish("app", "1", image);
        Self::start(store, fault).await
    }

    pub fn source(&self, name: &str) -> ImageSource {
        format!("{}/{name}", self.address).parse().unwrap()
    }

    pub fn log(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }

    /// The requests for blobs that are layers of the image.
    pub fn layer_requests(&self, image: &TestImage) -> Vec<Seen> {
        let digests: Vec<String> = image
            .layers
            .iter()
            .map(|layer| Digest::sha256(layer).to_string())
            .collect();
        self.log()
            .into_iter()
            .filter(|seen| digests.iter().any(|digest| seen.path.ends_with(digest)))
            .collect()
    }

    /// Body bytes written to sockets.
    pub fn sent_bytes(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    /// The settings of a client that reaches this server without TLS and loses patience soon.
    pub fn config(&self, cache: &Path) -> ClientConfig {
        quick(ClientConfig::new(cache))
            .with_plain_http(&self.address.to_string())
            .unwrap()
    }

    pub fn client(&self, cache: &Path) -> Client {
        Client::new(self.config(cache)).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn quick(config: ClientConfig) -> ClientConfig {
    config
        .with_timeouts(Timeouts {
            connect: Duration::from_secs(5),
            header: Duration::from_secs(5),
            no_progress: Duration::from_secs(1),
            document: Duration::from_secs(5),
        })
        .with_retry(RetryPolicy {
            attempts: 4,
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(2),
            longest_retry_after: Duration::from_secs(2),
        })
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut buffered = Vec::new();
    loop {
        let Some(mut seen) = read_request(&mut stream, &mut buffered).await? else {
            return Ok(());
        };
        {
            let mut log = shared.log.lock().unwrap();
            seen.nth = log
                .iter()
                .filter(|other| other.method == seen.method && other.path == seen.path)
                .count();
            log.push(seen.clone());
        }
        let reply = (shared.fault)(&seen).unwrap_or_else(|| shared.store.reply(&seen));
        let keeps = write_reply(&mut stream, &seen, &reply, &shared.sent).await?;
        if !keeps {
            return stream.shutdown().await;
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffered: &mut Vec<u8>) -> std::io::Result<Option<Seen>> {
    let end = loop {
        if let Some(end) = buffered.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(buffered).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffered[..end]).into_owned();
    buffered.drain(..end);
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap_or_default().to_owned();
    let path = first.next().unwrap_or_default().to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    while buffered.len() < length {
        if stream.read_buf(buffered).await? == 0 {
            return Ok(None);
        }
    }
    let body = String::from_utf8_lossy(&buffered.drain(..length).collect::<Vec<_>>()).into_owned();
    Ok(Some(Seen {
        method,
        path,
        headers,
        body,
        nth: 0,
    }))
}

/// Whether the connection stays open.
async fn write_reply(
    stream: &mut TcpStream,
    seen: &Seen,
    reply: &Reply,
    sent: &AtomicUsize,
) -> std::io::Result<bool> {
    if reply.manner == Manner::Raw {
        stream.write_all(&reply.body).await?;
        return Ok(false);
    }
    let is_chunked = matches!(reply.manner, Manner::Chunked | Manner::Endless);
    let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&[name, ": ", value, "\r\n"].concat());
    }
    if is_chunked {
        head.push_str("transfer-encoding: chunked\r\n\r\n");
    } else if !reply.headers.iter().any(|(name, _)| name == "content-length") {
        head.push_str(&["content-length: ", &reply.body.len().to_string(), "\r\n\r\n"].concat());
    } else {
        head.push_str("\r\n");
    }
    stream.write_all(head.as_bytes()).await?;
    if seen.method == "HEAD" {
        return Ok(true);
    }
    let body = &reply.body;
    let send = async |stream: &mut TcpStream, bytes: &[u8]| {
        for piece in bytes.chunks(64 * 1024) {
            stream.write_all(piece).await?;
            sent.fetch_add(piece.len(), Ordering::SeqCst);
        }
        std::io::Result::Ok(())
    };
    match reply.manner {
        Manner::Whole => send(stream, body).await?,
        Manner::CutAt(length) => {
            send(stream, &body[..length.min(body.len())]).await?;
            return Ok(false);
        }
        Manner::StallAt(length) => {
            send(stream, &body[..length.min(body.len())]).await?;
            // Until the client has had enough.
            let _ = stream.read(&mut [0; 1]).await?;
            return Ok(false);
        }
        Manner::Drip(pause) => {
            for byte in body {
                send(stream, &[*byte]).await?;
                tokio::time::sleep(pause).await;
            }
        }
        Manner::Chunked | Manner::Endless => loop {
            stream
                .write_all(format!("{:x}\r\n", body.len()).as_bytes())
                .await?;
            send(stream, body).await?;
            stream.write_all(b"\r\n").await?;
            if reply.manner == Manner::Chunked {
                stream.write_all(b"0\r\n\r\n").await?;
                break;
            }
        },
        Manner::Raw => {}
    }
    Ok(true)
}

pub fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

pub fn as_tenant(key: &str) -> PullContext {
    PullContext {
        isolation_key: key.to_owned(),
        credentials: None,
    }
}

pub fn as_user(key: &str, user: &str, password: &str) -> PullContext {
    PullContext {
        isolation_key: key.to_owned(),
        credentials: Some(Credentials::basic(user, password)),
    }
}

/// Where a download of a layer from this server leaves what it has, below the cache directory.
pub fn part_name(server: &Server, layer: &[u8]) -> String {
    let registry = Digest::sha256(server.address.to_string().as_bytes());
    format!(
        "blobs/sha256/{}-{}.part",
        Digest::sha256(layer).hex(),
        &registry.hex()[..16]
    )
}

/// The value of an `Authorization` header.
pub fn basic(user: &str, password: &str) -> String {
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    )
}

/// A fault in the answers to requests for the layer.
pub fn on_layer(
    image: &TestImage,
    fault: impl Fn(&Seen, &[u8]) -> Option<Reply> + Send + Sync + 'static,
) -> impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static {
    let layer = image.layers[0].clone();
    let digest = Digest::sha256(&layer).to_string();
    move |seen| {
        if seen.path.ends_with(&digest) {
            fault(seen, &layer)
        } else {
            None
        }
    }
}

pub async fn resolve(client: &Client, source: &ImageSource) -> Result<Image, FetchError> {
    client.resolve(source, &amd64(), &as_tenant("t")).await
}

/// Reads a blob to its end and waits for the verdict.
pub async fn read(blob: &Blob) -> Result<(Vec<u8>, Verified), FetchError> {
    let mut bytes = Vec::new();
    let read = blob.reader().read_to_end(&mut bytes).await;
    let verified = blob.verified().await?;
    read.expect("a verified blob can be read");
    Ok((bytes, verified))
}

/// Pulls all layers of `app:1` in parallel, by a fresh client with a cache of its own.
pub async fn pull(server: &Server) -> Result<Vec<Vec<u8>>, FetchError> {
    let cache = tempfile::tempdir().unwrap();
    pull_with(
        &server.client(cache.path()),
        &server.source("app:1"),
        &as_tenant("t"),
    )
    .await
}

pub async fn pull_with(
    client: &Client,
    source: &ImageSource,
    context: &PullContext,
) -> Result<Vec<Vec<u8>>, FetchError> {
    let image = client.resolve(source, &amd64(), context).await?;
    let layers = (0..image.layers.len()).map(|index| {
        let image = &image;
        async move {
            read(&client.open_layer(image, index).await?)
                .await
                .map(|(bytes, _)| bytes)
        }
    });
    futures_util::future::try_join_all(layers).await
}

pub fn kind<T>(result: Result<T, FetchError>) -> FetchErrorKind {
    match result {
        Ok(_) => panic!("succeeded"),
        Err(error) => error.kind().clone(),
    }
}

/// Prints why a test does nothing; an error where the environment promises that everything is there.
pub fn skip(reason: &str) {
    assert!(
        std::env::var_os("BUILDERD_REQUIRE_LAB").is_none(),
        "cannot run: {reason}"
    );
    println!("skipped: {reason}");
}
