//! What a request may lower.

use std::time::Duration;

use crate::{
    hosts::AllowedHosts,
    limits::{Cut, Limits, Quota, SandboxLevel, lower},
};

/// Limits that a request asks for: they only ever make its own build smaller.
///
/// `None`, zero and an empty list mean not given, as on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedLimits {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// CPU cores.
    pub cpu_cores: Option<u32>,
    /// Disk in bytes.
    pub disk_bytes: Option<u64>,
    /// Time for the build.
    pub timeout: Option<Duration>,
    /// The same in another field of the wire; the lower one counts.
    pub build_time: Option<Duration>,
    /// This build waits while so many of the tenant's run.
    pub concurrent_builds: Option<u32>,
    /// This build is refused when so many of the tenant's have started today.
    pub daily_builds: Option<u32>,
    /// This build is refused when the tenant keeps so many bytes.
    pub storage_bytes: Option<u64>,
    /// Where this build may pull from; intersected with what the tenant may.
    pub registries: Option<AllowedHosts>,
    /// Where this build may clone from; intersected with what the tenant may.
    pub git_hosts: Option<AllowedHosts>,
    /// Asks for network inside the build. Not to ask does not take it away: false means not given.
    pub external_network: bool,
    /// A stronger box; a weaker one is not to be had.
    pub sandbox_level: Option<SandboxLevel>,
}

/// Limits of one build, and what of the request was more than the tenant has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Lowered {
    /// What holds for the build.
    pub limits: Limits,
    /// Figures that were cut to the tenant's, for the build's log.
    pub cuts: Vec<Cut>,
}

/// A limit below zero.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}: expected a positive number, or 0 for not given")]
pub struct NegativeLimit {
    /// Field of the request.
    pub field: &'static str,
    /// What was given.
    pub value: i64,
}

/// Reads a figure of the wire: `None` for 0, not given.
///
/// # Errors
///
/// [`NegativeLimit`] for a negative number.
pub fn given(field: &'static str, value: i64) -> Result<Option<u64>, NegativeLimit> {
    let figure = u64::try_from(value).map_err(|_| NegativeLimit { field, value })?;
    Ok((figure != 0).then_some(figure))
}

impl Limits {
    /// The limits of one build that asks for `requested`: of each figure the lower one, of the sandbox level the higher.
    pub fn lowered_by(&self, requested: &RequestedLimits) -> Lowered {
        let mut limits = self.clone();
        let mut cuts = Vec::new();
        let mut number = |quota, asked: Option<u64>, own: u64| match asked {
            None | Some(0) => own,
            Some(asked) => lower(quota, asked, own, &mut cuts),
        };
        limits.memory_bytes = number(Quota::Memory, requested.memory_bytes, self.memory_bytes);
        limits.disk_bytes = number(Quota::Disk, requested.disk_bytes, self.disk_bytes);
        limits.storage_bytes = number(Quota::Storage, requested.storage_bytes, self.storage_bytes);

        let mut small = |quota, asked: Option<u32>, own: u32| {
            let lowered = number(quota, asked.map(u64::from), own.into());
            u32::try_from(lowered).unwrap_or(own)
        };
        limits.cpu_cores = small(Quota::Cpu, requested.cpu_cores, self.cpu_cores);
        limits.concurrent_builds = small(
            Quota::ConcurrentBuilds,
            requested.concurrent_builds,
            self.concurrent_builds,
        );
        limits.daily_builds = small(Quota::DailyBuilds, requested.daily_builds, self.daily_builds);

        // Two fields, one figure: whoever gives both gets the lower one, and one line when that is too much.
        let asked = [requested.timeout, requested.build_time]
            .into_iter()
            .flatten()
            .filter(|time| !time.is_zero())
            .min();
        if let Some(asked) = asked {
            lower(
                Quota::BuildTime,
                asked.as_secs(),
                self.deadline().as_secs(),
                &mut cuts,
            );
            limits.timeout = self.timeout.min(asked);
            limits.build_time = self.build_time.min(asked);
        }
        if let Some(asked) = &requested.registries {
            limits.registries = self.registries.intersection(asked);
        }
        if let Some(asked) = &requested.git_hosts {
            limits.git_hosts = self.git_hosts.intersection(asked);
        }
        if requested.external_network && !self.external_network {
            cuts.push(Cut {
                quota: Quota::Network,
                asked: 1,
                allowed: 0,
            });
        }
        if let Some(asked) = requested.sandbox_level {
            limits.sandbox_level = self.sandbox_level.max(asked);
        }
        Lowered { limits, cuts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{table::TierTable, tier::Tier};

    #[test]
    fn a_request_that_asks_for_nothing_changes_nothing() {
        let table = TierTable::default();
        let zeros = RequestedLimits {
            memory_bytes: Some(0),
            cpu_cores: Some(0),
            timeout: Some(Duration::ZERO),
            ..RequestedLimits::default()
        };
        for requested in [RequestedLimits::default(), zeros] {
            for tier in Tier::ALL {
                let limits = table.limits(tier);
                assert_eq!(
                    limits.lowered_by(&requested),
                    Lowered {
                        limits: limits.clone(),
                        cuts: Vec::new()
                    }
                );
            }
        }
    }

    #[test]
    fn what_is_too_much_is_cut_and_told() {
        let requested = RequestedLimits {
            memory_bytes: Some(u64::MAX),
            cpu_cores: Some(u32::MAX),
            disk_bytes: Some(1),
            timeout: Some(Duration::from_secs(7200)),
            external_network: true,
            sandbox_level: Some(SandboxLevel::Basic),
            ..RequestedLimits::default()
        };
        let table = TierTable::default();
        let Lowered { limits, cuts } = table.limits(Tier::Free).lowered_by(&requested);
        let own = table.limits(Tier::Free);
        assert_eq!(
            limits,
            Limits {
                disk_bytes: 1,
                ..own.clone()
            }
        );
        let quotas: Vec<Quota> = cuts.iter().map(|cut| cut.quota).collect();
        assert_eq!(
            quotas,
            [Quota::Memory, Quota::Cpu, Quota::BuildTime, Quota::Network]
        );
    }

    #[test]
    fn registries_are_intersected_and_the_box_only_gets_stronger() {
        let requested = RequestedLimits {
            registries: Some(AllowedHosts::only(
                ["ghcr.io", "quay.io"].map(|host| host.parse().unwrap()),
            )),
            sandbox_level: Some(SandboxLevel::Maximum),
            ..RequestedLimits::default()
        };
        let limits = TierTable::default()
            .limits(Tier::Free)
            .lowered_by(&requested)
            .limits;
        let allowed = ["ghcr.io", "quay.io", "docker.io"].map(|host| limits.registries.allows(host));
        assert_eq!(allowed, [true, false, false]);
        assert_eq!(limits.sandbox_level, SandboxLevel::Maximum);
    }

    #[test]
    fn figures_of_the_wire_are_positive_or_not_given() {
        assert_eq!(given("timeout_seconds", 0), Ok(None));
        assert_eq!(given("timeout_seconds", 7), Ok(Some(7)));
        let error = given("timeout_seconds", -1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "timeout_seconds is -1: expected a positive number, or 0 for not given"
        );
    }
}
