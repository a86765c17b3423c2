//! A registry on 127.0.0.1 that misbehaves as a test tells it to, and writes down what it was asked.
//!
//! It speaks HTTP/1.1 byte by byte, because a well-made server library refuses to do most of what is needed here. That is
//! also why it is not the workspace's `test_support::registry`, which stands on such a library (axum) and serves the tests of
//! whoever builds on this crate; the other reason is that this crate is tested alone, without the rest of the workspace.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use oci_fetch::{Client, ClientConfig, Digest, ImageSource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::exchange::{Manner, Reply, Seen};
use super::quick;
use super::store::{Store, TestImage};

/// Sends the first bytes of each of these blobs, and then nothing until [`Server::cut_stalled`].
pub fn stall(blobs: &[Vec<u8>], at: usize) -> impl Fn(&Seen) -> Option<Reply> + Send + Sync + use<> {
    let stalled: Vec<_> = blobs
        .iter()
        .map(|blob| (Digest::sha256(blob).to_string(), blob.clone()))
        .collect();
    move |seen| {
        let (_, blob) = stalled.iter().find(|(digest, _)| seen.path.ends_with(digest))?;
        Some(Reply::ok("x", blob.clone()).manner(Manner::StallAt(at)))
    }
}

/// Answers before the store does; `None` leaves it to the store.
type Fault = dyn Fn(&Seen) -> Option<Reply> + Send + Sync;

pub struct Server {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
    sent: Arc<AtomicUsize>,
    released: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    store: Store,
    fault: Box<Fault>,
    log: Arc<Mutex<Vec<Seen>>>,
    sent: Arc<AtomicUsize>,
    released: watch::Receiver<u64>,
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
        let released = watch::Sender::new(0);
        let shared = Arc::new(Shared {
            store,
            fault: Box::new(fault),
            log: Arc::clone(&log),
            sent: Arc::clone(&sent),
            released: released.subscribe(),
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
            released,
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

    /// Closes every connection whose answer stalls at this moment.
    pub fn cut_stalled(&self) {
        self.released.send_modify(|generation| *generation += 1);
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

    /// A client that may hold four connections, of which one party may hold three.
    pub fn client_of_four_connections(&self, cache: &Path) -> Client {
        Client::new(self.config(cache).with_connections(4, 4)).unwrap()
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
        let keeps = write_reply(&mut stream, &seen, &reply, shared).await?;
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
    shared: &Shared,
) -> std::io::Result<bool> {
    if matches!(reply.manner, Manner::Raw | Manner::RawThenHang) {
        stream.write_all(&reply.body).await?;
        if reply.manner == Manner::RawThenHang {
            let _ = stream.read(&mut [0; 1]).await?;
        }
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
            shared.sent.fetch_add(piece.len(), Ordering::SeqCst);
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
            // Before the bytes, with which the test may act.
            let mut released = shared.released.clone();
            released.mark_unchanged();
            send(stream, &body[..length.min(body.len())]).await?;
            // Until the client has had enough, or the test.
            let mut nothing = [0; 1];
            tokio::select! {
                read = stream.read(&mut nothing) => drop(read?),
                _ = released.changed() => {}
            }
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
        Manner::Raw | Manner::RawThenHang => {}
    }
    Ok(true)
}
