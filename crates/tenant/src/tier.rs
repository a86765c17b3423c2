//! The four tiers and what each may use.

use serde::{Deserialize, Serialize};

/// How much of the service a tenant has bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// To try it out.
    Free,
    /// For a team.
    Pro,
    /// For a company.
    Enterprise,
    /// For a company with machines of its own.
    Dedicated,
}
