//! A registry in the process, which misbehaves on request.
//!
//! ```
//! use test_support::{image::{Image, Layer}, registry::{Misbehaviour, Registry}};
//!
//! # fn main() -> std::io::Result<()> {
//! let registry = Registry::start()?;
//! let image = Image::new().layer(&Layer::new().file("hello", b"world")).build();
//! let reference = registry.publish("team/app", "1.0", &image); // 127.0.0.1:PORT/team/app:1.0
//!
//! // The first request for a blob is answered with 503, the next ones as they should be.
//! registry.misbehave_times(1, "/blobs/", Misbehaviour::status(503).header("retry-after", "1"));
//! # Ok(())
//! # }
//! ```
//!
//! It speaks the read side of the distribution specification (manifests by tag and digest, blobs with ranges, the tag
//! list), on a port of loopback that the system chooses, from a thread of its own: tests with and without an async
//! runtime can use it.

mod auth;
mod body;
mod handler;
mod misbehaviour;

pub use auth::Authentication;
pub use misbehaviour::Misbehaviour;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    background::Background,
    image::{BuiltImage, Manifest},
};

/// One request as it arrived, and the status it was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    /// `GET`, `HEAD` or `POST`.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Query without the question mark; for a form that was posted, the form.
    pub query: String,
    /// Headers by lower-case name, credentials included: they are test data.
    pub headers: BTreeMap<String, String>,
    /// Status of the answer.
    pub status: u16,
}

/// A registry in the process. It ends when it is dropped, in the middle of an answer if need be.
pub struct Registry {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: Background,
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Registry")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What the registry's thread and its owner both see.
struct Shared {
    address: SocketAddr,
    authentication: Authentication,
    state: Mutex<State>,
    /// Signalled when a request was logged and when an answer stalls.
    changed: Condvar,
    /// Goes up with every [`Registry::release`].
    released: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    tags: BTreeMap<(String, String), String>,
    manifests: BTreeMap<(String, String), Manifest>,
    blobs: BTreeMap<(String, String), Bytes>,
    private: BTreeMap<String, String>,
    tokens: BTreeMap<String, Vec<String>>,
    issued_tokens: u64,
    rules: Vec<Rule>,
    requests: Vec<LoggedRequest>,
    n_stalled: usize,
    n_in_flight: usize,
}

struct Rule {
    path_part: String,
    misbehaviour: Misbehaviour,
    times_left: Option<usize>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock has failed already; the others may go on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// A registry that lets everybody pull.
    ///
    /// # Errors
    /// When no port of loopback can be had.
    pub fn start() -> io::Result<Self> {
        Self::start_with(Authentication::None)
    }

    /// A registry that asks for credentials.
    ///
    /// # Errors
    /// When no port of loopback can be had.
    pub fn start_with(authentication: Authentication) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            address,
            authentication,
            state: Mutex::default(),
            changed: Condvar::new(),
            released: watch::Sender::new(0),
        });
        let server = Background::serve("test-registry", listener, handler::router(Arc::clone(&shared)))?;
        Ok(Self {
            address,
            shared,
            _server: server,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `127.0.0.1:PORT`, as it stands in a reference.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `127.0.0.1:PORT/REPOSITORY:TAG`.
    #[must_use]
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Makes an image (or an index with all its images) available and gives the reference it has from now on. A tag
    /// that is there already moves.
    pub fn publish(&self, repository: &str, tag: &str, image: &BuiltImage) -> String {
        let mut state = self.shared.lock();
        let in_repository = |digest: &String| (repository.to_owned(), digest.clone());
        for (digest, manifest) in &image.manifests {
            state.manifests.insert(in_repository(digest), manifest.clone());
        }
        for (digest, bytes) in &image.blobs {
            state
                .blobs
                .insert(in_repository(digest), Bytes::copy_from_slice(bytes));
        }
        state.tags.insert(
            (repository.to_owned(), tag.to_owned()),
            image.manifest_digest.clone(),
        );
        self.reference(repository, tag)
    }

    /// Puts bytes under any digest, true or not.
    pub fn put_blob(&self, repository: &str, digest: &str, bytes: &[u8]) {
        let key = (repository.to_owned(), digest.to_owned());
        self.shared
            .lock()
            .blobs
            .insert(key, Bytes::copy_from_slice(bytes));
    }

    /// Takes a blob away.
    pub fn remove_blob(&self, repository: &str, digest: &str) {
        self.shared
            .lock()
            .blobs
            .remove(&(repository.to_owned(), digest.to_owned()));
    }

    /// From now on only `user` may pull from `repository`.
    pub fn restrict(&self, repository: &str, user: &str) {
        self.shared
            .lock()
            .private
            .insert(repository.to_owned(), user.to_owned());
    }

    /// Forgets every bearer token it gave out, as if they had expired.
    pub fn expire_tokens(&self) {
        self.shared.lock().tokens.clear();
    }

    /// From now on every request whose path contains `path_part` is answered wrongly (a digest, `/manifests/`,
    /// `/token`, or `/` for all). Of several rules that fit, the one that was made first and is not used up counts.
    pub fn misbehave(&self, path_part: &str, misbehaviour: Misbehaviour) {
        self.add_rule(path_part, misbehaviour, None);
    }

    /// As [`misbehave`](Self::misbehave), for the next `times` requests that fit.
    pub fn misbehave_times(&self, times: usize, path_part: &str, misbehaviour: Misbehaviour) {
        self.add_rule(path_part, misbehaviour, Some(times));
    }

    fn add_rule(&self, path_part: &str, misbehaviour: Misbehaviour, times_left: Option<usize>) {
        let rule = Rule {
            path_part: path_part.to_owned(),
            misbehaviour,
            times_left,
        };
        self.shared.lock().rules.push(rule);
    }

    /// No rule holds any more. Answers that have begun go on as they are.
    pub fn behave(&self) {
        self.shared.lock().rules.clear();
    }

    /// Lets every answer that stalls at this moment go on.
    pub fn release(&self) {
        self.shared.released.send_modify(|generation| *generation += 1);
    }

    /// All requests so far, in the order of their arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.shared.lock().requests.clone()
    }

    /// How many requests had a path that contains `path_part`.
    #[must_use]
    pub fn count_requests(&self, path_part: &str) -> usize {
        self.shared
            .lock()
            .requests
            .iter()
            .filter(|request| request.path.contains(path_part))
            .count()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        self.shared.lock().requests.clear();
    }

    /// Bodies that are being sent, the stalled ones included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.lock().n_in_flight
    }

    /// Blocks the thread until at least `count` answers stall; `false` when that takes longer than `limit`.
    #[must_use]
    pub fn wait_for_stalled(&self, count: usize, limit: Duration) -> bool {
        self.wait_until(limit, |state| state.n_stalled >= count)
    }

    /// Blocks the thread until at least `count` requests had a path that contains `path_part`; `false` when that takes
    /// longer than `limit`.
    #[must_use]
    pub fn wait_for_requests(&self, count: usize, path_part: &str, limit: Duration) -> bool {
        self.wait_until(limit, |state| {
            state
                .requests
                .iter()
                .filter(|request| request.path.contains(path_part))
                .count()
                >= count
        })
    }

    /// Blocks the thread until no body is being sent any more; `false` when that takes longer than `limit`.
    #[must_use]
    pub fn wait_for_idle(&self, limit: Duration) -> bool {
        self.wait_until(limit, |state| state.n_in_flight == 0)
    }

    fn wait_until(&self, limit: Duration, condition: impl Fn(&State) -> bool) -> bool {
        let guard = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(guard, limit, |state| !condition(state));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}
