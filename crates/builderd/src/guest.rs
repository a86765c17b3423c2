//! The guest's init that the daemon carries.

use std::sync::Arc;

/// The static program that becomes process 1 of a microVM, built together with the daemon.
pub const INIT: &[u8] = include_bytes!(env!("GUEST_INIT_PROGRAM"));

/// The architecture it runs on, in OCI's words: `amd64` or `arm64`.
pub const ARCHITECTURE: &str = env!("GUEST_INIT_ARCHITECTURE");

/// The program, to be shared.
#[must_use]
pub fn init() -> Arc<[u8]> {
    Arc::from(INIT)
}
