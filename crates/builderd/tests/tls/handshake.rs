//! Versions, protocols, and clients that do not shake hands.

use std::time::Duration;

use builderd::edge::ConnectionLimits;
use test_support::pki::Authority;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    from_files, health, host, serve,
    support::{Server, tunnel},
};

/// What the versions are called in records and alerts.
const TLS_1_1: [u8; 2] = [3, 2];
const ALERT: u8 = 21;
const FATAL: u8 = 2;

#[tokio::test]
async fn the_best_version_and_protocol_that_both_sides_have_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let tls = from_files(directory.path(), &authority.issue(&host()), None)
        .await
        .unwrap();
    let server = serve(&tls).await;
    let old: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
    let (h2, http1): (&[u8], &[u8]) = (b"h2", b"http/1.1");
    for (name, versions, offered, version, protocol) in [
        (
            "everything",
            rustls::ALL_VERSIONS,
            vec![http1, h2],
            "TLSv1_3",
            Some(h2),
        ),
        ("an old client", old, vec![h2], "TLSv1_2", Some(h2)),
        (
            "HTTP/1.1 alone",
            rustls::ALL_VERSIONS,
            vec![http1],
            "TLSv1_3",
            Some(http1),
        ),
        (
            "no word of protocols",
            rustls::ALL_VERSIONS,
            vec![],
            "TLSv1_3",
            None,
        ),
    ] {
        let mut config = tunnel::client_config(&authority, None);
        if versions.len() == 1 {
            let roots = {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(authority.der().into()).unwrap();
                roots
            };
            let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            config = rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(versions)
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        }
        config.alpn_protocols = offered.into_iter().map(<[u8]>::to_vec).collect();
        let stream = tunnel::connect(server.address, config.clone()).await.unwrap();
        let (_, connection) = stream.get_ref();
        assert_eq!(
            format!("{:?}", connection.protocol_version().unwrap()),
            version,
            "{name}"
        );
        assert_eq!(connection.alpn_protocol(), protocol, "{name}");
        config.alpn_protocols = Vec::new();
        assert_eq!(health(server.address, config).await, Ok(200), "{name}");
    }
}

#[tokio::test]
async fn a_client_of_tls_1_1_is_refused_by_an_alert() {
    let directory = tempfile::tempdir().unwrap();
    let tls = from_files(directory.path(), &Authority::new("ours").issue(&host()), None)
        .await
        .unwrap();
    let server = serve(&tls).await;
    // ClientHello of RFC 4346, section 7.4.1.2: version, random, no session, two cipher suites, no compression.
    let mut hello = TLS_1_1.to_vec();
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x13, 0x00, 0x2f, 1, 0]);
    let length = u8::try_from(hello.len()).unwrap();
    let handshake = [&[1, 0, 0, length], hello.as_slice()].concat();
    let record = [&[22, 3, 1, 0, length + 4], handshake.as_slice()].concat();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer[0], ALERT, "{answer:?}");
    // Nothing but the alert: its record has five bytes before it and is two bytes long.
    assert_eq!((answer.len(), answer[5]), (7, FATAL), "{answer:?}");
}

#[tokio::test]
async fn plaintext_is_not_answered_on_an_encrypted_port() {
    let directory = tempfile::tempdir().unwrap();
    let tls = from_files(directory.path(), &Authority::new("ours").issue(&host()), None)
        .await
        .unwrap();
    let server = serve(&tls).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // The server may close before everything that was sent is read.
    drop(stream.read_to_end(&mut answer).await);
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");
}

#[tokio::test]
async fn who_does_not_shake_hands_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let tls = from_files(directory.path(), &Authority::new("ours").issue(&host()), None)
        .await
        .unwrap();
    let tls = tls.server().unwrap().unwrap();
    let tls = tls.with_handshake_timeout(Duration::from_millis(50));
    let server = Server::with_tls(ConnectionLimits::default(), "healthy", Some(tls), |_| {}).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut byte = [0];
    assert_eq!(stream.read(&mut byte).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn who_does_not_shake_hands_holds_a_place_until_it_goes() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let tls = from_files(directory.path(), &authority.issue(&host()), None)
        .await
        .unwrap();
    let tls = tls.server().unwrap().unwrap();
    let tls = tls.with_handshake_timeout(Duration::from_secs(600));
    let limits = ConnectionLimits {
        connections_per_peer: 1,
        ..ConnectionLimits::default()
    };
    let server = Server::with_tls(limits, "healthy", Some(tls), |_| {}).await;
    let config = tunnel::client_config(&authority, None);
    let silent = TcpStream::connect(server.address).await.unwrap();
    health(server.address, config.clone()).await.unwrap_err();
    drop(silent);
    // The server learns of it in its own time.
    for _ in 0..1000 {
        if health(server.address, config.clone()).await == Ok(200) {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the place is not given back");
}

#[tokio::test]
async fn a_handshake_under_way_does_not_hold_up_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let tls = from_files(directory.path(), &Authority::new("ours").issue(&host()), None)
        .await
        .unwrap();
    let tls = tls.server().unwrap().unwrap();
    let tls = tls.with_handshake_timeout(Duration::from_secs(600));
    let limits = ConnectionLimits {
        close: Duration::from_secs(600),
        ..ConnectionLimits::default()
    };
    let server = Server::with_tls(limits, "healthy", Some(tls), |_| {}).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    server.stop.cancel();
    server.serving.await.unwrap();
    let mut byte = [0];
    assert_eq!(silent.read(&mut byte).await.unwrap_or(0), 0);
}
