//! HTTP as a registry client needs it: guarded connections, an own redirect loop, deadlines, slots.

pub(crate) mod address;
pub(crate) mod content_range;
pub(crate) mod gate;
pub(crate) mod proxy;
pub(crate) mod resolver;
pub(crate) mod response;
pub(crate) mod retry;
pub(crate) mod route;
pub(crate) mod slots;

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RANGE};
use http::{Method, StatusCode};
use url::Url;

use crate::config::{ClientConfig, RegistryTls};
use crate::error::{FetchError, FetchErrorKind};
use crate::net::address::Reach;
use crate::net::proxy::{ProxyResolver, is_inside_name};
use crate::net::resolver::{AddressDenied, GuardedResolver};
use crate::net::response::Answer;
use crate::net::route::{Route, same_origin};
use crate::net::slots::{Slots, Traffic};

/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 5;

/// Registries answer with about twenty headers.
const MAX_HEADERS: usize = 100;

/// One request, before redirects.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a Url,
    pub(crate) accept: Option<&'static str>,
    /// First byte wanted, and the last one; `None` asks to the end.
    pub(crate) range: Option<(u64, Option<u64>)>,
    /// Sent to the origin of `url` only.
    pub(crate) authorization: Option<HeaderValue>,
    /// The body of a form `POST`, which is never redirected.
    pub(crate) form: Option<String>,
    pub(crate) traffic: Traffic,
    /// The isolation key of the party that asks; slots are shared out fairly between parties.
    pub(crate) party: &'a str,
}

/// All connections of a client.
pub(crate) struct Transport {
    config: Arc<ClientConfig>,
    /// One HTTP client for each reach and each registry with TLS material of its own, so that a connection opened with more
    /// rights is never reused by a request with fewer.
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
    slots: Slots,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    reach: Reach,
    tls: Option<String>,
    /// The proxy that all connections of this client go to.
    proxy: Option<Url>,
}

impl Transport {
    /// Builds the HTTP clients that have TLS material once, so that bad PEM fails here.
    pub(crate) fn new(config: Arc<ClientConfig>) -> Result<Self, FetchError> {
        let slots = Slots::new(config.connections_per_host, config.connections_total);
        let transport = Self {
            config,
            clients: Mutex::default(),
            slots,
        };
        for registry in transport.config.tls.keys() {
            let key = ClientKey {
                reach: Reach::Public,
                tls: Some(registry.clone()),
                proxy: None,
            };
            transport.client(key).map_err(|error| {
                let message = format!("TLS material of registry {registry} cannot be used");
                FetchError::with_source(FetchErrorKind::InvalidInput, message, error)
            })?;
        }
        Ok(transport)
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// Sends the request and follows its redirects, to the header of the final response.
    ///
    /// A dropped future closes the connection that it was using.
    pub(crate) async fn send(&self, route: &Route, request: &Request<'_>) -> Result<Answer, FetchError> {
        let slot = self
            .slots
            .acquire(request.url, request.traffic, request.party)
            .await;
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let reach = route.admit(&url)?;
            let is_origin = same_origin(&url, request.url);
            let tls = route
                .tls_name(&url)
                .filter(|name| self.config.tls.contains_key(name));
            let proxy = self.config.proxies.for_url(&url).cloned();
            if proxy.is_some() && reach != Reach::Private && is_inside_name(&url) {
                return Err(route.denied());
            }
            let is_proxied = proxy.is_some();
            let client = self.client(ClientKey { reach, tls, proxy })?;
            let mut builder = client
                .request(request.method.clone(), url.clone())
                // A body that is encoded once more would have another digest.
                .header(ACCEPT_ENCODING, "identity");
            if let Some(accept) = request.accept {
                builder = builder.header(ACCEPT, accept);
            }
            if let Some((first, last)) = request.range {
                let last = last.map(|last| last.to_string()).unwrap_or_default();
                builder = builder.header(RANGE, format!("bytes={first}-{last}"));
            }
            if let Some(authorization) = &request.authorization
                && is_origin
            {
                builder = builder.header(AUTHORIZATION, authorization.clone());
            }
            if let Some(form) = &request.form {
                builder = builder
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form.clone());
            }
            let response = tokio::time::timeout(self.config.timeouts.header, builder.send())
                .await
                .map_err(|_| {
                    FetchError::transient(format!("registry {} did not answer in time", route.registry))
                })
                .and_then(|sent| sent.map_err(|error| send_error(route, error, is_proxied)))
                .inspect_err(|_| slot.unanswered())?;
            // A storage that is redirected to shares the registry's number: it is the registry that sends there.
            slot.answered(response.status());
            if !is_redirect(response.status()) || request.form.is_some() {
                return Ok(Answer {
                    response,
                    is_origin,
                    slot,
                });
            }
            url = redirect_target(route, &url, &response)?;
        }
        Err(FetchError::protocol(format!(
            "registry {} redirects more than {MAX_REDIRECTS} times",
            route.registry
        )))
    }

    fn client(&self, key: ClientKey) -> Result<reqwest::Client, FetchError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let tls = key
            .tls
            .as_ref()
            .and_then(|registry| self.config.tls.get(registry));
        let client = build_client(&self.config, key.reach, tls, key.proxy.as_ref())?;
        clients.insert(key, client.clone());
        Ok(client)
    }
}

