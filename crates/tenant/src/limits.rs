//! What a tenant, and each of its builds, may use.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::hosts::AllowedHosts;

/// Figures that bound a tenant and each of its builds.
///
/// A build ends at the lower one of `timeout` and `build_time`: they are one figure in the tiers, and two settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Builds that run at the same time.
    pub concurrent_builds: u32,
    /// Builds that start on one UTC day.
    pub daily_builds: u32,
    /// Time for a build.
    pub timeout: Duration,
    /// The longest that a build may ask for.
    pub build_time: Duration,
    /// Memory of one build, in bytes.
    pub memory_bytes: u64,
    /// CPU cores of one build.
    pub cpu_cores: u32,
    /// Disk of one build, in bytes: uncompressed layers and allocated bytes of the image; shared caches do not count.
    pub disk_bytes: u64,
    /// All images of the tenant that are kept, in bytes.
    pub storage_bytes: u64,
    /// Compressed bytes of all layers of one image; `None` for no limit of its own. It is never a matter of tiers.
    pub image_bytes: Option<u64>,
    /// Whether commands that run inside a build may reach the network. Pulling is governed by `registries` alone.
    pub external_network: bool,
    /// Where images may be pulled from.
    pub registries: AllowedHosts,
    /// Where repositories may be cloned from.
    pub git_hosts: AllowedHosts,
    /// For how long a finished image is kept.
    pub retention: Duration,
    /// How strong the box around a build is, at least.
    pub sandbox_level: SandboxLevel,
}

/// Names of limits, as in violations and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Quota {
    /// Builds at the same time.
    ConcurrentBuilds,
    /// Builds on one day.
    DailyBuilds,
    /// Bytes of images kept.
    Storage,
    /// Minutes of computing.
    Compute,
    /// Duration of one build.
    BuildTime,
    /// Memory of one build.
    Memory,
    /// Cores of one build.
    Cpu,
    /// Disk of one build.
    Disk,
    /// Whom a build may talk to.
    Network,
    /// Builds that wait for their turn.
    QueuedBuilds,
}

/// How strong the box around a build is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxLevel {
    /// Namespaces and limits (1).
    Basic,
    /// And filters of system calls and file access (2); the least for a tenant.
    #[default]
    Strict,
    /// And user ids of its own, and no cache entry that another tenant's build made (3).
    Maximum,
}

/// Not a level of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value} is not a sandbox level: expected 1 (basic), 2 (strict) or 3 (maximum), or 0 for not given")]
pub struct UnknownSandboxLevel {
    /// What was given.
    pub value: i32,
}

/// A figure that was asked for, or that a tier has, and is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Which one.
    pub quota: Quota,
    /// What was asked for: bytes, seconds, cores or a number of builds; for [`Quota::Network`] 1.
    pub asked: u64,
    /// What holds instead, in the same unit.
    pub allowed: u64,
}

impl Limits {
    /// When a build that starts now is ended.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.timeout.min(self.build_time)
    }
}

impl Quota {
    /// Its name on the wire and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConcurrentBuilds => "concurrent_builds",
            Self::DailyBuilds => "daily_builds",
            Self::Storage => "storage",
            Self::Compute => "compute",
            Self::BuildTime => "build_time",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::QueuedBuilds => "queued_builds",
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::ConcurrentBuilds | Self::DailyBuilds | Self::QueuedBuilds => " builds",
            Self::Storage | Self::Memory | Self::Disk => " bytes",
            Self::BuildTime => " seconds",
            Self::Compute => " minutes",
            Self::Cpu => " cores",
            Self::Network => "",
        }
    }
}

impl SandboxLevel {
    /// Reads the number of a request: `None` for 0, not given.
    ///
    /// # Errors
    ///
    /// [`UnknownSandboxLevel`] for anything but 0 to 3.
    pub const fn from_number(value: i32) -> Result<Option<Self>, UnknownSandboxLevel> {
        match value {
            0 => Ok(None),
            1 => Ok(Some(Self::Basic)),
            2 => Ok(Some(Self::Strict)),
            3 => Ok(Some(Self::Maximum)),
            _ => Err(UnknownSandboxLevel { value }),
        }
    }

    /// Its number, 1 to 3.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Basic => 1,
            Self::Strict => 2,
            Self::Maximum => 3,
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            quota,
            asked,
            allowed,
        } = *self;
        if quota == Quota::Network {
            return formatter.write_str("network: asked for, not allowed");
        }
        let unit = quota.unit();
        write!(
            formatter,
            "{quota}: {asked}{unit} asked for, {allowed}{unit} allowed"
        )
    }
}

/// The lower one of `asked` and `allowed`; a cut when that is not what was asked for.
pub(crate) fn lower(quota: Quota, asked: u64, allowed: u64, cuts: &mut Vec<Cut>) -> u64 {
    if asked > allowed {
        cuts.push(Cut {
            quota,
            asked,
            allowed,
        });
    }
    asked.min(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandbox_levels_have_the_numbers_of_the_wire() {
        for (number, expected) in [
            (0, Ok(None)),
            (1, Ok(Some(SandboxLevel::Basic))),
            (2, Ok(Some(SandboxLevel::Strict))),
            (3, Ok(Some(SandboxLevel::Maximum))),
            (4, Err(UnknownSandboxLevel { value: 4 })),
            (-1, Err(UnknownSandboxLevel { value: -1 })),
        ] {
            assert_eq!(SandboxLevel::from_number(number), expected);
            if let Ok(Some(level)) = expected {
                assert_eq!(i32::from(level.number()), number);
            }
        }
    }

    #[test]
    fn cuts_are_told_with_their_unit() {
        let cases = [
            (
                Quota::BuildTime,
                "build_time: 9 seconds asked for, 5 seconds allowed",
            ),
            (Quota::Cpu, "cpu: 9 cores asked for, 5 cores allowed"),
            (Quota::Network, "network: asked for, not allowed"),
        ];
        for (quota, expected) in cases {
            assert_eq!(
                Cut {
                    quota,
                    asked: 9,
                    allowed: 5
                }
                .to_string(),
                expected
            );
        }
    }
}
