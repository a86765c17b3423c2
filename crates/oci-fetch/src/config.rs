//! What the operator decides about a client.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::certificates;
use crate::error::FetchError;
use crate::net::proxy::Proxies;
use crate::net::resolver::{Resolver, SystemResolver};
use crate::policy::Policy;
use crate::reference::normalise_registry;

/// The settings of a [`Client`](crate::Client), with defaults that are safe for references from strangers.
///
/// ```
/// # fn main() -> Result<(), oci_fetch::FetchError> {
/// use oci_fetch::{ClientConfig, Loopback, Policy};
///
/// let config = ClientConfig::new("/var/cache/images")
///     .with_policy(Policy::allowing(["docker.io", "*.example.com", "registry.internal:5000"])?)
///     .with_private_registry("registry.internal:5000")?
///     .with_plain_http("10.0.0.7:5000")?
///     .with_loopback(Loopback::Denied)
///     .with_max_image_size(8 << 30);
/// # drop(config); Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ClientConfig {
    pub(crate) cache_directory: PathBuf,
    pub(crate) cache_limit_bytes: Option<u64>,
    pub(crate) durable: bool,
    pub(crate) plain_http: BTreeSet<String>,
    pub(crate) private_registries: BTreeSet<String>,
    pub(crate) loopback: Loopback,
    pub(crate) policy: Policy,
    pub(crate) max_image_size_bytes: Option<u64>,
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: RetryPolicy,
    pub(crate) connections_per_host: usize,
    pub(crate) connections_total: usize,
    pub(crate) ranges: Ranges,
    pub(crate) user_agent: String,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) tls: BTreeMap<String, RegistryTls>,
    pub(crate) mirrors: BTreeMap<String, Mirrors>,
    pub(crate) proxies: Proxies,
    pub(crate) pull_timeout: Option<Duration>,
}

/// Where to look for one registry's images before the registry itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mirrors {
    /// `https://host[:port]` or `http://host[:port]`, as `host[:port]` and whether it is plain.
    pub(crate) hosts: Vec<Mirror>,
    pub(crate) without_fallback: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    pub(crate) host: String,
    pub(crate) is_plain: bool,
}

/// Whether registries on this machine's loopback interface may be used: names `localhost`, `*.localhost`, `127.0.0.0/8`
/// and `::1`, no other name whatever it resolves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Loopback {
    /// Not unless named as a private or plain-http registry.
    #[default]
    Denied,
    /// Allowed, with TLS.
    Tls,
    /// Allowed, without TLS; for development. A registry with an authority or a client certificate of its own is used with
    /// TLS all the same.
    PlainHttp,
}

/// How long the client waits for one thing. None of these limits the whole of a download: a slow one that gets on is let
/// be, up to [`ClientConfig::with_pull_timeout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the TCP and TLS handshakes. Default 10 s.
    pub connect: Duration,
    /// From sending the request to the last byte of the response's header. Default 30 s.
    pub header: Duration,
    /// A body of which fewer than 4 KiB arrive in this time is broken off and resumed. Default 30 s.
    pub no_progress: Duration,
    /// For the whole of a manifest, config or token. Default 60 s.
    pub document: Duration,
}

/// How often and how fast a failed request is repeated. Only `GET` and `HEAD` requests and token requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Requests in all, the first included; counted anew after a body has got on. Default 5.
    pub attempts: u32,
    /// The first pause, doubled each time; the actual pause is between half and all of it. Default 250 ms.
    pub first_pause: Duration,
    /// The longest pause without `Retry-After`. Default 30 s.
    pub longest_pause: Duration,
    /// The longest `Retry-After` that is waited for; a longer one fails as rate limited at once. Default 120 s.
    pub longest_retry_after: Duration,
}

/// When and how a blob is fetched over several connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges {
    /// Connections for one blob; 1 never splits. Default 4.
    pub connections: usize,
    /// Blobs smaller than this come over one connection. Default 32 MiB.
    pub min_blob_bytes: u64,
    /// The size of one range; a connection that is the only one takes longer ones. Default 16 MiB.
    pub range_bytes: u64,
    /// A blob stays with its first connection as long as that would bring what nobody has asked for yet within this time, at
    /// the rate it has had so far; then the others begin, too. Zero splits every blob. Default 2 s.
    ///
    /// Where the machine or the line is the limit several connections bring a blob no sooner: what comes out of order has to
    /// be read back to be hashed, and each range is a request.
    pub one_connection_time: Duration,
}

/// TLS material for one registry, in PEM.
#[derive(Clone, Default)]
pub(crate) struct RegistryTls {
    pub(crate) certificate_authorities: Option<Vec<u8>>,
    pub(crate) client_identity: Option<Vec<u8>>,
}

