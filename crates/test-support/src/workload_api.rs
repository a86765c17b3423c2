//! A SPIFFE agent in the process: gives identities over the Workload API, renews them, goes away and comes back.
//!
//! ```
//! use test_support::{pki::Authority, workload_api::Agent};
//!
//! # fn main() -> std::io::Result<()> {
//! let directory = tempfile::tempdir()?;
//! let socket = directory.path().join("agent.sock");
//! let authority = Authority::of_trust_domain("test.example");
//! let agent = Agent::start(&socket)?;
//! agent.give("spiffe://test.example/builderd", &authority);
//! // … a program connects to the socket and gets its identity; it is told of the next one:
//! agent.give("spiffe://test.example/builderd", &authority);
//! drop(agent); // … and this is an agent that went away.
//! # Ok(())
//! # }
//! ```

use std::{
    collections::HashMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    pin::Pin,
};

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    background::Background,
    pki::{Authority, Issued, Subject},
};

mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated"
    )]

    tonic::include_proto!("_");
}

use proto::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};

/// The header that shows that a caller means this API, and is not a browser that was led here.
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// What an agent tells.
type Told = Option<proto::X509svidResponse>;

/// An agent at a socket. It ends when it is dropped, and the socket goes with it.
pub struct Agent {
    socket: PathBuf,
    told: watch::Sender<Told>,
    /// Ends before the socket is removed.
    server: Option<Background>,
}

impl Agent {
    /// Starts one that knows no identity for anybody.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(socket: &Path) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::bind(socket)?;
        let (told, _) = watch::channel(None);
        let service = SpiffeWorkloadApiServer::new(Service(told.clone()));
        let router = Routes::new(service).prepare().into_axum_router();
        let server = Background::serve_on("test-spiffe-agent", listener, router)?;
        Ok(Self {
            socket: socket.to_owned(),
            told,
            server: Some(server),
        })
    }

    /// Gives every caller this identity, or renews it: the certificate and the key are new ones.
    pub fn give(&self, id: &str, authority: &Authority) -> Issued {
        self.give_with(id, authority, &[])
    }

    /// The same, with the authorities of other trust domains.
    pub fn give_with(&self, id: &str, authority: &Authority, federated: &[(&str, &Authority)]) -> Issued {
        self.tell(id, &Subject::spiffe(id), authority, authority, federated)
    }

    /// Gives an identity that no peer of the bundle's authority will believe.
    pub fn give_wrong(
        &self,
        id: &str,
        subject: &Subject,
        authority: &Authority,
        bundle: &Authority,
    ) -> Issued {
        self.tell(id, subject, authority, bundle, &[])
    }

    fn tell(
        &self,
        id: &str,
        subject: &Subject,
        authority: &Authority,
        bundle: &Authority,
        federated: &[(&str, &Authority)],
    ) -> Issued {
        let issued = authority.issue(subject);
        let federated: HashMap<_, _> = federated
            .iter()
            .map(|(domain, authority)| (format!("spiffe://{domain}"), authority.der()))
            .collect();
        self.told.send_replace(Some(proto::X509svidResponse {
            svids: vec![proto::X509svid {
                spiffe_id: id.to_owned(),
                x509_svid: issued.certificate_der.clone(),
                x509_svid_key: issued.key_der.clone(),
                bundle: bundle.der(),
                hint: String::new(),
            }],
            crl: Vec::new(),
            federated_bundles: federated,
        }));
        issued
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Agent")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.server.take());
        // Its directory may be gone already.
        let _ = fs::remove_file(&self.socket);
    }
}

struct Service(watch::Sender<Told>);

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Pin<Box<dyn Stream<Item = Result<proto::X509svidResponse, Status>> + Send>>;

    async fn fetch_x509svid(
        &self,
        request: Request<proto::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let header = request.metadata().get(SECURITY_HEADER);
        if header.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        let mut told = self.0.subscribe();
        if told.borrow().is_none() {
            return Err(Status::permission_denied("no identity issued"));
        }
        told.mark_changed();
        let answers = stream::unfold(told, |mut told| async move {
            told.changed().await.ok()?;
            let answer = told.borrow_and_update().clone()?;
            Some((Ok(answer), told))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
