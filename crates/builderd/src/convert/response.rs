//! Domain values into answers of the wire.
//!
//! What is not known stays absent: no figure is invented for it. Credentials have no way out: the domain request is
//! turned into a wire request without `auth`.

use std::time::SystemTime;

use builder_core::{
    build::{Build, BuildIsolation, BuildMetrics, BuildState, ImageMetadata},
    event::{ERROR_KIND, LogLine},
    optimize::Savings,
    request::{BuildRequest, InitStrategy, LayerMode, Profile},
};
use prost_types::Timestamp;
use tenant::Tier;

use crate::{proto, status};

/// In the metadata of the line that has [`ERROR_KIND`]: the name of the code for it.
const ERROR_CODE: &str = "error.code";

/// A moment.
#[must_use]
pub fn timestamp(moment: SystemTime) -> Timestamp {
    Timestamp::from(moment)
}

/// A state.
#[must_use]
pub const fn build_state(state: BuildState) -> proto::BuildState {
    match state {
        BuildState::Pending => proto::BuildState::Pending,
        BuildState::Pulling => proto::BuildState::Pulling,
        BuildState::Extracting => proto::BuildState::Extracting,
        BuildState::Building => proto::BuildState::Building,
        BuildState::Optimizing => proto::BuildState::Optimizing,
        BuildState::Completed => proto::BuildState::Completed,
        BuildState::Failed => proto::BuildState::Failed,
        BuildState::Cancelled => proto::BuildState::Cancelled,
    }
}

/// A build with its last log lines, oldest first.
#[must_use]
pub fn build_job(build: Build, build_logs: Vec<String>) -> proto::BuildJob {
    let isolation = build.metrics.isolation.clone().map(isolation);
    let only_isolation = BuildMetrics {
        isolation: build.metrics.isolation.clone(),
        ..BuildMetrics::default()
    };
    let metrics = (build.metrics != only_isolation).then(|| metrics(&build.metrics));
    proto::BuildJob {
        build_id: build.id.to_string(),
        config: Some(config(build.request)),
        state: build_state(build.state).into(),
        created_at: Some(timestamp(build.created_at)),
        started_at: build.started_at.map(timestamp),
        completed_at: build.completed_at.map(timestamp),
        // An image that was removed to make room is nowhere.
        rootfs_path: match build.image_removed_at {
            None => build.rootfs_path.to_string_lossy().into_owned(),
            Some(_) => String::new(),
        },
        rootfs_size_bytes: signed(build.rootfs_size_bytes),
        rootfs_checksum: build.rootfs_checksum.unwrap_or_default(),
        image_metadata: build.image_metadata.map(image_metadata),
        metrics,
        isolation,
        error_message: build.error_message.unwrap_or_default(),
        build_logs,
        progress_percent: i32::from(build.progress_percent),
        current_step: build.current_step,
        asset_id: build.asset_id.unwrap_or_default(),
        queue_position: small(build.queue_position),
        estimated_start: build.estimated_start.map(timestamp),
    }
}

/// A line of a build's log. Where it names the kind of error that a build ended with, the code for that stands beside it.
#[must_use]
pub fn log_line(mut line: LogLine) -> proto::StreamBuildLogsResponse {
    let code = line
        .metadata
        .get(ERROR_KIND)
        .and_then(|kind| status::code_name_of_failure(kind));
    if let Some(code) = code {
        line.metadata.insert(ERROR_CODE.to_owned(), code.to_owned());
    }
    proto::StreamBuildLogsResponse {
        timestamp: Some(timestamp(line.timestamp)),
        level: line.level.as_str().to_owned(),
        message: line.message,
        component: line.component.as_str().to_owned(),
        metadata: line.metadata.into_iter().collect(),
        sequence: signed(Some(line.sequence)),
    }
}

