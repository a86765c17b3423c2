//! What the service port shows.

use std::{fmt, io, sync::Arc, time::Duration};

use rustls::{
    RootCertStore, ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use spiffe_rustls::TlsStatus;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{PeerCertificate, VERSIONS, files::WatchedFiles, provider};

/// The protocols that are offered, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// How long a handshake may take, from the accepted connection on.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A renewed identity takes this long to be made ready for handshakes, at the very most.
const RENEWAL: Duration = Duration::from_secs(1);

/// What the service port shows and asks for. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls {
    source: Source,
    handshake_timeout: Duration,
}

#[derive(Clone)]
enum Source {
    Files(Arc<WatchedFiles>),
    Spiffe {
        config: Arc<ServerConfig>,
        status: TlsStatus,
    },
}

impl ServerTls {
    pub(super) const fn of_files(files: Arc<WatchedFiles>) -> Self {
        Self {
            source: Source::Files(files),
            handshake_timeout: HANDSHAKE_TIMEOUT,
        }
    }

    pub(super) fn of_spiffe(config: ServerConfig, status: TlsStatus) -> Self {
        Self {
            source: Source::Spiffe {
                config: Arc::new(config),
                status,
            },
            handshake_timeout: HANDSHAKE_TIMEOUT,
        }
    }

    /// How long a handshake may take; 10 s if nothing is said.
    #[must_use]
    pub const fn with_handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// Shakes hands with a client that has connected.
    ///
    /// # Errors
    /// Whatever the client did wrong, and [`io::ErrorKind::TimedOut`].
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<Arc<PeerCertificate>>)> {
        let shaken = timeout(self.handshake_timeout, async {
            TlsAcceptor::from(self.current().await).accept(stream).await
        });
        let stream = shaken
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"))??;
        let peer = peer(&stream);
        Ok((stream, peer))
    }

    async fn current(&self) -> Arc<ServerConfig> {
        match &self.source {
            Source::Files(files) => files.server(),
            Source::Spiffe { config, status } => {
                settled(status.clone()).await;
                Arc::clone(config)
            }
        }
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.source {
            Source::Files(_) => "files",
            Source::Spiffe { .. } => "spiffe",
        };
        formatter
            .debug_struct("ServerTls")
            .field("source", &source)
            .field("handshake_timeout", &self.handshake_timeout)
            .finish()
    }
}

/// Waits while a renewed identity is made ready: in that moment there is neither the old one nor the new one, and a
/// handshake would fail.
async fn settled(mut status: TlsStatus) {
    let ready = timeout(RENEWAL, async {
        loop {
            let now = status.current();
            if now.source_revision == now.applied_revision || status.changed().await.is_err() {
                return;
            }
        }
    });
    // When it takes longer, the handshake says what is wrong.
    drop(ready.await);
}

fn peer<S: AsyncRead + AsyncWrite>(stream: &TlsStream<S>) -> Option<Arc<PeerCertificate>> {
    let (_, connection) = stream.get_ref();
    let shown = connection.peer_certificates()?.first()?;
    Some(Arc::new(PeerCertificate::of(shown)))
}

/// The port's side of TLS with certificates from files. With authorities every client has to show a certificate of
/// theirs.
pub(super) fn server_config(
    key: CertifiedKey,
    authorities: Option<RootCertStore>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = provider();
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(VERSIONS)?;
    let asks = authorities.is_some();
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    if asks {
        without_resumption(&mut config);
    }
    Ok(config)
}

/// A session that is resumed does not look at the client's certificate again, and would outlive it.
fn without_resumption(config: &mut ServerConfig) {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
}

/// The port's protocols, for identities of SPIFFE.
pub(super) const fn protocols() -> [&'static [u8]; 2] {
    PROTOCOLS
}
