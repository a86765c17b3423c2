//! What the daemon tells of itself: metrics to Prometheus and a collector, traces to a collector.
//!
//! ```text
//! builder_core::observe ─> Instruments ─ one meter provider ─┬─ Prometheus: GET /metrics on a port of its own
//!                                                            └─ OTLP over HTTP, once a minute ─┐
//! tracing spans ─ sampler ─ bounded queue ─ batches ──────────── OTLP over HTTP ───────────────┴─> collector
//! ```
//!
//! Metrics belong to a [`crate::daemon::Daemon`], traces to the process, as its subscriber does. A collector that is away
//! costs nothing: what waits for it is bounded, what does not fit is dropped and counted
//! (`builderd_telemetry_spans_lost_total`), and no build waits for any of it.

mod collector;
mod gauges;
mod instruments;
mod metrics;
mod propagation;
mod scrape;
mod traces;

use std::net::SocketAddr;

use opentelemetry_sdk::Resource;

pub use self::{
    collector::{Endpoint, InvalidEndpoint},
    instruments::Instruments,
    metrics::{Metrics, MetricsError, RunningMetrics},
    propagation::{continue_trace, trace_id},
    traces::{TraceError, Traces},
};

/// What is told, and to whom.
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryConfig {
    /// `service.name` of everything that is told.
    pub service_name: String,
    /// `service.version` of everything that is told.
    pub service_version: String,
    /// The collector.
    pub endpoint: Endpoint,
    /// Of the traces that begin here, which share is kept: `0.0..=1.0`. Whether one that came with a request is kept was
    /// decided by whoever began it.
    pub sampling_rate: f64,
    /// Where Prometheus finds the metrics; `None` for nowhere.
    pub prometheus: Option<SocketAddr>,
    /// Whether metrics tell tenants apart.
    pub by_tenant: bool,
}

impl TelemetryConfig {
    fn resource(&self) -> Resource {
        Resource::builder()
            .with_service_name(self.service_name.clone())
            .with_attribute(opentelemetry::KeyValue::new(
                "service.version",
                self.service_version.clone(),
            ))
            .build()
    }
}