fn config(request: BuildRequest) -> proto::BuildConfig {
    let tenant = request.tenant;
    let tier = match tenant.claimed_tier {
        None => proto::TenantTier::Unspecified,
        Some(Tier::Free) => proto::TenantTier::Free,
        Some(Tier::Pro) => proto::TenantTier::Pro,
        Some(Tier::Enterprise) => proto::TenantTier::Enterprise,
        Some(Tier::Dedicated) => proto::TenantTier::Dedicated,
    };
    let image = proto::DockerImageSource {
        image_uri: request.source.image_uri,
        auth: None,
        pull_tags: request.source.pull_tags,
        platform: request.source.platform.unwrap_or_default(),
    };
    let limits = request.limits;
    let limits = proto::TenantResourceLimits {
        max_memory_bytes: signed(limits.max_memory_bytes),
        max_cpu_cores: small(limits.max_cpu_cores),
        max_disk_bytes: signed(limits.max_disk_bytes),
        timeout_seconds: small(limits.timeout_seconds),
        sandbox_level: limits.sandbox_level.map_or(0, i32::from),
        allowed_registries: limits.allowed_registries,
        ..Default::default()
    };
    proto::BuildConfig {
        tenant: Some(proto::TenantContext {
            tenant_id: tenant.tenant_id.to_string(),
            customer_id: tenant.customer_id,
            organization_id: tenant.organization_id,
            tier: tier.into(),
            permissions: tenant.permissions,
            metadata: tenant.metadata.into_iter().collect(),
        }),
        source: Some(proto::BuildSource {
            source_type: Some(proto::build_source::SourceType::DockerImage(image)),
        }),
        target: Some(target(request.target)),
        strategy: Some(proto::BuildStrategy {
            strategy_type: Some(proto::build_strategy::StrategyType::DockerExtract(
                proto::DockerExtractStrategy {
                    preserve_layers: request.extract.preserve_layers,
                    flatten_filesystem: request.flatten_filesystem,
                    exclude_patterns: request.extract.exclude_patterns,
                },
            )),
        }),
        limits: (limits != proto::TenantResourceLimits::default()).then_some(limits),
        build_name: request.build_name,
        labels: request.labels.into_iter().collect(),
        suggested_asset_id: request.suggested_asset_id,
    }
}

fn target(target: builder_core::request::RootfsTarget) -> proto::BuildTarget {
    let init_strategy = match target.init {
        InitStrategy::Tini => proto::InitStrategy::Tini,
        InitStrategy::Direct => proto::InitStrategy::Direct,
        InitStrategy::Custom => proto::InitStrategy::Custom,
        // Only the command line can ask for it, and its builds are not kept by the service.
        InitStrategy::Raw => proto::InitStrategy::Unspecified,
    };
    let runtime = target.runtime;
    let runtime = proto::RuntimeConfig {
        command: runtime.command,
        entrypoint: runtime.entrypoint,
        working_dir: runtime.working_dir.unwrap_or_default(),
        environment: runtime.environment.into_iter().collect(),
        exposed_ports: runtime.exposed_ports,
    };
    let optimization = target.optimization;
    let optimization = proto::OptimizationSettings {
        strip_debug_symbols: optimization.strip_debug_symbols,
        compress_binaries: false,
        remove_docs: optimization.remove_docs,
        remove_cache: optimization.remove_cache,
        preserve_paths: optimization.preserve_paths,
        exclude_patterns: optimization.exclude_patterns,
    };
    // A read-only image has no free space; the domain's default is not something that was asked for.
    let (profile, free_space_bytes, free_inodes) = match target.profile {
        Profile::ReadWrite => ("rw", Some(target.free_space_bytes), Some(target.free_inodes)),
        Profile::ReadOnly => ("ro", None, None),
    };
    let layer_mode = match target.layer_mode {
        LayerMode::Oci => "oci",
        LayerMode::Docker => "docker",
    };
    let rootfs = proto::MicroVmRootfs {
        init_strategy: init_strategy.into(),
        runtime_config: (runtime != proto::RuntimeConfig::default()).then_some(runtime),
        optimization: (optimization != proto::OptimizationSettings::default()).then_some(optimization),
        preserve_paths: target.preserve_paths,
        profile: profile.to_owned(),
        free_space_bytes: signed(free_space_bytes),
        free_inodes: signed(free_inodes),
        layer_mode: layer_mode.to_owned(),
    };
    proto::BuildTarget {
        target_type: Some(proto::build_target::TargetType::MicrovmRootfs(rootfs)),
    }
}

