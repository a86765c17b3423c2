//! Connections: accepted, bounded, and ended in order.

use std::{
    collections::HashMap,
    error::Error,
    future::Future,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::Sleep,
};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::tls::{PeerCertificate, ServerTls};

/// Who is at the other end of the connection that a request came by.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// What it showed in the handshake.
    pub(super) certificate: Option<Arc<PeerCertificate>>,
}

impl Peer {
    /// What counts as one peer where there are limits for each.
    pub(super) fn network(&self) -> IpAddr {
        peer_of(self.address.ip())
    }
}

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections that are open at once; more wait in the listener's queue.
    pub connections: usize,
    /// Connections that one peer has open at once; further ones are closed as they come. A peer is an IPv4 address or
    /// an IPv6 network of 64 bits, which is what one customer has.
    pub connections_per_peer: usize,
    /// How long a client may take for the head of a request, the first and every further one.
    pub header_read: Duration,
    /// Calls that one HTTP/2 connection may have open.
    pub concurrent_streams: u32,
    /// How long connections may take to finish what they do once the service stops.
    pub close: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_peer: 256,
            header_read: Duration::from_secs(30),
            concurrent_streams: 256,
            close: Duration::from_secs(5),
        }
    }
}

/// HTTP/2 connections without traffic are asked for a sign of life in this interval, and closed when none comes.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// After a failed accept (out of descriptors, mostly) it is tried again after this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// No connection over TLS lives longer, however long the certificates are valid.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// By so many bytes a client has shown which version of HTTP it speaks: the length of HTTP/2's preface.
const PREFACE_BYTES: usize = 24;

/// Serves `router` on `listener` until `stop` is cancelled, then lets connections finish. Without `tls` it is plaintext.
///
/// A connection counts from the moment it is accepted: who does not shake hands holds a place, for as long as a
/// handshake may take.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ServerTls>,
    router: Router,
    limits: ConnectionLimits,
    stop: CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.concurrent_streams)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let connections = Arc::new(Semaphore::new(limits.connections));
    let peers = Peers::default();
    let graceful = GracefulShutdown::new();
    let cut = CancellationToken::new();

    loop {
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "Accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = peers.take(address.ip(), limits.connections_per_peer) else {
            tracing::debug!(client.addr = %address, limit = limits.connections_per_peer, "Peer has too many connections");
            continue;
        };
        // Answers are small and waited for.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "Setting TCP_NODELAY failed");
        }
        let connection = Connection {
            stream,
            address,
            builder: builder.clone(),
            router: router.clone(),
            header_read: limits.header_read,
            watcher: graceful.watcher(),
        };
        let (tls, cut, stop) = (tls.clone(), cut.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                ended = connection.serve(tls, stop) => if let Err(error) = ended {
                    tracing::debug!(client.addr = %address, error, "Connection ended with an error");
                },
                () = cut.cancelled() => {}
            }
            drop((permit, place));
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.close, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(grace = ?limits.close, "Connections were cut: they did not finish in time");
        cut.cancel();
    }
}

/// A connection that was accepted.
struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    builder: auto::Builder<TokioExecutor>,
    router: Router,
    header_read: Duration,
    watcher: Watcher,
}

impl Connection {
    /// Shakes hands where there is TLS, then answers requests until the client ends it, `stop` is cancelled, or the
    /// client's certificate expires. A handshake that is under way when the service stops is dropped: nothing was asked
    /// yet.
    async fn serve(
        self,
        tls: Option<ServerTls>,
        stop: CancellationToken,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        // The service waits for its watchers to be gone.
        let _watcher = self.watcher;
        let (address, header_read) = (self.address, self.header_read);
        let Some(tls) = tls else {
            let peer = Peer {
                address,
                certificate: None,
            };
            let stream = PrefaceInTime::new(self.stream, header_read);
            return answer(&self.builder, self.router, stream, peer, stop.cancelled()).await;
        };
        let (stream, certificate) = tokio::select! {
            shaken = tls.accept(self.stream) => shaken?,
            () = stop.cancelled() => return Ok(()),
        };
        let remaining = certificate
            .as_ref()
            .and_then(|certificate| certificate.remaining());
        let end = async {
            tokio::select! {
                () = tokio::time::sleep(remaining.unwrap_or(FOREVER).min(FOREVER)) => {}
                () = stop.cancelled() => {}
            }
        };
        let peer = Peer { address, certificate };
        let stream = PrefaceInTime::new(stream, header_read);
        answer(&self.builder, self.router, stream, peer, end).await
    }
}

