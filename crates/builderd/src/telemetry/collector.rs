//! The way to the collector: where it is, and whether it takes what it is sent.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use opentelemetry_sdk::{
    error::OTelSdkResult,
    metrics::{Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{SpanData, SpanExporter},
};

/// For one request to the collector, connecting included.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where a collector takes OTLP over HTTP: the address below which it has `/v1/traces` and `/v1/metrics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(String);

/// Not the address of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected HOST:PORT, http://HOST:PORT or https://HOST:PORT of a collector that takes OTLP over HTTP, {0}"
)]
pub struct InvalidEndpoint(&'static str);

impl Endpoint {
    /// The address of a signal, as `http://localhost:4318/v1/traces`.
    pub(super) fn of(&self, signal: &str) -> String {
        format!("{}/v1/{signal}", self.0)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let with_scheme = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let uri: http::Uri = with_scheme.parse().map_err(|_| InvalidEndpoint("nothing else"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(InvalidEndpoint("with no other scheme"));
        }
        let authority = uri.authority().ok_or(InvalidEndpoint("with a host"))?;
        if authority.as_str().contains('@') {
            return Err(InvalidEndpoint(
                "without a password in it: OTEL_EXPORTER_OTLP_HEADERS of the environment is for that",
            ));
        }
        if authority.host().is_empty() || authority.as_str().ends_with(':') {
            return Err(InvalidEndpoint("with host and port"));
        }
        if uri.query().is_some() {
            return Err(InvalidEndpoint("without a query"));
        }
        Ok(Self(with_scheme.trim_end_matches('/').to_owned()))
    }
}

/// What became of spans, in this process.
#[derive(Debug)]
pub(super) struct SpanCounts {
    /// Did not fit into the queue.
    pub(super) dropped: AtomicU64,
    /// Were sent, and not taken.
    pub(super) refused: AtomicU64,
}

/// The subscriber is the process's, and so are these.
pub(super) static SPANS: SpanCounts = SpanCounts {
    dropped: AtomicU64::new(0),
    refused: AtomicU64::new(0),
};

/// Tells the log when a collector stops taking what it is sent, and when it takes it again: once each.
#[derive(Debug)]
pub(super) struct Watched<E> {
    exporter: E,
    signal: &'static str,
    is_away: AtomicBool,
}

impl<E> Watched<E> {
    pub(super) const fn new(exporter: E, signal: &'static str) -> Self {
        Self {
            exporter,
            signal,
            is_away: AtomicBool::new(false),
        }
    }

    fn saw(&self, result: &OTelSdkResult) {
        let is_away = result.is_err();
        if self.is_away.swap(is_away, Ordering::Relaxed) == is_away {
            return;
        }
        match result {
            Ok(()) => tracing::info!(signal = self.signal, "The collector takes telemetry again"),
            Err(error) => tracing::warn!(
                signal = self.signal,
                %error,
                "The collector does not take telemetry: it is dropped meanwhile, and counted"
            ),
        }
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let length = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let result = self.exporter.export(batch).await;
        if result.is_err() {
            SPANS.refused.fetch_add(length, Ordering::Relaxed);
        }
        self.saw(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &opentelemetry_sdk::Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Watched<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let result = self.exporter.export(metrics).await;
        self.saw(&result);
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

/// The client that speaks to the collector. It blocks, for the exporters have threads of their own where there is no
/// runtime, and it takes no proxy from the environment.
pub(super) fn client() -> Result<reqwest::blocking::Client, String> {
    // It starts a runtime of its own, which must not happen within another one.
    let made = std::thread::spawn(|| {
        reqwest::blocking::Client::builder()
            .no_proxy()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
    });
    match made.join() {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("making the HTTP client panicked".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_with_or_without_a_scheme() {
        for (text, expected) in [
            ("localhost:4318", Some("http://localhost:4318/v1/traces")),
            ("10.0.0.1:4318", Some("http://10.0.0.1:4318/v1/traces")),
            ("[::1]:4318", Some("http://[::1]:4318/v1/traces")),
            ("http://collector:4318/", Some("http://collector:4318/v1/traces")),
            (
                "https://otlp.example/some/base",
                Some("https://otlp.example/some/base/v1/traces"),
            ),
            ("grpc://collector:4317", None),
            ("http://user:password@collector", None),
            ("http://", None),
            ("collector:4318?x=1", None),
            ("a b", None),
            ("", None),
        ] {
            let parsed = text.parse::<Endpoint>();
            assert_eq!(
                parsed.ok().map(|endpoint| endpoint.of("traces")).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