impl ClientConfig {
    /// The defaults, with the blob cache below this directory (created when missing, with mode 0700).
    ///
    /// Two processes may share the directory. It holds other parties' private layers and must be readable for this process
    /// only.
    #[must_use]
    pub fn new(cache_directory: impl Into<PathBuf>) -> Self {
        Self {
            cache_directory: cache_directory.into(),
            cache_limit_bytes: None,
            durable: true,
            plain_http: BTreeSet::new(),
            private_registries: BTreeSet::new(),
            loopback: Loopback::default(),
            policy: Policy::default(),
            max_image_size_bytes: None,
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            connections_per_host: 16,
            connections_total: 64,
            ranges: Ranges::default(),
            user_agent: concat!("oci-fetch/", env!("CARGO_PKG_VERSION")).to_owned(),
            resolver: Arc::new(SystemResolver),
            tls: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            proxies: Proxies::none(),
            pull_timeout: None,
        }
    }

    /// The cache directory.
    #[must_use]
    pub fn cache_directory(&self) -> &Path {
        &self.cache_directory
    }

    /// Removes the least recently used blobs whenever the cache is over this many bytes; a blob in use stays. 0 keeps
    /// nothing that is not in use. Without this call nothing is ever removed.
    #[must_use]
    pub fn with_cache_limit(mut self, bytes: u64) -> Self {
        self.cache_limit_bytes = Some(bytes);
        self
    }

    /// `false` leaves out the fsync before a blob enters the cache: faster, but after a power failure a blob can be cut off,
    /// which its first use in the next process finds out (every cached blob is hashed on its first use). Default `true`.
    #[must_use]
    pub fn with_durable_cache(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Speaks plain HTTP to this registry (`host[:port]` as in references) and lets it be on a private or loopback address.
    ///
    /// # Errors
    /// `InvalidInput` when it is not `host[:port]`.
    pub fn with_plain_http(mut self, registry: &str) -> Result<Self, FetchError> {
        self.plain_http.insert(normalise_registry(registry)?);
        Ok(self)
    }

    /// Lets this registry (`host[:port]` as in references) be on a private or loopback address. What it redirects to on
    /// another host may not, nor on another port, unless that is named likewise.
    ///
    /// # Errors
    /// `InvalidInput` when it is not `host[:port]`.
    pub fn with_private_registry(mut self, registry: &str) -> Result<Self, FetchError> {
        self.private_registries.insert(normalise_registry(registry)?);
        Ok(self)
    }

    /// Whether registries on this machine may be used.
    #[must_use]
    pub fn with_loopback(mut self, loopback: Loopback) -> Self {
        self.loopback = loopback;
        self
    }

    /// The registries that may be pulled from. [`Client::restricted`](crate::Client::restricted) narrows it per caller.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// The largest sum of the compressed layers of one image, checked before the first layer is fetched.
    #[must_use]
    pub fn with_max_image_size(mut self, bytes: u64) -> Self {
        self.max_image_size_bytes = Some(bytes);
        self
    }

    /// Replaces the timeouts.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// The longest that an image may take, from the call of [`resolve`](crate::Client::resolve) to the last byte of its
    /// last layer. What is not there by then fails with `TimedOut` for this caller; others who want the same layer go on.
    /// Default: no limit.
    #[must_use]
    pub fn with_pull_timeout(mut self, limit: Duration) -> Self {
        self.pull_timeout = Some(limit);
        self
    }

    /// Reaches registries through HTTP proxies. Default: none, whatever the environment says. Read what
    /// [`Proxies`] says about addresses first.
    #[must_use]
    pub fn with_proxies(mut self, proxies: Proxies) -> Self {
        self.proxies = proxies;
        self
    }

    /// Replaces the rules for repeating failed requests.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// The most connections to one registry, and in all, that transfer blobs at one time; documents have as many of their
    /// own. Default 16 and 64; at least 1.
    ///
    /// A registry begins with 6 (or `per_host`, if that is less). The number grows by one after as many answers, and is halved
    /// when the registry says that it is too much (503) or does not answer; 429 halves what the key that got it may use. No isolation key holds more than three
    /// quarters of either number, and what becomes free goes to the key that holds the fewest.
    #[must_use]
    pub fn with_connections(mut self, per_host: usize, total: usize) -> Self {
        self.connections_per_host = per_host.max(1);
        self.connections_total = total.max(1);
        self
    }

    /// Replaces the rules for fetching one blob over several connections.
    #[must_use]
    pub fn with_ranges(mut self, ranges: Ranges) -> Self {
        self.ranges = ranges;
        self
    }

    /// The `User-Agent` header.
    #[must_use]
    pub fn with_user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = user_agent.into();
        self
    }