/// Answers the requests of one connection. After `end` it takes no more, and is over when those are answered that it
/// has; the client opens another one for what comes next.
async fn answer<S>(
    builder: &auto::Builder<TokioExecutor>,
    router: Router,
    stream: PrefaceInTime<S>,
    peer: Peer,
    end: impl Future<Output = ()>,
) -> Result<(), Box<dyn Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().call(request)
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = &mut connection => return ended,
        () = end => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// How many connections each peer has.
#[derive(Clone, Debug, Default)]
struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Peers {
    /// A place for one more connection of a peer, given back when it is dropped; `None` when it has `limit` already.
    fn take(&self, address: IpAddr, limit: usize) -> Option<Place> {
        let peer = peer_of(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(peer).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Place {
            peers: self.clone(),
            peer,
        })
    }
}

/// A connection's place among those of its peer.
#[derive(Debug)]
struct Place {
    peers: Peers,
    peer: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

/// A connection whose first bytes have to come in time.
///
/// hyper's own limit on reading a head starts once the version of HTTP is known, and a client that sends nothing at
/// all never gets there.
struct PrefaceInTime<S> {
    stream: S,
    missing_bytes: usize,
    timeout: Pin<Box<Sleep>>,
}

impl<S> PrefaceInTime<S> {
    fn new(stream: S, timeout: Duration) -> Self {
        Self {
            stream,
            missing_bytes: PREFACE_BYTES,
            timeout: Box::pin(tokio::time::sleep(timeout)),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PrefaceInTime<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.missing_bytes > 0 && self.timeout.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut)));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        self.missing_bytes = self.missing_bytes.saturating_sub(read);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PrefaceInTime<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn at_its_end_a_connection_answers_what_it_was_asked_and_nothing_more() {
        let hour = Duration::from_secs(3600);
        let slow = axum::routing::get(move || async move {
            tokio::time::sleep(2 * hour).await;
            "answered"
        });
        let (near, far) = tokio::io::duplex(1 << 16);
        let peer = Peer {
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            certificate: None,
        };
        let builder = auto::Builder::new(TokioExecutor::new());
        let router = Router::new().route("/slow", slow);
        let stream = PrefaceInTime::new(near, hour);
        let served = answer(&builder, router, stream, peer, tokio::time::sleep(hour));
        let asked = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake::<_, axum::body::Body>(TokioIo::new(far)).await?;
            let connection = tokio::spawn(connection);
            let request = || {
                Request::get("/slow")
                    .header("host", "x")
                    .body(axum::body::Body::empty())
            };
            let answer = sender.send_request(request().expect("a request")).await?;
            assert_eq!(answer.status(), 200, "asked before the end, answered after it");
            drop(http_body_util::BodyExt::collect(answer.into_body()).await?);
            assert!(sender.send_request(request().expect("a request")).await.is_err());
            drop(connection.await);
            Ok::<_, hyper::Error>(())
        };
        let (served, asked) = tokio::join!(served, asked);
        asked.unwrap();
        served.unwrap();
    }

    #[test]
    fn a_peer_has_so_many_places_and_gives_them_back() {
        let peers = Peers::default();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = peers.take(address("2001:db8::1"), 2).unwrap();
        let second = peers.take(address("2001:db8::2"), 2).unwrap();
        assert!(peers.take(address("2001:db8::3"), 2).is_none(), "one network");
        assert!(
            peers.take(address("2001:db8:0:1::1"), 2).is_some(),
            "another network"
        );
        drop(first);
        let third = peers.take(address("2001:db8::4"), 2).unwrap();
        drop((second, third));

        let mapped = peers.take(address("::ffff:192.0.2.1"), 1).unwrap();
        assert!(peers.take(address("192.0.2.1"), 1).is_none(), "the same address");
        assert!(peers.take(address("192.0.2.2"), 1).is_some());
        drop(mapped);
        assert!(peers.0.lock().unwrap().is_empty(), "nobody is remembered");
    }
}
