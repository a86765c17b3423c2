//! What the machine is at, as gauges: read in the background, because instruments may not wait.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use builder_core::service::{Backlog, Builder, Load};
use opentelemetry::{KeyValue, metrics::Meter};
use tenant::Tier;
use tokio_util::sync::CancellationToken;

use super::collector::SPANS;
use crate::audit::AuditLog;

/// How old figures may be when nobody asks.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long somebody who asks waits for new ones, before getting those that there are.
const PATIENCE: Duration = Duration::from_secs(2);

/// What tells a figure from the others of its kind.
type Labels = &'static [(&'static str, &'static str)];

#[derive(Debug)]
pub(super) struct Gauges {
    load: Mutex<Load>,
    storage_limit_bytes: u64,
}

impl Gauges {
    pub(super) fn new(storage_limit_bytes: u64) -> Self {
        Self {
            load: Mutex::default(),
            storage_limit_bytes,
        }
    }

    pub(super) fn register(self: &Arc<Self>, meter: &Meter, audit: Option<AuditLog>) {
        self.of_builds(meter);
        self.of_queue(meter);
        self.of_assetmanagerd(meter);
        self.of_blobs(meter);
        of_spans(meter);
        // There is a figure without a log as well: an alert that has nothing to look at is no alert.
        let lost = move || audit.as_ref().map_or(0, AuditLog::lost);
        let _ = meter
            .u64_observable_counter("builderd_audit_events_lost_total")
            .with_description("Events that could not be written to the audit log")
            .with_unit("{event}")
            .with_callback(move |observer| observer.observe(lost(), &[]))
            .build();
    }

    fn of_builds(self: &Arc<Self>, meter: &Meter) {
        self.gauge(
            meter,
            "builderd_active_builds",
            "{build}",
            "Builds that run",
            |gauges| gauges.load().active_builds,
        );
        self.gauge(
            meter,
            "builderd_queued_builds",
            "{build}",
            "Builds that wait for their turn",
            |gauges| gauges.load().queued_builds,
        );
        self.gauge(
            meter,
            "builderd_storage_usage_bytes",
            "By",
            "Bytes that finished images take where they are kept",
            |gauges| gauges.load().stored_bytes,
        );
        self.gauge(
            meter,
            "builderd_storage_limit_bytes",
            "By",
            "Bytes that finished images may take",
            |gauges| gauges.storage_limit_bytes,
        );
    }

    /// By tier and not by tenant: there are four of them, however many tenants wait.
    fn of_queue(self: &Arc<Self>, meter: &Meter) {
        const LABELS: [Labels; Tier::ALL.len()] = [
            &[("tenant_tier", Tier::Free.as_str())],
            &[("tenant_tier", Tier::Pro.as_str())],
            &[("tenant_tier", Tier::Enterprise.as_str())],
            &[("tenant_tier", Tier::Dedicated.as_str())],
        ];
        self.backlog(
            meter,
            "builderd_queue_builds",
            "{build}",
            "Builds that wait for their turn, by the tier of their tenant",
            "builderd_queue_oldest_seconds",
            "Since when the build that waits for the longest was accepted, by tier; zero when none waits",
            |gauges| gauges.load().queue.into_iter().zip(LABELS).collect(),
        );
    }

    fn of_assetmanagerd(self: &Arc<Self>, meter: &Meter) {
        const ACTIONS: [Labels; 2] = [&[("action", "register")], &[("action", "delete")]];
        self.backlog(
            meter,
            "builderd_assetmanager_waiting",
            "{image}",
            "Images that assetmanagerd has still to be told of, or to forget",
            "builderd_assetmanager_waiting_oldest_seconds",
            "For how long the oldest of them has been waiting; zero when none waits",
            |gauges| {
                let load = gauges.load();
                [load.registrations, load.deletions]
                    .into_iter()
                    .zip(ACTIONS)
                    .collect()
            },
        );
        self.gauge(
            meter,
            "builderd_assetmanager_waiting_failing",
            "{image}",
            "Of the images that wait for assetmanagerd, those of which an attempt failed",
            |gauges| gauges.load().failing_calls,
        );
    }

    fn of_blobs(self: &Arc<Self>, meter: &Meter) {
        self.gauge(
            meter,
            "builderd_blob_cache_bytes",
            "By",
            "Bytes of layers, as registries have them, that are kept for later builds",
            |gauges| gauges.load().blobs.bytes,
        );
        self.gauge(
            meter,
            "builderd_blob_cache_in_use_bytes",
            "By",
            "Of these, those that running builds use and that cannot be removed now",
            |gauges| gauges.load().blobs.bytes_in_use,
        );
        let figures = Arc::clone(self);
        let _ = meter
            .u64_observable_counter("builderd_blob_cache_layers_total")
            .with_description("Layers that builds opened: found in the cache (hit), or downloaded (miss)")
            .with_unit("{layer}")
            .with_callback(move |observer| {
                let blobs = figures.load().blobs;
                for (result, count) in [("hit", blobs.hits), ("miss", blobs.misses)] {
                    observer.observe(count, &[KeyValue::new("result", result)]);
                }
            })
            .build();
    }

    /// Two gauges: how many wait, and how old the oldest is.
    #[expect(clippy::too_many_arguments, reason = "three words for each of the two")]
    fn backlog(
        self: &Arc<Self>,
        meter: &Meter,
        count: &'static str,
        unit: &'static str,
        count_description: &'static str,
        age: &'static str,
        age_description: &'static str,
        read: fn(&Self) -> Vec<(Backlog, Labels)>,
    ) {
        let figures = Arc::clone(self);
        // The provider keeps the callback; the handle itself does nothing.
        let _ = meter
            .u64_observable_gauge(count)
            .with_description(count_description)
            .with_unit(unit)
            .with_callback(move |observer| {
                for (backlog, labels) in read(&figures) {
                    observer.observe(backlog.count, &key_values(labels));
                }
            })
            .build();
        let figures = Arc::clone(self);
        let _ = meter
            .f64_observable_gauge(age)
            .with_description(age_description)
            .with_unit("s")
            .with_callback(move |observer| {
                for (backlog, labels) in read(&figures) {
                    observer.observe(backlog.oldest.as_secs_f64(), &key_values(labels));
                }
            })
            .build();
    }

    fn gauge(
        self: &Arc<Self>,
        meter: &Meter,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        read: fn(&Self) -> u64,
    ) {
        let figures = Arc::clone(self);
        let _ = meter
            .u64_observable_gauge(name)
            .with_description(description)
            .with_unit(unit)
            .with_callback(move |observer| observer.observe(read(&figures), &[]))
            .build();
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the figures anew; keeps the old ones where they cannot be had.
    pub(super) async fn refresh(&self, builder: &Builder) {
        if let Ok(Ok(load)) = tokio::time::timeout(PATIENCE, builder.load()).await {
            *self.load() = load;
        }
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

fn of_spans(meter: &Meter) {
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

fn key_values(labels: Labels) -> Vec<KeyValue> {
    let pairs = labels.iter();
    pairs.map(|(key, value)| KeyValue::new(*key, *value)).collect()
}
