//! Limits of one tenant that replace those of its tier.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    hosts::HostPattern,
    limits::{Limits, SandboxLevel},
};

/// What an operator set for one tenant; `None` leaves the figure of its tier. The node's own size still cuts it.
///
/// Written as JSON in the tenant's record; unknown names are an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitOverrides {
    /// Builds that run at the same time; 0 keeps all of the tenant's builds waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_builds: Option<u32>,
    /// Builds that start on one UTC day; 0 refuses all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily_builds: Option<u32>,
    /// Time for a build, in seconds: replaces both of [`Limits::timeout`] and [`Limits::build_time`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Memory of one build, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// CPU cores of one build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<u32>,
    /// Disk of one build, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// All images that are kept, in bytes; 0 refuses all builds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
    /// Where images may be pulled from; an empty list for nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registries: Option<Vec<HostPattern>>,
    /// Where repositories may be cloned from; an empty list for nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git_hosts: Option<Vec<HostPattern>>,
    /// Whether commands inside a build may reach the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_network: Option<bool>,
    /// How strong the box is, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_level: Option<SandboxLevel>,
}

impl LimitOverrides {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The limits of a tier with what is set here in their place.
    #[must_use]
    pub fn over(&self, tier: &Limits) -> Limits {
        let hosts = |own: &Option<Vec<HostPattern>>, of_tier: &crate::AllowedHosts| {
            own.as_ref().map_or_else(
                || of_tier.clone(),
                |patterns| crate::AllowedHosts::only(patterns.iter().cloned()),
            )
        };
        let time = self
            .timeout_seconds
            .map(|seconds| Duration::from_secs(seconds.into()));
        Limits {
            concurrent_builds: self.concurrent_builds.unwrap_or(tier.concurrent_builds),
            daily_builds: self.daily_builds.unwrap_or(tier.daily_builds),
            timeout: time.unwrap_or(tier.timeout),
            build_time: time.unwrap_or(tier.build_time),
            memory_bytes: self.memory_bytes.unwrap_or(tier.memory_bytes),
            cpu_cores: self.cpu_cores.unwrap_or(tier.cpu_cores),
            disk_bytes: self.disk_bytes.unwrap_or(tier.disk_bytes),
            storage_bytes: self.storage_bytes.unwrap_or(tier.storage_bytes),
            image_bytes: tier.image_bytes,
            external_network: self.external_network.unwrap_or(tier.external_network),
            registries: hosts(&self.registries, &tier.registries),
            git_hosts: hosts(&self.git_hosts, &tier.git_hosts),
            retention: tier.retention,
            sandbox_level: self.sandbox_level.unwrap_or(tier.sandbox_level),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tier, TierTable};

    #[test]
    fn what_is_not_set_is_the_tiers() {
        let table = TierTable::default();
        for tier in Tier::ALL {
            assert_eq!(
                &LimitOverrides::default().over(table.limits(tier)),
                table.limits(tier)
            );
        }
        assert_eq!(serde_json::to_string(&LimitOverrides::default()).unwrap(), "{}");
    }

    #[test]
    fn what_is_set_replaces_the_tiers_and_survives_json() {
        let overrides = LimitOverrides {
            concurrent_builds: Some(7),
            timeout_seconds: Some(60),
            registries: Some(vec!["quay.io".parse().unwrap()]),
            git_hosts: Some(Vec::new()),
            sandbox_level: Some(SandboxLevel::Maximum),
            ..LimitOverrides::default()
        };
        let text = serde_json::to_string(&overrides).unwrap();
        assert_eq!(serde_json::from_str::<LimitOverrides>(&text).unwrap(), overrides);
        let limits = overrides.over(TierTable::default().limits(Tier::Free));
        assert_eq!((limits.concurrent_builds, limits.deadline().as_secs()), (7, 60));
        assert!(limits.registries.allows("quay.io") && !limits.registries.allows("docker.io"));
        assert!(!limits.git_hosts.allows("github.com"));
        assert!(serde_json::from_str::<LimitOverrides>(r#"{"memory":1}"#).is_err());
    }
}
