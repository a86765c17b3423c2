//! What goes wrong with the accounts of tenants.

/// The database refused, or holds what no version of this crate wrote.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct AccountError {
    /// What was being done, as `admit a build`.
    action: &'static str,
    #[source]
    source: rusqlite::Error,
}

impl AccountError {
    /// For `map_err`.
    pub(crate) fn new(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self { action, source }
    }

    /// What the database said.
    #[must_use]
    pub const fn database_error(&self) -> &rusqlite::Error {
        &self.source
    }
}
