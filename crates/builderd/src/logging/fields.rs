//! The fields of spans and events, in the order in which they were given.

use std::{error::Error, fmt};

use serde_json::{Value, json};
use tracing::{
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, FormattedFields, format::Writer},
};

use crate::commands::chain;

/// Names and values.
pub(super) type Fields = Vec<(String, Value)>;

/// Takes fields as they come. What is for the traces alone (`otel.…`) is left out.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) fields: Fields,
}

impl Collected {
    fn put(&mut self, field: &Field, value: Value) {
        if field.name().starts_with("otel.") {
            return;
        }
        set(&mut self.fields, name(field.name()), value);
    }
}

/// The names that the log has had from the start, and that are searched for.
fn name(name: &str) -> &str {
    match name {
        "build.id" => "build_id",
        "tenant.id" => "tenant_id",
        other => other.strip_prefix("r#").unwrap_or(other),
    }
}

/// The last value of a name counts.
pub(super) fn set(fields: &mut Fields, name: &str, value: Value) {
    match fields.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => *known = value,
        None => fields.push((name.to_owned(), value)),
    }
}

impl Visit for Collected {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::from(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.put(field, Value::from(chain(value)));
    }
}

/// Keeps the fields of a span as text that [`read`] reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpanFields;

impl<'writer> FormatFields<'writer> for SpanFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut collected = Collected::default();
        fields.record(&mut collected);
        write(&mut writer, &collected.fields)
    }

    fn add_fields(&self, current: &'writer mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let mut collected = Collected {
            fields: read(&current.fields),
        };
        fields.record(&mut collected);
        let mut text = String::new();
        write(&mut Writer::new(&mut text), &collected.fields)?;
        current.fields = text;
        Ok(())
    }
}

fn write(writer: &mut Writer<'_>, fields: &Fields) -> fmt::Result {
    let text = serde_json::to_string(fields).map_err(|_| fmt::Error)?;
    writer.write_str(&text)
}

/// The fields of a span, from the text that is kept of them.
pub(super) fn read(text: &str) -> Fields {
    serde_json::from_str(text).unwrap_or_default()
}