fn build_client(
    config: &ClientConfig,
    reach: Reach,
    tls: Option<&RegistryTls>,
    proxy: Option<&Url>,
) -> Result<reqwest::Client, FetchError> {
    let invalid = |what: &str, error: reqwest::Error| {
        FetchError::with_source(FetchErrorKind::InvalidInput, what.to_owned(), error.without_url())
    };
    let mut authorities = Vec::new();
    if let Some(pem) = tls.and_then(|tls| tls.certificate_authorities.as_ref()) {
        authorities = reqwest::Certificate::from_pem_bundle(pem)
            .map_err(|error| invalid("certificate authorities are not valid PEM", error))?;
        // Text without any certificate is no error to the parser.
        if authorities.is_empty() {
            return Err(FetchError::invalid(
                "certificate authorities hold no certificate in PEM",
            ));
        }
    }
    let identity = match tls.and_then(|tls| tls.client_identity.as_ref()) {
        Some(pem) => Some(
            reqwest::Identity::from_pem(pem)
                .map_err(|error| invalid("client certificate is not a valid PEM chain and key", error))?,
        ),
        None => None,
    };
    let forward = match proxy {
        Some(proxy) => {
            let forward = reqwest::Proxy::all(proxy.clone());
            Some(forward.map_err(|error| invalid("proxy cannot be used", error))?)
        }
        None => None,
    };
    let builder = || {
        let builder = reqwest::Client::builder()
            .user_agent(&config.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            // Never the environment's: a proxy resolves names itself, past the address filter.
            .no_proxy()
            // Many connections beat many streams on one: a blob stream over HTTP/2 shares one window with its peers.
            .http1_only()
            .http1_max_headers(MAX_HEADERS)
            // Other crates of a workspace may switch these features of reqwest on.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .retry(reqwest::retry::never())
            .connect_timeout(config.timeouts.connect)
            .tcp_nodelay(true);
        let resolver = |reach| GuardedResolver {
            inner: Arc::clone(&config.resolver),
            reach,
        };
        let builder = match (proxy, &forward) {
            // The proxy itself is the operator's word and may be anywhere inside.
            (Some(proxy), Some(forward)) => builder
                .proxy(forward.clone())
                .dns_resolver(ProxyResolver::new(proxy, resolver(Reach::Private))),
            _ => builder.dns_resolver(Arc::new(resolver(reach))),
        };
        match &identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        }
    };
    match builder().tls_certs_merge(authorities.clone()).build() {
        Ok(client) => Ok(client),
        // A minimal container has no certificate bundle. Plain registries and those with an authority of their own work all
        // the same; any other fails at its handshake.
        Err(error) => {
            tracing::warn!(%error, "System certificate authorities are not usable");
            builder()
                .tls_certs_only(authorities)
                .build()
                .map_err(|error| invalid("HTTP client cannot be set up", error))
        }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn redirect_target(route: &Route, from: &Url, response: &reqwest::Response) -> Result<Url, FetchError> {
    let malformed = || {
        FetchError::protocol(format!(
            "registry {} redirects without a valid location",
            route.registry
        ))
    };
    let mut locations = response.headers().get_all(LOCATION).iter();
    let (Some(location), None) = (locations.next(), locations.next()) else {
        return Err(malformed());
    };
    let target = from
        .join(location.to_str().map_err(|_| malformed())?)
        .map_err(|_| malformed())?;
    if from.scheme() == "https" && target.scheme() == "http" {
        return Err(FetchError::policy(format!(
            "registry {} redirects from https to http",
            route.registry
        )));
    }
    Ok(target)
}

/// Sorts a failure to get a response at all.
fn send_error(route: &Route, error: reqwest::Error, is_proxied: bool) -> FetchError {
    let error = error.without_url();
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.downcast_ref::<AddressDenied>().is_some() {
            return route.denied();
        }
        cause = inner.source();
    }
    let registry = &route.registry;
    let message = if error.is_connect() && is_proxied {
        format!("failed to connect to registry {registry} through the proxy")
    } else if error.is_connect() {
        format!("failed to connect to registry {registry}")
    } else if error.is_timeout() {
        format!("registry {registry} did not answer in time")
    } else {
        format!("failed to get an answer from registry {registry}")
    };
    FetchError::with_source(FetchErrorKind::Transient, message, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_to_one_place_and_never_out_of_tls() {
        let config = ClientConfig::new("unused").with_plain_http("h.io:5000").unwrap();
        let route = Route::new("h.io:5000", &config).unwrap();
        for (from, locations, expected) in [
            (
                "https://h.io/v2/a",
                &["http://h.io/v2/a"][..],
                Err(FetchErrorKind::Policy),
            ),
            (
                "https://h.io/v2/a",
                &["HTTP://cdn.io/"],
                Err(FetchErrorKind::Policy),
            ),
            ("https://h.io/v2/a", &["/v2/b"], Ok("https://h.io/v2/b")),
            ("https://h.io/v2/a", &["//cdn.io/b"], Ok("https://cdn.io/b")),
            ("http://h.io/v2/a", &["https://cdn.io/b"], Ok("https://cdn.io/b")),
            ("https://h.io/v2/a", &["/b", "/c"], Err(FetchErrorKind::Protocol)),
            ("https://h.io/v2/a", &[], Err(FetchErrorKind::Protocol)),
        ] {
            let mut response = http::Response::builder().status(307);
            for location in locations {
                response = response.header(LOCATION, *location);
            }
            let response = reqwest::Response::from(response.body("").unwrap());
            let target = redirect_target(&route, &Url::parse(from).unwrap(), &response);
            let target = target.map(String::from).map_err(|error| error.kind().clone());
            assert_eq!(target, expected.map(str::to_owned), "{from} {locations:?}");
        }
    }
}
