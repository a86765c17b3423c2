//! The figures of each tier on one node.
//!
//! | | free | pro | enterprise | dedicated |
//! |---|---|---|---|---|
//! | concurrent builds | 1 | 3 | 10 | 50 |
//! | builds a day | 5 | 100 | 1000 | 10000 |
//! | build time | 5 min | 15 min | 30 min | 60 min |
//! | memory a build | 512 MiB | 2 GiB | 8 GiB | 32 GiB |
//! | CPU cores a build | 1 | 2 | 4 | 16 |
//! | disk a build | 1 GiB | 10 GiB | 100 GiB | 1 TiB |
//! | storage | 1 GiB | 10 GiB | 100 GiB | 1 TiB |
//! | external network in a build | no | yes | yes | yes |
//! | registries | docker.io, ghcr.io | any | any | any |
//! | git hosts | github.com, gitlab.com | any | any | any |
//! | retention | 30 d | 30 d | 90 d | 90 d |
//!
//! The default tier's figures are configured by themselves ([`TenantDefaults`]) and replace its column.

use std::{fmt, time::Duration};

use crate::{
    hosts::{AllowedHosts, HostPattern},
    limits::{Cut, Limits, Quota, SandboxLevel, lower},
    overrides::LimitOverrides,
    records::TenantRecord,
    tier::Tier,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const MINUTE: u64 = 60;
const DAY: u64 = 24 * 60 * MINUTE;

/// Figures of the default tier; network, registries and git hosts are those of its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantDefaults {
    /// Memory of one build, in bytes (2 GiB).
    pub memory_bytes: u64,
    /// CPU cores of one build (2).
    pub cpu_cores: u32,
    /// Disk of one build, in bytes (10 GiB).
    pub disk_bytes: u64,
    /// Time for a build (900 s).
    pub timeout: Duration,
    /// Builds at the same time (3).
    pub concurrent_builds: u32,
    /// Builds a day (100).
    pub daily_builds: u32,
    /// Bytes of images kept (50 GiB).
    pub storage_bytes: u64,
    /// The longest that a build may ask for (30 min).
    pub build_time: Duration,
    /// For how long images are kept (30 days).
    pub retention: Duration,
}

/// What one node can give at most, over all tiers. `None` caps nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCaps {
    /// The longest that a build may take.
    pub build_timeout: Option<Duration>,
    /// Builds at the same time.
    pub concurrent_builds: Option<u32>,
    /// Memory of the node: no build has more.
    pub memory_bytes: Option<u64>,
    /// Cores of the node.
    pub cpu_cores: Option<u32>,
    /// Compressed bytes of all layers of one image. No tier has a figure for it, so it is never reported as a cut.
    pub image_bytes: Option<u64>,
    /// Bytes of images kept.
    pub storage_bytes: Option<u64>,
}

/// The limits of each tier on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierTable {
    default_tier: Tier,
    /// What the node cuts, also from what a tenant's own record says.
    caps: NodeCaps,
    /// In the order of [`Tier::ALL`].
    columns: [Limits; 4],
}

/// A figure of a tier that the node cannot give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierCut {
    /// The tier.
    pub tier: Tier,
    /// The figure.
    pub cut: Cut,
}

impl TierTable {
    /// The table above, with `defaults` in the column of `default_tier`.
    #[must_use]
    pub fn new(default_tier: Tier, defaults: &TenantDefaults) -> Self {
        let columns = Tier::ALL.map(|tier| {
            let column = column(tier);
            if tier == default_tier {
                defaults.over(column)
            } else {
                column
            }
        });
        Self {
            default_tier,
            caps: NodeCaps::default(),
            columns,
        }
    }

    /// Replaces the row of registries, in all tiers.
    #[must_use]
    pub fn with_registries(mut self, registries: &AllowedHosts) -> Self {
        for column in &mut self.columns {
            column.registries = registries.clone();
        }
        self
    }

