//! Whether registries answer, asked in the way in which images are fetched.

use std::sync::Arc;
use std::time::SystemTime;

use http::Method;

use crate::config::ClientConfig;
use crate::error::FetchError;
use crate::net::route::Route;
use crate::net::slots::Traffic;
use crate::net::{Request, Transport};
use crate::reference::normalise_registry;

/// What one host answered.
#[derive(Debug)]
#[non_exhaustive]
pub struct Probed {
    /// Who was asked, as `https://registry-1.docker.io`.
    pub address: String,
    /// Whether it is a mirror of the registry and not the registry itself.
    pub is_mirror: bool,
    /// Whether there was an answer, of any kind: "who are you" is one.
    pub answer: Result<Answered, FetchError>,
}

/// What an answer tells without any rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answered {
    /// The status of HTTP.
    pub status: u16,
    /// The host's clock, where it tells the time.
    pub date: Option<SystemTime>,
}

/// Asks a registry, and first the mirrors of it, for the root of its API (`GET /v2/`) over the connections that a
/// [`Client`](crate::Client) of this configuration would use: the same schemes, authorities, certificates, proxies, and
/// addresses that may be reached. Each is asked once, without credentials. The cache is not opened.
///
/// # Errors
/// `InvalidInput` when the registry is not `host[:port]`, and for TLS material that is not PEM.
pub async fn probe(config: &ClientConfig, registry: &str) -> Result<Vec<Probed>, FetchError> {
    let registry = normalise_registry(registry)?;
    let transport = Transport::new(Arc::new(config.clone()))?;
    let mirrors = config.mirrors.get(&registry);
    let mut routes = Vec::new();
    for mirror in mirrors.iter().flat_map(|mirrors| &mirrors.hosts) {
        routes.push(Route::to_mirror(mirror, &registry, config)?);
    }
    if mirrors.is_none_or(|mirrors| !mirrors.without_fallback) {
        routes.push(Route::new(&registry, config)?);
    }
    let mut probed = Vec::with_capacity(routes.len());
    for route in routes {
        probed.push(Probed {
            address: route.base.as_str().trim_end_matches('/').to_owned(),
            is_mirror: route.is_mirror(),
            answer: ask(&transport, &route).await,
        });
    }
    Ok(probed)
}

async fn ask(transport: &Transport, route: &Route) -> Result<Answered, FetchError> {
    let url = route.url("")?;
    let request = Request {
        method: Method::GET,
        url: &url,
        accept: None,
        range: None,
        authorization: None,
        form: None,
        traffic: Traffic::Document,
        party: "",
    };
    let answer = transport.send(route, &request).await?;
    let date = answer
        .headers()
        .get(http::header::DATE)
        .and_then(|date| date.to_str().ok())
        .and_then(|date| httpdate::parse_http_date(date).ok());
    Ok(Answered {
        status: answer.status().as_u16(),
        date,
    })
}
