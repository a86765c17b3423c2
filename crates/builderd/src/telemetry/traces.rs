//! Spans on their way to the collector.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, ParentBasedSampler, Sampler, SdkTracer, SdkTracerProvider,
        Span, SpanData, SpanExporter, SpanProcessor,
    },
};

use super::{
    TelemetryConfig,
    collector::{SPANS, Watched, client},
};

/// Spans that wait for the collector; beyond, they are dropped. A build has some twenty, so this is a hundred builds.
const QUEUE: usize = 2048;

/// Spans of one request to the collector.
const BATCH: usize = 512;

/// For how long spans are gathered.
const INTERVAL: Duration = Duration::from_secs(2);

/// Traces cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error("the exporter of traces cannot be made: {0}")]
pub struct TraceError(String);

/// Where the spans of this process go. Without a configuration they go nowhere, and have ids all the same, for the log and
/// for the services that are called.
#[derive(Clone, Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts to export, on a thread of its own, when there is a configuration.
    ///
    /// # Errors
    /// [`TraceError`]. A collector that is away is none.
    pub fn start(config: Option<&TelemetryConfig>) -> Result<Self, TraceError> {
        let builder = SdkTracerProvider::builder();
        let provider = match config {
            None => builder.with_sampler(parent_based(0.0)).build(),
            Some(config) => {
                let exporter = opentelemetry_otlp::SpanExporter::builder()
                    .with_http()
                    .with_http_client(client().map_err(TraceError)?)
                    .with_endpoint(config.endpoint.of("traces"))
                    .build()
                    .map_err(|error| TraceError(error.to_string()))?;
                builder
                    .with_sampler(parent_based(config.sampling_rate))
                    .with_resource(config.resource())
                    .with_span_processor(Bounded::new(Watched::new(exporter, "traces")))
                    .build()
            }
        };
        Ok(Self { provider })
    }

    /// Makes spans.
    #[must_use]
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("builderd")
    }

    /// Sends what waits and stops. Blocks, for `limit` at most; what the collector has not taken by then is lost.
    pub fn stop(self, limit: Duration) {
        // The count of what was lost is in the metrics; at the end nobody reads on.
        let _ = self.provider.shutdown_with_timeout(limit);
    }
}

/// Who began a trace has decided whether it is kept; of those that begin here, `rate` are.
fn parent_based(rate: f64) -> ParentBasedSampler {
    Sampler::parent_based(Sampler::TraceIdRatioBased(rate))
}

/// The SDK's batches with a queue that counts what it drops.
#[derive(Debug)]
struct Bounded {
    batches: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
}

/// Takes from the count what was sent.
#[derive(Debug)]
struct Counted<E> {
    exporter: E,
    waiting: Arc<AtomicUsize>,
}

impl Bounded {
    fn new<E: SpanExporter + 'static>(exporter: E) -> Self {
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = Counted {
            exporter,
            waiting: Arc::clone(&waiting),
        };
        // As large as ours, so that it is never the one to drop.
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(INTERVAL)
            .build();
        Self {
            batches: BatchSpanProcessor::builder(counted)
                .with_batch_config(config)
                .build(),
            waiting,
        }
    }
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &opentelemetry::Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            SPANS.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &opentelemetry_sdk::Resource) {
        self.batches.set_resource(resource);
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let length = batch.len();
        let result = self.exporter.export(batch).await;
        // Only now: what is being sent is still in memory.
        self.waiting.fetch_sub(length, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use opentelemetry::trace::{Span as _, Tracer as _};

    use super::*;

    /// Stands still until it is let go.
    #[derive(Clone, Debug, Default)]
    struct Stuck(Arc<(Mutex<bool>, Condvar)>);

    impl SpanExporter for Stuck {
        async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
            let (gone, changed) = &*self.0;
            let mut gone = gone.lock().unwrap();
            while !*gone {
                gone = changed.wait(gone).unwrap();
            }
            Ok(())
        }
    }

    #[test]
    fn spans_beyond_the_queue_are_dropped_and_counted_while_the_collector_hangs() {
        let stuck = Stuck::default();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Bounded::new(stuck.clone()))
            .build();
        let tracer = provider.tracer("test");
        let before = SPANS.dropped.load(Ordering::Relaxed);
        for _ in 0..QUEUE + 100 {
            tracer.start("span").end();
        }
        assert_eq!(SPANS.dropped.load(Ordering::Relaxed) - before, 100);
        *stuck.0.0.lock().unwrap() = true;
        stuck.0.1.notify_all();
        provider.shutdown().unwrap();
    }
}