    /// Cuts every figure to what the node can give; says what was cut.
    #[must_use]
    pub fn capped(mut self, caps: &NodeCaps) -> (Self, Vec<TierCut>) {
        let mut tier_cuts = Vec::new();
        for (tier, limits) in Tier::ALL.into_iter().zip(&mut self.columns) {
            let cuts = caps.cut(limits);
            tier_cuts.extend(cuts.into_iter().map(|cut| TierCut { tier, cut }));
        }
        self.caps = self.caps.and(caps);
        (self, tier_cuts)
    }

    /// What a tenant may use: the figures of its tier, those of its record in their place, cut to what the node can give.
    #[must_use]
    pub fn limits_of(&self, record: &TenantRecord) -> Limits {
        self.limits_with(record.tier, &record.limits)
    }

    /// The same, for a tier and the limits of a record.
    #[must_use]
    pub fn limits_with(&self, tier: Tier, overrides: &LimitOverrides) -> Limits {
        let mut limits = overrides.over(self.limits(tier));
        self.caps.cut(&mut limits);
        limits
    }

    /// The tier of a tenant that was never seen before.
    #[must_use]
    pub fn default_tier(&self) -> Tier {
        self.default_tier
    }

    /// What a tier may use.
    #[must_use]
    pub fn limits(&self, tier: Tier) -> &Limits {
        let [free, pro, enterprise, dedicated] = &self.columns;
        match tier {
            Tier::Free => free,
            Tier::Pro => pro,
            Tier::Enterprise => enterprise,
            Tier::Dedicated => dedicated,
        }
    }
}

impl NodeCaps {
    /// Cuts every figure to what the node can give; says what was cut.
    fn cut(&self, limits: &mut Limits) -> Vec<Cut> {
        let mut cuts = Vec::new();
        if let Some(cap) = self.concurrent_builds {
            let asked = u64::from(limits.concurrent_builds);
            lower(Quota::ConcurrentBuilds, asked, cap.into(), &mut cuts);
            limits.concurrent_builds = limits.concurrent_builds.min(cap);
        }
        if let Some(cap) = self.build_timeout {
            // One line for what is one figure to the tenant: when its builds are ended.
            let asked = limits.deadline().as_secs();
            lower(Quota::BuildTime, asked, cap.as_secs(), &mut cuts);
            limits.timeout = limits.timeout.min(cap);
            limits.build_time = limits.build_time.min(cap);
        }
        if let Some(cap) = self.memory_bytes {
            limits.memory_bytes = lower(Quota::Memory, limits.memory_bytes, cap, &mut cuts);
        }
        if let Some(cap) = self.cpu_cores {
            lower(Quota::Cpu, limits.cpu_cores.into(), cap.into(), &mut cuts);
            limits.cpu_cores = limits.cpu_cores.min(cap);
        }
        if let Some(cap) = self.storage_bytes {
            limits.storage_bytes = lower(Quota::Storage, limits.storage_bytes, cap, &mut cuts);
        }
        limits.image_bytes = [limits.image_bytes, self.image_bytes].into_iter().flatten().min();
        cuts
    }

    /// The lower one of each figure.
    fn and(&self, other: &Self) -> Self {
        fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            [one, other].into_iter().flatten().min()
        }
        Self {
            build_timeout: least(self.build_timeout, other.build_timeout),
            concurrent_builds: least(self.concurrent_builds, other.concurrent_builds),
            memory_bytes: least(self.memory_bytes, other.memory_bytes),
            cpu_cores: least(self.cpu_cores, other.cpu_cores),
            image_bytes: least(self.image_bytes, other.image_bytes),
            storage_bytes: least(self.storage_bytes, other.storage_bytes),
        }
    }
}

impl Default for TierTable {
    /// Free is the default tier, with the default figures.
    fn default() -> Self {
        Self::new(Tier::Free, &TenantDefaults::default())
    }
}

