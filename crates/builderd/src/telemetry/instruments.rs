//! What is counted and measured of builds. Names, labels and units are those that dashboards rely on.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use assetclient::CallObserver;
use builder_core::{
    build::{BuildId, BuildState},
    observe::{EndedBuild, Observer, Step, StepOutcome},
};
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter, MeterProvider as _},
};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use tenant::TenantId;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::propagation;

/// What a build makes, and from what: there is one of each so far.
const BUILD_TYPE: &str = "microvm_rootfs";
const SOURCE_TYPE: &str = "docker";

/// Seconds of a build or a part of it: from what a cached image takes to the longest that a tier allows.
const SECONDS: [f64; 14] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
];

/// Bytes: from a small image to the largest, by fours.
const BYTES: [f64; 12] = [
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    536_870_912.0,
    1_073_741_824.0,
    2_147_483_648.0,
    4_294_967_296.0,
    8_589_934_592.0,
    34_359_738_368.0,
    137_438_953_472.0,
];

/// Original bytes over bytes on disk.
const RATIOS: [f64; 10] = [0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0];

/// Cores.
const CORES: [f64; 9] = [0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0];

/// Traces of builds that wait. A queue is shorter than this.
const MAX_PARENTS: usize = 20_000;

/// Traces of builds that began, kept for what comes after their end; an older build's calls are in traces of their own.
const MAX_BEGUN: usize = 1024;

/// The instruments of a daemon, and the traces of the builds that wait in it.
#[derive(Debug)]
pub struct Instruments {
    by_tenant: bool,
    builds: Counter<u64>,
    build_errors: Counter<u64>,
    build_cancellations: Counter<u64>,
    build_steps: Counter<u64>,
    build_step_errors: Counter<u64>,
    assetmanager_calls: Counter<u64>,
    build_duration: Histogram<f64>,
    pull_duration: Histogram<f64>,
    extract_duration: Histogram<f64>,
    optimize_duration: Histogram<f64>,
    build_step_duration: Histogram<f64>,
    image_size: Histogram<f64>,
    rootfs_size: Histogram<f64>,
    compression_ratio: Histogram<f64>,
    memory_usage: Histogram<f64>,
    disk_usage: Histogram<f64>,
    cpu_usage: Histogram<f64>,
    tenant_builds: Option<Counter<u64>>,
    tenant_quota_violations: Option<Counter<u64>>,
    parents: Mutex<HashMap<BuildId, opentelemetry::Context>>,
    /// Of builds that began, the latest last: assetmanagerd is told after a build's end.
    begun: Mutex<VecDeque<(String, opentelemetry::Context)>>,
}

impl Instruments {
    pub(super) fn new(meter: &Meter, by_tenant: bool) -> Self {
        let counter = |name, unit, description| -> Counter<u64> {
            meter
                .u64_counter(name)
                .with_unit(unit)
                .with_description(description)
                .build()
        };
        let histogram = |name, unit, boundaries: &[f64], description| -> Histogram<f64> {
            meter
                .f64_histogram(name)
                .with_unit(unit)
                .with_boundaries(boundaries.to_vec())
                .with_description(description)
                .build()
        };
        let seconds = |name, description| histogram(name, "s", &SECONDS, description);
        let bytes = |name, description| histogram(name, "By", &BYTES, description);
        let per_tenant = |name, unit, description| by_tenant.then(|| counter(name, unit, description));
        Self {
            by_tenant,
            builds: counter(
                "builderd_builds_total",
                "{build}",
                "Builds that ended; status is completed, failed or cancelled",
            ),
            build_errors: counter(
                "builderd_build_errors_total",
                "{build}",
                "Builds that failed; status is the kind of the error, internal for a fault of the service",
            ),
            build_cancellations: counter(
                "builderd_build_cancellations_total",
                "{build}",
                "Builds that were cancelled",
            ),
            build_steps: counter(
                "builderd_build_steps_total",
                "{step}",
                "Steps of builds that ended; status is done, failed or cancelled",
            ),
            build_step_errors: counter(
                "builderd_build_step_errors_total",
                "{step}",
                "Steps of builds that failed",
            ),
            assetmanager_calls: counter(
                "builderd_assetmanager_calls_total",
                "{call}",
                "Calls to assetmanagerd; status is gRPC's",
            ),
            build_duration: seconds(
                "builderd_build_duration_seconds",
                "From the begin of a build to its end",
            ),
            pull_duration: seconds(
                "builderd_pull_duration_seconds",
                "Until the last layer of a completed build was here",
            ),
            extract_duration: seconds(
                "builderd_extract_duration_seconds",
                "From the first byte of a layer until the last layer of a completed build was indexed",
            ),
            optimize_duration: seconds(
                "builderd_optimize_duration_seconds",
                "Finishing and publishing of completed builds",
            ),
            build_step_duration: seconds("builderd_build_step_duration_seconds", "Duration of a step"),
            image_size: bytes(
                "builderd_image_size_bytes",
                "Bytes of all layers of an image, uncompressed",
            ),
            rootfs_size: bytes("builderd_rootfs_size_bytes", "Size of an image, holes included"),
            compression_ratio: histogram(
                "builderd_compression_ratio",
                "1",
                &RATIOS,
                "Uncompressed bytes of the layers over what the image takes on disk",
            ),
            memory_usage: bytes(
                "builderd_build_memory_usage_bytes",
                "Largest resident set of any worker of a build",
            ),
            disk_usage: bytes("builderd_build_disk_usage_bytes", "What an image takes on disk"),
            cpu_usage: histogram(
                "builderd_build_cpu_usage_cores",
                "{core}",
                &CORES,
                "CPU time of a build's workers over its duration",
            ),
            tenant_builds: per_tenant(
                "builderd_tenant_builds_total",
                "{build}",
                "Builds that ended, by tenant",
            ),
            tenant_quota_violations: per_tenant(
                "builderd_tenant_quota_violations_total",
                "{request}",
                "Builds that were refused because a quota or the machine's room is used up, by tenant",
            ),
            parents: Mutex::default(),
            begun: Mutex::default(),
        }
    }

