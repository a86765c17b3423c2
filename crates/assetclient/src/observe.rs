//! Who watches the calls.

use http::HeaderMap;

/// Is told of calls, and may add to their headers what belongs to the caller's trace. Its methods have to return at once.
pub trait CallObserver {
    /// What is done for a build begins; `span` was just made for it and is not entered yet.
    fn attempts(&self, _build_id: &str, _span: &tracing::Span) {}

    /// A call is about to be made; `headers` are what it carries.
    fn calling(&self, _headers: &mut HeaderMap) {}

    /// A call of `method` (as `RegisterAsset`) was answered: `code` is the status in gRPC's words (`OK`,
    /// `UNAVAILABLE`, …). A call without any answer counts as `UNAVAILABLE` or `DEADLINE_EXCEEDED`.
    fn answered(&self, _method: &'static str, _code: &'static str) {}
}
