//! Traces across processes: W3C trace context, in with requests and out with calls.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Dispatch, Span, span};
use tracing_opentelemetry::{OpenTelemetrySpanExt as _, get_otel_context};

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        // What the propagator writes is always a header; anything else is left out.
        if let (Ok(name), Ok(value)) = (key.parse::<HeaderName>(), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

/// Makes `span` part of the trace that `headers` tell of, if they do. To be called before the span is entered.
pub fn continue_trace(span: &Span, headers: &HeaderMap) {
    let context =
        TraceContextPropagator::new().extract_with_context(&opentelemetry::Context::new(), &Headers(headers));
    if context.span().span_context().is_valid() {
        // Fails where nothing traces, or the span has begun: then it is in a trace of its own.
        let _ = span.set_parent(context);
    }
}

/// Tells the next service of the trace that the current span is part of.
pub(super) fn pass_on(headers: &mut HeaderMap) {
    let context = Span::current().context();
    TraceContextPropagator::new().inject_context(&context, &mut HeadersMut(headers));
}

/// The trace that a span is part of, as 32 hexadecimal digits.
#[must_use]
pub fn trace_id(span: &span::Id, dispatch: &Dispatch) -> Option<String> {
    let context = get_otel_context(span, dispatch)?;
    let id = context.span().span_context().trace_id();
    (id != opentelemetry::TraceId::INVALID).then(|| id.to_string())
}
