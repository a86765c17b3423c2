//! Quotas and statistics.

use std::time::{Duration, SystemTime};

use builder_core::service::{BuildStats, StatsWindow, TenantQuotas, TenantUsage};
use prost_types::Timestamp;
use tenant::Limits;

use super::{
    FieldError, FieldPath, build_job,
    response::{signed, small},
};
use crate::proto;

/// The window of GetBuildStats.
///
/// # Errors
/// For a moment that no calendar has.
pub fn stats_window(start: Option<Timestamp>, end: Option<Timestamp>) -> Result<StatsWindow, FieldError> {
    Ok(StatsWindow {
        from: moment(start, "start_time")?,
        until: moment(end, "end_time")?,
    })
}

fn moment(value: Option<Timestamp>, field: &'static str) -> Result<Option<SystemTime>, FieldError> {
    let Some(value) = value else {
        return Ok(None);
    };
    let out_of_range = || {
        let found = format!(
            "{} seconds and {} nanoseconds since 1970",
            value.seconds, value.nanos
        );
        FieldPath::root(field).invalid("a moment of the years 1 to 9999", found)
    };
    // The range of google.protobuf.Timestamp.
    let seconds = -62_135_596_800..=253_402_300_799;
    if !seconds.contains(&value.seconds) || !(0..1_000_000_000).contains(&value.nanos) {
        return Err(out_of_range());
    }
    SystemTime::try_from(value).map(Some).map_err(|_| out_of_range())
}

/// The answer of GetTenantQuotas.
#[must_use]
pub fn tenant_quotas(quotas: TenantQuotas) -> proto::GetTenantQuotasResponse {
    let violations = quotas
        .violations
        .into_iter()
        .map(|violation| proto::QuotaViolation {
            quota_type: violation.quota.as_str().to_owned(),
            current_value: signed(Some(violation.current)),
            limit_value: signed(Some(violation.limit)),
            message: violation.message,
        });
    proto::GetTenantQuotasResponse {
        current_limits: Some(limits(&quotas.limits)),
        current_usage: Some(usage(&quotas.usage)),
        violations: violations.collect(),
    }
}

/// The answer of GetBuildStats.
#[must_use]
pub fn build_stats(stats: BuildStats) -> proto::GetBuildStatsResponse {
    let recent = stats.recent.into_iter().map(|build| build_job(build, Vec::new()));
    proto::GetBuildStatsResponse {
        total_builds: count(stats.total_builds),
        successful_builds: count(stats.successful_builds),
        failed_builds: count(stats.failed_builds),
        avg_build_time_ms: signed(
            stats
                .average_build_time
                .map(|average| u64::try_from(average.as_millis()).unwrap_or(u64::MAX)),
        ),
        total_storage_bytes: signed(Some(stats.storage_bytes)),
        total_compute_minutes: minutes(stats.cpu_time),
        recent_builds: recent.collect(),
    }
}

fn limits(limits: &Limits) -> proto::TenantResourceLimits {
    proto::TenantResourceLimits {
        max_memory_bytes: signed(Some(limits.memory_bytes)),
        max_cpu_cores: small(Some(limits.cpu_cores)),
        max_disk_bytes: signed(Some(limits.disk_bytes)),
        timeout_seconds: count(limits.deadline().as_secs()),
        max_concurrent_builds: small(Some(limits.concurrent_builds)),
        max_daily_builds: small(Some(limits.daily_builds)),
        max_storage_bytes: signed(Some(limits.storage_bytes)),
        max_build_time_minutes: count(limits.build_time.as_secs() / 60),
        allowed_registries: limits.registries.describe(),
        allowed_git_hosts: limits.git_hosts.describe(),
        allow_external_network: limits.external_network,
        // Nobody may.
        allow_privileged_builds: false,
        blocked_commands: Vec::new(),
        sandbox_level: i32::from(limits.sandbox_level.number()),
    }
}

fn usage(usage: &TenantUsage) -> proto::TenantUsageStats {
    proto::TenantUsageStats {
        active_builds: count(usage.active_builds),
        daily_builds_used: count(usage.builds_started_today),
        storage_bytes_used: signed(Some(usage.storage_bytes)),
        compute_minutes_used: minutes(usage.cpu_time_today),
        builds_queued: count(usage.queued_builds),
        builds_completed_today: count(usage.builds_completed_today),
        builds_failed_today: count(usage.builds_failed_today),
    }
}

fn count(value: u64) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// Minutes that were begun: a tenant that used some does not see 0.
fn minutes(time: Duration) -> i64 {
    let minutes = time.as_millis().div_ceil(60_000);
    i64::try_from(minutes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_every_moment_that_a_timestamp_can_be_and_no_other() {
        let at = |seconds, nanos| Some(Timestamp { seconds, nanos });
        for (name, value, fits) in [
            ("none", None, true),
            ("epoch", at(0, 0), true),
            ("year 1", at(-62_135_596_800, 0), true),
            ("before year 1", at(-62_135_596_801, 0), false),
            ("the last", at(253_402_300_799, 999_999_999), true),
            ("year 10000", at(253_402_300_800, 0), false),
            ("negative nanos", at(5, -1), false),
            ("too many nanos", at(5, 1_000_000_000), false),
        ] {
            assert_eq!(stats_window(value, None).is_ok(), fits, "{name}");
            assert_eq!(stats_window(None, value).is_ok(), fits, "{name}");
        }
        let error = stats_window(None, at(i64::MAX, 0)).unwrap_err();
        assert!(error.to_string().starts_with("end_time: "), "{error}");
    }

    #[test]
    fn begun_minutes_count() {
        for (milliseconds, expected) in [(0, 0), (1, 1), (60_000, 1), (60_001, 2)] {
            assert_eq!(
                minutes(Duration::from_millis(milliseconds)),
                expected,
                "{milliseconds}"
            );
        }
    }
}
