//! Tiers, limits and the rules by which tenants share a machine.
//!
//! Knows no RPC and no environment variable: figures come in as values, decisions go out as values.
//!
//! ```
//! use tenant::{NodeCaps, Quota, RequestedLimits, TenantDefaults, Tier, TierTable};
//!
//! // At the start: the tiers of this node, and what of them the node cannot give.
//! let table = TierTable::new(Tier::Free, &TenantDefaults::default());
//! let caps = NodeCaps { concurrent_builds: Some(5), ..NodeCaps::default() };
//! let (table, cuts) = table.capped(&caps);
//! assert!(cuts.iter().any(|cut| cut.tier == Tier::Enterprise && cut.cut.quota == Quota::ConcurrentBuilds));
//!
//! // For a build: what the request may lower.
//! let requested = RequestedLimits { memory_bytes: Some(8 << 30), cpu_cores: Some(1), ..RequestedLimits::default() };
//! let lowered = table.limits(Tier::Pro).lowered_by(&requested);
//! assert_eq!((lowered.limits.memory_bytes, lowered.limits.cpu_cores), (2 << 30, 1));
//! assert_eq!(lowered.cuts[0].to_string(), "memory: 8589934592 bytes asked for, 2147483648 bytes allowed");
//! assert!(lowered.limits.registries.allows("quay.io"));
//! ```
//!
//! # Records
//!
//! A tenant's tier is what its record says, whatever a request claims. Records are rows of a table that
//! [`migrations`] makes; the functions in [`records`] work in the caller's transaction, so that admission and whatever
//! the caller stores with it are one commit.
//!
//! # What it does not do yet
//!
//! Admission, fair queueing and the ledger.

#![forbid(unsafe_code)]

pub mod account;
mod admission;
mod capacity;
mod error;
mod hosts;
mod id;
pub mod ledger;
mod limits;
mod overrides;
pub mod queue;
pub mod records;
mod request;
mod schema;
pub mod storage;
mod table;
mod tier;
mod time;
mod usage;

pub use admission::{
    Admission, Application, IDEMPOTENCY_KEPT, IdempotencyKey, InvalidIdempotencyKey, Refusal, admit,
    forget_keys,
};
pub use capacity::{NodeCapacity, Reserved};
pub use error::AccountError;
pub use hosts::{AllowedHosts, HostPattern, InvalidHostPattern};
pub use id::{InvalidTenantId, TenantId};
pub use limits::{Cut, Limits, Quota, SandboxLevel, UnknownSandboxLevel};
pub use overrides::LimitOverrides;
pub use records::{RecordError, TenantRecord};
pub use request::{Lowered, NegativeLimit, RequestedLimits, given};
pub use schema::migrations;
pub use table::{NodeCaps, TenantDefaults, TierCut, TierTable};
pub use tier::{Tier, UnknownTier};
pub use usage::{Usage, usage};
