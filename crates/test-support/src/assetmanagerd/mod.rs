//! An assetmanagerd in the process: keeps what it is told, records every call, and fails on request.
//!
//! ```
//! use test_support::assetmanagerd::{Code, FakeAssetManager};
//!
//! # fn main() -> std::io::Result<()> {
//! let assets = FakeAssetManager::start()?;
//! assets.fail_times(1, Code::Unavailable);
//! // … a client that is given `assets.endpoint()` registers an image, and tries again …
//! assert!(assets.calls().is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! It answers under both names that the service has in the field: `asset.v1.AssetManagerService` and
//! `deploy.assetmanagerd.v1.AssetManagerService`.

mod service;

pub use tonic::Code;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::background::Background;

/// The messages of `proto/asset/v1/asset.proto`.
pub mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated"
    )]

    tonic::include_proto!("asset.v1");
}

mod second {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated"
    )]

    include!(concat!(env!("OUT_DIR"), "/second/deploy.assetmanagerd.v1.rs"));
}

/// One call as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The package under which the service was called: `asset.v1` or `deploy.assetmanagerd.v1`.
    pub package: &'static str,
    /// The header `X-Tenant-ID`.
    pub tenant_id: Option<String>,
    /// The header `X-Customer-ID`.
    pub customer_id: Option<String>,
    /// What was asked.
    pub request: Request,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// `RegisterAsset`.
    Register(proto::RegisterAssetRequest),
    /// `UploadAsset`: the metadata, and all chunks joined.
    Upload(proto::UploadAssetMetadata, Vec<u8>),
    /// `GetAsset`.
    Get(proto::GetAssetRequest),
    /// `DeleteAsset`.
    Delete(proto::DeleteAssetRequest),
}

/// How a call goes wrong. Every call is recorded all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// It is answered with this code, and nothing is done.
    Refuse(Code),
    /// It is never answered, and nothing is done.
    Hang,
    /// It is done, and then answered with UNAVAILABLE, as by a server that dies after the write.
    LoseAnswer,
    /// Nothing is done, and the answer is empty.
    Garbage,
}

/// An assetmanagerd in the process. It ends when it is dropped.
pub struct FakeAssetManager {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _server: Background,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    trace_parents: Vec<String>,
    assets: BTreeMap<String, proto::Asset>,
    n_registered: u64,
    misbehaviour: Option<(usize, Misbehaviour)>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A test that panicked while it held the lock has failed already.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for FakeAssetManager {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FakeAssetManager")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl FakeAssetManager {
    /// Starts one that knows no asset.
    ///
    /// # Errors
    /// When no port of loopback can be had.
    pub fn start() -> io::Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts one that knows no asset at an address where one was before.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn start_at(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let server = Background::serve("test-assetmanagerd", listener, service::router(&state))?;
        Ok(Self {
            address,
            state,
            _server: server,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All calls so far, the failed ones included, in the order of their arrival.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state).calls.clone()
    }

    /// The header `traceparent` of all calls so far that had one.
    #[must_use]
    pub fn trace_parents(&self) -> Vec<String> {
        lock(&self.state).trace_parents.clone()
    }

    /// The assets that it knows, by id.
    #[must_use]
    pub fn assets(&self) -> BTreeMap<String, proto::Asset> {
        lock(&self.state).assets.clone()
    }

    /// The next `times` calls are answered with this code.
    pub fn fail_times(&self, times: usize, code: Code) {
        self.misbehave(times, Misbehaviour::Refuse(code));
    }

    /// The next `times` calls go wrong this way, and those after them not; 0 for none.
    pub fn misbehave(&self, times: usize, how: Misbehaviour) {
        lock(&self.state).misbehaviour = Some((times, how));
    }

    /// Puts an asset there that somebody else has registered.
    pub fn add(&self, asset: proto::Asset) {
        lock(&self.state).assets.insert(asset.id.clone(), asset);
    }

    /// Says how many virtual machines use an asset. What is not known is left alone.
    pub fn set_reference_count(&self, id: &str, count: i32) {
        if let Some(asset) = lock(&self.state).assets.get_mut(id) {
            asset.reference_count = count;
        }
    }
}