    /// Replaces the system's name resolution; its answers go through the address filter all the same.
    #[must_use]
    pub fn with_resolver(mut self, resolver: Arc<dyn Resolver>) -> Self {
        self.resolver = resolver;
        self
    }

    /// Trusts the certificate authorities in this PEM bundle, besides the system's, for this registry's own host
    /// and port.
    ///
    /// # Errors
    /// `InvalidInput` when the registry is not `host[:port]`. A bundle that cannot be parsed fails
    /// [`Client::new`](crate::Client::new).
    pub fn with_certificate_authorities(
        mut self,
        registry: &str,
        pem: impl Into<Vec<u8>>,
    ) -> Result<Self, FetchError> {
        let tls = self.tls.entry(normalise_registry(registry)?).or_default();
        tls.certificate_authorities = Some(pem.into());
        Ok(self)
    }

    /// Shows a client certificate to this registry's own host and port: a PEM file with certificate chain and private key.
    ///
    /// # Errors
    /// As for [`with_certificate_authorities`](Self::with_certificate_authorities).
    pub fn with_client_certificate(
        mut self,
        registry: &str,
        pem: impl Into<Vec<u8>>,
    ) -> Result<Self, FetchError> {
        self.tls
            .entry(normalise_registry(registry)?)
            .or_default()
            .client_identity = Some(pem.into());
        Ok(self)
    }

    /// Takes authorities and client certificates from a directory that is laid out as Docker's `certs.d`:
    /// `DIRECTORY/HOST[:PORT]/` with authorities in `*.crt`, and at most one client certificate in `NAME.cert` with its key in
    /// `NAME.key`. The directory is read once, now.
    ///
    /// # Errors
    /// `InvalidInput`, naming the file: what cannot be read, a certificate without its key or the reverse, a directory that is
    /// not named `HOST[:PORT]` or has nothing of use. PEM that cannot be parsed fails [`Client::new`](crate::Client::new).
    pub fn with_certificates_directory(mut self, directory: &Path) -> Result<Self, FetchError> {
        for (registry, certificates) in certificates::read_directory(directory)? {
            if let Some(pem) = certificates.authorities {
                self = self.with_certificate_authorities(&registry, pem)?;
            }
            if let Some(pem) = certificates.client {
                self = self.with_client_certificate(&registry, pem)?;
            }
        }
        Ok(self)
    }

    /// Looks for this registry's images at a mirror (`https://host[:port]`, `http://host[:port]`, or `host[:port]` for
    /// https) first; several calls name several mirrors, asked in that order.
    ///
    /// A mirror is asked anonymously, whatever credentials the caller has for the registry: they are never sent to it. The
    /// name of the registry is passed in the query as `ns`. When a mirror lacks the image, fails, or breaks off in the middle
    /// of a layer, the next one goes on, and the registry last. One that cannot be reached is left out for 30 seconds.
    /// A mirror may be on a private or loopback address.
    ///
    /// # Errors
    /// `InvalidInput` when the registry is not `host[:port]`, or the mirror has a path or another scheme.
    pub fn with_mirror(mut self, registry: &str, mirror: &str) -> Result<Self, FetchError> {
        let (host, is_plain) = match (mirror.strip_prefix("https://"), mirror.strip_prefix("http://")) {
            (Some(host), _) => (host, false),
            (_, Some(host)) => (host, true),
            (None, None) => (mirror, false),
        };
        let host = normalise_registry(host.strip_suffix('/').unwrap_or(host))
            .map_err(|_| FetchError::invalid("registry mirror is not of the form https://host[:port]"))?;
        self.mirrors
            .entry(normalise_registry(registry)?)
            .or_default()
            .hosts
            .push(Mirror { host, is_plain });
        Ok(self)
    }

    /// Uses the mirrors of this registry only and never the registry itself.
    ///
    /// # Errors
    /// `InvalidInput` when the registry is not `host[:port]`.
    pub fn without_mirror_fallback(mut self, registry: &str) -> Result<Self, FetchError> {
        self.mirrors
            .entry(normalise_registry(registry)?)
            .or_default()
            .without_fallback = true;
        Ok(self)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            header: Duration::from_secs(30),
            no_progress: Duration::from_secs(30),
            document: Duration::from_secs(60),
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(30),
            longest_retry_after: Duration::from_secs(120),
        }
    }
}

impl Default for Ranges {
    fn default() -> Self {
        Self {
            connections: 4,
            min_blob_bytes: 32 << 20,
            range_bytes: 16 << 20,
            one_connection_time: Duration::from_secs(2),
        }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClientConfig")
            .field("cache_directory", &self.cache_directory)
            .field("plain_http", &self.plain_http)
            .field("private_registries", &self.private_registries)
            .field("loopback", &self.loopback)
            .field("policy", &self.policy)
            .field("proxies", &self.proxies)
            .finish_non_exhaustive()
    }
}
