//! Registries behind an HTTP proxy: who is asked what, and what the proxy is not asked for.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use common::*;
use oci_fetch::{Client, ClientConfig, FetchErrorKind, ImageSource, Proxies, Resolver};

/// `registry.example` as seen by a proxy for plain HTTP, which answers by itself; `CONNECT` is refused.
async fn proxy(image: &TestImage) -> Server {
    let mut store = Store::default();
    store.publish("app", "1", image);
    let registry = store.clone();
    Server::start(store, move |seen| {
        let path = seen.path.strip_prefix("http://registry.example");
        Some(match path {
            Some(path) if seen.headers.contains_key("proxy-authorization") => registry.reply(&Seen {
                path: path.to_owned(),
                ..seen.clone()
            }),
            Some(_) => Reply::new(407),
            None => Reply::new(403),
        })
    })
    .await
}

/// Knows nothing but the proxy.
struct Names;

impl Resolver for Names {
    fn resolve(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async move {
            if host == "proxy.inside" {
                Ok(vec![IpAddr::from([127, 0, 0, 1])])
            } else {
                Err(io::Error::other("the proxy resolves names, not the client"))
            }
        })
    }
}

fn config(cache: &std::path::Path, proxy: &Server) -> ClientConfig {
    let url = format!("http://alice:hunter2@proxy.inside:{}", proxy.address.port());
    let proxies = Proxies::none()
        .with_http(&url)
        .and_then(|proxies| proxies.with_https(&url))
        .unwrap();
    quick(ClientConfig::new(cache))
        .with_resolver(Arc::new(Names))
        .with_proxies(proxies)
}

#[tokio::test]
async fn a_plain_registry_is_reached_through_the_proxy_that_resolves_its_name() {
    let image = TestImage::one_layer(100_000);
    let proxy = proxy(&image).await;
    let cache = tempfile::tempdir().unwrap();
    let config = config(cache.path(), &proxy)
        .with_plain_http("registry.example")
        .unwrap();
    let source: ImageSource = "registry.example/app:1".parse().unwrap();
    let layers = pull_with(&Client::new(config).unwrap(), &source, &as_tenant("t")).await;
    assert_eq!(layers.unwrap(), image.layers);
    assert!(
        proxy
            .log()
            .iter()
            .all(|seen| seen.path.starts_with("http://registry.example/v2/app/"))
    );
}

#[tokio::test]
async fn a_registry_with_tls_is_asked_for_by_name_and_a_refusal_says_so() {
    let proxy = proxy(&TestImage::one_layer(10)).await;
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(config(cache.path(), &proxy)).unwrap();
    let error = resolve(&client, &"registry.example/app:1".parse().unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), &FetchErrorKind::Transient);
    assert!(error.to_string().contains("through the proxy"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    let first = &proxy.log()[0];
    assert_eq!(
        (first.method.as_str(), first.path.as_str()),
        ("CONNECT", "registry.example:443")
    );
    // User name and password from the proxy's URL.
    assert_eq!(
        first.headers.get("proxy-authorization").map(String::as_str),
        Some("Basic YWxpY2U6aHVudGVyMg==")
    );
}

#[tokio::test]
async fn what_means_something_inside_only_is_not_asked_of_the_proxy() {
    let proxy = proxy(&TestImage::one_layer(10)).await;
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(config(cache.path(), &proxy)).unwrap();
    for registry in [
        "169.254.169.254",
        "10.0.0.1:5000",
        "0x7f000001.:5000",
        "metadata.google.internal",
        "printer.local",
        "[fd00:ec2::254]:443",
    ] {
        let Ok(source) = format!("{registry}/app:1").parse::<ImageSource>() else {
            continue;
        };
        let error = resolve(&client, &source).await.unwrap_err();
        assert_eq!(error.kind(), &FetchErrorKind::Policy, "{registry}: {error}");
    }
    assert!(proxy.log().is_empty(), "{:?}", proxy.log());
}

#[tokio::test]
async fn loopback_and_exceptions_are_reached_directly() {
    let image = TestImage::one_layer(1000);
    let server = Server::with_image(&image, |_| None).await;
    let proxy = proxy(&image).await;
    let cache = tempfile::tempdir().unwrap();
    let config = config(cache.path(), &proxy)
        .with_plain_http(&server.address.to_string())
        .unwrap();
    let layers = pull_with(
        &Client::new(config).unwrap(),
        &server.source("app:1"),
        &as_tenant("t"),
    )
    .await;
    assert_eq!(layers.unwrap(), image.layers);
    assert!(proxy.log().is_empty());
}