    /// Counts nothing; traces go through all the same.
    #[must_use]
    pub fn silent() -> Self {
        Self::new(&SdkMeterProvider::default().meter("builderd"), false)
    }

    fn lock_parents(&self) -> MutexGuard<'_, HashMap<BuildId, opentelemetry::Context>> {
        self.parents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn labels(&self, build: &EndedBuild) -> Vec<KeyValue> {
        let mut labels = vec![
            KeyValue::new("build_type", BUILD_TYPE),
            KeyValue::new("source_type", SOURCE_TYPE),
            KeyValue::new("tenant_tier", build.tier.as_str()),
        ];
        if self.by_tenant {
            labels.push(KeyValue::new("tenant_id", build.tenant.to_string()));
        }
        labels
    }
}

impl CallObserver for Instruments {
    fn attempts(&self, build_id: &str, span: &Span) {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let context = begun.iter().rev().find(|(id, _)| id == build_id);
        if let Some((_, context)) = context {
            // Fails where nothing traces: then there is nothing to belong to.
            let _ = span.set_parent(context.clone());
        }
    }

    fn calling(&self, headers: &mut http::HeaderMap) {
        propagation::pass_on(headers);
    }

    fn answered(&self, method: &'static str, code: &'static str) {
        let labels = [KeyValue::new("method", method), KeyValue::new("status", code)];
        self.assetmanager_calls.add(1, &labels);
    }
}

impl Observer for Instruments {
    fn accepted(&self, build: &BuildId) {
        let context = Span::current().context();
        let mut parents = self.lock_parents();
        if parents.len() < MAX_PARENTS {
            parents.insert(*build, context);
        }
    }

    fn refused(&self, tenant: &TenantId) {
        if let Some(counter) = &self.tenant_quota_violations {
            counter.add(1, &[KeyValue::new("tenant_id", tenant.to_string())]);
        }
    }

    fn begins(&self, build: &BuildId, span: &Span) {
        let parent = self.lock_parents().remove(build);
        if let Some(parent) = parent {
            // Fails where nothing traces: then there is nothing to belong to.
            let _ = span.set_parent(parent);
        }
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.len() >= MAX_BEGUN {
            begun.pop_front();
        }
        begun.push_back((build.to_string(), span.context()));
    }

    fn step(&self, step: Step, outcome: StepOutcome, duration: Duration) {
        let step = KeyValue::new("step", step.as_str());
        let status = KeyValue::new("status", outcome.as_str());
        self.build_steps.add(1, &[step.clone(), status.clone()]);
        if outcome == StepOutcome::Failed {
            self.build_step_errors.add(1, std::slice::from_ref(&step));
        }
        self.build_step_duration
            .record(duration.as_secs_f64(), &[step, status]);
    }

    fn ended(&self, build: &EndedBuild) {
        // A build that was cancelled while it waited never began.
        self.lock_parents().remove(&build.id);
        let labels = self.labels(build);
        let with = |status: &'static str| {
            let mut labels = labels.clone();
            labels.push(KeyValue::new("status", status));
            labels
        };
        let status = with(build.state.as_str());
        self.builds.add(1, &status);
        match build.state {
            BuildState::Failed => self
                .build_errors
                .add(1, &with(build.failure.unwrap_or("internal"))),
            BuildState::Cancelled => self.build_cancellations.add(1, &status),
            _ => {}
        }
        if let Some(counter) = &self.tenant_builds {
            let tenant = KeyValue::new("tenant_id", build.tenant.to_string());
            counter.add(1, &[tenant, KeyValue::new("status", build.state.as_str())]);
        }
        if let Some(duration) = build.duration {
            self.build_duration.record(duration.as_secs_f64(), &status);
        }
        let metrics = &build.metrics;
        for (histogram, milliseconds) in [
            (&self.pull_duration, metrics.pull_duration_ms),
            (&self.extract_duration, metrics.extract_duration_ms),
            (&self.optimize_duration, metrics.optimize_duration_ms),
        ] {
            if let Some(milliseconds) = milliseconds {
                histogram.record(Duration::from_millis(milliseconds).as_secs_f64(), &labels);
            }
        }
        for (histogram, bytes) in [
            (&self.image_size, metrics.original_size_bytes),
            (&self.rootfs_size, metrics.rootfs_size_bytes),
            (&self.memory_usage, metrics.memory_peak_bytes),
            (&self.disk_usage, metrics.disk_usage_bytes),
        ] {
            if let Some(bytes) = bytes {
                histogram.record(float(bytes), &labels);
            }
        }
        if let (Some(original), Some(used @ 1..)) = (metrics.original_size_bytes, metrics.disk_usage_bytes) {
            self.compression_ratio
                .record(float(original) / float(used), &labels);
        }
        if let (Some(cpu), Some(total @ 1..)) = (metrics.cpu_time_ms, metrics.total_duration_ms) {
            self.cpu_usage.record(float(cpu) / float(total), &labels);
        }
    }

    fn requeued(&self, build: &BuildId) {
        self.lock_parents().remove(build);
    }
}

/// Figures for histograms, where the last bits do not count.
#[expect(
    clippy::cast_precision_loss,
    reason = "buckets are far coarser than what is lost"
)]
const fn float(value: u64) -> f64 {
    value as f64
}
