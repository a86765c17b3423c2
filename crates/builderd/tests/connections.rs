//! Connections to the service port: how many, how long, and how they end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::time::Duration;

use builderd::{edge::ConnectionLimits, proto};
use futures_util::StreamExt as _;
use support::Server;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

fn logs(build_id: &str) -> proto::StreamBuildLogsRequest {
    proto::StreamBuildLogsRequest {
        build_id: build_id.to_owned(),
        tenant_id: "t".to_owned(),
        ..Default::default()
    }
}

fn limits() -> ConnectionLimits {
    ConnectionLimits::default()
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut_off() {
    let limits = ConnectionLimits {
        header_read: Duration::from_millis(200),
        ..limits()
    };
    let server = Server::with(limits, 10, "healthy").await;
    for opening in [
        "",
        "P",
        "PRI * HTTP/2",
        "GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(opening.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "{opening:?}: still open");
    }
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_their_turn() {
    let server = Server::with(
        ConnectionLimits {
            connections: 1,
            ..limits()
        },
        100,
        "healthy",
    )
    .await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first
        .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0; 1];
    first.read_exact(&mut byte).await.unwrap();

    let mut second = TcpStream::connect(server.address).await.unwrap();
    second
        .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(200), second.read_exact(&mut byte)).await;
    assert!(waiting.is_err(), "answered while the only place was taken");
    drop(first);
    second.read_exact(&mut byte).await.unwrap();
}

#[tokio::test]
async fn stopping_finishes_calls_and_then_cuts() {
    let limits = ConnectionLimits {
        close: Duration::from_millis(300),
        ..limits()
    };
    let server = Server::with(limits, 10, "healthy").await;
    let mut grpc = server.grpc().await;
    let mut lines = grpc.stream_build_logs(logs("never")).await.unwrap().into_inner();
    lines.next().await.unwrap().unwrap();
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), server.serving)
        .await
        .expect("serving ends")
        .unwrap();
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "still listening"
    );
    tokio::time::timeout(Duration::from_secs(10), server.dropped.cancelled())
        .await
        .expect("the stream is cut");
}

#[tokio::test]
async fn a_peer_with_too_many_connections_gets_no_more_and_gets_them_back() {
    let server = Server::with(
        ConnectionLimits {
            connections_per_peer: 2,
            ..limits()
        },
        1000,
        "healthy",
    )
    .await;
    let ask = async |stream: &mut TcpStream| {
        // Writing to a connection that was closed may fail; then there is no answer either.
        let _ = stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let mut byte = [0; 1];
        matches!(stream.read(&mut byte).await, Ok(1))
    };
    let mut first = TcpStream::connect(server.address).await.unwrap();
    assert!(ask(&mut first).await);
    let mut second = TcpStream::connect(server.address).await.unwrap();
    assert!(ask(&mut second).await);
    let mut third = TcpStream::connect(server.address).await.unwrap();
    assert!(!ask(&mut third).await, "a third connection of a peer with two");
    drop(first);
    // The place is free once the server has seen the end of the first one.
    for _ in 0..1000 {
        let mut next = TcpStream::connect(server.address).await.unwrap();
        if ask(&mut next).await {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the place of a closed connection is not given back");
}
