//! How connections are encrypted, and who is at their other end (`TLS_MODE`).
//!
//! A mode gives two things: what the service port shows and asks for ([`ServerTls`]), and what calls of the service's
//! own show and trust ([`ClientTls`]). Both always use what is current: a certificate that was renewed is in the next
//! handshake, and connections that are open stay open.
//!
//! rustls with aws-lc-rs throughout; TLS 1.3, and 1.2 for those who cannot.

mod client;
mod files;
mod peer;
mod server;
mod spiffe;

use std::{path::PathBuf, sync::Arc};

use ::spiffe::{SpiffeId, TrustDomain};
use rustls::{SupportedProtocolVersion, crypto::CryptoProvider};
use tokio_util::sync::CancellationToken;

pub use self::{
    client::{ClientTls, ServerId},
    files::{FileError, FileRole, TlsFiles, WatchedFiles},
    peer::PeerCertificate,
    server::ServerTls,
    spiffe::{Agent, SpiffeError},
};

/// The versions of TLS that are spoken; the highest that both sides know is taken.
const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsSettings {
    /// Nothing is encrypted.
    Disabled,
    /// Files, which may be replaced at any time.
    Files(TlsFiles),
    /// The SPIFFE Workload API at this socket.
    Spiffe(PathBuf),
}

impl TlsSettings {
    /// The mode, as `TLS_MODE` spells it.
    #[must_use]
    pub const fn mode(&self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Files(_) => "file",
            Self::Spiffe(_) => "spiffe",
        }
    }
}

/// Why there are no certificates to work with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The agent.
    #[error(transparent)]
    Spiffe(#[from] SpiffeError),
    /// This system's authorities cannot be used.
    #[error("the authorities of this system cannot be used: {0}")]
    SystemAuthorities(String),
    /// What came together cannot be used together.
    #[error("the TLS library refuses the settings")]
    Library(#[from] rustls::Error),
}

/// A mode at work.
#[derive(Debug)]
pub enum Tls {
    /// Nothing is encrypted.
    Disabled,
    /// Files.
    Files(Arc<WatchedFiles>),
    /// The agent's.
    Spiffe(Agent),
}

impl Tls {
    /// Reads the files, or asks the agent. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`TlsError`].
    pub async fn start(settings: &TlsSettings) -> Result<Self, TlsError> {
        Ok(match settings {
            TlsSettings::Disabled => Self::Disabled,
            TlsSettings::Files(files) => Self::Files(Arc::new(WatchedFiles::load(files.clone())?)),
            TlsSettings::Spiffe(socket) => Self::Spiffe(Agent::connect(socket, spiffe::PATIENCE).await?),
        })
    }

    /// What the service port shows; `None` when it speaks plaintext.
    ///
    /// # Errors
    /// [`TlsError::Spiffe`].
    pub fn server(&self) -> Result<Option<ServerTls>, TlsError> {
        Ok(match self {
            Self::Disabled => None,
            Self::Files(files) => Some(ServerTls::of_files(Arc::clone(files))),
            Self::Spiffe(agent) => Some(agent.server()?),
        })
    }

    /// What a call of this process shows and trusts. `server` says who may answer where identities are SPIFFE's;
    /// elsewhere a server is known by its host's name. Without certificates of one's own (TLS disabled) this system's
    /// authorities are trusted, and nothing is shown.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn client(&self, server: ServerId) -> Result<ClientTls, TlsError> {
        match self {
            Self::Disabled => ClientTls::of_system(None),
            Self::Files(files) => ClientTls::of_files(Arc::clone(files)),
            Self::Spiffe(agent) => Ok(agent.client(server)?),
        }
    }

    /// The SPIFFE ID of the service's own certificate, where it has one.
    #[must_use]
    pub fn identity(&self) -> Option<SpiffeId> {
        match self {
            Self::Disabled => None,
            Self::Files(files) => files.identity(),
            Self::Spiffe(agent) => Some(agent.identity().clone()),
        }
    }

    /// The trust domain that the service's own certificate is of, where it is of one.
    #[must_use]
    pub fn trust_domain(&self) -> Option<TrustDomain> {
        self.identity().map(|identity| identity.trust_domain().clone())
    }

    /// Takes up changes until `stop` is cancelled. (The agent tells of its own accord.)
    pub async fn watch(&self, stop: CancellationToken) {
        match self {
            Self::Files(files) => files.watch(stop).await,
            Self::Disabled | Self::Spiffe(_) => stop.cancelled().await,
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
