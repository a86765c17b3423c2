//! Settings that were said and do nothing beside what else was said.
//!
//! What is for another mode is refused where the mode is read, since it may be thought to protect. What belongs to
//! something that is switched off stays: who switches telemetry off for a day need not take its other settings away.
//! But nothing is passed over in silence.

use std::fmt;

use super::values::Values;

/// A setting that has no effect as things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleSetting {
    /// The variable, as `UNKEY_BUILDERD_OTEL_ENDPOINT`; it may have been said by its flag.
    pub variable: String,
    /// Why not: which other setting is how.
    pub reason: &'static str,
}

impl fmt::Display for IdleSetting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} has no effect: {}", self.variable, self.reason)
    }
}

/// What these settings need to have an effect.
struct Rule {
    settings: &'static [&'static str],
    /// Of the settings, and whether it is a start with `--dev`.
    is_idle: fn(&Values, bool) -> bool,
    reason: &'static str,
}

const RULES: [Rule; 8] = [
    Rule {
        settings: &[
            "OTEL_SERVICE_NAME",
            "OTEL_SERVICE_VERSION",
            "OTEL_ENDPOINT",
            "OTEL_SAMPLING_RATE",
            "OTEL_PROMETHEUS_ENABLED",
            "OTEL_PROMETHEUS_PORT",
            "OTEL_PROMETHEUS_INTERFACE",
            "OTEL_HIGH_CARDINALITY_ENABLED",
        ],
        is_idle: |values, _| !values.flag("OTEL_ENABLED"),
        reason: "OTEL_ENABLED is false",
    },
    Rule {
        settings: &["OTEL_PROMETHEUS_PORT", "OTEL_PROMETHEUS_INTERFACE"],
        is_idle: |values, _| values.flag("OTEL_ENABLED") && !values.flag("OTEL_PROMETHEUS_ENABLED"),
        reason: "OTEL_PROMETHEUS_ENABLED is false",
    },
    Rule {
        settings: &["AUDIT_LOG_PATH", "AUDIT_MAX_SIZE_MB", "AUDIT_MAX_FILES"],
        is_idle: |values, _| !values.flag("AUDIT_ENABLED"),
        reason: "AUDIT_ENABLED is false",
    },
    Rule {
        settings: &[
            "ASSETMANAGER_ENDPOINT",
            "ASSETMANAGER_SPIFFE_ID",
            "ASSETMANAGER_SERVICE",
            "ASSETMANAGER_METHOD",
        ],
        is_idle: |values, _| !values.flag("ASSETMANAGER_ENABLED"),
        reason: "ASSETMANAGER_ENABLED is false",
    },
    Rule {
        settings: &["STORAGE_CACHE_MAX_SIZE_GB"],
        is_idle: |values, _| !values.flag("STORAGE_CACHE_ENABLED"),
        reason: "STORAGE_CACHE_ENABLED is false",
    },
    Rule {
        settings: &["ROOTFS_OUTPUT_DIR"],
        is_idle: |values, _| values.text("STORAGE_BACKEND") != "local",
        reason: "images are kept in the bucket of STORAGE_BACKEND",
    },
    Rule {
        settings: &["DOCKER_NO_PROXY"],
        is_idle: |values, _| {
            values.text("DOCKER_HTTP_PROXY").is_empty() && values.text("DOCKER_HTTPS_PROXY").is_empty()
        },
        reason: "neither DOCKER_HTTP_PROXY nor DOCKER_HTTPS_PROXY is set",
    },
    Rule {
        settings: &["DOCKER_HTTP_PROXY"],
        // A development start speaks plain HTTP to registries on loopback.
        is_idle: |values, development| {
            !development
                && values.list("DOCKER_INSECURE_REGISTRIES").is_empty()
                && !values.text("DOCKER_REGISTRY_MIRROR").starts_with("http://")
        },
        reason: "no registry is spoken to over plain HTTP: DOCKER_INSECURE_REGISTRIES names none, and \
                 DOCKER_REGISTRY_MIRROR is no http:// address",
    },
];

/// All settings that were set to something else than their default and have no effect.
pub(super) fn idle(values: &Values, development: bool) -> Vec<IdleSetting> {
    let idle_rules = RULES.iter().filter(|rule| (rule.is_idle)(values, development));
    idle_rules
        .flat_map(|rule| rule.settings.iter().map(|name| (*name, rule.reason)))
        .filter_map(|(name, reason)| {
            let variable = values.changed(name)?;
            Some(IdleSetting { variable, reason })
        })
        .collect()
}
