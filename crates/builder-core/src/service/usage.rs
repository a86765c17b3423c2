//! What a tenant may use, uses, and used.

use std::{
    sync::Weak,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tenant::{Limits, Quota, TenantId};

use super::{Inner, internal};
use crate::{
    build::Build,
    error::ServiceError,
    store::{self, TenantUsage},
};

/// Builds that [`BuildStats::recent`] shows.
const RECENT_BUILDS: usize = 10;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What a tenant may use and what it uses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TenantQuotas {
    /// The limits in force: those of the tenant's tier and record, cut to what the machine gives.
    pub limits: Limits,
    /// What it uses now.
    pub usage: TenantUsage,
    /// Quotas that are used up.
    pub violations: Vec<QuotaViolation>,
}

/// A quota that is used up, to the last or beyond.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaViolation {
    /// Which one.
    pub quota: Quota,
    /// What is used.
    pub current: u64,
    /// What is allowed, in the same unit.
    pub limit: u64,
    /// Both in words, and when something frees.
    pub message: String,
}

/// Which builds [`super::Builder::stats`] counts: those created from `from` on and before `until`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsWindow {
    /// `None` for no bound.
    pub from: Option<SystemTime>,
    /// `None` for no bound.
    pub until: Option<SystemTime>,
}

/// The builds of a window in figures. Deleted builds are counted; their images are not.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BuildStats {
    /// All builds of the window, whatever became of them.
    pub total_builds: u64,
    /// Those that completed.
    pub successful_builds: u64,
    /// Those that failed; cancelled ones are not among them.
    pub failed_builds: u64,
    /// From start to end of a completed build, on average; `None` when none completed.
    pub average_build_time: Option<Duration>,
    /// Bytes that their images take where they are kept.
    pub storage_bytes: u64,
    /// CPU time of all of them, as far as it is known.
    pub cpu_time: Duration,
    /// The newest, at most 10 and about 1 MiB, newest first.
    pub recent: Vec<Build>,
}

pub(super) async fn quotas(inner: &Inner, tenant: TenantId) -> Result<TenantQuotas, ServiceError> {
    let now = store::now();
    let (record, usage) = inner.store.usage(tenant, now).await.map_err(internal)?;
    let tiers = &inner.config.tenants;
    let limits = match &record {
        Some(record) => tiers.limits_of(record),
        None => tiers.limits(tiers.default_tier()).clone(),
    };
    Ok(TenantQuotas {
        violations: violations(&limits, &usage, now),
        limits,
        usage,
    })
}

pub(super) async fn stats(
    inner: &Inner,
    tenant: TenantId,
    window: StatsWindow,
) -> Result<BuildStats, ServiceError> {
    if let (Some(from), Some(until)) = (window.from, window.until)
        && from > until
    {
        return Err(ServiceError::InvalidArgument {
            field: "end_time".to_owned(),
            message: "lies before start_time: expected the same moment or a later one".to_owned(),
        });
    }
    let (sums, mut recent) = inner
        .store
        .window(tenant, window.from, window.until, RECENT_BUILDS)
        .await
        .map_err(internal)?;
    for build in &mut recent {
        inner.refresh(build).await;
    }
    Ok(BuildStats {
        total_builds: sums.total,
        successful_builds: sums.completed,
        failed_builds: sums.failed,
        average_build_time: sums.average_build_time,
        storage_bytes: sums.stored_bytes,
        cpu_time: sums.cpu_time,
        recent,
    })
}

/// Looks over the tenants of which builds run, each `quota_check_interval`, and keeps their accounts: until the service has
/// stopped or is dropped.
///
/// A limit that is exceeded was lowered after the fact, since nothing is admitted beyond one: what runs may end, which is
/// told.
pub(super) async fn look_over(inner: Weak<Inner>) {
    let Some((stopped, interval)) = inner
        .upgrade()
        .map(|inner| (inner.stopped.clone(), inner.config.quota_check_interval))
    else {
        return;
    };
    loop {
        tokio::select! {
            () = stopped.cancelled() => return,
            () = tokio::time::sleep(interval.max(Duration::from_millis(1))) => {}
        }
        let Some(service) = inner.upgrade() else {
            return;
        };
        if let Err(error) = check(&service).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "The quotas could not be looked over"
            );
        }
        // A limit may have been raised.
        service.wake.notify_one();
    }
}

async fn check(inner: &Inner) -> Result<(), store::StoreError> {
    let now = store::now();
    inner.store.keep_accounts(now).await?;
    for tenant in inner.store.busy_tenants().await? {
        let (record, usage) = inner.store.usage(tenant.clone(), now).await?;
        let Some(record) = record else { continue };
        let limits = inner.config.tenants.limits_of(&record);
        for violation in violations(&limits, &usage, now) {
            if violation.current > violation.limit {
                tracing::warn!(
                    tenant.id = %tenant,
                    quota = violation.quota.as_str(),
                    current = violation.current,
                    limit = violation.limit,
                    "A tenant uses more than it may"
                );
            }
        }
    }
    Ok(())
}

fn violations(limits: &Limits, usage: &TenantUsage, now: SystemTime) -> Vec<QuotaViolation> {
    let since_midnight = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % DAY.as_secs();
    let minutes = (DAY.as_secs() - since_midnight).div_ceil(60);
    let quotas = [
        (
            Quota::ConcurrentBuilds,
            usage.active_builds,
            u64::from(limits.concurrent_builds),
            "builds run at the same time; one place is free when one of them ends".to_owned(),
        ),
        (
            Quota::DailyBuilds,
            usage.builds_started_today,
            u64::from(limits.daily_builds),
            format!("builds were started today; the count begins anew at 00:00 UTC, in {minutes} minutes"),
        ),
        (
            Quota::Storage,
            usage.storage_bytes,
            limits.storage_bytes,
            "bytes of images are kept; deleting builds frees theirs at once".to_owned(),
        ),
    ];
    quotas
        .into_iter()
        .filter(|(_, current, limit, _)| current >= limit)
        .map(|(quota, current, limit, rest)| QuotaViolation {
            quota,
            current,
            limit,
            message: format!("{quota}: {current} of {limit} {rest}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_told_when_it_is_used_up_with_the_figures_and_when_it_frees() {
        let limits = tenant::TierTable::default().limits(tenant::Tier::Pro).clone();
        let now = UNIX_EPOCH + 20_000 * DAY + Duration::from_secs(23 * 3600 + 30 * 60);
        let mut usage = TenantUsage {
            active_builds: 2,
            builds_started_today: 99,
            storage_bytes: limits.storage_bytes - 1,
            ..TenantUsage::default()
        };
        assert_eq!(violations(&limits, &usage, now), []);
        usage.active_builds = 3;
        usage.builds_started_today = 101;
        usage.storage_bytes += 1;
        let told = violations(&limits, &usage, now);
        let figures: Vec<_> = told
            .iter()
            .map(|told| (told.quota, told.current, told.limit))
            .collect();
        assert_eq!(
            figures,
            [
                (Quota::ConcurrentBuilds, 3, 3),
                (Quota::DailyBuilds, 101, 100),
                (Quota::Storage, 10 << 30, 10 << 30)
            ]
        );
        assert_eq!(
            told[1].message,
            "daily_builds: 101 of 100 builds were started today; the count begins anew at 00:00 UTC, in 30 minutes"
        );
    }
}
