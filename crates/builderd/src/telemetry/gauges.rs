//! What the machine is at, as gauges: read in the background, because instruments may not wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use builder_core::service::Builder;
use opentelemetry::{KeyValue, metrics::Meter};
use tokio_util::sync::CancellationToken;

use super::collector::SPANS;

/// How old figures may be when nobody asks.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long somebody who asks waits for new ones, before getting those that there are.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Gauges {
    active_builds: AtomicU64,
    queued_builds: AtomicU64,
    storage_bytes: AtomicU64,
    storage_limit_bytes: u64,
}

impl Gauges {
    pub(super) const fn new(storage_limit_bytes: u64) -> Self {
        Self {
            active_builds: AtomicU64::new(0),
            queued_builds: AtomicU64::new(0),
            storage_bytes: AtomicU64::new(0),
            storage_limit_bytes,
        }
    }

    pub(super) fn register(self: &Arc<Self>, meter: &Meter) {
        type Read = fn(&Gauges) -> u64;
        let gauges: [(&'static str, &'static str, &'static str, Read); 4] = [
            ("builderd_active_builds", "Builds that run", "{build}", |gauges| {
                gauges.active_builds.load(Ordering::Relaxed)
            }),
            (
                "builderd_queued_builds",
                "Builds that wait for their turn",
                "{build}",
                |gauges| gauges.queued_builds.load(Ordering::Relaxed),
            ),
            (
                "builderd_storage_usage_bytes",
                "Bytes that finished images take where they are kept",
                "By",
                |gauges| gauges.storage_bytes.load(Ordering::Relaxed),
            ),
            (
                "builderd_storage_limit_bytes",
                "Bytes that finished images may take",
                "By",
                |gauges| gauges.storage_limit_bytes,
            ),
        ];
        for (name, description, unit, read) in gauges {
            let figures = Arc::clone(self);
            // The provider keeps the callback; the handle itself does nothing.
            let _ = meter
                .u64_observable_gauge(name)
                .with_description(description)
                .with_unit(unit)
                .with_callback(move |observer| observer.observe(read(&figures), &[]))
                .build();
        }
        let _ = meter
            .u64_observable_counter("builderd_telemetry_spans_lost_total")
            .with_description(
                "Spans that did not reach the collector: the queue was full, or it did not take them",
            )
            .with_unit("{span}")
            .with_callback(|observer| {
                for (reason, count) in [("queue_full", &SPANS.dropped), ("not_taken", &SPANS.refused)] {
                    observer.observe(count.load(Ordering::Relaxed), &[KeyValue::new("reason", reason)]);
                }
            })
            .build();
    }

    /// Reads the figures anew; keeps the old ones where they cannot be had.
    pub(super) async fn refresh(&self, builder: &Builder) {
        let Ok(Ok(load)) = tokio::time::timeout(PATIENCE, builder.load()).await else {
            return;
        };
        self.active_builds.store(load.active_builds, Ordering::Relaxed);
        self.queued_builds.store(load.queued_builds, Ordering::Relaxed);
        self.storage_bytes.store(load.stored_bytes, Ordering::Relaxed);
    }

    /// Reads them again and again until `stop`.
    pub(super) async fn follow(self: Arc<Self>, builder: Builder, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => self.refresh(&builder).await,
            }
        }
    }
}
