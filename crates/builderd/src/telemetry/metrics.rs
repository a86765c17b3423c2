//! One meter provider, two ways out.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use builder_core::service::Builder;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    Instruments, TelemetryConfig,
    collector::{Watched, client},
    gauges::Gauges,
    scrape,
};
use crate::audit::AuditLog;

/// How often the collector is sent the metrics.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long the last metrics may take to be sent.
const LAST: Duration = Duration::from_secs(3);

/// The metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The port for Prometheus cannot be listened on.
    #[error("cannot listen on {address} for Prometheus")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The exporter cannot be made.
    #[error("the exporter of metrics cannot be made: {0}")]
    Exporter(String),
}

/// The metrics of one daemon.
#[derive(Debug)]
pub struct Metrics {
    provider: SdkMeterProvider,
    instruments: Arc<Instruments>,
    gauges: Arc<Gauges>,
    scrape: Option<(TcpListener, SocketAddr, prometheus::Registry)>,
    stop: CancellationToken,
}

impl Metrics {
    /// Opens the port for Prometheus, and makes the instruments. `storage_limit_bytes` is what all images may take;
    /// `audit` the log whose lost events are counted.
    ///
    /// # Errors
    /// [`MetricsError`]. A collector that is away is none.
    pub async fn open(
        config: &TelemetryConfig,
        storage_limit_bytes: u64,
        audit: Option<AuditLog>,
    ) -> Result<Self, MetricsError> {
        let exporter = opentelemetry_otlp::MetricExporter::builder()
            .with_http()
            .with_http_client(client().map_err(MetricsError::Exporter)?)
            .with_endpoint(config.endpoint.of("metrics"))
            .build()
            .map_err(|error| MetricsError::Exporter(error.to_string()))?;
        let reader = PeriodicReader::builder(Watched::new(exporter, "metrics"))
            .with_interval(INTERVAL)
            .build();
        let mut builder = SdkMeterProvider::builder()
            .with_resource(config.resource())
            .with_reader(reader);
        let mut scrape = None;
        if let Some(address) = config.prometheus {
            let listen = |source| MetricsError::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(listen)?;
            let address = listener.local_addr().map_err(listen)?;
            let registry = prometheus::Registry::new();
            // The instruments have the names that Prometheus shows: nothing is to be added to them.
            let exporter = opentelemetry_prometheus::exporter()
                .with_registry(registry.clone())
                .without_units()
                .without_counter_suffixes()
                .scope_info_enabled(false)
                .build()
                .map_err(|error| MetricsError::Exporter(error.to_string()))?;
            builder = builder.with_reader(exporter);
            scrape = Some((listener, address, registry));
        }
        let provider = builder.build();
        let meter = provider.meter("builderd");
        let gauges = Arc::new(Gauges::new(storage_limit_bytes));
        gauges.register(&meter, audit);
        Ok(Self {
            instruments: Arc::new(Instruments::new(&meter, config.by_tenant)),
            provider,
            gauges,
            scrape,
            stop: CancellationToken::new(),
        })
    }

    /// What counts.
    #[must_use]
    pub fn instruments(&self) -> Arc<Instruments> {
        Arc::clone(&self.instruments)
    }

    /// Where Prometheus finds the metrics.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.scrape.as_ref().map(|(_, address, _)| *address)
    }

    /// Serves them, and `beside` on the same port; keeps the gauges at what `builder` is at, until
    /// [`RunningMetrics::stop`].
    #[must_use]
    pub fn serve(self, builder: Builder, beside: Router) -> RunningMetrics {
        let address = self.address();
        tokio::spawn(Arc::clone(&self.gauges).follow(builder.clone(), self.stop.clone()));
        if let Some((listener, _, registry)) = self.scrape {
            let router = scrape::router(registry, self.gauges, builder).merge(beside);
            tokio::spawn(scrape::serve(listener, router, self.stop.clone()));
        }
        RunningMetrics {
            provider: self.provider,
            address,
            stop: self.stop,
        }
    }
}

/// Metrics that are served.
#[derive(Debug)]
pub struct RunningMetrics {
    provider: SdkMeterProvider,
    address: Option<SocketAddr>,
    stop: CancellationToken,
}

impl RunningMetrics {
    /// Where Prometheus finds them.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Sends the last ones to the collector and stops.
    pub async fn stop(self) {
        self.stop.cancel();
        let provider = self.provider;
        // It blocks, and waits for a collector that may be away: longer than a stop should, nobody waits for it.
        let stopped = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST));
        let _ = tokio::time::timeout(LAST, stopped).await;
    }
}