impl Default for TenantDefaults {
    fn default() -> Self {
        Self {
            memory_bytes: 2 * GIB,
            cpu_cores: 2,
            disk_bytes: 10 * GIB,
            timeout: Duration::from_secs(900),
            concurrent_builds: 3,
            daily_builds: 100,
            storage_bytes: 50 * GIB,
            build_time: Duration::from_secs(30 * MINUTE),
            retention: Duration::from_secs(30 * DAY),
        }
    }
}

impl TenantDefaults {
    fn over(&self, column: Limits) -> Limits {
        Limits {
            concurrent_builds: self.concurrent_builds,
            daily_builds: self.daily_builds,
            timeout: self.timeout,
            build_time: self.build_time,
            memory_bytes: self.memory_bytes,
            cpu_cores: self.cpu_cores,
            disk_bytes: self.disk_bytes,
            storage_bytes: self.storage_bytes,
            retention: self.retention,
            ..column
        }
    }
}

impl fmt::Display for TierCut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "tier {}: {}", self.tier, self.cut)
    }
}

fn column(tier: Tier) -> Limits {
    let (concurrent_builds, daily_builds, minutes, memory_bytes, cpu_cores, disk_bytes, storage_bytes, days) =
        match tier {
            Tier::Free => (1, 5, 5, 512 * MIB, 1, GIB, GIB, 30),
            Tier::Pro => (3, 100, 15, 2 * GIB, 2, 10 * GIB, 10 * GIB, 30),
            Tier::Enterprise => (10, 1000, 30, 8 * GIB, 4, 100 * GIB, 100 * GIB, 90),
            Tier::Dedicated => (50, 10_000, 60, 32 * GIB, 16, TIB, TIB, 90),
        };
    let is_free = tier == Tier::Free;
    let hosts = |names: [&str; 2]| if is_free { only(names) } else { AllowedHosts::any() };
    Limits {
        concurrent_builds,
        daily_builds,
        timeout: Duration::from_secs(minutes * MINUTE),
        build_time: Duration::from_secs(minutes * MINUTE),
        memory_bytes,
        cpu_cores,
        disk_bytes,
        storage_bytes,
        image_bytes: None,
        external_network: !is_free,
        registries: hosts(["docker.io", "ghcr.io"]),
        git_hosts: hosts(["github.com", "gitlab.com"]),
        retention: Duration::from_secs(days * DAY),
        sandbox_level: SandboxLevel::Strict,
    }
}

