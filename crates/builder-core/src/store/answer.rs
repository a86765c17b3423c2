//! How many builds one answer has.

use rusqlite::{Row, types::ValueRef};

use super::StoreError;

/// Bytes of all builds of an answer: clients of gRPC take 4 MiB by default, and what waits to be read by a client is kept
/// in memory.
const MAX_BYTES: usize = 1 << 20;

/// For what a build has beside its texts: times, figures, names of fields.
const REST_BYTES: usize = 1024;

/// The columns that have texts of any length. They are kept as JSON, mostly, and so about as long as in an answer.
const TEXTS: [&str; 6] = [
    "request",
    "image_metadata",
    "metrics",
    "error_message",
    "current_step",
    "rootfs_path",
];

/// What an answer has room for. Begins empty.
#[derive(Debug, Default)]
pub(super) struct AnswerSize {
    bytes: usize,
}

impl AnswerSize {
    /// Counts the build of a row in, unless the answer would be too large with it. The first one always fits.
    pub(super) fn takes(&mut self, row: &Row<'_>) -> Result<bool, StoreError> {
        let mut bytes = REST_BYTES;
        for column in TEXTS {
            bytes += match row.get_ref(column)? {
                ValueRef::Text(value) | ValueRef::Blob(value) => value.len(),
                _ => 0,
            };
        }
        if self.bytes > 0 && self.bytes + bytes > MAX_BYTES {
            return Ok(false);
        }
        self.bytes += bytes;
        Ok(true)
    }
}
