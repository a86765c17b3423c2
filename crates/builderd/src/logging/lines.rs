//! What a line looks like.

use std::fmt;

use serde_json::{Map, Value};
use tracing::{Event, Subscriber, dispatcher};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

use super::fields::{Collected, Fields, SpanFields, read, set};
use crate::telemetry;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lines {
    /// One JSON object a line, flat: `timestamp`, `level`, `target`, `message`, then all fields.
    Json,
    /// For people.
    Pretty,
}

/// What a field may not be called, because the line itself has it.
const OWN: [&str; 5] = ["timestamp", "level", "target", "message", "span"];

impl<S> FormatEvent<S, SpanFields> for Lines
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, SpanFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::new();
        let mut span_names = Vec::new();
        let mut innermost = None;
        if let Some(scope) = context.event_scope() {
            for span in scope.from_root() {
                span_names.push(span.name());
                innermost = Some(span.id());
                if let Some(kept) = span.extensions().get::<FormattedFields<SpanFields>>() {
                    for (name, value) in read(&kept.fields) {
                        set(&mut fields, &name, value);
                    }
                }
            }
        }
        let mut own = Collected::default();
        event.record(&mut own);
        let mut message = String::new();
        for (name, value) in own.fields {
            match (name.as_str(), value) {
                ("message", Value::String(text)) => message = text,
                (_, value) => set(&mut fields, &name, value),
            }
        }
        // After the lock on the span's extensions is gone, which the trace's id is kept in, too.
        let trace = innermost
            .and_then(|span| dispatcher::get_default(|dispatch| telemetry::trace_id(&span, dispatch)));
        if let Some(trace) = trace {
            set(&mut fields, "trace_id", Value::from(trace));
        }
        let metadata = event.metadata();
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        match self {
            Self::Json => {
                // Not a map from the start: what is looked for first stands first.
                write!(
                    writer,
                    r#"{{"timestamp":{},"level":"{}","target":{},"message":{}"#,
                    Value::from(time),
                    metadata.level(),
                    Value::from(metadata.target()),
                    Value::from(message)
                )?;
                let mut rest: Map<String, Value> = fields
                    .into_iter()
                    .filter(|(name, _)| !OWN.contains(&name.as_str()))
                    .collect();
                if let Some(name) = span_names.last() {
                    rest.insert("span".to_owned(), Value::from(*name));
                }
                for (name, value) in rest {
                    write!(writer, ",{}:{value}", Value::from(name))?;
                }
                writeln!(writer, "}}")
            }
            Self::Pretty => {
                let (start, end) = match (writer.has_ansi_escapes(), *metadata.level()) {
                    (false, _) => ("", ""),
                    (true, tracing::Level::ERROR) => ("\u{1b}[31m", "\u{1b}[0m"),
                    (true, tracing::Level::WARN) => ("\u{1b}[33m", "\u{1b}[0m"),
                    (true, tracing::Level::INFO) => ("\u{1b}[32m", "\u{1b}[0m"),
                    (true, _) => ("\u{1b}[2m", "\u{1b}[0m"),
                };
                write!(
                    writer,
                    "{time} {start}{:>5}{end} {}: {}",
                    metadata.level(),
                    metadata.target(),
                    one_line(&message)
                )?;
                for (name, value) in fields {
                    match value {
                        // What could be taken for something else is quoted, so that no value can forge a line.
                        Value::String(text) if !is_plain(&text) => write!(writer, " {name}={text:?}")?,
                        Value::String(text) => write!(writer, " {name}={text}")?,
                        value => write!(writer, " {name}={value}")?,
                    }
                }
                writeln!(writer)
            }
        }
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|character| !character.is_whitespace() && !character.is_control() && character != '"')
}

/// A message as one line.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|character| match character.is_control() {
            true => character.escape_default().to_string(),
            false => character.to_string(),
        })
        .collect()
}