fn only(names: [&str; 2]) -> AllowedHosts {
    AllowedHosts::only(names.map(|name| {
        name.parse::<HostPattern>()
            .expect("the names in this file are hosts, which a test makes sure of")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures of a tier in one line, in the order of the table.
    fn line(limits: &Limits) -> String {
        format!(
            "{} {} {}s {}s {} {} {} {} {:?} network={} registries={:?} git={:?} {}d level={}",
            limits.concurrent_builds,
            limits.daily_builds,
            limits.timeout.as_secs(),
            limits.build_time.as_secs(),
            limits.memory_bytes,
            limits.cpu_cores,
            limits.disk_bytes,
            limits.storage_bytes,
            limits.image_bytes,
            limits.external_network,
            limits.registries.describe(),
            limits.git_hosts.describe(),
            limits.retention.as_secs() / 86_400,
            limits.sandbox_level.number(),
        )
    }

    const FREE: &str = "1 5 300s 300s 536870912 1 1073741824 1073741824 None network=false \
        registries=[\"docker.io\", \"ghcr.io\"] git=[\"github.com\", \"gitlab.com\"] 30d level=2";
    const PRO: &str = "3 100 900s 900s 2147483648 2 10737418240 10737418240 None network=true \
        registries=[] git=[] 30d level=2";
    const ENTERPRISE: &str = "10 1000 1800s 1800s 8589934592 4 107374182400 107374182400 None network=true \
        registries=[] git=[] 90d level=2";
    const DEDICATED: &str = "50 10000 3600s 3600s 34359738368 16 1099511627776 1099511627776 None network=true \
        registries=[] git=[] 90d level=2";

    #[test]
    fn the_default_tier_has_the_configured_figures_and_the_others_those_of_the_table() {
        let free_by_default = "3 100 900s 1800s 2147483648 2 10737418240 53687091200 None network=false \
            registries=[\"docker.io\", \"ghcr.io\"] git=[\"github.com\", \"gitlab.com\"] 30d level=2";
        let pro_by_default = "3 100 900s 1800s 2147483648 2 10737418240 53687091200 None network=true \
            registries=[] git=[] 30d level=2";
        let cases = [
            (Tier::Free, [free_by_default, PRO, ENTERPRISE, DEDICATED]),
            (Tier::Pro, [FREE, pro_by_default, ENTERPRISE, DEDICATED]),
        ];
        for (default_tier, expected) in cases {
            let table = TierTable::new(default_tier, &TenantDefaults::default());
            assert_eq!(table.default_tier(), default_tier);
            assert_eq!(Tier::ALL.map(|tier| line(table.limits(tier))), expected);
        }
        assert_eq!(
            TierTable::default(),
            TierTable::new(Tier::Free, &TenantDefaults::default())
        );
    }

    #[test]
    fn a_build_ends_at_the_lower_one_of_two_figures() {
        let table = TierTable::default();
        assert_eq!(table.limits(Tier::Free).deadline(), Duration::from_secs(900));
        let short = TenantDefaults {
            build_time: Duration::from_secs(60),
            ..TenantDefaults::default()
        };
        let table = TierTable::new(Tier::Free, &short);
        assert_eq!(table.limits(Tier::Free).deadline(), Duration::from_secs(60));
    }

    #[test]
    fn the_node_cuts_and_says_so() {
        let caps = NodeCaps {
            build_timeout: Some(Duration::from_secs(900)),
            concurrent_builds: Some(5),
            image_bytes: Some(5 * GIB),
            storage_bytes: Some(100 * GIB),
            ..NodeCaps::default()
        };
        let (table, cuts) = TierTable::default().capped(&caps);
        let cuts: Vec<String> = cuts.iter().map(ToString::to_string).collect();
        assert_eq!(
            cuts,
            [
                "tier enterprise: concurrent_builds: 10 builds asked for, 5 builds allowed",
                "tier enterprise: build_time: 1800 seconds asked for, 900 seconds allowed",
                "tier dedicated: concurrent_builds: 50 builds asked for, 5 builds allowed",
                "tier dedicated: build_time: 3600 seconds asked for, 900 seconds allowed",
                "tier dedicated: storage: 1099511627776 bytes asked for, 107374182400 bytes allowed",
            ]
        );
        let dedicated = table.limits(Tier::Dedicated);
        assert_eq!(
            (dedicated.concurrent_builds, dedicated.deadline()),
            (5, Duration::from_secs(900))
        );
        assert_eq!(
            (dedicated.storage_bytes, dedicated.image_bytes),
            (100 * GIB, Some(5 * GIB))
        );
        assert_eq!(table.limits(Tier::Pro).concurrent_builds, 3, "what fits stays");

        let (again, cuts) = table.clone().capped(&caps);
        assert_eq!((again, cuts.len()), (table, 0));
        assert_eq!(
            TierTable::default().capped(&NodeCaps::default()),
            (TierTable::default(), Vec::new())
        );
    }

    #[test]
    fn configured_registries_replace_those_of_every_tier() {
        let registries = AllowedHosts::only(["127.0.0.1:5000".parse().unwrap()]);
        let table = TierTable::default().with_registries(&registries);
        for tier in Tier::ALL {
            assert!(table.limits(tier).registries.allows("127.0.0.1:5000"), "{tier}");
            assert!(!table.limits(tier).registries.allows("docker.io"), "{tier}");
        }
    }
}
