//! The service port over TLS: what it shows, whom it lets in, and what happens when certificates are renewed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod cli;
mod files;
mod handshake;
mod spiffe;
#[path = "../support/mod.rs"]
mod support;

use std::{net::SocketAddr, path::Path, sync::Arc};

use builderd::{
    edge::ConnectionLimits,
    tls::{Tls, TlsError, TlsFiles, TlsSettings},
};
use http_body_util::{BodyExt as _, Full};
use rustls::ClientConfig;
use support::{Server, tunnel};
use test_support::pki::{Authority, Issued, Subject};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// The name that every server here has.
fn host() -> Subject {
    Subject::host(&["localhost"])
}

/// Writes a pair, and the authorities of clients when there are any, and reads them as the service does.
async fn from_files(directory: &Path, pair: &Issued, clients: Option<&Authority>) -> Result<Tls, TlsError> {
    let (certificate, key) = pair.write(directory, "tls");
    let authorities = clients.map(|authority| {
        let path = directory.join("clients.crt");
        test_support::pki::replace(&path, &authority.pem());
        path
    });
    let files = TlsFiles {
        certificate,
        key,
        authorities,
    };
    Tls::start(&TlsSettings::Files(files)).await
}

/// The scripted service behind this TLS.
async fn serve(tls: &Tls) -> Server {
    let server = tls.server().unwrap();
    Server::with_tls(ConnectionLimits::default(), "healthy", server, |_| {}).await
}

/// Asks `GET /health` over a connection of its own, for the status; an error is a connection that did not come about
/// or ended before the answer.
async fn health(server: SocketAddr, config: ClientConfig) -> Result<u16, String> {
    let stream = tunnel::connect(server, config).await;
    let mut connection = Http1::over(stream.map_err(|error| error.to_string())?).await;
    connection.health().await
}

/// One connection that stays open.
struct Http1 {
    sender: hyper::client::conn::http1::SendRequest<Full<bytes::Bytes>>,
    ended: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl Http1 {
    async fn over(stream: TlsStream<TcpStream>) -> Self {
        let io = hyper_util::rt::TokioIo::new(stream);
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        Self {
            sender,
            ended: tokio::spawn(connection),
        }
    }

    async fn health(&mut self) -> Result<u16, String> {
        let request = http::Request::get("/health")
            .header("host", "localhost")
            .body(Full::default())
            .unwrap();
        let answer = self.sender.send_request(request).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // In TLS 1.3 a client that is refused learns it after its own part of the handshake.
                return Err(format!("{error}: {:?}", (&mut self.ended).await));
            }
        };
        let status = answer.status().as_u16();
        answer
            .into_body()
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        Ok(status)
    }
}

/// The certificate that a server shows.
fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let (_, connection) = stream.get_ref();
    connection.peer_certificates().unwrap()[0].to_vec()
}

/// The same after a handshake of its own.
async fn shown_by(server: SocketAddr, config: &Arc<ClientConfig>) -> Vec<u8> {
    shown(&tunnel::connect(server, (**config).clone()).await.unwrap())
}
