//! Tiers, limits and the rules by which tenants share a machine.
//!
//! Knows no RPC and no environment variable: figures come in as values, decisions go out as values.

#![forbid(unsafe_code)]

mod id;
mod tier;

pub use id::{InvalidTenantId, TenantId};
pub use tier::Tier;
