//! Either end of TLS as a tunnel, so that everything that talks plaintext can be tried over TLS.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use test_support::pki::{Authority, Issued};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// What a client trusts and shows. It offers both versions of HTTP.
pub fn client_config(trusted: &Authority, shown: Option<&Issued>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(trusted.der()))
        .expect("an authority");
    let builder =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions of the provider")
            .with_root_certificates(roots);
    match shown {
        None => builder.with_no_client_auth(),
        Some(issued) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from(issued.certificate_der.clone())],
                PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("a key"),
            )
            .expect("a pair"),
    }
}

/// Connects to a server of the name `localhost`.
pub async fn connect(server: SocketAddr, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Listens for plaintext and forwards every connection to `server` over TLS. A handshake that fails closes the
/// connection.
pub async fn tunnel(server: SocketAddr, config: ClientConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound port");
    tokio::spawn(async move {
        while let Ok((mut plain, _)) = listener.accept().await {
            let config = config.clone();
            tokio::spawn(async move {
                let mut encrypted = connect(server, config).await?;
                tokio::io::copy_bidirectional(&mut plain, &mut encrypted).await
            });
        }
    });
    address
}

/// Listens for TLS and forwards every connection to `server` in plaintext.
pub async fn terminate(server: SocketAddr, config: ServerConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound port");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((encrypted, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut encrypted = acceptor.accept(encrypted).await?;
                let mut plain = TcpStream::connect(server).await?;
                tokio::io::copy_bidirectional(&mut encrypted, &mut plain).await
            });
        }
    });
    address
}
