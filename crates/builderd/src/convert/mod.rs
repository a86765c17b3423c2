//! Between the wire and the domain.
//!
//! A request becomes a domain value here or is refused here, with the path of the field, what was expected and what
//! was found. A field that this version does nothing with is refused as well, never read over: a caller who sets it
//! counts on it.

mod field;
mod request;
mod response;
mod usage;

pub use field::{FieldError, FieldPath};
pub use request::{build_id, log_start, page_size, states, tenant_id};
pub use response::{build_job, build_state, log_line, timestamp};
pub use usage::{build_stats, stats_window, tenant_quotas};
