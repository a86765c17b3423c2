//! Log lines on standard error, and spans for the traces.
//!
//! Every line that is written within a request or a build says so: `build_id`, `tenant_id` and `trace_id`, whatever the level
//! that is logged.

mod fields;
mod lines;

use std::io::{self, IsTerminal as _};

use opentelemetry_sdk::trace::SdkTracer;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, Targets, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use self::{fields::SpanFields, lines::Lines};
use crate::config::{LogConfig, LogFormat};

/// Whose spans are ours: those of libraries say nothing about a build, and what the exporter itself does must not make
/// new spans.
const OURS: [&str; 4] = ["builderd", "builder_core", "oci_fetch", "assetclient"];

/// Starts to log, and to make spans with `tracer` when there is one. Later calls in the same process change nothing, so
/// tests may call it at will.
pub fn start(config: &LogConfig, tracer: Option<SdkTracer>) {
    let filter = EnvFilter::try_new(filter(&config.filter)).unwrap_or_else(|_| EnvFilter::new("info"));
    // Spans are kept whatever is logged: they are what a line gets its build, tenant and trace from.
    let spans = filter_fn(|metadata| {
        metadata.is_span() && *metadata.level() <= LevelFilter::INFO && is_ours(metadata.target())
    });
    let is_terminal = io::stderr().is_terminal();
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(is_terminal)
        .fmt_fields(SpanFields)
        .event_format(match config.format {
            LogFormat::Json => Lines::Json,
            LogFormat::Pretty => Lines::Pretty,
        })
        .with_filter(filter.or(spans));
    let traces = tracer.map(|tracer| {
        let ours = Targets::new()
            .with_targets(OURS.map(|target| (target, LevelFilter::INFO)))
            .with_target("builderd::telemetry", LevelFilter::OFF);
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            // Where in the source and on which thread a span was made helps nobody who runs this.
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    });
    // Fails when there is a subscriber already, and then that one is used.
    drop(tracing_subscriber::registry().with(traces).with(lines).try_init());
}

fn is_ours(target: &str) -> bool {
    let root = target.split("::").next().unwrap_or(target);
    OURS.contains(&root)
}

/// A plain level is about builderd itself: what libraries say below it is for those who name them.
fn filter(asked: &str) -> String {
    const LIBRARIES: [&str; 6] = ["connectrpc", "h2", "hyper", "hyper_util", "reqwest", "tower"];
    let is_plain = asked.bytes().all(|byte| byte.is_ascii_alphabetic());
    if !is_plain || !matches!(asked.to_ascii_lowercase().as_str(), "debug" | "trace") {
        return asked.to_owned();
    }
    LIBRARIES.iter().fold(asked.to_owned(), |filter, library| {
        filter + "," + library + "=info"
    })
}
