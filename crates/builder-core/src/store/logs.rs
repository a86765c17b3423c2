//! The log of a build: numbered without gaps, bounded, written with the state change it belongs to.

use std::{collections::BTreeMap, time::SystemTime};

use rusqlite::{Connection, Row, Transaction, params};
use serde::{Serialize, de::DeserializeOwned};

use super::{StoreError, from_integer, from_micros, to_integer, to_micros};
use crate::{
    build::BuildId,
    event::{Component, Level, LogLine},
};

/// Lines that a build may have. An image with more notes than this has one cause for all of them.
const MAX_LINES: u64 = 10_000;

/// Bytes of messages and metadata that a build may have.
const MAX_BYTES: u64 = 4 << 20;

/// Bytes of one message; the rest is cut off.
const MAX_MESSAGE_BYTES: usize = 4096;

/// A line that has no number yet.
#[derive(Clone, Debug)]
pub(crate) struct NewLine {
    pub(crate) timestamp: SystemTime,
    pub(crate) level: Level,
    pub(crate) component: Component,
    pub(crate) message: String,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl NewLine {
    pub(crate) fn new(level: Level, component: Component, message: impl Into<String>) -> Self {
        Self {
            timestamp: super::now(),
            level,
            component,
            message: message.into(),
            metadata: BTreeMap::new(),
        }
    }
}

/// Numbers the lines and writes them. Lines beyond the bound are left out, which one line says; `last_words` are
/// written all the same, because a build must not end without its reason.
pub(super) fn append(
    transaction: &Transaction<'_>,
    ordinal: i64,
    lines: Vec<NewLine>,
    last_words: bool,
) -> Result<Vec<LogLine>, StoreError> {
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    let (mut sequence, mut bytes) = transaction
        .prepare_cached("SELECT last_sequence, log_bytes FROM builds WHERE ordinal = ?1")?
        .query_row([ordinal], |row| {
            Ok((from_integer(row.get(0)?), from_integer(row.get(1)?)))
        })?;
    let mut insert = transaction.prepare_cached(
        "INSERT INTO build_logs (build_ordinal, sequence, timestamp, level, component, message, metadata)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let mut written = Vec::with_capacity(lines.len());
    for mut line in lines {
        let is_full = sequence >= MAX_LINES || bytes >= MAX_BYTES;
        if is_full && !last_words {
            if bytes >= u64::MAX >> 2 {
                break;
            }
            line = NewLine::new(
                Level::Warn,
                Component::Builder,
                "The log is full: further lines are left out",
            );
        }
        shorten(&mut line.message);
        let metadata = encode(&line.metadata);
        sequence += 1;
        bytes += (line.message.len() + metadata.len()) as u64;
        insert.execute(params![
            ordinal,
            to_integer(sequence),
            to_micros(line.timestamp),
            line.level.as_str(),
            line.component.as_str(),
            line.message,
            metadata,
        ])?;
        written.push(LogLine {
            sequence,
            timestamp: line.timestamp,
            level: line.level,
            component: line.component,
            message: line.message,
            metadata: line.metadata,
        });
        if is_full && !last_words {
            // The mark by which later calls know that the line above was written.
            bytes = u64::MAX >> 1;
            break;
        }
    }
    transaction
        .prepare_cached("UPDATE builds SET last_sequence = ?2, log_bytes = ?3 WHERE ordinal = ?1")?
        .execute(params![ordinal, to_integer(sequence), to_integer(bytes)])?;
    Ok(written)
}

/// How much of a log is read at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageSize {
    pub(crate) lines: usize,
    /// Bytes of messages and metadata. The first line is read whatever it has.
    pub(crate) bytes: usize,
}

/// Lines of a log, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct LogPage {
    pub(crate) lines: Vec<LogLine>,
    /// There are no more lines yet.
    pub(crate) is_last: bool,
}

/// Lines of a build from `sequence` on, as many as fit on the page.
pub(crate) fn lines_after(
    connection: &Connection,
    id: BuildId,
    sequence: u64,
    size: PageSize,
) -> Result<LogPage, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence, timestamp, level, component, message, metadata FROM build_logs
         WHERE build_ordinal = (SELECT ordinal FROM builds WHERE id = ?1) AND sequence >= ?2
         ORDER BY sequence",
    )?;
    let mut rows = statement.query(params![id.to_string(), to_integer(sequence)])?;
    let (mut lines, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let text_bytes = |column| -> Result<usize, StoreError> {
            let text = row.get_ref(column)?.as_str().map_err(rusqlite::Error::from)?;
            Ok(text.len())
        };
        bytes += text_bytes(4)? + text_bytes(5)?;
        if lines.len() == size.lines || (bytes > size.bytes && !lines.is_empty()) {
            return Ok(LogPage {
                lines,
                is_last: false,
            });
        }
        lines.push(read_line(id, row)?);
    }
    Ok(LogPage { lines, is_last: true })
}

/// The last lines of a build, at most `limit`, in their order.
pub(crate) fn last_lines(
    connection: &Connection,
    id: BuildId,
    limit: usize,
) -> Result<Vec<LogLine>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence, timestamp, level, component, message, metadata FROM build_logs
         WHERE build_ordinal = (SELECT ordinal FROM builds WHERE id = ?1)
         ORDER BY sequence DESC LIMIT ?2",
    )?;
    let mut rows = statement.query(params![id.to_string(), to_integer(limit as u64)])?;
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        lines.push(read_line(id, row)?);
    }
    lines.reverse();
    Ok(lines)
}

fn read_line(id: BuildId, row: &Row<'_>) -> Result<LogLine, StoreError> {
    Ok(LogLine {
        sequence: from_integer(row.get(0)?),
        timestamp: from_micros(row.get(1)?),
        level: decode_name(id, "level", row.get(2)?)?,
        component: decode_name(id, "component", row.get(3)?)?,
        message: row.get(4)?,
        metadata: decode(id, "metadata", &row.get::<_, String>(5)?)?,
    })
}

fn shorten(message: &mut String) {
    if message.len() > MAX_MESSAGE_BYTES {
        let mut end = MAX_MESSAGE_BYTES;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
}

/// Everything stored this way is plain data whose encoding cannot fail.
pub(super) fn encode<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data with string keys encodes as JSON")
}

pub(super) fn decode<T: DeserializeOwned>(
    build: BuildId,
    column: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::Malformed {
        build: build.to_string(),
        column,
    })
}

/// Reads a value whose serde form is a bare name.
pub(super) fn decode_name<T: DeserializeOwned>(
    build: BuildId,
    column: &'static str,
    name: String,
) -> Result<T, StoreError> {
    serde_json::from_value(serde_json::Value::String(name)).map_err(|_| StoreError::Malformed {
        build: build.to_string(),
        column,
    })
}