fn image_metadata(metadata: ImageMetadata) -> proto::ImageMetadata {
    proto::ImageMetadata {
        original_image: metadata.original_image,
        image_digest: metadata.image_digest,
        layers: metadata.layers,
        labels: metadata.labels.into_iter().collect(),
        command: metadata.command,
        entrypoint: metadata.entrypoint,
        working_dir: metadata.working_dir,
        env: metadata.env.into_iter().collect(),
        exposed_ports: metadata.exposed_ports,
        user: metadata.user,
        volumes: metadata.volumes,
        stop_signal: metadata.stop_signal,
        healthcheck_json: metadata.healthcheck_json,
        profile: metadata.profile,
        kernel_args: metadata.kernel_args,
        platform: metadata.platform,
        verity_root_hash: metadata.verity_root_hash,
        verity_salt: metadata.verity_salt,
        verity_hash_offset: signed(Some(metadata.verity_hash_offset)),
        verity_kernel_args: metadata.verity_kernel_args,
    }
}

fn isolation(isolation: BuildIsolation) -> proto::BuildIsolation {
    proto::BuildIsolation {
        sandbox_id: isolation.sandbox_id,
        network_namespace: isolation.network_namespace,
        filesystem_namespace: isolation.filesystem_namespace,
        security_contexts: isolation.security_contexts,
        cgroup_path: isolation.cgroup_path,
        sandbox_level: i32::from(isolation.sandbox_level),
    }
}

fn metrics(metrics: &BuildMetrics) -> proto::BuildMetrics {
    let saved_percent = match (metrics.original_size_bytes, metrics.disk_usage_bytes) {
        (Some(original), Some(used)) if original > 0 => {
            original.saturating_sub(used).saturating_mul(100) / original
        }
        _ => 0,
    };
    let cores = match (metrics.cpu_time_ms, metrics.total_duration_ms) {
        (Some(cpu), Some(total)) if total > 0 => cpu.div_ceil(total),
        _ => 0,
    };
    proto::BuildMetrics {
        pull_duration_ms: signed(metrics.pull_duration_ms),
        extract_duration_ms: signed(metrics.extract_duration_ms),
        build_duration_ms: signed(metrics.build_duration_ms),
        optimize_duration_ms: signed(metrics.optimize_duration_ms),
        total_duration_ms: signed(metrics.total_duration_ms),
        original_size_bytes: signed(metrics.original_size_bytes),
        rootfs_size_bytes: signed(metrics.rootfs_size_bytes),
        compression_ratio: signed(Some(saved_percent)),
        memory_peak_bytes: signed(metrics.memory_peak_bytes),
        disk_usage_bytes: signed(metrics.disk_usage_bytes),
        cpu_cores_used: small(u32::try_from(cores).ok()),
        cpu_time_ms: signed(metrics.cpu_time_ms),
        io_read_bytes: signed(metrics.io_read_bytes),
        io_write_bytes: signed(metrics.io_write_bytes),
        pulled_bytes: signed(metrics.pulled_bytes),
        optimization: metrics.optimization.iter().map(savings).collect(),
    }
}

fn savings(savings: &Savings) -> proto::OptimizationSavings {
    proto::OptimizationSavings {
        rule: savings.rule.as_str().to_owned(),
        files: signed(Some(savings.files)),
        bytes: signed(Some(savings.bytes)),
    }
}

/// The wire's figures are signed; none of ours comes near the end of the range.
pub(super) fn signed(value: Option<u64>) -> i64 {
    i64::try_from(value.unwrap_or(0)).unwrap_or(i64::MAX)
}

pub(super) fn small(value: Option<u32>) -> i32 {
    i32::try_from(value.unwrap_or(0)).unwrap_or(i32::MAX)
}
