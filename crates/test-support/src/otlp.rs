//! A collector in the process: decodes what it is sent in OTLP over HTTP, and keeps it.
//!
//! ```
//! # fn main() -> std::io::Result<()> {
//! let collector = test_support::otlp::Collector::start()?;
//! // … a daemon with OTEL_ENDPOINT set to `collector.endpoint()` …
//! assert!(collector.spans().is_empty());
//! # Ok(())
//! # }
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Read as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::background::Background;
use axum::{Router, extract::State, routing::post};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
};

/// A span as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// Its trace, in hexadecimal.
    pub trace_id: String,
    /// Its own id, in hexadecimal.
    pub span_id: String,
    /// The span that it is part of; empty for none.
    pub parent_span_id: String,
    /// `service.name` of who sent it.
    pub service: String,
    /// Attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// Whether its status is an error.
    pub is_error: bool,
    /// Names of its events.
    pub events: Vec<String>,
}

/// What arrived so far.
#[derive(Debug, Default)]
struct Received {
    spans: Vec<Span>,
    metrics: BTreeSet<String>,
    services: BTreeMap<String, String>,
    unreadable: usize,
}

/// A collector. It ends when it is dropped.
pub struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Received>>,
    _server: Background,
}

impl fmt::Debug for Collector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Collector")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

fn lock(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    // A test that panicked while it held the lock has failed already.
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collector {
    /// Starts one on loopback.
    ///
    /// # Errors
    /// When no port of loopback can be had.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let received = Arc::new(Mutex::new(Received::default()));
        let router = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/metrics", post(metrics))
            .with_state(Arc::clone(&received));
        let server = Background::serve("test-collector", listener, router)?;
        Ok(Self {
            address,
            received,
            _server: server,
        })
    }

    /// `127.0.0.1:PORT`, as OTEL_ENDPOINT has it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// All spans so far, in the order of their arrival.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        lock(&self.received).spans.clone()
    }

    /// The names of all metrics so far.
    #[must_use]
    pub fn metrics(&self) -> BTreeSet<String> {
        lock(&self.received).metrics.clone()
    }

    /// `service.version` by `service.name` of who sent metrics.
    #[must_use]
    pub fn services(&self) -> BTreeMap<String, String> {
        lock(&self.received).services.clone()
    }

    /// Bodies that were no OTLP.
    #[must_use]
    pub fn unreadable(&self) -> usize {
        lock(&self.received).unreadable
    }
}

async fn traces(State(received): State<Arc<Mutex<Received>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let Some(request) = message::<ExportTraceServiceRequest>(&headers, &body) else {
        lock(&received).unreadable += 1;
        return StatusCode::BAD_REQUEST;
    };
    let mut received = lock(&received);
    for sent in request.resource_spans {
        let service = attribute(sent.resource.as_ref(), "service.name");
        for span in sent.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            received.spans.push(Span {
                name: span.name,
                trace_id: hex::encode(span.trace_id),
                span_id: hex::encode(span.span_id),
                parent_span_id: hex::encode(span.parent_span_id),
                service: service.clone(),
                attributes: span
                    .attributes
                    .iter()
                    .map(|pair| (pair.key.clone(), text(pair)))
                    .collect(),
                // STATUS_CODE_ERROR of the specification.
                is_error: span.status.is_some_and(|status| status.code == 2),
                events: span.events.into_iter().map(|event| event.name).collect(),
            });
        }
    }
    StatusCode::OK
}

async fn metrics(
    State(received): State<Arc<Mutex<Received>>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let Some(request) = message::<ExportMetricsServiceRequest>(&headers, &body) else {
        lock(&received).unreadable += 1;
        return StatusCode::BAD_REQUEST;
    };
    let mut received = lock(&received);
    for sent in request.resource_metrics {
        let name = attribute(sent.resource.as_ref(), "service.name");
        let version = attribute(sent.resource.as_ref(), "service.version");
        received.services.insert(name, version);
        for metric in sent.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            received.metrics.insert(metric.name);
        }
    }
    StatusCode::OK
}

/// A body, which other collectors compress when they pass it on.
fn message<M: prost::Message + Default>(headers: &HeaderMap, body: &[u8]) -> Option<M> {
    let is_compressed = headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding == "gzip");
    if !is_compressed {
        return M::decode(body).ok();
    }
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(body)
        .read_to_end(&mut plain)
        .ok()?;
    M::decode(plain.as_slice()).ok()
}

fn attribute(resource: Option<&Resource>, name: &str) -> String {
    let pair = resource.and_then(|resource| resource.attributes.iter().find(|pair| pair.key == name));
    pair.map(text).unwrap_or_default()
}

fn text(pair: &KeyValue) -> String {
    match &pair.value {
        Some(AnyValue {
            value: Some(Value::StringValue(text)),
        }) => text.clone(),
        Some(AnyValue {
            value: Some(Value::IntValue(number)),
        }) => number.to_string(),
        Some(AnyValue {
            value: Some(Value::BoolValue(yes)),
        }) => yes.to_string(),
        Some(AnyValue {
            value: Some(Value::DoubleValue(number)),
        }) => number.to_string(),
        _ => String::new(),
    }
}
