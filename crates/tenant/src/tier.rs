//! The four tiers.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How much of the service a tenant has bought. What each may use is in a [`TierTable`](crate::TierTable).
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

/// Not the name of a tier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a tier: expected free, pro, enterprise or dedicated")]
pub struct UnknownTier {
    /// What was given, shortened to 80 characters.
    pub value: String,
}

impl Tier {
    /// All tiers, smallest first.
    pub const ALL: [Self; 4] = [Self::Free, Self::Pro, Self::Enterprise, Self::Dedicated];

    /// Its name in lower case, as in configuration and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Pro => "pro",
            Self::Enterprise => "enterprise",
            Self::Dedicated => "dedicated",
        }
    }

    /// Share of a contended machine that a new tenant gets, relative to other tenants.
    #[must_use]
    pub const fn weight(self) -> u32 {
        match self {
            Self::Free => 1,
            Self::Pro => 2,
            Self::Enterprise => 4,
            Self::Dedicated => 8,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Tier {
    type Err = UnknownTier;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL
            .into_iter()
            .find(|tier| tier.as_str().eq_ignore_ascii_case(value));
        found.ok_or_else(|| UnknownTier {
            value: value.chars().take(80).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_and_nothing_else_is() {
        for tier in Tier::ALL {
            assert_eq!(tier.to_string().parse(), Ok(tier));
            assert_eq!(tier.as_str().to_uppercase().parse(), Ok(tier));
        }
        for value in ["", "gold", "TIER_FREE", " free"] {
            assert!(value.parse::<Tier>().is_err(), "{value:?}");
        }
    }
}
