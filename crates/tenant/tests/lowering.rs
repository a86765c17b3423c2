//! For every request: nothing rises, nothing is cut in silence.

use std::time::Duration;

use proptest::prelude::*;
use tenant::{
    AllowedHosts, HostPattern, Limits, NodeCaps, Quota, RequestedLimits, SandboxLevel, TenantDefaults, Tier,
    TierTable,
};

const HOSTS: [&str; 4] = ["docker.io", "ghcr.io", "a.example.com", "127.0.0.1:5000"];

fn tiers() -> impl Strategy<Value = Tier> {
    prop::sample::select(Tier::ALL.to_vec())
}

fn hosts() -> impl Strategy<Value = AllowedHosts> {
    let patterns = ["*", "*.example.com", "docker.io", "ghcr.io", "127.0.0.1:5000"];
    prop::sample::subsequence(patterns.to_vec(), 0..=5)
        .prop_map(|patterns| AllowedHosts::only(patterns.iter().filter_map(|pattern| pattern.parse().ok())))
}

fn figure(unit: u64) -> impl Strategy<Value = Option<u64>> {
    prop_oneof![
        Just(None),
        Just(Some(0)),
        Just(Some(u64::MAX)),
        (0..200_u64).prop_map(move |n| Some(n * unit))
    ]
}

prop_compose! {
    fn requests()(
        bytes in (figure(1 << 26), figure(1 << 26), figure(1 << 30)),
        numbers in (figure(1), figure(1), figure(100)),
        times in (figure(37), figure(37)),
        registries in prop::option::of(hosts()),
        external_network in any::<bool>(),
        level in 0..4,
    ) -> RequestedLimits {
        let small = |figure: Option<u64>| figure.map(|figure| u32::try_from(figure).unwrap_or(u32::MAX));
        RequestedLimits {
            memory_bytes: bytes.0,
            disk_bytes: bytes.1,
            storage_bytes: bytes.2,
            cpu_cores: small(numbers.0),
            concurrent_builds: small(numbers.1),
            daily_builds: small(numbers.2),
            timeout: times.0.map(Duration::from_secs),
            build_time: times.1.map(Duration::from_secs),
            registries,
            git_hosts: None,
            external_network,
            sandbox_level: SandboxLevel::from_number(level).unwrap_or(None),
        }
    }
}

prop_compose! {
    fn tables()(
        default_tier in tiers(),
        timeout in 1..5000_u64,
        build_time in 1..5000_u64,
        cap in prop::option::of(1..5000_u64),
        concurrent in prop::option::of(1..60_u32),
    ) -> TierTable {
        let defaults = TenantDefaults {
            timeout: Duration::from_secs(timeout),
            build_time: Duration::from_secs(build_time),
            ..TenantDefaults::default()
        };
        let caps = NodeCaps {
            build_timeout: cap.map(Duration::from_secs),
            concurrent_builds: concurrent,
            ..NodeCaps::default()
        };
        TierTable::new(default_tier, &defaults).capped(&caps).0
    }
}

/// Every figure of `limits` by its name; the network is one bit.
fn figures(limits: &Limits) -> [(Quota, u64); 8] {
    [
        (Quota::Memory, limits.memory_bytes),
        (Quota::Disk, limits.disk_bytes),
        (Quota::Storage, limits.storage_bytes),
        (Quota::Cpu, limits.cpu_cores.into()),
        (Quota::ConcurrentBuilds, limits.concurrent_builds.into()),
        (Quota::DailyBuilds, limits.daily_builds.into()),
        (Quota::BuildTime, limits.deadline().as_secs()),
        (Quota::Network, limits.external_network.into()),
    ]
}

/// What the request asks for by its name; `None` when not given.
fn asked(requested: &RequestedLimits, quota: Quota) -> Option<u64> {
    let time = [requested.timeout, requested.build_time]
        .into_iter()
        .flatten()
        .filter(|time| !time.is_zero())
        .min();
    let figure = match quota {
        Quota::Memory => requested.memory_bytes,
        Quota::Disk => requested.disk_bytes,
        Quota::Storage => requested.storage_bytes,
        Quota::Cpu => requested.cpu_cores.map(u64::from),
        Quota::ConcurrentBuilds => requested.concurrent_builds.map(u64::from),
        Quota::DailyBuilds => requested.daily_builds.map(u64::from),
        Quota::BuildTime => time.map(|time| time.as_secs()),
        _ => requested.external_network.then_some(1),
    };
    figure.filter(|figure| *figure != 0)
}

proptest! {
    #[test]
    fn of_each_figure_the_lower_one_holds_and_every_cut_is_told(
        table in tables(), tier in tiers(), requested in requests(),
    ) {
        let own = table.limits(tier);
        let lowered = own.lowered_by(&requested);
        for ((quota, before), (_, after)) in figures(own).into_iter().zip(figures(&lowered.limits)) {
            let asked = asked(&requested, quota);
            if quota == Quota::Network {
                prop_assert_eq!(after, before, "the network is never a matter of the request");
            } else {
                prop_assert_eq!(after, asked.map_or(before, |asked| asked.min(before)), "{}", quota);
            }
            let told: Vec<_> = lowered.cuts.iter().filter(|cut| cut.quota == quota).collect();
            prop_assert_eq!(told.len(), usize::from(asked.is_some_and(|asked| asked > before)), "{}", quota);
            for cut in told {
                prop_assert_eq!((Some(cut.asked), cut.allowed), (asked, before));
            }
        }
        prop_assert_eq!(lowered.limits.retention, own.retention);
        prop_assert!(lowered.limits.sandbox_level >= own.sandbox_level);
        prop_assert!(requested.sandbox_level.is_none_or(|level| lowered.limits.sandbox_level >= level));
    }

    #[test]
    fn a_host_is_allowed_when_tenant_and_request_both_allow_it(
        table in tables(), tier in tiers(), requested in requests(),
    ) {
        let own = &table.limits(tier).registries;
        let lowered = table.limits(tier).lowered_by(&requested).limits.registries;
        for host in HOSTS {
            let asked = requested.registries.as_ref().is_none_or(|hosts| hosts.allows(host));
            prop_assert_eq!(lowered.allows(host), own.allows(host) && asked, "{}", host);
            prop_assert!(!lowered.names_exactly(host) || lowered.allows(host));
        }
    }

    #[test]
    fn to_ask_again_changes_nothing(table in tables(), tier in tiers(), requested in requests()) {
        let once = table.limits(tier).lowered_by(&requested).limits;
        prop_assert_eq!(once.lowered_by(&requested).limits, once);
    }

    #[test]
    fn a_pattern_reads_what_it_writes(text in "(\\*\\.)?[a-zA-Z0-9.-]{0,12}(:[0-9]{0,6})?|\\PC{0,8}") {
        if let Ok(pattern) = text.parse::<HostPattern>() {
            let written = pattern.to_string();
            prop_assert_eq!(written.parse::<HostPattern>(), Ok(pattern), "{}", written);
        }
    }
}
