//! Connections over TLS that remember how they ended. In TLS 1.3 a client has shaken hands before its server has looked
//! at its certificate: a refusal arrives on an open connection, and HTTP/2 tells the call only that the connection is
//! gone. What TLS said is kept here, beside the connection.

use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use http::Uri;
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::AlertDescription;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tower::{BoxError, Service as _, util::BoxCloneService};

use crate::config::Tls;

/// Opens connections for a gRPC channel.
pub type Connector = BoxCloneService<Uri, TokioIo<Connection>, BoxError>;

/// What is read after a failed write, for the reason: an alert has a few bytes, what stands before it not many more.
const LAST_READS: usize = 16;

/// Opens connections to `server`, an `https://` URI, whatever URI it is called with, and tells how the latest ended.
///
/// (A gRPC channel that is told `https://` wants to bring its own TLS, which cannot take up renewed certificates. It gets
/// an `http://` endpoint with the origin `https://`, and this connector.)
#[must_use]
pub fn dial(server: Uri, tls: Tls) -> (Connector, Ending) {
    let ending = Ending::default();
    let of_connections = ending.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let mut connector = HttpsConnectorBuilder::new()
            .with_tls_config((*tls.current()).clone())
            .https_only()
            .enable_http2()
            .wrap_connector(tcp);
        let opening = connector.call(server.clone());
        let ending = of_connections.clone();
        async move {
            // What is known is of the connection before.
            *ending.lock() = None;
            match opening.await {
                Ok(stream) => Ok(TokioIo::new(Connection {
                    stream: TokioIo::new(stream),
                    answered: false,
                    ending,
                })),
                Err(error) => {
                    if let Some(alert) = alert_in(&*error) {
                        *ending.lock() = Some(TlsEnd::from(alert));
                    }
                    Err(error)
                }
            }
        }
    });
    (BoxCloneService::new(connector), ending)
}

/// How the latest connection ended, as far as TLS knows. Clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Ending(Arc<Mutex<Option<TlsEnd>>>);

impl Ending {
    /// What the server said in TLS; `None` while the connection stands, and when it ended in another way.
    #[must_use]
    pub fn get(&self) -> Option<TlsEnd> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<TlsEnd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a server ended a connection within TLS.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsEnd {
    /// It does not take the certificate that was shown, or that none was shown. Nothing was carried out.
    #[error("the server refused the certificate of this client (TLS alert {alert})")]
    CertificateRefused {
        /// The alert's name in RFC 8446, section 6, as `certificate_expired`.
        alert: &'static str,
    },
    /// It said that something else is wrong.
    #[error("the server ended TLS with the alert {alert}")]
    Alert {
        /// The alert's name in rustls.
        alert: String,
    },
    /// It closed the connection after the handshake without a word, as some do that refuse a certificate.
    #[error(
        "the server closed the connection right after the TLS handshake: it may have refused the certificate of this client"
    )]
    Closed,
}

impl From<AlertDescription> for TlsEnd {
    fn from(alert: AlertDescription) -> Self {
        let name = match alert {
            AlertDescription::NoCertificate => "no_certificate",
            AlertDescription::BadCertificate => "bad_certificate",
            AlertDescription::UnsupportedCertificate => "unsupported_certificate",
            AlertDescription::CertificateRevoked => "certificate_revoked",
            AlertDescription::CertificateExpired => "certificate_expired",
            AlertDescription::CertificateUnknown => "certificate_unknown",
            AlertDescription::UnknownCA => "unknown_ca",
            AlertDescription::AccessDenied => "access_denied",
            AlertDescription::CertificateRequired => "certificate_required",
            // A signature does not fit: an authority of the same name with another key, as after its renewal.
            AlertDescription::DecryptError => "decrypt_error",
            other => {
                return Self::Alert {
                    alert: format!("{other:?}"),
                };
            }
        };
        Self::CertificateRefused { alert: name }
    }
}

/// One connection.
pub struct Connection {
    stream: TokioIo<MaybeHttpsStream<TokioIo<TcpStream>>>,
    /// Whether the server has sent anything within TLS.
    answered: bool,
    ending: Ending,
}

impl Connection {
    fn read_failed(&self, error: &io::Error) {
        match alert_in(error) {
            Some(alert) => *self.ending.lock() = Some(TlsEnd::from(alert)),
            None => self.closed(),
        }
    }

    /// Keeps what is known better.
    fn closed(&self) {
        if !self.answered {
            self.ending.lock().get_or_insert(TlsEnd::Closed);
        }
    }

    /// A server that refuses closes its socket: whether a write fails before the alert is read is chance.
    fn write_failed(&mut self, context: &mut Context<'_>) {
        let mut space = [0; 4096];
        for _ in 0..LAST_READS {
            let mut buffer = ReadBuf::new(&mut space);
            match Pin::new(&mut *self).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return,
                Poll::Pending => break,
            }
        }
        self.closed();
    }

    fn wrote<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(_)) = outcome {
            self.write_failed(context);
        }
        outcome
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        match &outcome {
            Poll::Ready(Ok(())) if buffer.filled().len() > before => self.answered = true,
            Poll::Ready(Ok(())) if buffer.remaining() > 0 => self.closed(),
            Poll::Ready(Err(error)) => self.read_failed(error),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        outcome
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(context, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.wrote(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.wrote(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("answered", &self.answered)
            .finish_non_exhaustive()
    }
}

/// The alert that an error tells of, here or among its causes. (An `io::Error` hides what it was made of from
/// `source`.)
fn alert_in(error: &(dyn Error + 'static)) -> Option<AlertDescription> {
    let mut next = Some(error);
    // Chains are a handful of errors long.
    for _ in 0..8 {
        let error = next?;
        if let Some(rustls::Error::AlertReceived(alert)) = error.downcast_ref() {
            return Some(*alert);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
