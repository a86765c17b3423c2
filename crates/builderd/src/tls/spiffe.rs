//! Identities from the SPIFFE Workload API (`TLS_MODE=spiffe`).
//!
//! The agent is asked once, at the start, and tells of renewed identities and authorities from then on. While it is
//! away, what it told last is used, and it is called again until it answers.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ::spiffe::{
    SpiffeId, WorkloadApiClient, WorkloadApiError, X509Source, X509SourceError, transport::Endpoint,
};
use spiffe_rustls::{LocalOnly, mtls_client, mtls_server};
use tokio::time::{Instant, sleep, timeout_at};

use super::{ClientTls, ServerId, ServerTls, client, provider, server};

/// How long the agent may take to give an identity: a new registration takes seconds to reach it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Between two attempts to get the first identity.
const PAUSE: Duration = Duration::from_millis(250);

/// After the agent went away it is called again after this long, at first and at most.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeError {
    /// Nobody listens at the socket, or it may not be used.
    #[error("no agent answers at {socket}")]
    NoAgent {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent answers, and gives no identity.
    #[error(
        "the agent at {socket} has given no identity within {patience:?}; is there a registration entry for this \
         program's user?"
    )]
    NoIdentity {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited for.
        patience: Duration,
        /// What the agent said last.
        #[source]
        source: Option<WorkloadApiError>,
    },
    /// What the agent gave cannot be kept up to date.
    #[error("the identity of the agent at {socket} cannot be used")]
    Source {
        /// The socket.
        socket: PathBuf,
        /// What is wrong.
        #[source]
        source: X509SourceError,
    },
    /// What the agent gave is not fit for TLS.
    #[error("the identity that the agent gave cannot be used for TLS")]
    Unusable(#[from] spiffe_rustls::Error),
}

/// The identities that an agent gives.
#[derive(Debug)]
pub struct Agent {
    source: X509Source,
    identity: SpiffeId,
}

impl Agent {
    /// Asks the agent at a socket, `unix:` before the path or not.
    /// `patience` is how long it may take to give an identity.
    pub(super) async fn connect(socket: &Path, patience: Duration) -> Result<Self, SpiffeError> {
        let socket = plain(socket);
        // Said at once and in the system's words; everything behind it retries.
        drop(
            UnixStream::connect(&socket).map_err(|source| SpiffeError::NoAgent {
                socket: socket.clone(),
                source,
            })?,
        );
        let deadline = Instant::now() + patience;
        first_identity(&socket, deadline, patience).await?;

        // The library takes the process's default provider.
        drop((*provider()).clone().install_default());
        let endpoint = Endpoint::Unix(socket.clone());
        let unusable = |source| SpiffeError::Source {
            socket: socket.clone(),
            source,
        };
        let source = X509Source::builder()
            .client_factory(Arc::new(move || {
                let endpoint = endpoint.clone();
                Box::pin(async move { WorkloadApiClient::connect(endpoint).await })
            }))
            .reconnect_backoff(RECONNECT.0, RECONNECT.1)
            .initial_sync_timeout(patience.max(PATIENCE))
            .build()
            .await
            .map_err(unusable)?;
        let identity = source.svid().map_err(unusable)?.spiffe_id().clone();
        Ok(Self { source, identity })
    }

    pub(super) const fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// Every client has to show an identity of the own trust domain.
    pub(super) fn server(&self) -> Result<ServerTls, SpiffeError> {
        let (config, status) = mtls_server(self.source.clone())
            .trust_domain_policy(LocalOnly(self.identity.trust_domain().clone()))
            .with_alpn_protocols(server::protocols())
            .build_with_status()?;
        Ok(ServerTls::of_spiffe(config, status))
    }

    /// Servers show an identity of the own trust domain, one that `server` accepts.
    pub(super) fn client(&self, server: ServerId) -> Result<client::ClientTls, SpiffeError> {
        let config = mtls_client(self.source.clone())
            .authorize(move |id: &SpiffeId| server.accepts(id))
            .trust_domain_policy(LocalOnly(self.identity.trust_domain().clone()))
            .build()?;
        Ok(ClientTls::of_spiffe(config))
    }
}

/// Waits for the agent to give an identity, for the sake of what it says when it does not.
async fn first_identity(socket: &Path, deadline: Instant, patience: Duration) -> Result<(), SpiffeError> {
    let mut last = None;
    while Instant::now() < deadline {
        let asked = timeout_at(deadline, async {
            let client = WorkloadApiClient::connect(Endpoint::Unix(socket.to_owned())).await?;
            client.fetch_x509_context().await
        });
        match asked.await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => last = Some(error),
            Err(_) => break,
        }
        sleep(PAUSE).await;
    }
    Err(SpiffeError::NoIdentity {
        socket: socket.to_owned(),
        patience,
        source: last,
    })
}

/// The socket's path: SPIFFE's own spelling is `unix:///path`.
fn plain(socket: &Path) -> PathBuf {
    let text = socket.to_string_lossy();
    match text.strip_prefix("unix:") {
        Some(path) => PathBuf::from(path.strip_prefix("//").unwrap_or(path)),
        None => socket.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use test_support::{pki::Authority, workload_api};

    use super::*;

    #[tokio::test]
    async fn an_agent_without_an_identity_is_told_from_no_agent() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let error = Agent::connect(&socket, PATIENCE).await.unwrap_err();
        assert!(matches!(error, SpiffeError::NoAgent { .. }), "{error}");

        let agent = workload_api::Agent::start(&socket).unwrap();
        let error = Agent::connect(&socket, Duration::from_millis(300))
            .await
            .unwrap_err();
        let text = crate::commands::chain(&error);
        assert!(text.contains("registration entry"), "{text}");
        assert!(text.contains("no identity issued"), "what the agent said: {text}");

        // An entry that comes while it is waited for.
        let (connected, ()) = tokio::join!(Agent::connect(&socket, Duration::from_secs(60)), async {
            drop(agent.give(
                "spiffe://test.example/a",
                &Authority::of_trust_domain("test.example"),
            ));
        });
        assert_eq!(
            connected.unwrap().identity().to_string(),
            "spiffe://test.example/a"
        );
    }

    #[test]
    fn a_socket_is_a_path_with_or_without_its_scheme() {
        for (given, path) in [
            ("/run/agent.sock", "/run/agent.sock"),
            ("unix:///run/agent.sock", "/run/agent.sock"),
            ("unix:/run/agent.sock", "/run/agent.sock"),
        ] {
            assert_eq!(plain(Path::new(given)), Path::new(path), "{given}");
        }
    }
}
